"""Reading a written file again: against its sources, and against the manifest made of it.

Nothing here is shared with the threads that wrote it but the encoder.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_mtp import __version__
from gguf_mtp.encode import Encoder
from gguf_mtp.errors import FormatError, OutputError, brief
from gguf_mtp.plan import FilePlan, Slot
from gguf_mtp.readers.source import SourceFile, TensorRef
from gguf_mtp.readers.strict_json import read_object

SUFFIX = ".manifest.json"
SCHEMA = "gguf-mtp manifest 1"
CHUNK_BYTES = 1 << 20

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where it is and the SHA-256 of its bytes."""

    name: str
    type: str
    shape: list[int]
    offset: int
    bytes: int
    sha256: str


def manifest_path(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def compare_with_sources(plan: FilePlan, path: Path, progress: Progress) -> dict[str, Any]:
    """Read the file at `path`, which was written as `plan` says, and convert its sources again.

    Returns the manifest. `progress` is called with bytes of the file read. Raises OutputError at
    the first byte that differs.
    """
    entries: list[Entry] = []
    whole = hashlib.sha256()
    with SourceFile(path) as file:
        # What comes back is to be what the medium has; not every file system can be asked.
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if file.size != plan.total_bytes:
            raise OutputError(f"{path}: has {file.size} bytes, expected {plan.total_bytes}")
        at = 0
        for slot in sorted(plan.slots, key=lambda slot: slot.offset):
            at = _hash_until(file, whole, at, slot.offset)
            digest = hashlib.sha256()
            for expected in _expected(slot):
                found = file.read(at, len(expected))
                if found != expected:
                    first = next(i for i, (a, b) in enumerate(zip(found, expected)) if a != b)  # noqa: B905
                    raise OutputError(
                        f"{path}: tensor {slot.tensor.name} differs from its source "
                        f"at offset {at + first}"
                    )
                digest.update(found)
                whole.update(found)
                progress(len(found))
                at += len(found)
            tensor = slot.tensor
            dims, digested = list(reversed(tensor.shape)), digest.hexdigest()
            entries.append(
                Entry(tensor.name, tensor.type.name, dims, slot.offset, tensor.nbytes, digested)
            )
        _hash_until(file, whole, at, file.size)
    return {
        "schema": SCHEMA,
        "converter": f"gguf-mtp {__version__}",
        "bytes": plan.total_bytes,
        "sha256": whole.hexdigest(),
        "tensors": [asdict(entry) for entry in entries],
    }


def _hash_until(file: SourceFile, state: "hashlib._Hash", at: int, end: int) -> int:
    while at < end:
        data = file.read(at, min(CHUNK_BYTES, end - at))
        state.update(data)
        at += len(data)
    return end


def _expected(slot: Slot) -> Iterator[bytes]:
    """The tensor's bytes once more from its source, in order."""
    tensor, ref = slot.tensor, slot.tensor.source
    if isinstance(ref, bytes):
        yield ref
        return
    encoder = Encoder(CHUNK_BYTES // 2)
    with SourceFile(ref.file) as source:
        for data in _pieces(source, ref, tensor.rows):
            values = np.frombuffer(data, np.uint8).copy()
            yield (
                data
                if tensor.verbatim
                else encoder.encode(values, ref.dtype, tensor.type).tobytes()
            )


def _pieces(source: SourceFile, ref: TensorRef, rows: Any) -> Iterator[bytes]:
    if rows is None:
        for begin in range(0, ref.nbytes, CHUNK_BYTES):
            yield source.read(ref.offset + begin, min(CHUNK_BYTES, ref.nbytes - begin))
        return
    row_bytes = ref.nbytes // len(rows)
    step = max(1, CHUNK_BYTES // row_bytes)
    origins = np.argsort(rows)
    for begin in range(0, len(rows), step):
        wanted = origins[begin : begin + step].tolist()
        yield b"".join(source.read(ref.offset + row * row_bytes, row_bytes) for row in wanted)


def manifest_bytes(manifest: dict[str, Any], path: Path) -> bytes:
    """What the manifest of the file at `path` has in it."""
    return json.dumps({"file": path.name, **manifest}, indent=1).encode() + b"\n"


def compare_with_manifest(path: Path, manifest: Path, progress: Progress) -> list[str]:
    """What differs between the file at `path` and `manifest`, one line each; nothing if all holds.

    Raises FormatError for a manifest that is none.
    """
    stated = read_object(manifest)
    tensors = stated.get("tensors")
    if stated.get("schema") != SCHEMA or not isinstance(tensors, list):
        raise FormatError(
            f"{manifest}: schema is {brief(stated.get('schema'))}, expected {SCHEMA!a}"
        )
    findings = []
    with SourceFile(path) as file:
        if file.size != stated.get("bytes"):
            findings.append(
                f"{path.name}: {file.size} bytes, expected {brief(stated.get('bytes'))}"
            )
        places = [_place(manifest, entry) for entry in tensors]
        total = sum(nbytes for _, nbytes in places)
        # Reading takes as long as the file is large, whatever a manifest says.
        if total > file.size:
            raise FormatError(f"{manifest}: tensors of {total} bytes in a file of {file.size}")
        for entry, (begin, nbytes) in zip(tensors, places, strict=True):
            if begin + nbytes > file.size:
                findings.append(f"{entry['name']}: lies behind the end of the file")
                continue
            state = hashlib.sha256()
            for at in range(begin, begin + nbytes, CHUNK_BYTES):
                _hash_until(file, state, at, min(at + CHUNK_BYTES, begin + nbytes))
                progress(min(CHUNK_BYTES, begin + nbytes - at))
            if state.hexdigest() != entry.get("sha256"):
                findings.append(f"{entry['name']}: its bytes have changed")
        whole = hashlib.sha256()
        _hash_until(file, whole, 0, file.size)
        if not findings and whole.hexdigest() != stated.get("sha256"):
            findings.append(f"{path.name}: the bytes between the tensors have changed")
    return findings


def _place(manifest: Path, entry: Any) -> tuple[int, int]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise FormatError(f"{manifest}: an entry has no name")
    begin, nbytes = entry.get("offset"), entry.get("bytes")
    if type(begin) is not int or type(nbytes) is not int or begin < 0 or nbytes < 0:
        raise FormatError(f"{manifest}: {entry['name']!a} has no usable offset and bytes")
    return begin, nbytes
