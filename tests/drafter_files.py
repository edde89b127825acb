"""Small random drafters of every family but MTP heads, for a given base: keys and tensors as the
pinned llama.cpp's loader wants them (``src/models/{eagle3,dflash,gemma3,llama,gemma4}.cpp``)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import tiny
from gguf_mtp.gemma4.shape import ModelShape, read_shape
from gguf_mtp.gemma4.target import target_half
from gguf_mtp.ggml import F32, type_by_name
from gguf_mtp.keyvalue import KeyValue, ValueType, array, f32, string, u32
from gguf_mtp.model import Half, Tensor
from gguf_mtp.plan import plan
from gguf_mtp.readers.checkpoint import read_checkpoint
from gguf_mtp.writer import write_gguf

I64 = type_by_name("I64")
HEADS, KV_HEADS, HEAD_DIM, WIDE = 2, 1, 16, 48
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Drafter:
    """Keys by name and tensors by name, in order, so that a test can change one."""

    keys: dict[str, KeyValue]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def having(self, *parts: object) -> "Drafter":
        """With keys and tensors replaced or added."""
        keys = {part.name: part for part in parts if isinstance(part, KeyValue)}
        tensors = {part.name: part for part in parts if isinstance(part, Tensor)}
        return Drafter(self.keys | keys, self.tensors | tensors)

    def without(self, *names: str) -> "Drafter":
        return Drafter(
            {name: key for name, key in self.keys.items() if name not in names},
            {name: tensor for name, tensor in self.tensors.items() if name not in names},
        )

    def write(self, path: Path) -> Path:
        write_gguf(plan(tuple(self.keys.values()), tuple(self.tensors.values())), path)
        return path


def random(name: str, shape: tuple[int, ...]) -> Tensor:
    """`shape` outermost first."""
    return Tensor(name, F32, shape, tiny.noise(name, shape, "F32"), verbatim=True)


def d2t(tokens: Iterable[int]) -> Tensor:
    """The target's token for each one that is drafted."""
    ids = np.array(list(tokens), "<i8")
    return Tensor("d2t", I64, (len(ids),), ids.tobytes(), verbatim=True)


def tokenizer(base: Half) -> tuple[KeyValue, ...]:
    return tuple(key for key in base.keys if key.name.startswith("tokenizer."))


def _drafter(keys: Iterable[KeyValue], shapes: Shapes) -> Drafter:
    tensors = {name: random(name, shape) for name, shape in shapes.items()}
    return Drafter({key.name: key for key in keys}, tensors)


def _keys(base: Half, arch: str, width: int, blocks: int) -> list[KeyValue]:
    return [
        string("general.architecture", arch),
        string("general.name", f"Small {arch}"),
        u32(f"{arch}.block_count", blocks),
        u32(f"{arch}.context_length", 1024),
        u32(f"{arch}.embedding_length", width),
        u32(f"{arch}.feed_forward_length", WIDE),
        u32(f"{arch}.attention.head_count", HEADS),
        u32(f"{arch}.attention.head_count_kv", KV_HEADS),
        u32(f"{arch}.attention.key_length", HEAD_DIM),
        u32(f"{arch}.attention.value_length", HEAD_DIM),
        f32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6),
        f32(f"{arch}.rope.freq_base", 10000.0),
        u32(f"{arch}.rope.dimension_count", HEAD_DIM),
        *tokenizer(base),
    ]


def _block(layer: int, width: int, inner: int | None = None) -> Shapes:
    """A layer whose attention reads rows of `inner`."""
    at, inner = f"blk.{layer}.", inner or width
    return {
        f"{at}attn_norm.weight": (width,),
        f"{at}attn_q.weight": (HEADS * HEAD_DIM, inner),
        f"{at}attn_k.weight": (KV_HEADS * HEAD_DIM, inner),
        f"{at}attn_v.weight": (KV_HEADS * HEAD_DIM, inner),
        f"{at}attn_output.weight": (width, HEADS * HEAD_DIM),
        f"{at}ffn_norm.weight": (width,),
        f"{at}ffn_gate.weight": (WIDE, width),
        f"{at}ffn_up.weight": (WIDE, width),
        f"{at}ffn_down.weight": (width, WIDE),
    }


def _shape(base: Half) -> ModelShape:
    return read_shape(base, "gemma4")


def eagle3(base: Half) -> Drafter:
    """Embeddings and output are the target's."""
    shape = _shape(base)
    width = shape.hidden_size
    keys = [
        *_keys(base, "eagle3", width, 1),
        array("eagle3.target_layers", ValueType.INT32, [1, 2, shape.n_layers]),
        u32("eagle3.target_hidden_size", width),
    ]
    return _drafter(
        keys,
        {
            "fc.weight": (width, 3 * width),
            "output_norm.weight": (width,),
            "blk.0.attn_norm_2.weight": (width,),
            **_block(0, width, 2 * width),
        },
    )


