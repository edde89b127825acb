"""Writes planned files: tensors first, then headers, checked by reading them back."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_mtp.errors import OutputError
from gguf_mtp.output import AppendedFile, OutputFile, Target, check_output, publish_all
from gguf_mtp.pipeline import Progress, default_threads, transfer
from gguf_mtp.plan import FilePlan, Plan, one_gguf
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.source import TensorRef
from gguf_mtp.readers.tail import read_footer
from gguf_mtp.system import place


def write_gguf(
    plan: Plan, path: Path, *, force: bool = False, progress: Progress | None = None
) -> dict[Path, str]:
    """Write `plan` to `path` as the only GGUF there (see `write_file`)."""
    return write_file(one_gguf(plan), path, force=force, progress=progress)


@dataclass(frozen=True)
class FileToWrite:
    """A planned file and its path; for one that `vouches` see `OutputFile`."""

    plan: FilePlan
    path: Path
    vouches: bool = False


def write_file(
    plan: FilePlan,
    path: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> dict[Path, str]:
    """Write `plan` to `path` (see `write_files`)."""
    return write_files((FileToWrite(plan, path),), force=force, progress=progress, threads=threads)


def write_files(
    files: Sequence[FileToWrite],
    *,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
    describe: Callable[[FileToWrite, Path], Mapping[Path, bytes]] | None = None,
) -> dict[Path, str]:
    """Write all of `files`; returns the SHA-256 of the source files that were digested.

    `progress` is called with the number of bytes just read; `threads` default to one for each CPU
    and change nothing in the bytes written. `describe` is called with each finished file while it
    has another name; what it raises keeps all from appearing, and the small files it returns, which
    vouch for it, appear with them. None appears, by renaming, before all are complete, re-read and
    synced; on any error everything is as it was before.
    Raises OutputError, or FormatError when a source changes or ends early.
    """
    needed = sum(file.plan.total_bytes for file in files)
    places: dict[object, Path] = {}
    for file in files:
        other = places.setdefault(place(file.path), file.path)
        if other is not file.path:
            raise OutputError(f"{file.path}: is the same file as the other output, {other}")
        check_output(file.path, file.plan.source_files, force=force, needed=needed)
    digests: dict[Path, str] = {}
    outputs = []
    with ExitStack() as stack:
        for file in files:
            output = stack.enter_context(
                OutputFile(file.path, file.plan.total_bytes, vouches=file.vouches)
            )
            outputs.append(output)
            digests |= _fill(file.plan, output, progress, threads)
            _reread(file.plan, digests, output.temp, file.path)
            output.finish()
            small = {} if describe is None else describe(file, output.temp)
            for path, data in small.items():
                output = stack.enter_context(OutputFile(path, len(data), vouches=True))
                outputs.append(output)
                output.write(memoryview(data), 0)
                output.finish()
        publish_all(outputs)
    return digests


def append(plan: FilePlan, path: Path, *, progress: Progress | None = None) -> dict[Path, str]:
    """Write `plan`, a tail, behind the base that the existing file `path` holds.

    The base's bytes are never written to. On an error they are what remains; where the process is
    killed, a pending footer at the end says where they end. Raises as `write_file`.
    """
    if plan.footer is None:
        raise ValueError("only a tail is appended")
    with AppendedFile(path, plan.footer) as output:
        digests = _fill(plan, output, progress, None)
        _reread(plan, digests, path, path)
        output.commit()
    return digests


def bytes_to_read(plan: FilePlan) -> int:
    """What `progress` adds up to in `write_file`."""
    spans = (slot.tensor.source for slot in plan.slots)
    read = sum(span.nbytes for span in spans if isinstance(span, TensorRef))
    return read + sum(os.stat(file).st_size for file in plan.digested_files)


def _fill(
    plan: FilePlan, output: Target, progress: Progress | None, threads: int | None
) -> dict[Path, str]:
    """All of the plan's bytes into `output`; the digests of the source files."""
    slots = plan.slots
    for slot in slots:
        if isinstance(slot.tensor.source, bytes):
            output.write(memoryview(slot.tensor.source), slot.offset)
    digests = transfer(
        slots,
        plan.source_files,
        plan.digested_files,
        output,
        progress or (lambda nbytes: None),
        threads or default_threads(),
    )
    for part in plan.parts:
        output.write(memoryview(part.plan.header(digests)), part.offset)
    if plan.footer is not None:
        begin, end = plan.footer.heads_window
        footer = replace(plan.footer, sha256=output.sha256(begin, end))
        output.write(memoryview(footer.encode()), end)
    return digests


def _reread(plan: FilePlan, digests: dict[Path, str], temp: Path, path: Path) -> None:
    """Parse the finished file with the strict readers and compare it with the plan."""
    for part in plan.parts:
        window = part.offset, part.offset + part.plan.total_bytes
        written = read_gguf(temp, window=window)
        found = [(ref.name, ref.dtype, ref.shape, ref.offset) for ref in written.tensors]
        meant = [
            (slot.tensor.name, slot.tensor.type.name, slot.tensor.shape, part.offset + slot.offset)
            for slot in part.plan.slots
        ]
        if found != meant or written.keys != part.plan.resolved_keys(digests):
            raise OutputError(f"{path}: the written file does not read back as planned")
    if plan.footer is not None:
        footer = read_footer(temp)
        if footer is None or footer.heads_window != plan.footer.heads_window:
            raise OutputError(f"{path}: the written footer does not read back as planned")
