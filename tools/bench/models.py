"""Pairs of real shape with random weights, as GGUF files in the cache; memory stays flat.

What a model costs to run hangs on shapes and number types, hardly on values. The table of
per-layer embeddings (more than half of such a file, of which one row is read per token) is a hole
in the file: zeros that take no room.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import LlamaFileType

from bench.blocks import random_chunks
from bench.shapes import PAIRS
from gguf_mtp import api
from gguf_mtp.drafters.drafter import ARCH as DRAFTER_ARCH
from gguf_mtp.drafters.ordered_head import CENTROIDS, COUNT_KEY, ORDERING, TOP_K_KEY
from gguf_mtp.gemma4.config import TextConfig
from gguf_mtp.gemma4.keys import hyperparameters, quantization_version, rope_freqs
from gguf_mtp.gemma4.released import Released
from gguf_mtp.gemma4.target import ARCH as TARGET_ARCH
from gguf_mtp.gemma4.tensors import block_shapes, named, target_tensors
from gguf_mtp.ggml import BF16, F16, F32, I32, Q8_0, TYPES, GgmlType
from gguf_mtp.keyvalue import KeyValue, ValueType, array, boolean, string, strings, u32
from gguf_mtp.model import Tensor
from gguf_mtp.output import OutputFile, publish_all
from gguf_mtp.plan import Plan, plan
from llamacpp.pin import cache_dir

# The type of a file -> of its matrices, of its tied embeddings (llama.cpp's src/llama-quant.cpp:
# what also is the output keeps more bits), and its number.
FILE_TYPES = {
    "q4_0": (TYPES["Q4_0"], TYPES["Q6_K"], LlamaFileType.MOSTLY_Q4_0),
    "q8_0": (Q8_0, Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "f16": (F16, F16, LlamaFileType.MOSTLY_F16),
}
HOLE = "per_layer_token_embd.weight"
KEPT_16_BIT = "per_layer_model_proj.weight"
EMBEDDINGS = ("token_embd.weight", HOLE)

CORE_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
CONTROL_TOKENS = ("<|turn>", "<turn|>")
CONTROL, NORMAL, BYTE = 3, 1, 6
# Raise it when the bytes of a generated file change: the cache is keyed by it.
GENERATION = 1

Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchPair:
    """The files of one pair: `merged` for the patched programs, the two others for stock."""

    name: str
    base: Path
    drafter: Path
    merged: Path


def bench_pair(name: str, target_type: str, drafter_type: str, say: Say) -> BenchPair:
    """The files of pair `name`, generated where the cache lacks them.

    The types are among `FILE_TYPES`. Raises OutputError where there is no room.
    """
    shape = PAIRS[name]
    home = cache_dir() / "bench" / f"{name}-{GENERATION}"
    home.mkdir(parents=True, exist_ok=True)
    base = home / f"{name}-{target_type}.gguf"
    kinds = f"{target_type}-{drafter_type}"
    pair = BenchPair(
        name, base, home / f"{name}-drafter-{drafter_type}.gguf", home / f"{name}-mtp-{kinds}.gguf"
    )
    if not pair.base.exists():
        say(f"generating {pair.base.name}")
        _write(_target_plan(shape, target_type), pair.base)
    if not pair.merged.exists():
        say(f"generating {pair.merged.name}")
        ordered = home / f".ordered-{kinds}.gguf"
        try:
            _write(_drafter_plan(shape, drafter_type), ordered)
            api.convert(pair.base, ordered, pair.merged)
        finally:
            ordered.unlink(missing_ok=True)
        _dig_hole(pair.merged)
    if not pair.drafter.exists():
        say(f"generating {pair.drafter.name}")
        api.split(pair.merged, None, pair.drafter)
    return pair


def _dig_hole(path: Path) -> None:
    """Give back the room of the zeros that the converter has copied, where the system can."""
    if shutil.which("fallocate"):
        subprocess.run(["fallocate", "--dig-holes", str(path)], capture_output=True)


def _write(model: Plan, path: Path) -> None:
    """Write `model`: literal tensors as they are, the others random, `HOLE` not at all."""
    with OutputFile(path, model.total_bytes) as output:
        output.write(memoryview(model.header({})), 0)
        for slot in model.slots:
            tensor, at = slot.tensor, slot.offset
            if tensor.source:
                output.write(memoryview(tensor.source), at)  # type: ignore[arg-type]
            elif tensor.name != HOLE:
                seed = int.from_bytes(hashlib.sha256(tensor.name.encode()).digest()[:8], "little")
                for chunk in random_chunks(tensor.type, tensor.nbytes, seed):
                    output.write(chunk.data, at)
                    at += len(chunk)
        output.finish()
        publish_all((output,))


def _target_plan(shape: Released, file_type: str) -> Plan:
    config = shape.target
    matrix, embedding, _ = FILE_TYPES[file_type]
    kinds = {"token_embd.weight": embedding, HOLE: embedding, KEPT_16_BIT: BF16}
    tensors = [rope_freqs(config)]
    for item in target_tensors(config):
        if item.required:
            tensors.append(_tensor(item.name, item.shape, kinds.get(item.name, matrix)))
    keys = [*_keys(shape.name, config, TARGET_ARCH, file_type), *vocabulary(config.vocab_size)]
    return plan(tuple(keys), tuple(tensors))


def _drafter_plan(shape: Released, file_type: str) -> Plan:
    """The drafter with its ordered head. Stock llama.cpp wants a tokenizer in its file too."""
    config = shape.drafter
    matrix, embedding, _ = FILE_TYPES[file_type]
    width, backbone = config.hidden_size, shape.target.hidden_size
    tensors = [
        rope_freqs(config),
        _tensor("token_embd.weight", (config.vocab_size, width), embedding),
        _tensor("output_norm.weight", (width,), F32),
        _tensor("nextn.pre_projection.weight", (width, 2 * backbone), matrix),
        _tensor("nextn.post_projection.weight", (backbone, width), matrix),
    ]
    for layer in range(config.n_layers):
        head_dim = config.layer_head_dim(layer)
        shapes = block_shapes(width, config.heads * head_dim, head_dim, config.intermediate_size)
        tensors += (_tensor(item.name, item.shape, matrix) for item in named(layer, shapes))
    ordering = np.random.Generator(np.random.SFC64(1)).permutation(config.vocab_size).astype("<i4")
    tensors += (
        _tensor(CENTROIDS, (shape.centroids, width), F16 if matrix is F16 else F32),
        Tensor(ORDERING, I32, (config.vocab_size,), ordering.tobytes(), verbatim=True),
    )
    keys = [
        *_keys(f"{shape.name} drafter", config, DRAFTER_ARCH, file_type),
        u32(f"{DRAFTER_ARCH}.embedding_length_out", backbone),
        u32(f"{DRAFTER_ARCH}.nextn_predict_layers", config.n_layers),
        u32(COUNT_KEY, shape.centroids),
        u32(TOP_K_KEY, shape.top_k),
        *vocabulary(config.vocab_size),
    ]
    return plan(tuple(keys), tuple(tensors))


def _tensor(name: str, shape: tuple[int, ...], matrix: GgmlType) -> Tensor:
    """Norms and scales are ones; a matrix is random (`_write`)."""
    if len(shape) == 1:
        return Tensor(name, F32, shape, np.ones(shape, "<f4").tobytes(), verbatim=True)
    return Tensor(name, matrix, shape, b"")


def _keys(name: str, config: TextConfig, arch: str, file_type: str) -> Iterator[KeyValue]:
    yield string("general.architecture", arch)
    yield string("general.name", f"random {name}")
    number = FILE_TYPES[file_type][2]
    for key in hyperparameters(config, arch, F32):
        yield u32(key.name, number) if key.name == "general.file_type" else key
    yield quantization_version()


def vocabulary(n_tokens: int) -> list[KeyValue]:
    """`n_tokens` made-up tokens of Gemma 4's kind: specials, bytes, letters, words."""
    letters = ["▁", "\n", *(chr(code) for code in range(33, 127))]
    fixed = [*CORE_TOKENS, *CONTROL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    pairs = [f"{a} {b}" for a in "▁etaoin" for b in "etaoinshrdlu"]
    merged = [pair.replace(" ", "") for pair in pairs]
    words = [f"▁word{number}" for number in range(n_tokens - len(fixed) - len(merged))]
    n_control = len(CORE_TOKENS) + len(CONTROL_TOKENS)
    types = [CONTROL] * n_control + [BYTE] * 256 + [NORMAL] * (n_tokens - n_control - 256)
    return [
        string("tokenizer.ggml.model", "gemma4"),
        strings("tokenizer.ggml.tokens", [*fixed, *merged, *words]),
        array("tokenizer.ggml.scores", ValueType.FLOAT32, [-1000.0] * n_tokens),
        array("tokenizer.ggml.token_type", ValueType.INT32, types),
        strings("tokenizer.ggml.merges", pairs),
        *(
            u32(f"tokenizer.ggml.{name}_token_id", CORE_TOKENS.index(f"<{token}>"))
            for name, token in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"))
        ),
        u32("tokenizer.ggml.padding_token_id", 0),
        boolean("tokenizer.ggml.add_bos_token", True),
        boolean("tokenizer.ggml.add_space_prefix", False),
    ]
