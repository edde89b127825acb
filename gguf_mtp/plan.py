"""The whole output before a byte of it is written: header, offsets, sizes. No I/O."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf_mtp.keyvalue import KeyValue
from gguf_mtp.model import Tensor
from gguf_mtp.notes import Note
from gguf_mtp.provenance import Digests
from gguf_mtp.readers.gguf import DEFAULT_ALIGNMENT, MAGIC

FILE_VERSION = 3


@dataclass(frozen=True)
class Slot:
    """A tensor and its absolute offset in the output."""

    tensor: Tensor
    offset: int


@dataclass(frozen=True)
class Plan:
    """A GGUF to write. `data_start` and `total_bytes` are absolute, padding included; `notes` are
    for the user."""

    keys: tuple[KeyValue | Digests, ...]
    slots: tuple[Slot, ...]
    alignment: int
    data_start: int
    total_bytes: int
    notes: tuple[Note, ...] = ()

    @property
    def digested_files(self) -> frozenset[Path]:
        """Source files whose SHA-256 goes into the header."""
        pending = [key for key in self.keys if isinstance(key, Digests)]
        return frozenset(path for key in pending for path in key.files)

    @property
    def source_files(self) -> tuple[Path, ...]:
        """Every file to read, each once, in order of first use."""
        used = [
            slot.tensor.source.file
            for slot in self.slots
            if not isinstance(slot.tensor.source, bytes)
        ]
        return tuple(dict.fromkeys([*used, *sorted(self.digested_files)]))

    def header(self, digests: Mapping[Path, str]) -> bytes:
        """Everything before `data_start`, padding included."""
        keys = self.resolved_keys(digests)
        return _header(keys, self.slots, self.alignment, self.data_start)

    def resolved_keys(self, digests: Mapping[Path, str]) -> tuple[KeyValue, ...]:
        """The keys with `digests` filled in; a placeholder stands for those not there."""
        return _resolved(self.keys, digests)


def plan(
    keys: tuple[KeyValue | Digests, ...],
    tensors: tuple[Tensor, ...],
    notes: tuple[Note, ...] = (),
) -> Plan:
    """Lay out keys and tensors in the order given, tensors aligned as `general.alignment` says."""
    alignment = DEFAULT_ALIGNMENT
    for key in keys:
        if isinstance(key, KeyValue) and key.name == "general.alignment":
            alignment = int(key.value)
    unplaced = tuple(Slot(tensor, 0) for tensor in tensors)
    data_start = len(_header(_resolved(keys, {}), unplaced, alignment, 0))
    slots = []
    offset = data_start
    for tensor in tensors:
        slots.append(Slot(tensor, offset))
        offset = _padded(offset + tensor.nbytes, alignment)
    return Plan(keys, tuple(slots), alignment, data_start, offset, notes)


def _padded(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _resolved(
    keys: tuple[KeyValue | Digests, ...], digests: Mapping[Path, str]
) -> tuple[KeyValue, ...]:
    return tuple(key.resolve(digests) if isinstance(key, Digests) else key for key in keys)


def _header(
    keys: tuple[KeyValue, ...], slots: tuple[Slot, ...], alignment: int, data_start: int
) -> bytes:
    parts = [struct.pack("<4sIQQ", MAGIC, FILE_VERSION, len(slots), len(keys))]
    parts += (key.encode() for key in keys)
    for slot in slots:
        name, shape = slot.tensor.name.encode(), slot.tensor.shape
        parts.append(struct.pack(f"<Q{len(name)}sI", len(name), name, len(shape)))
        offset = slot.offset - data_start
        parts.append(
            struct.pack(f"<{len(shape)}QIQ", *reversed(shape), slot.tensor.type.id, offset)
        )
    encoded = b"".join(parts)
    return encoded + bytes(_padded(len(encoded), alignment) - len(encoded))
