"""A strict safetensors reader: header checked in full, tensors must tile the data section.

Source: the safetensors README, section "Format".
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf_mtp.errors import FormatError, brief
from gguf_mtp.readers.source import SourceFile, TensorRef, explaining_pieces
from gguf_mtp.readers.strict_json import parse_object

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}


@dataclass(frozen=True)
class SafetensorsFile:
    """A parsed header; `tensors` sorted by name."""

    path: Path
    size: int
    metadata: dict[str, str]
    tensors: tuple[TensorRef, ...]


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read and check the header at `path`; no tensor data is read. Raises FormatError."""
    with explaining_pieces(path), SourceFile(path) as source:
        if source.size < 8:
            raise FormatError(f"{path}: {source.size} bytes, a safetensors header needs 8")
        length = int.from_bytes(source.read(0, 8), "little")
        if length > min(source.size - 8, MAX_HEADER_BYTES):
            raise FormatError(
                f"{path}: header length is {length}, but {source.size - 8} bytes follow "
                f"(limit {MAX_HEADER_BYTES})"
            )
        header = parse_object(source.read(8, length), f"{path}: header")
        metadata = _metadata(path, header.pop("__metadata__", {}))
        tensors = [_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
        _check_tiling(path, tensors, 8 + length, source.size)
        tensors.sort(key=lambda ref: ref.name)
        return SafetensorsFile(path, source.size, metadata, tuple(tensors))


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise FormatError(f"{path}: __metadata__ is not an object of strings")
    return value


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> TensorRef:
    where = f"{path}: tensor {brief(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise FormatError(f"{where}: unknown dtype {brief(dtype)}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise FormatError(
            f"{where}: shape is {brief(shape)}, expected up to {MAX_DIMENSIONS} sizes"
        )
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where}: data_offsets is {brief(offsets)}, expected [begin, end]")
    nbytes = prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise FormatError(
            f"{where}: data_offsets span {offsets[1] - offsets[0]} bytes, "
            f"{dtype} {brief(shape)} needs {nbytes}"
        )
    return TensorRef(name, dtype, tuple(shape), path, data_start + offsets[0], nbytes)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_tiling(path: Path, tensors: list[TensorRef], data_start: int, size: int) -> None:
    expected = data_start
    for ref in sorted(tensors, key=lambda ref: (ref.offset, ref.nbytes)):
        if ref.offset != expected:
            how = "overlaps another tensor" if ref.offset < expected else "leaves a hole"
            raise FormatError(
                f"{path}: tensor {ref.name!a} begins at {ref.offset}, expected {expected}: {how}"
            )
        expected += ref.nbytes
    if expected != size:
        how = "truncated" if expected > size else "trailing bytes"
        raise FormatError(f"{path}: tensors end at {expected}, the file at {size}: {how}")
