"""Ways in which the same checkpoint may be written, each an edit of a directory from `tiny`."""

import json
import struct
from collections.abc import Callable
from hashlib import shake_256
from pathlib import Path
from typing import Any

import numpy as np

import tiny

LANGUAGE = "model.language_model."
# What Gemma 4's two text configurations do not share: transformers' unified one has none of it.
ONLY_GEMMA4_TEXT = (
    "vocab_size_per_layer_input",
    "hidden_size_per_layer_input",
    "enable_moe_block",
    "num_experts",
    "top_k_experts",
    "moe_intermediate_size",
)


def edit_json(directory: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """`change` the object in a file, or replace it by what `change` returns."""
    value = json.loads((directory / name).read_text(encoding="utf-8"))
    changed = change(value)
    tiny.write_json(directory / name, changed if isinstance(changed, dict) else value)


def edit_tensors(directory: Path, change: Callable[[tiny.Tensors], tiny.Tensors]) -> None:
    """Write all tensors, changed, to the one file ``model.safetensors``."""
    tensors: tiny.Tensors = {}
    for path in sorted(directory.glob("model*")):
        if path.suffix == ".safetensors":
            tensors |= _read(path)
        path.unlink()
    tiny.write_safetensors(directory / "model.safetensors", change(tensors))


def _read(path: Path) -> tiny.Tensors:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    body = data[8 + length :]
    return {
        name: (item["dtype"], tuple(item["shape"]), body[slice(*item["data_offsets"])])
        for name, item in header.items()
    }


def rename(directory: Path, old: str, new: str) -> None:
    """Drop everything whose name does not begin with `old`, which becomes `new`."""
    edit_tensors(
        directory,
        lambda tensors: {
            new + name.removeprefix(old): item
            for name, item in tensors.items()
            if name.startswith(old)
        },
    )


def google(directory: Path) -> None:
    """The full-attention layers' widths as Google's configurations spell them."""

    def change(config: dict[str, Any]) -> None:
        text = config["text_config"]
        entry = next(iter(text.pop("per_layer_config").values()))
        text["global_head_dim"] = entry["head_dim"]
        text["num_global_key_value_heads"] = entry.get("num_key_value_heads")

    edit_json(directory, "config.json", change)


def bare(directory: Path) -> None:
    """A unified configuration as transformers alone writes it."""

    def change(config: dict[str, Any]) -> None:
        for name in ONLY_GEMMA4_TEXT:
            del config["text_config"][name]

    edit_json(directory, "config.json", change)


def text_only(directory: Path) -> None:
    """The text stack saved by itself, with its language-modelling class."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        name = config["architectures"][0].replace("ForConditionalGeneration", "ForCausalLM")
        return {**config["text_config"], "architectures": [name]}

    edit_json(directory, "config.json", change)
    rename(directory, LANGUAGE, "model.")


def headless(directory: Path) -> None:
    """The text stack saved by itself, as the class without a head and so without any prefix."""
    text_only(directory)

    def change(config: dict[str, Any]) -> None:
        config["architectures"] = [config["architectures"][0].replace("ForCausalLM", "TextModel")]

    edit_json(directory, "config.json", change)
    rename(directory, "model.", "")


def older(directory: Path) -> None:
    """Names as transformers 4 saved multimodal models."""
    rename(directory, LANGUAGE, "language_model.model.")


def untied(directory: Path) -> None:
    """An output head of its own."""

    def change(tensors: tiny.Tensors) -> tiny.Tensors:
        dtype, shape, _ = tensors[f"{LANGUAGE}embed_tokens.weight"]
        head = (dtype, shape, tiny.noise("lm_head.weight", shape, dtype))
        return {**tensors, "lm_head.weight": head}

    edit_tensors(directory, change)
    edit_json(directory, "config.json", lambda config: config.update(tie_word_embeddings=False))


def surplus(directory: Path) -> None:
    """Keys and values of layers that use those of earlier ones, which transformers ignores."""

    def change(tensors: tiny.Tensors) -> tiny.Tensors:
        added: tiny.Tensors = {}
        # The last layers of either kind that own keys and values, and that share them.
        for owner, layer in ((13, 33), (14, 34)):
            for part in ("k_proj", "v_proj", "k_norm"):
                dtype, shape, _ = tensors[f"{LANGUAGE}layers.{owner}.self_attn.{part}.weight"]
                name = f"{LANGUAGE}layers.{layer}.self_attn.{part}.weight"
                added[name] = (dtype, shape, tiny.noise(name, shape, dtype))
        return tensors | added

    edit_tensors(directory, change)


def extremes(directory: Path) -> None:
    """In one tensor, every finite value of a 16-bit type, or F32 values of all magnitudes."""
    patterns = {
        "BF16": (np.arange(1 << 16, dtype="<u2"), 0x7F80),
        "F16": (np.arange(1 << 16, dtype="<u2"), 0x7C00),
        "F32": (np.frombuffer(shake_256(b"extremes").digest(1 << 18), "<u4"), 0x7F800000),
    }

    def change(tensors: tiny.Tensors) -> tiny.Tensors:
        name = f"{LANGUAGE}embed_tokens_per_layer.weight"
        dtype, shape, _ = tensors[name]
        bits, exponent = patterns[dtype]
        finite = bits[(bits & exponent) != exponent]
        return tensors | {name: (dtype, shape, np.resize(finite, shape).tobytes())}

    edit_tensors(directory, change)


def plain_directory(directory: Path) -> None:
    """No model card and no generation_config.json."""
    (directory / "README.md").unlink()
    (directory / "generation_config.json").unlink()


def template_in_settings(directory: Path) -> None:
    """It wins over chat_template.jinja."""
    edit_json(directory, "tokenizer_config.json", lambda s: s.update(chat_template="settings\r\n"))


def template_in_json(directory: Path) -> None:
    """As processors saved it before; the .jinja file would win."""
    (directory / "chat_template.jinja").unlink()
    tiny.write_json(directory / "chat_template.json", {"chat_template": "{{ older }}\n"})


def templates_in_settings(directory: Path) -> None:
    """Several, by name; one more than the default, as upstream orders the names by chance."""
    choices = [
        {"name": "default", "template": "{{ one }}"},
        {"name": "tool use", "template": "{{ two }}"},
    ]
    edit_json(directory, "tokenizer_config.json", lambda s: s.update(chat_template=choices))


def templates_in_files(directory: Path) -> None:
    """As transformers saves several."""
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"{{ two }}\r\n")


def tokenizer(directory: Path) -> None:
    """The same tokens in other ways that Hugging Face allows, with added ones behind the rest."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

    def change(content: dict[str, Any]) -> None:
        model = content["model"]
        for special, number in ((True, tiny.VOCAB_SIZE - 2), (False, tiny.VOCAB_SIZE - 1)):
            text = next(text for text, own in model["vocab"].items() if own == number)
            del model["vocab"][text]
            model["merges"] = [merge for merge in model["merges"] if "".join(merge) != text]
            entry = {"id": number, "content": f"<added-{number}>", **plain, "special": special}
            content["added_tokens"].append(entry)

    edit_json(directory, "tokenizer.json", change)
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": {"content": "<bos>", **plain, "__type": "AddedToken"},
        "eos_token": "<eos>",
        "add_bos_token": True,
        "add_eos_token": False,
        "image_token": "<|turn>",
        "model_specific_special_tokens": {"escape_token": '<|"|>'},
        "additional_special_tokens": [f"<added-{tiny.VOCAB_SIZE - 2}>"],
        "chat_template": "from the settings",
    }
    tiny.write_json(directory / "tokenizer_config.json", settings)


def edit(directory: Path, variant: str) -> None:
    """Rewrite the checkpoint in `directory` as the `variant`, a function of this module."""
    change: Callable[[Path], None] = globals()[variant]
    change(directory)
