"""The whole output before a byte of it is written: headers, offsets, sizes. No I/O."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_mtp.errors import UnsupportedError
from gguf_mtp.ggml import BYTES
from gguf_mtp.keyvalue import KeyValue
from gguf_mtp.model import Tensor
from gguf_mtp.notes import Note
from gguf_mtp.provenance import Digests
from gguf_mtp.readers.gguf import DEFAULT_ALIGNMENT, MAGIC
from gguf_mtp.readers.source import TensorRef, Window
from gguf_mtp.readers.tail import PAGE, Footer

FILE_VERSION = 3


@dataclass(frozen=True)
class Slot:
    """A tensor and its offset, which counts from the start of its GGUF or of the output file."""

    tensor: Tensor
    offset: int


@dataclass(frozen=True)
class Plan:
    """A GGUF to write. `data_start` and `total_bytes` include padding; `notes` are for the user."""

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


@dataclass(frozen=True)
class Part:
    """A GGUF that begins at `offset` of a file."""

    plan: Plan
    offset: int = 0


@dataclass(frozen=True)
class FilePlan:
    """A whole file: `copied` bytes of another one at its start, GGUFs, and a tail's footer.

    The usual file is one GGUF at offset 0 (`one_gguf`).
    """

    parts: tuple[Part, ...]
    total_bytes: int
    copied: TensorRef | None = None
    footer: Footer | None = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every tensor, in order of offset; the copied bytes come as one."""
        slots = [
            replace(slot, offset=part.offset + slot.offset)
            for part in self.parts
            for slot in part.plan.slots
        ]
        if self.copied is not None:
            ref = self.copied
            slots.insert(0, Slot(Tensor(ref.name, BYTES, ref.shape, ref, verbatim=True), 0))
        return tuple(slots)

    @property
    def n_tensors(self) -> int:
        """Tensors to write; 0 where all is copied."""
        return sum(len(part.plan.slots) for part in self.parts)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What to tell the user."""
        return tuple(note for part in self.parts for note in part.plan.notes)

    @property
    def digested_files(self) -> frozenset[Path]:
        """Source files whose SHA-256 goes into a header."""
        return frozenset().union(*(part.plan.digested_files for part in self.parts))

    @property
    def source_files(self) -> tuple[Path, ...]:
        """Every file to read, each once, in order of first use."""
        copied = [] if self.copied is None else [self.copied.file]
        files = [file for part in self.parts for file in part.plan.source_files]
        return tuple(dict.fromkeys([*copied, *files]))


def one_gguf(plan: Plan) -> FilePlan:
    return FilePlan((Part(plan),), plan.total_bytes)


def copy_of(path: Path, window: Window) -> FilePlan:
    """The file that holds the bytes of `path` between two offsets."""
    return FilePlan((), window[1] - window[0], span(path, window))


def with_tail(base: Plan | TensorRef, heads: Plan) -> FilePlan:
    """`base`, to be written or copied byte for byte, and behind it `heads` in the tail layout.

    Raises UnsupportedError for heads of an alignment that no page has.
    """
    if heads.alignment > PAGE:
        raise UnsupportedError(
            f"heads with general.alignment {heads.alignment}: the tail layout takes up to {PAGE}"
        )
    base_bytes = base.nbytes if isinstance(base, TensorRef) else base.total_bytes
    footer = Footer(base_bytes, heads.total_bytes)
    tail = Part(heads, footer.heads_offset)
    if isinstance(base, TensorRef):
        return FilePlan((tail,), footer.total_bytes, base, footer)
    return FilePlan((Part(base), tail), footer.total_bytes, footer=footer)


def appended(whole: FilePlan) -> FilePlan:
    """`whole`, to be written into the file whose bytes it would copy."""
    return replace(whole, copied=None)


def span(path: Path, window: Window) -> TensorRef:
    """The bytes of `path` between two offsets, to be copied."""
    begin, end = window
    return TensorRef(path.name, BYTES.name, (end - begin,), path, begin, end - begin)


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
