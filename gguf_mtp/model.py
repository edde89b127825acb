"""What flows between the layers: a model's keys and tensors, before anything is laid out."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_mtp.ggml import GgmlType, type_by_name
from gguf_mtp.keyvalue import KeyValue
from gguf_mtp.notes import Note
from gguf_mtp.readers.gguf import GgufFile
from gguf_mtp.readers.source import SourceFile, TensorRef

# Of an array where one value is asked for: files may hold arrays of any length under any name.
FIRST_ITEMS = 16

Rows = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor to write: `type` and `shape` (outermost first) as stored, and where it comes from.

    `source` is the bytes themselves, or a span of a file: copied as it is if `verbatim`, else
    floats to be converted to `type`. `rows[i]`, where given, is the position of source row i.
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    source: TensorRef | bytes
    verbatim: bool = False
    rows: Rows | None = None

    @property
    def nbytes(self) -> int:
        if not self.verbatim:
            return self.type.nbytes(self.shape)
        return len(self.source) if isinstance(self.source, bytes) else self.source.nbytes


@dataclass(frozen=True)
class Half:
    """One model, base or drafter: a GGUF's keys and tensors. `origin` names it in messages;
    `weights` are the files the tensors come from, `kind` their format. `notes` are for the user."""

    origin: str
    kind: str
    keys: tuple[KeyValue, ...]
    tensors: tuple[Tensor, ...]
    weights: tuple[Path, ...]
    license: str | None = None
    notes: tuple[Note, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, KeyValue]:
        return {key.name: key for key in self.keys}

    @cached_property
    def tensor_by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def value(self, name: str) -> Any:
        """The decoded value of key `name` (an array's first items), None where there is none."""
        key = self.by_name.get(name)
        return None if key is None else key.head(FIRST_ITEMS)


def stored_tensor(ref: TensorRef, name: str | None = None) -> Tensor:
    """The tensor `ref` of a GGUF, to be copied as it is, under `name` if given."""
    return Tensor(name or ref.name, type_by_name(ref.dtype), ref.shape, ref, verbatim=True)


def read_tensor(tensor: Tensor) -> bytes:
    """A small tensor's bytes as its source has them, read whole."""
    if isinstance(tensor.source, bytes):
        return tensor.source
    with SourceFile(tensor.source.file) as source:
        return source.read(tensor.source.offset, tensor.source.nbytes)


def half_from_gguf(file: GgufFile) -> Half:
    """All of a GGUF as it is."""
    tensors = tuple(stored_tensor(ref) for ref in file.tensors)
    license_key = file.by_name.get("general.license")
    stated = str(license_key.value) if license_key else None
    return Half(str(file.path), "gguf", file.keys, tensors, file.paths, stated)
