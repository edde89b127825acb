"""Record what transformers' ``save_pretrained`` writes for every size of Gemma 4, scaled down.

For each size the target and its drafter are built with the size's own structure (number and kinds
of layers, shared layers, head counts, experts, per-layer inputs, encoders) at small widths, saved,
and described in ``tests/structures/SIZE.json``: configuration, and name, number type and shape of
every tensor; ``tokenizer.json`` there is a saved tokenizer without its words. The test suite fills
the same checkpoints with numbers of its own, so that it needs neither torch nor transformers. Run
it again when the pinned transformers changes:

    PYTHON_WITH_TRANSFORMERS tools/record_structures.py

Sizes: transformers' ``convert_gemma4_weights.py`` and ``convert_gemma4_unified_weights.py``.
"""

import argparse
import json
import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import tiny  # noqa: E402

# The names Google's tokenizers give to special tokens, as far as the test suite's has them.
SPECIAL_TOKENS = {
    "sot_token": "<|turn>",
    "eot_token": "<turn|>",
    "soc_token": "<|channel>",
    "eoc_token": "<channel|>",
    "stc_token": "<|tool_call>",
    "escape_token": '<|"|>',
}
LAYER = re.compile(r"\.layers\.(\d+)\.")

Config = dict[str, Any]

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 2,
    "position_embedding_size": 8,
}
ON_DEVICE_VISION = VISION | {"use_clipped_linears": True}
LARGE_VISION = VISION | {"standardize": True}
AUDIO = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [8, 4],
    "output_proj_dims": 16,
}
UNIFIED_VISION = {
    "patch_size": 2,
    "pooling_kernel_size": 2,
    "mm_embed_dim": 16,
    "mm_posemb_size": 8,
    "output_proj_dims": 16,
}
# Fields of the other family that Google's unified checkpoints carry along.
UNUSED = {
    "vocab_size_per_layer_input": 0,
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": False,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
}
GENERATION = {
    "bos_token_id": 2,
    "eos_token_id": [1, 6, 10],
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
}


@dataclass(frozen=True)
class Size:
    """One of Gemma 4's sizes: classes of `family`, text configurations, encoders."""

    name: str
    text: Config
    drafter: Config
    layer_types: list[str]
    family: str = "Gemma4"
    encoders: Config = field(default_factory=dict)
    assistant: Config = field(default_factory=dict)
    generation: Config = field(default_factory=dict)
    max_shard_size: str = "50GB"


def alternating(sliding: int, groups: int) -> list[str]:
    return ([tiny.SLIDING] * sliding + [tiny.FULL]) * groups


SMALL_DRAFTER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
ORDERED = {"use_ordered_embeddings": True, "num_centroids": 16, "centroid_intermediate_top_k": 4}
ON_DEVICE = {"vision_config": ON_DEVICE_VISION, "audio_config": AUDIO}
SIZES = (
    Size(
        "E2B",
        {
            "hidden_size": 64,
            "hidden_size_per_layer_input": 32,
            "intermediate_size": 96,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "num_kv_shared_layers": 20,
            "use_double_wide_mlp": True,
        },
        SMALL_DRAFTER | {"num_key_value_heads": 1},
        alternating(4, 7),
        encoders=ON_DEVICE,
        assistant=ORDERED,
    ),
    Size(
        "E4B",
        {
            "hidden_size": 96,
            "hidden_size_per_layer_input": 32,
            "intermediate_size": 128,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "num_kv_shared_layers": 18,
        },
        SMALL_DRAFTER | {"num_key_value_heads": 2},
        alternating(5, 7),
        encoders=ON_DEVICE,
        assistant=ORDERED,
    ),
    Size(
        "12B",
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "use_bidirectional_attention": "vision",
            **UNUSED,
        },
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            **UNUSED,
        },
        alternating(5, 8),
        family="Gemma4Unified",
        encoders={"vision_config": UNIFIED_VISION, "audio_config": {"audio_embed_dim": 16}},
        generation={"suppress_tokens": [9, 8]},
    ),
    Size(
        "26B-A4B",
        {
            "hidden_size": 64,
            "hidden_size_per_layer_input": 0,
            "intermediate_size": 96,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 2,
            "attention_k_eq_v": True,
            "use_bidirectional_attention": "vision",
            "enable_moe_block": True,
            "num_experts": 12,
            "moe_intermediate_size": 32,
            "top_k_experts": 8,
            "sliding_window": 1024,
            "max_position_embeddings": 262_144,
        },
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 2,
            "attention_k_eq_v": True,
            "sliding_window": 1024,
        },
        alternating(5, 5),
        encoders={"vision_config": LARGE_VISION},
        max_shard_size="4MB",
    ),
    Size(
        "31B",
        {
            "hidden_size": 32,
            "hidden_size_per_layer_input": 0,
            "intermediate_size": 96,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "num_global_key_value_heads": 4,
            "attention_k_eq_v": True,
            "use_bidirectional_attention": "vision",
            "sliding_window": 1024,
            "max_position_embeddings": 262_144,
        },
        {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "num_global_key_value_heads": 4,
            "attention_k_eq_v": True,
            "sliding_window": 1024,
        },
        alternating(5, 10),
        encoders={"vision_config": LARGE_VISION},
        max_shard_size="4MB",
    ),
)


