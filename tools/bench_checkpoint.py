"""Gemma 4 checkpoints of real shape with random or no content, for `bench_convert.py`."""

import json
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gguf_mtp.gemma4.config import FULL, SLIDING, read_text_config
from gguf_mtp.gemma4.tensors import block_shapes, named, target_tensors

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import tiny  # noqa: E402

VOCAB_SIZE = 262_144
CENTROIDS, TOP_K = 2048, 32
BLOCK_VALUES = 1 << 25
# size -> (layers between full ones, layers, of those sharing, hidden, wide, kv heads, double wide)
SIZES: dict[str, dict[str, Any]] = {
    "e2b": {"period": 5, "layers": 35, "shared": 20, "hidden": 1536, "wide": 6144, "kv": 1},
    "e4b": {"period": 6, "layers": 42, "shared": 18, "hidden": 2560, "wide": 10240, "kv": 2},
}

Shapes = dict[str, tuple[int, ...]]


def write_pair(root: Path, size: str, layers: int | None, *, sparse: bool) -> tuple[Path, Path]:
    """A base of `size`, with fewer `layers` if given, and its drafter, in `root`.

    `sparse` files have their length but no content; else values are normal, bf16, sigma 0.02.
    """
    shape = SIZES[size]
    n_layers = shape["layers"] if layers is None else layers
    if n_layers % shape["period"]:
        raise SystemExit(f"{size}: layers must be a multiple of {shape['period']}")
    shared = shape["shared"] * n_layers // shape["layers"] // shape["period"] * shape["period"]
    kinds = [SLIDING] * (shape["period"] - 1) + [FULL]
    text = {
        "model_type": "gemma4_text",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["wide"],
        "num_hidden_layers": n_layers,
        "layer_types": kinds * (n_layers // shape["period"]),
        "num_attention_heads": 8,
        "num_key_value_heads": shape["kv"],
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 512,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "use_double_wide_mlp": size == "e2b" and shared > 0,
        "final_logit_softcapping": 30.0,
        "rope_parameters": {
            FULL: {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
            SLIDING: {"rope_theta": 1e4, "rope_type": "default"},
        },
    }
    base, heads = root / f"{size}-bench", root / f"{size}-bench-assistant"
    shapes = {
        item.hf_name: item.shape
        for item in target_tensors(read_text_config(text, "bench", "gemma4_text"))
        if item.required
    }
    config = {"architectures": ["Gemma4ForCausalLM"], **text}
    _write(base, config, shapes, sparse)
    kv = {"num_attention_heads": 4}
    drafter = (
        text
        | kv
        | {
            "hidden_size": 256,
            "intermediate_size": 2048,
            "num_hidden_layers": 4,
            "layer_types": [SLIDING] * 3 + [FULL],
            "num_kv_shared_layers": 4,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "use_double_wide_mlp": False,
            "final_logit_softcapping": None,
        }
    )
    config = {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "model_type": "gemma4_assistant",
        "backbone_hidden_size": shape["hidden"],
        "use_ordered_embeddings": True,
        "num_centroids": CENTROIDS,
        "centroid_intermediate_top_k": TOP_K,
        "text_config": drafter,
    }
    _write(heads, config, _drafter_shapes(shape["hidden"]), False)
    return base, heads


def _drafter_shapes(backbone: int) -> Shapes:
    width = 256
    shapes: Shapes = {
        "model.embed_tokens.weight": (VOCAB_SIZE, width),
        "model.norm.weight": (width,),
        "pre_projection.weight": (width, 2 * backbone),
        "post_projection.weight": (backbone, width),
        "masked_embedding.centroids.weight": (CENTROIDS, width),
        "masked_embedding.token_ordering": (VOCAB_SIZE,),
    }
    for layer in range(4):
        head_dim = 512 if layer == 3 else 256
        blocks = block_shapes(width, 4 * head_dim, head_dim, 2048)
        shapes |= {item.hf_name: item.shape for item in named(layer, blocks)}
    return shapes


def _write(directory: Path, config: dict[str, Any], shapes: Shapes, sparse: bool) -> None:
    directory.mkdir(parents=True)
    tiny.write_json(directory / "config.json", config)
    tiny.write_json(directory / "tokenizer.json", _tokenizer())
    tiny.write_json(
        directory / "tokenizer_config.json",
        {
            **{f"{token[1:-1]}_token": token for token in tiny.CORE_TOKENS},
            "tokenizer_class": "GemmaTokenizer",
            "extra_special_tokens": list(tiny.CONTROL_TOKENS),
        },
    )
    header: dict[str, Any] = {}
    offset = 0
    for name, dims in sorted(shapes.items()):
        dtype = "I64" if name.endswith("token_ordering") else "BF16"
        nbytes = prod(dims) * (8 if dtype == "I64" else 2)
        header[name] = {
            "dtype": dtype,
            "shape": list(dims),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    block = _noise()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        if sparse:
            file.truncate(8 + len(encoded) + offset)
            return
        for entry in header.values():
            begin, end = entry["data_offsets"]
            if entry["dtype"] == "I64":
                order = np.random.default_rng(1).permutation(VOCAB_SIZE).astype("<i8")
                file.write(order.tobytes())
                continue
            for at in range(0, end - begin, len(block)):
                file.write(block[: end - begin - at])


def _noise() -> memoryview:
    """64 MiB of bf16 values, as they are in weights."""
    values = np.random.default_rng(0).standard_normal(BLOCK_VALUES, np.float32)
    values *= np.float32(0.02)
    return memoryview((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def _tokenizer() -> dict[str, Any]:
    """As many tokens and half as many merges as Gemma's own, which is what costs memory."""
    tokenizer = tiny.tokenizer_json()
    model = tokenizer["model"]
    vocab, merges = model["vocab"], model["merges"]
    for left, right in _pairs():
        if len(vocab) == VOCAB_SIZE:
            break
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    for letter in {letter for pair in merges for letter in pair} - set(vocab):
        raise SystemExit(f"{letter!r} is in a merge but no token")
    return tokenizer


def _pairs() -> Iterator[tuple[str, str]]:
    letters = [chr(code) for code in range(33, 127)]
    once = [a + b for a in letters for b in letters]
    yield from ((a, b) for a in letters for b in letters)
    for left in once:
        for right in letters:
            yield left, right
