"""The ``general.*`` keys: name, licence, size label and the like, from directory and model card.

The heuristics are gguf-py's own (`gguf.Metadata`), so that they equal llama.cpp's converter; the
files are read here. A model card that cannot be used costs its keys, never the conversion.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import gguf

from gguf_mtp.errors import FormatError, brief
from gguf_mtp.hub.origin import model_name
from gguf_mtp.keyvalue import SCALARS, KeyValue, ValueType, array, scalar, string, strings
from gguf_mtp.model import Tensor
from gguf_mtp.notes import Note
from gguf_mtp.readers.checkpoint import Checkpoint
from gguf_mtp.readers.model_card import read_card
from gguf_mtp.readers.strict_json import read_object

MAX_NAME = 512
CARD = "README.md"
# Fields of `gguf.Metadata` by what generation_config.json calls them.
SAMPLING = {
    "sampling_temp": "temperature",
    **{
        f"sampling_{name}": name
        for name in (
            *("sequence", "top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold"),
            *("penalty_last_n", "penalty_repeat", "mirostat", "mirostat_tau", "mirostat_eta"),
        )
    },
}

# Total, shared and per-expert parameters and the expert count, as `gguf.size_label` takes them.
Counts = tuple[int, int, int, int]


@dataclass(frozen=True)
class General:
    """The leading ``general.*`` keys of a GGUF, the licence they state, and notes for the user."""

    keys: tuple[KeyValue, ...]
    license: str | None
    notes: tuple[Note, ...] = ()


def general_keys(
    checkpoint: Checkpoint, arch: str, tensors: Iterable[Tensor], override: Path | None = None
) -> General:
    """The ``general.*`` keys of the checkpoint's GGUF.

    `tensors` are counted for the size label. `override` is a JSON object of such keys, whose values
    win. Raises FormatError for an unusable generation_config.json or override. An unusable model
    card is left out, with a note.
    """
    wanted = {} if override is None else _read_override(override)
    counts = _parameter_counts(tensors)
    # absolute and not resolve: the name the user gave, not the one a symlink leads to.
    path = checkpoint.path.absolute() / CARD
    try:
        card = read_card(path)
        keys = _keys(checkpoint, arch, counts, wanted, card)
    except FormatError as error:
        # This fails as well if the fault is elsewhere.
        keys = _keys(checkpoint, arch, counts, wanted, {})
        message = f"{error}; converted without the keys of this model card"
        notes: tuple[Note, ...] = (Note("model-card", message),)
    else:
        notes = ()
    taken = {key.name for key in keys}
    for name in wanted:
        if name not in taken:
            raise FormatError(f"{override}: {name} is no key that can be set")
    stated = next((str(key.value) for key in keys if key.name == "general.license"), None)
    return General(keys, stated, notes)


def _keys(
    checkpoint: Checkpoint, arch: str, counts: Counts, wanted: dict[str, Any], card: dict[str, Any]
) -> tuple[KeyValue, ...]:
    """The keys that gguf-py makes of `card`, the front matter of a model card, and of all else.

    Raises FormatError, naming the card where there is one, for values of other types.
    """
    path = checkpoint.path.absolute()
    named = Path(model_name(path))
    others = f"{path}: generation_config.json{' or --metadata' if wanted else ''}"
    where = f"{path / CARD}: front matter" if card else others
    generation = checkpoint.json("generation_config.json") or {}
    collector = gguf.GGUFWriter(None, arch)
    try:
        metadata = gguf.Metadata.apply_metadata_heuristic(
            gguf.Metadata(), card, _name_in(checkpoint), named, counts[0]
        )
        for field in fields(metadata):
            value = getattr(metadata, field.name)
            if field.name in SAMPLING:
                value = generation.get(SAMPLING[field.name], value)
            setattr(metadata, field.name, wanted.get(_key_name(field.name), value))
        if metadata.sampling_penalty_repeat is None:
            metadata.sampling_penalty_repeat = generation.get("repetition_penalty")
        metadata.name = named.name if metadata.name is None else metadata.name
        if metadata.size_label is None and counts[0] > 0:
            metadata.size_label = gguf.size_label(*counts)
        collector.add_type(gguf.GGUFType.MODEL)
        metadata.set_gguf_meta_model(collector)
        return tuple(
            _encode(name, entry.type, entry.value) for name, entry in collector.kv_data[0].items()
        )
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise FormatError(f"{where}: value of the wrong type ({error})"[:300]) from None


def _key_name(field: str) -> str:
    """The key that overrides `field` of `gguf.Metadata`."""
    name: str = getattr(gguf.Keys.General, field.upper(), f"general.{field}")
    return name


def _name_in(checkpoint: Checkpoint) -> dict[str, Any]:
    """The one field of config.json that gguf-py makes a name of."""
    name = checkpoint.config.get("_name_or_path")
    if name is None:
        return {}
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise FormatError(
            f"{checkpoint.path / 'config.json'}: _name_or_path is {brief(name)}, expected a name"
        )
    return {"_name_or_path": name}


def _read_override(path: Path) -> dict[str, Any]:
    wanted = read_object(path)
    for name, value in wanted.items():
        items = value if isinstance(value, list) else [value]
        if not name.startswith("general."):
            raise FormatError(f"{path}: {name!a} is no general.* key")
        if not all(isinstance(item, (str, int, float)) for item in items):
            raise FormatError(f"{path}: {name} is {brief(value)}, expected text or numbers")
    return wanted


def _encode(name: str, kind: gguf.GGUFValueType, value: Any) -> KeyValue:
    if kind is gguf.GGUFValueType.STRING:
        if not isinstance(value, str):
            raise TypeError(f"{name} is {brief(value)}, expected a string")
        return string(name, value)
    if kind is gguf.GGUFValueType.ARRAY:
        if all(isinstance(item, str) for item in value):
            return strings(name, value)
        if all(type(item) is int and -(1 << 31) <= item < 1 << 31 for item in value):
            return array(name, ValueType.INT32, value)
        raise TypeError(f"{name} is {brief(value)}, expected strings or integers of 32 bits")
    number = ValueType(kind)
    if type(value) not in (int, float, bool) or number not in SCALARS:
        raise TypeError(f"{name} is {brief(value)}, expected a number")
    try:
        return scalar(name, number, value)
    except struct.error as error:
        raise ValueError(f"{name} is {brief(value)}: {error}") from None


def _parameter_counts(tensors: Iterable[Tensor]) -> Counts:
    sizes = [(tensor.name, tensor.shape) for tensor in tensors]
    experts = [shape for name, shape in sizes if "_exps." in name and len(shape) >= 3]
    total = sum(prod(shape) for _, shape in sizes)
    expert_total = sum(prod(shape) for shape in experts)
    per_expert = sum(prod(shape) // shape[-3] for shape in experts)
    count = sum(shape[-3] for shape in experts) // len(experts) if experts else 0
    return total, total - expert_total, per_expert, count