def text_config(own: Config, layer_types: list[str]) -> Config:
    common = {
        "vocab_size": tiny.VOCAB_SIZE,
        "vocab_size_per_layer_input": tiny.VOCAB_SIZE,
        "num_hidden_layers": len(layer_types),
        "layer_types": layer_types,
        "head_dim": 16,
        "global_head_dim": 32,
        "eos_token_id": [1, 6],
    }
    return common | own


def build(size: Size) -> Iterator[tuple[str, Any]]:
    """The target and the drafter of `size` as transformers models, in bfloat16."""
    import torch
    import transformers

    target_class = getattr(transformers, f"{size.family}ForConditionalGeneration")
    target_config = target_class.config_class(
        text_config=text_config({"final_logit_softcapping": 30.0} | size.text, size.layer_types),
        **size.encoders,
    )
    target = target_class(target_config).to(torch.bfloat16)
    target.generation_config = transformers.GenerationConfig(**GENERATION, **size.generation)
    yield "target", target
    drafter_class = getattr(transformers, f"{size.family}AssistantForCausalLM")
    layer_types = alternating(3, 1)
    own = {
        "num_kv_shared_layers": len(layer_types),
        "vocab_size_per_layer_input": 0,
        "hidden_size_per_layer_input": 0,
    }
    drafter_config = drafter_class.config_class(
        text_config=text_config(own | size.drafter, layer_types),
        backbone_hidden_size=size.text["hidden_size"],
        **size.assistant,
    )
    yield "drafter", drafter_class(drafter_config).to(torch.bfloat16)


def saved_tokenizer() -> dict[str, Any]:
    """The files of an instruction-tuned model's tokenizer, without vocabulary and merges."""
    import transformers

    model = tiny.tokenizer_json()["model"]
    tokenizer = transformers.GemmaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        add_bos_token=False,
        padding_side="left",
        extra_special_tokens=SPECIAL_TOKENS,
    )
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        files = {
            name: json.loads((Path(scratch) / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("tokenizer", "tokenizer_config")
        }
    for name in ("vocab", "merges"):
        assert files["tokenizer"]["model"].pop(name) == model[name]
    return files


def describe(directory: Path) -> dict[str, Any]:
    """What was saved: JSON files as they are, weight files by name, tensors folded by layer."""
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    folded: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for name in files:
        for tensor, (dtype, shape) in read_header(directory / name).items():
            match = LAYER.search(tensor)
            pattern = LAYER.sub(".layers.*.", tensor)
            layers = folded.setdefault((pattern, dtype, shape), [])
            layers += [int(match[1])] if match else []
    rows = [
        [pattern, dtype, list(shape), spans(sorted(layers))]
        for (pattern, dtype, shape), layers in folded.items()
    ]
    return {
        "config": json.loads((directory / "config.json").read_text()),
        "generation_config": json.loads((directory / "generation_config.json").read_text()),
        "files": files,
        "tensors": sorted(rows),
    }


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__")
    return {name: (item["dtype"], tuple(item["shape"])) for name, item in header.items()}


def spans(numbers: list[int]) -> str:
    """``0-4,6`` for 0, 1, 2, 3, 4, 6."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def dump(record: dict[str, Any]) -> str:
    """JSON with one tensor pattern or configuration field a line."""

    def lines(value: Any, depth: int) -> str:
        if depth and isinstance(value, dict) and value:
            items = (f"{json.dumps(key)}: {lines(item, depth - 1)}" for key, item in value.items())
            return "{\n" + ",\n".join(items) + "\n}"
        if depth and isinstance(value, list) and value and isinstance(value[0], list):
            return "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
        return json.dumps(value)

    return lines(record, 4) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="record only sizes whose name contains this")
    arguments = parser.parse_args()
    import torch
    import transformers

    torch.set_num_threads(1)
    tiny.STRUCTURES.mkdir(exist_ok=True)
    (tiny.STRUCTURES / "tokenizer.json").write_text(dump(saved_tokenizer()))
    for size in SIZES:
        if arguments.only not in size.name:
            continue
        record: dict[str, Any] = {"made_with": f"transformers {transformers.__version__}"}
        for role, model in build(size):
            with tempfile.TemporaryDirectory() as scratch:
                model.save_pretrained(scratch, max_shard_size=size.max_shard_size)
                record[role] = describe(Path(scratch))
            print(size.name, role, len(record[role]["tensors"]), "kinds of tensor", flush=True)
        (tiny.STRUCTURES / f"{size.name}.json").write_text(dump(record))


if __name__ == "__main__":
    main()
