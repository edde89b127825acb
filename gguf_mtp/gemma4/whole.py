"""Whether a GGUF is a whole Gemma 4 model: its tensors are held against its keys.

llama.cpp loads a file only if it has every tensor that its keys call for, in the right shape, and
no other. Checking that here names the cause before anything is written.

Source: llama.cpp ``src/models/gemma4.cpp`` (tensors), ``src/llama-model.cpp`` (scales).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.gemma4.config import FULL, SLIDING
from gguf_mtp.gemma4.keys import ROPE_FREQS
from gguf_mtp.gemma4.shape import INTEGERS, Keys, ModelShape
from gguf_mtp.gemma4.tensors import block_shapes
from gguf_mtp.model import Half

Shapes = dict[str, tuple[int, ...]]

# Matrices that may come with factors of their own, as in NVFP4 files: `.scale` and `.input_scale`,
# one value each, or one for each expert.
SCALED = re.compile(
    r"(?:output|blk\.\d+\.(?:attn_(?:q|k|v|output|qkv)|ffn_(?:gate|up|down)(?:_exps)?))\.weight"
)
SCALES = (".scale", ".input_scale")
SHARED = "attention.shared_kv_layers"
PER_LAYER = "embedding_length_per_layer_input"


@dataclass(frozen=True)
class _Sizes:
    """What the keys state beyond `ModelShape`; sizes in elements, 0 where there is none."""

    per_layer_input: int
    experts: int
    expert_forward: tuple[int, ...]


def check_whole(half: Half, shape: ModelShape, arch: str) -> None:
    """Raise FormatError for a missing or misshaped tensor or a missing key of `half`, a model of
    architecture `arch`, and UnsupportedError for a tensor that is not part of one."""
    sizes = _read_sizes(half, shape, arch)
    found = {tensor.name: tensor.shape for tensor in half.tensors}
    needed, optional = _expected(shape, sizes, found)
    for name in needed:
        if name not in found:
            raise FormatError(_missing(half, arch, name))
    known = needed | optional
    known |= _scales(known, sizes.experts)
    for name, dims in found.items():
        if name not in known:
            raise UnsupportedError(
                f"{half.origin}: tensor {name!a} is not part of a {arch} model; "
                f"llama.cpp does not load a file that holds it"
            )
        if dims != known[name]:
            raise FormatError(
                f"{half.origin}: tensor {name} has shape {list(dims)}, "
                f"expected {list(known[name])} from the file's keys"
            )
    for group in _kept_together(shape):
        present = [name for name in group if name in found]
        if present and len(present) < len(group):
            lost = next(name for name in group if name not in found)
            raise FormatError(f"{half.origin}: tensor {lost} is missing, {present[0]} is there")


def _read_sizes(half: Half, shape: ModelShape, arch: str) -> _Sizes:
    keys = Keys(half, arch)
    for name in ("context_length", "attention.sliding_window"):
        keys.size(name)
    keys.number("attention.layer_norm_rms_epsilon")
    for key, value in (("key_length", "value_length"), ("key_length_swa", "value_length_swa")):
        expected, found = (keys.size(f"attention.{name}") for name in (key, value))
        if expected != found:
            raise FormatError(
                f"{half.origin}: {arch}.attention.{value} is {found}, expected {expected}, "
                f"as {arch}.attention.{key}"
            )
    per_layer = keys.size(PER_LAYER, low=0)
    if per_layer and f"{arch}.{SHARED}" not in half.by_name:
        raise FormatError(
            f"{half.origin}: key {arch}.{SHARED} is missing; a model with {arch}.{PER_LAYER} "
            f"shares keys and values between layers, so the file has lost it"
        )
    experts = keys.size("expert_count", low=0) if f"{arch}.expert_count" in half.by_name else 0
    if not experts:
        return _Sizes(per_layer, 0, (0,) * shape.n_layers)
    keys.size("expert_used_count", experts)
    forward = keys.per_layer("expert_feed_forward_length", shape.n_layers, INTEGERS)
    return _Sizes(per_layer, experts, forward)


def _expected(
    shape: ModelShape, sizes: _Sizes, found: Mapping[str, object]
) -> tuple[Shapes, Shapes]:
    """The tensors that must be there, and those that may."""
    width, per_layer = shape.hidden_size, sizes.per_layer_input
    rows = (shape.vocab_size, width)
    needed: Shapes = {"token_embd.weight": rows, "output_norm.weight": (width,)}
    optional: Shapes = {"output.weight": rows}
    if FULL in shape.layer_types:
        needed[ROPE_FREQS] = (shape.head_dims[shape.layer_types.index(FULL)] // 2,)
    if per_layer:
        packed = shape.n_layers * per_layer
        needed |= {
            "per_layer_token_embd.weight": (shape.vocab_size, packed),
            "per_layer_model_proj.weight": (packed, width),
            "per_layer_proj_norm.weight": (per_layer,),
        }
    for layer in range(shape.n_layers):
        block_needed, block_optional = _block(shape, sizes, layer, found)
        needed |= {f"blk.{layer}.{name}": dims for name, dims in block_needed.items()}
        optional |= {f"blk.{layer}.{name}": dims for name, dims in block_optional.items()}
    return needed, optional


def _block(
    shape: ModelShape, sizes: _Sizes, layer: int, found: Mapping[str, object]
) -> tuple[Shapes, Shapes]:
    width, head_dim, per_layer = shape.hidden_size, shape.head_dims[layer], sizes.per_layer_input
    query, kv = shape.heads * head_dim, shape.kv_heads[layer] * head_dim
    needed = block_shapes(width, query, head_dim, shape.feed_forward[layer])
    # Not every converter writes it: none or all, see `_kept_together`.
    optional = {"layer_output_scale.weight": needed.pop("layer_output_scale.weight")}
    attention: Shapes = {"attn_k.weight": (kv, width), "attn_k_norm.weight": (head_dim,)}
    value: Shapes = {"attn_v.weight": (kv, width)}
    if layer >= shape.n_layers - shape.shared_kv_layers:
        # Published files have them or not; they are never used.
        optional |= attention | value
    elif shape.layer_types[layer] == SLIDING:
        needed |= attention | value
    else:
        # Layers with full attention may use their keys as values.
        needed |= attention
        optional |= value
    fused = "attn_qkv.weight"
    if f"blk.{layer}.{fused}" in found:
        for name in ("attn_q.weight", "attn_k.weight", "attn_v.weight"):
            needed.pop(name, None)
            optional.pop(name, None)
        needed[fused] = (query + 2 * kv, width)
    if per_layer:
        needed |= {
            "inp_gate.weight": (per_layer, width),
            "proj.weight": (width, per_layer),
            "post_norm.weight": (width,),
        }
    if sizes.experts:
        _add_experts(needed, optional, shape, sizes, layer, found)
    return needed, optional


def _add_experts(
    needed: Shapes,
    optional: Shapes,
    shape: ModelShape,
    sizes: _Sizes,
    layer: int,
    found: Mapping[str, object],
) -> None:
    width, experts, forward = shape.hidden_size, sizes.experts, sizes.expert_forward[layer]
    needed |= {
        "ffn_gate_inp.weight": (experts, width),
        "ffn_gate_inp.scale": (width,),
        "pre_ffw_norm_2.weight": (width,),
        "post_ffw_norm_1.weight": (width,),
        "post_ffw_norm_2.weight": (width,),
        "ffn_down_exps.weight": (experts, width, forward),
    }
    optional["ffn_down_exps.scale"] = (experts,)
    if f"blk.{layer}.ffn_gate_exps.weight" in found:
        needed["ffn_gate_exps.weight"] = needed["ffn_up_exps.weight"] = (experts, forward, width)
    else:
        needed["ffn_gate_up_exps.weight"] = (experts, 2 * forward, width)


def _scales(known: Iterable[str], experts: int) -> Shapes:
    return {
        name.removesuffix(".weight") + scale: (experts if "_exps" in name else 1,)
        for name in known
        if SCALED.fullmatch(name)
        for scale in SCALES
    }


def _kept_together(shape: ModelShape) -> Iterator[list[str]]:
    """Tensors of which a file has all or none."""
    yield [f"blk.{layer}.layer_output_scale.weight" for layer in range(shape.n_layers)]
    owners = range(shape.n_layers - shape.shared_kv_layers)
    full = [layer for layer in owners if shape.layer_types[layer] == FULL]
    yield [f"blk.{layer}.attn_v.weight" for layer in full]


def _missing(half: Half, arch: str, name: str) -> str:
    text = f"{half.origin}: tensor {name} is missing: the file is not a whole model"
    if re.fullmatch(r"blk\.\d+\.attn_[kv](?:_norm)?\.weight", name):
        stated = half.value(f"{arch}.{SHARED}")
        text += f" ({arch}.{SHARED} is {stated}, so this layer needs keys and values of its own)"
    return text
