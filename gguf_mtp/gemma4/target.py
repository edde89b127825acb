"""A Gemma 4 target checkpoint as the GGUF model that llama.cpp's converter makes of it."""

from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from gguf_mtp.errors import FormatError, UnsupportedError, brief
from gguf_mtp.gemma4.config import TextConfig, read_text_config
from gguf_mtp.gemma4.family import TARGET, architecture
from gguf_mtp.gemma4.keys import hyperparameters, quantization_version, rope_freqs
from gguf_mtp.gemma4.outtype import base_outtype, check_float, stored_type
from gguf_mtp.gemma4.tensors import Expected, refuse_other_layouts, target_tensors, text_name
from gguf_mtp.gemma4.vocabulary import suppressed_tokens, vocabulary
from gguf_mtp.ggml import GgmlType
from gguf_mtp.model import Half, Tensor
from gguf_mtp.readers.checkpoint import Checkpoint
from gguf_mtp.readers.source import TensorRef

ARCH = "gemma4"


def target_half(checkpoint: Checkpoint, outtype: str, metadata: Path | None = None) -> Half:
    """Keys and tensors of the base model in number type `outtype` (see `OUTTYPES`).

    `metadata` is a JSON file of ``general.*`` keys that override the checkpoint's.

    Raises FormatError and UnsupportedError, naming file and field.
    """
    # Imported here for gguf-py, which only checkpoints need.
    from gguf_mtp.gemma4.general import general_keys

    where = checkpoint.path / "config.json"
    family = architecture(checkpoint, TARGET)
    values = checkpoint.config.get("text_config", checkpoint.config)
    if not isinstance(values, dict):
        raise FormatError(f"{where}: text_config is {brief(values)}, expected an object")
    config = read_text_config(values, str(where), family.text_type)
    _check_vocabularies(config, str(where))
    refs = match_tensors(checkpoint, _text_tensors(checkpoint), target_tensors(config))
    number = base_outtype(outtype, (ref for _, ref in refs))
    tensors = [rope_freqs(config), *(converted(item, ref, number) for item, ref in refs)]
    general = general_keys(checkpoint, ARCH, tensors, metadata)
    keys = [
        *general.keys,
        *hyperparameters(config, ARCH, number),
        *(suppressed_tokens(checkpoint, config.vocab_size) if family.suppresses else ()),
        quantization_version(),
        *vocabulary(checkpoint, config.vocab_size),
    ]
    return Half(
        str(checkpoint.path),
        "huggingface",
        tuple(keys),
        tuple(tensors),
        tuple(file.path for file in checkpoint.files),
        general.license,
        general.notes,
    )


def _check_vocabularies(config: TextConfig, where: str) -> None:
    """llama.cpp gives every token a row in either embedding. Raises UnsupportedError where the
    per-layer one has another number of them, as when only the other one was resized."""
    if config.per_layer_input_size and config.per_layer_vocab_size != config.vocab_size:
        raise UnsupportedError(
            f"{where}: vocab_size_per_layer_input is {config.per_layer_vocab_size}, expected "
            f"vocab_size = {config.vocab_size}: llama.cpp needs as many rows in "
            "embed_tokens_per_layer.weight as in embed_tokens.weight; resize both, or neither"
        )


def _text_tensors(checkpoint: Checkpoint) -> dict[str, TensorRef]:
    """The tensors of the text stack by their names in it."""
    found: dict[str, TensorRef] = {}
    for ref in checkpoint.tensors:
        name = text_name(ref.name)
        if name is not None and found.setdefault(name, ref) is not ref:
            raise FormatError(f"{ref.file}: tensor {ref.name} is also {found[name].name}")
    return found


def require_tensors(where: Path | str, needed: Sequence[str], found: Container[str]) -> None:
    """Raise FormatError, naming the first, when a tensor `needed` is not among those `found`."""
    missing = [name for name in needed if name not in found]
    if missing:
        raise FormatError(
            f"{where}: found {len(needed) - len(missing)} of {len(needed)} expected tensors, "
            f"first missing: {missing[0]}"
        )


def match_tensors(
    checkpoint: Checkpoint, found: dict[str, TensorRef], expected: Iterable[Expected]
) -> list[tuple[Expected, TensorRef]]:
    """Pair the tensors `found` with those `expected`, in the order found.

    Raises FormatError when one is missing or has another shape, UnsupportedError for one that is
    not expected at all or of another layout.
    """
    refuse_other_layouts(found.values())
    table = {item.hf_name: item for item in expected}
    require_tensors(checkpoint.path, [n for n, item in table.items() if item.required], found)
    pairs = []
    for name, ref in found.items():
        item = table.get(name)
        if item is None:
            raise UnsupportedError(f"{ref.file}: tensor {ref.name!a} is not part of this model")
        if ref.shape != item.shape:
            raise FormatError(
                f"{ref.file}: tensor {ref.name} has shape {list(ref.shape)}, "
                f"expected {list(item.shape)} from config.json"
            )
        check_float(ref)
        pairs.append((item, ref))
    return pairs


def converted(item: Expected, ref: TensorRef, outtype: GgmlType) -> Tensor:
    """The tensor `ref` as stored in a file of `outtype`."""
    return Tensor(item.name, stored_type(item.name, ref.shape, outtype), ref.shape, ref)
