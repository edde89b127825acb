"""Tiny random checkpoints in Gemma 4's shapes, the same bytes on every machine: no torch needed."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import shake_256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

SLIDING, FULL = "sliding_attention", "full_attention"
CORE_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
CONTROL_TOKENS = ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", '<|"|>')
VOCAB_SIZE = 512
DTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}


@dataclass(frozen=True)
class Kind:
    """One of Gemma 4's families, scaled down."""

    name: str
    layers: tuple[str, ...] = (SLIDING, SLIDING, FULL, SLIDING, FULL)
    shared: int = 2
    per_layer_input: int = 16
    double_wide: bool = True
    kv_heads: int = 1
    full_kv_heads: int | None = None
    k_eq_v: bool = False
    experts: int | None = None
    multimodal: bool = False
    ordered: bool = True


E2B = Kind("e2b", multimodal=True)
DENSE = Kind(
    "dense",
    layers=(SLIDING, SLIDING, SLIDING, FULL),
    shared=0,
    per_layer_input=0,
    double_wide=False,
    kv_heads=2,
    full_kv_heads=1,
    k_eq_v=True,
    ordered=False,
)
MOE = replace(DENSE, name="moe", experts=4)
KINDS = (E2B, DENSE, MOE)

HIDDEN, WIDE, HEADS, HEAD_DIM, FULL_HEAD_DIM = 64, 96, 2, 32, 64
DRAFTER_HIDDEN, DRAFTER_WIDE = 32, 64
EXPERT_WIDE = 32
CENTROIDS, TOP_K = 16, 4

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def noise(name: str, shape: tuple[int, ...], dtype: str) -> bytes:
    """Values within ±0.05, for norms and scalars around 1, from a hash of the name."""
    raw = np.frombuffer(shake_256(name.encode()).digest(2 * prod(shape)), "<u2")
    values = (raw.astype(np.float32) - 32768) * np.float32(0.05 / 32768)
    if "norm" in name or "scal" in name:
        values += 1
    if dtype == "F32":
        return bytes(values.tobytes())
    if dtype == "F16":
        return bytes(values.astype(np.float16).tobytes())
    return bytes((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """Write by hand, as numpy has no bfloat16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        offsets = [offset, offset + len(data)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        offset += len(data)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    body = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + body)


def _block(layer: int, width: int, wide: int, full: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    head_dim = FULL_HEAD_DIM if full else HEAD_DIM
    prefix = f"model.layers.{layer}."
    for name, shape in (
        ("input_layernorm.weight", (width,)),
        ("layer_scalar", (1,)),
        ("mlp.down_proj.weight", (width, wide)),
        ("mlp.gate_proj.weight", (wide, width)),
        ("mlp.up_proj.weight", (wide, width)),
        ("post_attention_layernorm.weight", (width,)),
        ("post_feedforward_layernorm.weight", (width,)),
        ("pre_feedforward_layernorm.weight", (width,)),
        ("self_attn.o_proj.weight", (width, HEADS * head_dim)),
        ("self_attn.q_norm.weight", (head_dim,)),
        ("self_attn.q_proj.weight", (HEADS * head_dim, width)),
    ):
        yield prefix + name, shape


def target_shapes(kind: Kind) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB_SIZE, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    per_layer = kind.per_layer_input
    if per_layer:
        packed = per_layer * len(kind.layers)
        shapes["model.embed_tokens_per_layer.weight"] = (VOCAB_SIZE, packed)
        shapes["model.per_layer_model_projection.weight"] = (packed, HIDDEN)
        shapes["model.per_layer_projection_norm.weight"] = (per_layer,)
    for layer, layer_type in enumerate(kind.layers):
        full = layer_type == FULL
        shares = layer >= len(kind.layers) - kind.shared
        shapes.update(_block(layer, HIDDEN, WIDE * (2 if shares else 1), full))
        prefix = f"model.layers.{layer}."
        head_dim = FULL_HEAD_DIM if full else HEAD_DIM
        kv_heads = (kind.full_kv_heads if full else None) or kind.kv_heads
        if not shares:
            shapes[f"{prefix}self_attn.k_norm.weight"] = (head_dim,)
            shapes[f"{prefix}self_attn.k_proj.weight"] = (kv_heads * head_dim, HIDDEN)
            if not (full and kind.k_eq_v):
                shapes[f"{prefix}self_attn.v_proj.weight"] = (kv_heads * head_dim, HIDDEN)
        if per_layer:
            shapes[f"{prefix}per_layer_input_gate.weight"] = (per_layer, HIDDEN)
            shapes[f"{prefix}per_layer_projection.weight"] = (HIDDEN, per_layer)
            shapes[f"{prefix}post_per_layer_input_norm.weight"] = (HIDDEN,)
        if kind.experts:
            shapes[f"{prefix}router.proj.weight"] = (kind.experts, HIDDEN)
            shapes[f"{prefix}router.scale"] = (HIDDEN,)
            shapes[f"{prefix}router.per_expert_scale"] = (kind.experts,)
            shapes[f"{prefix}experts.gate_up_proj"] = (kind.experts, 2 * EXPERT_WIDE, HIDDEN)
            shapes[f"{prefix}experts.down_proj"] = (kind.experts, HIDDEN, EXPERT_WIDE)
            for name in (
                "pre_feedforward_layernorm_2",
                "post_feedforward_layernorm_1",
                "post_feedforward_layernorm_2",
            ):
                shapes[f"{prefix}{name}.weight"] = (HIDDEN,)
    if kind.multimodal:
        shapes = {
            name.replace("model.", "model.language_model.", 1): s for name, s in shapes.items()
        }
        shapes["model.vision_tower.patch_embedder.input_proj.weight"] = (8, 8)
        shapes["model.embed_vision.embedding_projection.weight"] = (HIDDEN, 8)
    return shapes


def drafter_shapes(kind: Kind) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB_SIZE, DRAFTER_HIDDEN),
        "model.norm.weight": (DRAFTER_HIDDEN,),
        "post_projection.weight": (HIDDEN, DRAFTER_HIDDEN),
        "pre_projection.weight": (DRAFTER_HIDDEN, 2 * HIDDEN),
    }
    for layer, layer_type in enumerate((SLIDING, FULL)):
        shapes.update(_block(layer, DRAFTER_HIDDEN, DRAFTER_WIDE, layer_type == FULL))
    if kind.ordered:
        shapes["masked_embedding.centroids.weight"] = (CENTROIDS, DRAFTER_HIDDEN)
    return shapes


def text_config(kind: Kind, *, drafter: bool = False) -> dict[str, Any]:
    layers = [SLIDING, FULL] if drafter else list(kind.layers)
    config: dict[str, Any] = {
        "model_type": "gemma4_text",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": DRAFTER_HIDDEN if drafter else HIDDEN,
        "intermediate_size": DRAFTER_WIDE if drafter else WIDE,
        "num_hidden_layers": len(layers),
        "layer_types": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kind.kv_heads,
        "head_dim": HEAD_DIM,
        "global_head_dim": FULL_HEAD_DIM,
        "sliding_window": 64,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "attention_k_eq_v": kind.k_eq_v,
        "num_kv_shared_layers": len(layers) if drafter else kind.shared,
        "hidden_size_per_layer_input": 0 if drafter else kind.per_layer_input,
        "vocab_size_per_layer_input": 0 if drafter else VOCAB_SIZE,
        "use_double_wide_mlp": kind.double_wide and not drafter,
        "enable_moe_block": kind.experts is not None and not drafter,
        "final_logit_softcapping": None if drafter else 30.0,
        "eos_token_id": [1, 5],
        "bos_token_id": 2,
        "pad_token_id": 0,
        "rope_parameters": {
            FULL: {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
            SLIDING: {"rope_theta": 10000.0, "rope_type": "default"},
        },
    }
    if kind.full_kv_heads is not None:
        config["num_global_key_value_heads"] = kind.full_kv_heads
    if kind.experts is not None and not drafter:
        config |= {
            "num_experts": kind.experts,
            "top_k_experts": 2,
            "moe_intermediate_size": EXPERT_WIDE,
        }
    return config


def tokenizer_json() -> dict[str, Any]:
    """A byte-fallback BPE of `VOCAB_SIZE` tokens."""
    letters = ["▁", "\n", *(chr(code) for code in range(33, 127))]
    fixed = [*CORE_TOKENS, *CONTROL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    pairs = [(a, b) for a in "▁etaoin" for b in letters if b.islower() or b == "▁"]
    merges: list[list[str]] = []
    tokens = list(fixed)
    for pair in pairs:
        text = "".join(pair)
        if len(tokens) < VOCAB_SIZE and text not in tokens:
            tokens.append(text)
            merges.append(list(pair))
    specials = (*CORE_TOKENS, *CONTROL_TOKENS)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    bos, first, second = (
        {"SpecialToken": {"id": "<bos>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 0}},
    )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": tokens.index(text), "content": text, **plain, "special": True}
            for text in specials
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, bos, second],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate(tokens)},
            "merges": merges,
        },
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_tokenizer(directory: Path) -> None:
    write_json(directory / "tokenizer.json", tokenizer_json())
    settings: dict[str, Any] = {f"{token[1:-1]}_token": token for token in CORE_TOKENS}
    settings |= {
        "tokenizer_class": "GemmaTokenizer",
        "extra_special_tokens": list(CONTROL_TOKENS),
        "model_max_length": 1024,
    }
    write_json(directory / "tokenizer_config.json", settings)
    (directory / "chat_template.jinja").write_text("{{ bos_token }}\n{{ messages }}\n")


def _fill(shapes: dict[str, tuple[int, ...]], dtype: str) -> Tensors:
    name = DTYPES[dtype]
    return {key: (name, shape, noise(key, shape, name)) for key, shape in sorted(shapes.items())}


def ordering(n_tokens: int = VOCAB_SIZE) -> bytes:
    """A fixed permutation of the token ids, as I64."""
    keys = np.frombuffer(shake_256(b"ordering").digest(8 * n_tokens), "<u8")
    return np.argsort(keys, kind="stable").astype("<i8").tobytes()


def write_target(
    directory: Path, kind: Kind = E2B, dtype: str = "bf16", *, shards: int = 1
) -> Path:
    """Write a base checkpoint into `directory`, which is made; returns it."""
    directory.mkdir(parents=True)
    config = text_config(kind)
    if kind.multimodal:
        config = {
            "architectures": ["Gemma4ForConditionalGeneration"],
            "model_type": "gemma4",
            "text_config": config,
        }
    else:
        config["architectures"] = ["Gemma4ForCausalLM"]
    write_json(directory / "config.json", config)
    tensors = _fill(target_shapes(kind), dtype)
    names = [f"model-{index + 1:05}-of-{shards:05}.safetensors" for index in range(shards)]
    _write_files(directory, tensors, ["model.safetensors"] if shards == 1 else names)
    write_tokenizer(directory)
    _write_card(directory)
    generation = {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "repetition_penalty": 1.1}
    write_json(directory / "generation_config.json", generation)
    return directory


def _write_files(directory: Path, tensors: Tensors, names: list[str]) -> None:
    """Deal `tensors` out to the files `names`, with an index where there are several."""
    weight_map: dict[str, str] = {}
    for index, name in enumerate(names):
        part = dict(list(tensors.items())[index :: len(names)])
        write_safetensors(directory / name, part)
        weight_map |= dict.fromkeys(part, name)
    if len(names) > 1:
        write_json(directory / "model.safetensors.index.json", {"weight_map": weight_map})


def _write_card(directory: Path) -> None:
    card = "---\nlicense: apache-2.0\nlanguage:\n- en\ntags:\n- tiny\n---\n# Tiny\n"
    (directory / "README.md").write_text(card)


def write_drafter(directory: Path, kind: Kind = E2B, dtype: str = "bf16") -> Path:
    """Write an assistant checkpoint that fits `write_target`'s of the same kind."""
    directory.mkdir(parents=True)
    config = {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "model_type": "gemma4_assistant",
        "backbone_hidden_size": HIDDEN,
        "use_ordered_embeddings": kind.ordered,
        "num_centroids": CENTROIDS,
        "centroid_intermediate_top_k": TOP_K,
        "text_config": text_config(kind, drafter=True),
    }
    write_json(directory / "config.json", config)
    tensors = _fill(drafter_shapes(kind), dtype)
    if kind.ordered:
        data = ("I64", (VOCAB_SIZE,), ordering())
        tensors = {"masked_embedding.token_ordering": data, **tensors}
    write_safetensors(directory / "model.safetensors", tensors)
    write_tokenizer(directory)
    return directory


# The sizes of Gemma 4, of which ``tools/record_structures.py`` recorded the structure.
SIZES = ("E2B", "E4B", "12B", "26B-A4B", "31B")
STRUCTURES = Path(__file__).resolve().parent / "structures"

# Front matter in the manner of Google's model cards.
CARD = """---
library_name: transformers
license: apache-2.0
license_link: https://ai.google.dev/gemma/docs/gemma_4_license
pipeline_tag: any-to-any
base_model:
- google/gemma-4-{size}
---
# Small
"""


def structure(size: str, role: str) -> dict[str, Any]:
    """What transformers saved for the `role`, target or drafter, of a `size`."""
    recorded: dict[str, Any] = json.loads((STRUCTURES / f"{size}.json").read_text())[role]
    return recorded


def structure_shapes(recorded: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Number type and shape of every tensor, sorted by name."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for pattern, dtype, shape, layers in recorded["tensors"]:
        for layer in _numbers(layers) if layers else [""]:
            found[pattern.replace("*", str(layer))] = (dtype, tuple(shape))
    return dict(sorted(found.items()))


def _numbers(spans: str) -> Iterator[int]:
    """``0-2,5`` as 0, 1, 2, 5."""
    for span in spans.split(","):
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)


def write_structure(directory: Path, size: str, role: str, dtype: str = "bf16") -> Path:
    """Write a checkpoint of a size's recorded structure, its floats in `dtype`."""
    directory.mkdir(parents=True)
    recorded = structure(size, role)
    tensors: Tensors = {}
    for name, (recorded_dtype, shape) in structure_shapes(recorded).items():
        if recorded_dtype == "I64":
            tensors[name] = ("I64", shape, ordering(*shape))
        else:
            tensors[name] = (DTYPES[dtype], shape, noise(name, shape, DTYPES[dtype]))
    _write_files(directory, tensors, recorded["files"])
    for name in ("config", "generation_config"):
        write_json(directory / f"{name}.json", recorded[name])
    saved = json.loads((STRUCTURES / "tokenizer.json").read_text(encoding="utf-8"))
    saved["tokenizer"]["model"] |= tokenizer_json()["model"]
    for name in ("tokenizer", "tokenizer_config"):
        write_json(directory / f"{name}.json", saved[name])
    (directory / "chat_template.jinja").write_text("{{ bos_token }}\n{{ messages }}\n")
    (directory / "README.md").write_text(CARD.format(size=size))
    return directory
