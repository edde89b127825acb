"""The classes of Gemma 4 that a checkpoint may name, one row each, their defaults, and settings
that change a model in ways which this version does not convert.

Source: transformers 5.22 ``configuration_gemma4.py``, ``configuration_gemma4_unified.py``,
``configuration_gemma4_assistant.py``, ``configuration_gemma4_unified_assistant.py``,
``quantizers/auto.py`` (``quantization_config``); mlx-lm (``quantization``); llama.cpp
``conversion/gemma.py`` (suppressed tokens), ``conversion/__init__.py`` (other drafters).
"""

from dataclasses import dataclass
from typing import Any

from gguf_mtp.errors import FormatError, UnsupportedError, brief
from gguf_mtp.readers.checkpoint import Checkpoint

TARGET = "a Gemma 4 base model"
DRAFTER = "a Gemma 4 drafter"


@dataclass(frozen=True)
class TextDefaults:
    """What holds where a text configuration is silent. Sizes in elements."""

    context_length: int
    sliding_window: int
    per_layer_input_size: int
    per_layer_vocab_size: int


# By the text configuration's ``model_type``.
TEXT_DEFAULTS = {
    "gemma4_text": TextDefaults(131_072, 512, 256, 262_144),
    "gemma4_unified_text": TextDefaults(262_144, 1024, 0, 0),
}


@dataclass(frozen=True)
class Architecture:
    """`text_type` is the text configuration's ``model_type``; `backbone` a drafter's default
    ``backbone_hidden_size``; `suppresses` whether generation_config.json's ``suppress_tokens``
    are part of the model."""

    role: str
    text_type: str
    backbone: int = 0
    suppresses: bool = False


_TEXT = Architecture(TARGET, "gemma4_text")
_UNIFIED = Architecture(TARGET, "gemma4_unified_text", suppresses=True)
ARCHITECTURES = {
    "Gemma4ForConditionalGeneration": _TEXT,
    "Gemma4ForCausalLM": _TEXT,
    "Gemma4TextModel": _TEXT,
    "Gemma4UnifiedForConditionalGeneration": _UNIFIED,
    "Gemma4UnifiedForCausalLM": _UNIFIED,
    "Gemma4UnifiedTextModel": _UNIFIED,
    "Gemma4AssistantForCausalLM": Architecture(DRAFTER, "gemma4_text", backbone=1536),
    "Gemma4UnifiedAssistantForCausalLM": Architecture(
        DRAFTER, "gemma4_unified_text", backbone=3840
    ),
}


# Drafters of other kinds, which llama.cpp's converter reads: a part of the class's name, and what
# such a drafter is called.
OTHER_DRAFTERS = {"eagle3": "an EAGLE-3", "dflash": "a DFlash", "dspark": "a DSpark"}
# What in `quantization_config` says more of the method than its name.
METHOD_DETAILS = ("quant_algo", "format", "fmt", "bnb_4bit_quant_type", "bits")


def other_drafter(config: dict[str, Any]) -> str | None:
    """The other kind of drafter that a config.json belongs to, as "an EAGLE-3"; else None.

    The speculators library names the kind in ``speculators_model_type``, others in the class.
    """
    names = config.get("architectures")
    found = [config.get("speculators_model_type"), *(names if isinstance(names, list) else [])]
    text = " ".join(name for name in found if isinstance(name, str)).lower().replace("-", "")
    return next((what for part, what in OTHER_DRAFTERS.items() if part in text), None)


def check_settings(values: dict[str, Any], where: str) -> None:
    """Raise UnsupportedError where the configuration `values` belongs to quantized weights or has
    scaled rotation (``rope_scaling``). `where` names it in messages."""
    for name, how in (("quantization_config", _method), ("quantization", _mlx_method)):
        value = values.get(name)
        if value:
            raise UnsupportedError(
                f"{where}: {name} is {how(value)}: quantized checkpoints are not read; use the "
                "checkpoint before quantization, or a quantized GGUF of it"
            )
    value = values.get("rope_scaling")
    if value and not _is_default(value):
        raise UnsupportedError(
            f"{where}: rope_scaling is {brief(value)}, expected null: scaled rotation is not "
            "supported; remove the setting to convert the model with its own context length"
        )


def _method(value: Any) -> str:
    """The quantization method of a ``quantization_config``, with its details."""
    if not isinstance(value, dict):
        return brief(value)
    name = value.get("quant_method", value.get("quant_type"))
    if not isinstance(name, str):
        return brief(value)
    details = [(key, value.get(key)) for key in METHOD_DETAILS]
    stated = [f"{key} {item}" for key, item in details if isinstance(item, str | int)]
    return brief(", ".join([name, *stated]))


def _mlx_method(value: Any) -> str:
    bits = value.get("bits") if isinstance(value, dict) else None
    return f"MLX's, {bits} bits" if type(bits) is int else f"MLX's, {brief(value)}"


def _is_default(value: Any) -> bool:
    """Whether a ``rope_scaling`` scales nothing."""
    if not isinstance(value, dict):
        return False
    rest = {name: item for name, item in value.items() if name not in ("rope_type", "type")}
    kind = value.get("rope_type", value.get("type"))
    return kind == "default" and all(item is None or item == 1 for item in rest.values())


def architecture(checkpoint: Checkpoint, role: str) -> Architecture:
    """The row that config.json's ``architectures`` names, which must be of `role`.

    Raises FormatError where it is not one name, UnsupportedError where it is another one or
    `check_settings` finds something.
    """
    where = checkpoint.path / "config.json"
    check_settings(checkpoint.config, str(where))
    other = other_drafter(checkpoint.config)
    if other is not None:
        raise UnsupportedError(
            f"{where}: is {other} drafter, expected {role}; convert it with llama.cpp's "
            "convert_hf_to_gguf.py and give that GGUF as --heads"
        )
    value = checkpoint.config.get("architectures")
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], str):
        raise FormatError(f"{where}: architectures is {brief(value)}, expected one name")
    row = ARCHITECTURES.get(value[0])
    if row is not None and row.role != role:
        raise UnsupportedError(
            f"{where}: is {row.role}, expected {role} (--base and --heads swapped?)"
        )
    if row is None:
        accepted = tuple(name for name, other in ARCHITECTURES.items() if other.role == role)
        raise UnsupportedError(
            f"{where}: architecture {brief(value[0])} is not {role}, expected one of {accepted}"
        )
    return row
