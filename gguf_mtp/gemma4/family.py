"""The classes of Gemma 4 that a checkpoint may name, one row each, and what they leave unsaid.

Source: transformers 5.22 ``configuration_gemma4.py``, ``configuration_gemma4_unified.py``,
``configuration_gemma4_assistant.py``, ``configuration_gemma4_unified_assistant.py``; llama.cpp
``conversion/gemma.py`` (suppressed tokens).
"""

from dataclasses import dataclass

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


def architecture(checkpoint: Checkpoint, role: str) -> Architecture:
    """The row that config.json's ``architectures`` names, which must be of `role`.

    Raises FormatError where it is not one name, UnsupportedError where it is another one or the
    weights are quantized.
    """
    where = checkpoint.path / "config.json"
    if checkpoint.config.get("quantization_config"):
        raise UnsupportedError(f"{where}: quantized checkpoints (quantization_config) are not read")
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
