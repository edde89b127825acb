"""A package's drafter as a Hugging Face checkpoint: config.json, model.safetensors, provenance.

Source: the safetensors README, section "Format"; transformers 5.22
``models/gemma4_assistant/modeling_gemma4_assistant.py`` (names).
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_mtp.drafters.litert.package import LitertDrafter, provenance
from gguf_mtp.drafters.litert.settings import configuration
from gguf_mtp.drafters.litert.weights import Weight
from gguf_mtp.errors import FormatError, OutputError, brief
from gguf_mtp.output import OutputFile, check_output, publish_all
from gguf_mtp.provenance import CONVERTER
from gguf_mtp.readers.source import SourceFile, name_as_text

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
NATIVE = "native.safetensors"
PROVENANCE = "litert.json"
DTYPE_BYTES = {"F32": 4, "I8": 1}
READ_BYTES = 1 << 20

Progress = Callable[[int], None]
Content = tuple[Iterable[bytes], int]  # pieces of a file, and how many bytes they are
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """A tensor to write, its values made piece by piece, in order, when `pieces` is called."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[SourceFile], Iterator[Array]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def float_entries(drafter: LitertDrafter) -> list[Entry]:
    """Every parameter in float32, by its Hugging Face name."""
    entries = [
        Entry(f"{name}.weight", "F32", weight.shape, weight.values)
        for name, weight in drafter.weights.items()
    ]
    for layer, scalar in enumerate(drafter.layer_scalars()):
        value = np.array([scalar], np.float32)
        entries.append(Entry(f"model.layers.{layer}.layer_scalar", "F32", (1,), _just(value)))
    return sorted(entries, key=lambda entry: entry.name)


def native_entries(drafter: LitertDrafter) -> list[Entry]:
    """``.codes`` (int8) and ``.scales`` (float32, [rows, blocks]) of every integer matrix."""
    entries = []
    for name, weight in drafter.weights.items():
        if weight.scales is not None:
            entries.append(Entry(f"{name}.codes", "I8", weight.shape, weight.codes))
            scales = weight.scales
            entries.append(Entry(f"{name}.scales", "F32", scales.shape, _just(scales)))
    return sorted(entries, key=lambda entry: entry.name)


def _just(value: Array) -> Callable[[SourceFile], Iterator[Array]]:
    return lambda source: iter((value,))


def read_values(drafter: LitertDrafter, weight: Weight) -> npt.NDArray[np.float32]:
    """All values of one weight."""
    with SourceFile(drafter.path) as source:
        return np.concatenate([part.reshape(-1) for part in weight.values(source)]).reshape(
            weight.shape
        )


def bytes_to_write(drafter: LitertDrafter, *, native: bool) -> int:
    """What `progress` adds up to in `write_checkpoint`, the hashing of the package included."""
    entries = float_entries(drafter) + (native_entries(drafter) if native else [])
    return drafter.file.size + sum(entry.nbytes for entry in entries)


def write_checkpoint(
    drafter: LitertDrafter,
    directory: Path,
    *,
    native: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the checkpoint to `directory`, made if need be; returns the provenance.

    None of the files appears before all are complete, and ``config.json``, without which it is no
    checkpoint, last. Raises OutputError, or FormatError when the package changes meanwhile.
    """
    advance = progress or (lambda nbytes: None)
    entries = {WEIGHTS: float_entries(drafter)}
    if native:
        entries[NATIVE] = native_entries(drafter)
    needed = sum(entry.nbytes for listed in entries.values() for entry in listed)
    names = [*entries, PROVENANCE, CONFIG]
    with _made(directory), SourceFile(drafter.path) as source, ExitStack() as outputs:
        for name in names:
            check_output(directory / name, [drafter.path], force=force, needed=needed)
        if source.size != drafter.file.size:
            raise FormatError(f"{drafter.path}: file changed while it was read")
        facts = {
            "file": name_as_text(drafter.path),
            "sha256": _digest(source, advance),
            "converter": CONVERTER,
            **provenance(drafter),
        }
        metadata = {"format": "pt", "source": name_as_text(drafter.path), "sha256": facts["sha256"]}
        contents = {
            name: _safetensors(listed, metadata, source, advance)
            for name, listed in entries.items()
        }
        contents |= {PROVENANCE: _json(facts), CONFIG: _json(configuration(drafter))}
        files = []
        for name in names:
            pieces, nbytes = contents[name]
            file = OutputFile(directory / name, nbytes, vouches=name == CONFIG)
            files.append(outputs.enter_context(file))
            _write(file, pieces, nbytes)
            if name in entries:
                _check_readable(file, entries[name])
        source.check_unchanged()
        publish_all(files)
    return facts


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """A directory that is there within, and gone afterwards where it was made and not filled."""
    if directory.is_dir():
        yield
        return
    try:
        directory.mkdir()
    except OSError as error:
        raise OutputError(f"{directory}: cannot make the directory: {error.strerror}") from error
    try:
        yield
    except BaseException:
        with suppress(OSError):
            directory.rmdir()
        raise


def _digest(source: SourceFile, advance: Progress) -> str:
    state = hashlib.sha256()
    for offset in range(0, source.size, READ_BYTES):
        part = source.read(offset, min(READ_BYTES, source.size - offset))
        state.update(part)
        advance(len(part))
    return state.hexdigest()


def _json(value: dict[str, Any]) -> Content:
    encoded = json.dumps(value, indent=2).encode() + b"\n"
    return [encoded], len(encoded)


def _safetensors(
    entries: list[Entry], metadata: dict[str, str], source: SourceFile, advance: Progress
) -> Content:
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)

    def pieces() -> Iterator[bytes]:
        yield struct.pack("<Q", len(encoded)) + encoded
        for entry in entries:
            for part in entry.pieces(source):
                data = np.ascontiguousarray(part, part.dtype.newbyteorder("<")).tobytes()
                yield data
                advance(len(data))

    return pieces(), 8 + len(encoded) + at


def _check_readable(file: OutputFile, entries: list[Entry]) -> None:
    """Raise OutputError unless the safetensors library finds the tensors of `entries` in `file`.

    It is what others read the file with. Its own writer is not used: that takes all tensors in
    memory at once, and makes a temporary file under a name of its own.
    """
    # Imported here: only `extract` writes such files.
    import safetensors

    expected = [(entry.name, entry.dtype, list(entry.shape)) for entry in entries]
    try:
        with safetensors.safe_open(file.temp, framework="numpy") as opened:
            slices = [(name, opened.get_slice(name)) for name in sorted(opened.keys())]
            found = [(name, part.get_dtype(), part.get_shape()) for name, part in slices]
    except (safetensors.SafetensorError, OSError) as error:
        raise OutputError(f"{file.path}: what was written cannot be read: {error}") from None
    if found != sorted(expected):
        raise OutputError(f"{file.path}: reads back as {brief(found)}, expected {brief(expected)}")


def _write(output: OutputFile, pieces: Iterable[bytes], nbytes: int) -> None:
    at = 0
    for piece in pieces:
        output.write(memoryview(piece), at)
        at += len(piece)
    if at != nbytes:
        raise FormatError(f"{output.path}: {at} bytes came out, {nbytes} were planned")
    output.finish()
