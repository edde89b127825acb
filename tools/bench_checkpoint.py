"""Gemma 4 checkpoints of real shape with random or no content, for `bench_convert.py`."""

import json
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bench.shapes import PAIRS
from gguf_mtp.gemma4.config import FULL, SLIDING, read_text_config
from gguf_mtp.gemma4.released import VOCABULARY, Released
from gguf_mtp.gemma4.tensors import block_shapes, named, target_tensors

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import tiny  # noqa: E402

BLOCK_VALUES = 1 << 25
Shapes = dict[str, tuple[int, ...]]


def write_pair(root: Path, size: str, layers: int | None, *, sparse: bool) -> tuple[Path, Path]:
    """A base of `size`, with fewer `layers` if given, and its drafter, in `root`.

    `sparse` files have their length but no content; else values are normal, bf16, sigma 0.02.
    """
    pair = PAIRS[size]
    shape = pair.target
    period = shape.layer_types.index(FULL) + 1
    n_layers = shape.n_layers if layers is None else layers
    if n_layers % period:
        raise SystemExit(f"{size}: layers must be a multiple of {period}")
    shared = shape.kv_shared_layers * n_layers // shape.n_layers // period * period
    text = {
        "model_type": "gemma4_text",
        "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": n_layers,
        "layer_types": list(shape.layer_types[:period]) * (n_layers // period),
        "num_attention_heads": 8,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 512,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": VOCABULARY,
        "use_double_wide_mlp": shape.double_wide_mlp and shared > 0,
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
    drafter = text | {
        "hidden_size": pair.drafter.hidden_size,
        "intermediate_size": pair.drafter.intermediate_size,
        "num_hidden_layers": pair.drafter.n_layers,
        "layer_types": list(pair.drafter.layer_types),
        "num_attention_heads": pair.drafter.heads,
        "num_kv_shared_layers": pair.drafter.kv_shared_layers,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "use_double_wide_mlp": False,
        "final_logit_softcapping": None,
    }
    config = {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "model_type": "gemma4_assistant",
        "backbone_hidden_size": shape.hidden_size,
        "use_ordered_embeddings": True,
        "num_centroids": pair.centroids,
        "centroid_intermediate_top_k": pair.top_k,
        "text_config": drafter,
    }
    _write(heads, config, _drafter_shapes(pair), False)
    return base, heads


def _drafter_shapes(pair: Released) -> Shapes:
    drafter, backbone = pair.drafter, pair.target.hidden_size
    width = drafter.hidden_size
    shapes: Shapes = {
        "model.embed_tokens.weight": (VOCABULARY, width),
        "model.norm.weight": (width,),
        "pre_projection.weight": (width, 2 * backbone),
        "post_projection.weight": (backbone, width),
        "masked_embedding.centroids.weight": (pair.centroids, width),
        "masked_embedding.token_ordering": (VOCABULARY,),
    }
    for layer in range(drafter.n_layers):
        head_dim = drafter.layer_head_dim(layer)
        blocks = block_shapes(
            width, drafter.heads * head_dim, head_dim, drafter.feed_forward(layer)
        )
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
                order = np.random.default_rng(1).permutation(VOCABULARY).astype("<i8")
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
        if len(vocab) == VOCABULARY:
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