def eagle3_own(base: Half) -> Drafter:
    """A width, embeddings and an output of its own, over every other token."""
    shape = _shape(base)
    width, tokens = 32, range(0, shape.vocab_size, 2)
    keys = [
        *_keys(base, "eagle3", width, 1),
        array("eagle3.target_layers", ValueType.INT32, [0, 1, 3]),
        u32("eagle3.target_hidden_size", shape.hidden_size),
    ]
    shapes = {
        "token_embd.weight": (shape.vocab_size, width),
        "output.weight": (len(tokens), width),
        "fc.weight": (width, 3 * shape.hidden_size),
        "output_norm.weight": (width,),
        "blk.0.attn_norm_2.weight": (width,),
        **_block(0, width, 2 * width),
    }
    return _drafter(keys, shapes).having(d2t(tokens))


def dflash(base: Half) -> Drafter:
    """Embeddings and output are the target's; two blocks read two layers."""
    shape = _shape(base)
    width = shape.hidden_size
    keys = [
        *_keys(base, "dflash", width, 2),
        array("dflash.target_layers", ValueType.INT32, [1, shape.n_layers - 1]),
        u32("dflash.block_size", 5),
        u32("tokenizer.ggml.mask_token_id", 4),
    ]
    return _drafter(
        keys,
        {
            "fc.weight": (width, 2 * width),
            "enc.output_norm.weight": (width,),
            "output_norm.weight": (width,),
            **_block(0, width),
            **_block(1, width),
            **{f"blk.{at}.attn_{name}_norm.weight": (HEAD_DIM,) for at in (0, 1) for name in "qk"},
        },
    )


def dspark(base: Half) -> Drafter:
    """DFlash with a Markov head."""
    rank, tokens = 8, _shape(base).vocab_size
    plain = dflash(base)
    return plain.having(*(random(f"markov_w{n}.weight", (tokens, rank)) for n in (1, 2)))


def gemma3(base: Half) -> Drafter:
    width = 32
    keys = [
        *_keys(base, "gemma3", width, 2),
        u32("gemma3.attention.sliding_window", 64),
    ]
    shapes: Shapes = {"token_embd.weight": (_shape(base).vocab_size, width)}
    for layer in (0, 1):
        at = f"blk.{layer}."
        shapes |= {
            **_block(layer, width),
            f"{at}attn_q_norm.weight": (HEAD_DIM,),
            f"{at}attn_k_norm.weight": (HEAD_DIM,),
            f"{at}post_attention_norm.weight": (width,),
            f"{at}post_ffw_norm.weight": (width,),
        }
    return _drafter(keys, shapes | {"output_norm.weight": (width,)})


def llama(base: Half) -> Drafter:
    width, tokens = 32, _shape(base).vocab_size
    shapes: Shapes = {
        "token_embd.weight": (tokens, width),
        "output_norm.weight": (width,),
        "output.weight": (tokens, width),
        **_block(0, width),
    }
    return _drafter(_keys(base, "llama", width, 1), shapes)


def gemma4(base: Half, directory: Path) -> Drafter:
    """A small Gemma 4 with the base's tokenizer; `directory` is made and holds a checkpoint."""
    kind = replace(tiny.E2B, layers=(tiny.SLIDING, tiny.FULL, tiny.SLIDING, tiny.FULL))
    half = target_half(read_checkpoint(tiny.write_target(directory, kind)), "f32")
    own = {key.name: key for key in half.keys if not key.name.startswith("tokenizer.")}
    own |= {key.name: key for key in tokenizer(base)}
    drafter = Drafter(own, {tensor.name: tensor for tensor in half.tensors})
    tables = ("token_embd.weight", "per_layer_token_embd.weight")
    tokens = _shape(base).vocab_size
    return drafter.having(
        *(random(name, (tokens, drafter.tensors[name].shape[1])) for name in tables)
    )


# By name, with the --spec-type that runs each.
MADE: dict[str, tuple[Callable[[Half], Drafter], str]] = {
    "eagle3": (eagle3, "draft-eagle3"),
    "eagle3-own": (eagle3_own, "draft-eagle3"),
    "dflash": (dflash, "draft-dflash"),
    "dspark": (dspark, "draft-dspark"),
    "gemma3": (gemma3, "draft-simple"),
    "llama": (llama, "draft-simple"),
}
