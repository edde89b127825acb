"""Writes a planned GGUF: every source is read once, front to back, in chunks of one MiB.

One thread reads, several convert and write, one digests; memory does not grow with the model.
"""

import hashlib
import os
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gguf_mtp.encode import SOURCE_BYTES, Encoder
from gguf_mtp.errors import FormatError, OutputError
from gguf_mtp.output import AppendedFile, OutputFile, Target, check_output
from gguf_mtp.plan import FilePlan, Plan, Slot, one_gguf
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.source import SourceFile, TensorRef
from gguf_mtp.readers.tail import read_footer

CHUNK_BYTES = 1 << 20
MAX_THREADS = 8

Progress = Callable[[int], None]


@dataclass
class _Chunk:
    """A piece of a source file, and the slot that wants it, if any."""

    offset: int
    nbytes: int
    slot: Slot | None


class _Worker:
    """A buffer with the scratch to convert what is in it; lent to one chunk at a time."""

    def __init__(self) -> None:
        self.buffer = np.empty(CHUNK_BYTES, np.uint8)
        self.encoder = Encoder(CHUNK_BYTES // 2)


def write_gguf(
    plan: Plan, path: Path, *, force: bool = False, progress: Progress | None = None
) -> dict[Path, str]:
    """Write `plan` to `path` as the only GGUF there (see `write_file`)."""
    return write_file(one_gguf(plan), path, force=force, progress=progress)


def write_file(
    plan: FilePlan, path: Path, *, force: bool = False, progress: Progress | None = None
) -> dict[Path, str]:
    """Write `plan` to `path`; returns the SHA-256 of the source files that were digested.

    `progress` is called with the number of bytes just read. The output appears, complete and
    re-read, by renaming; on any error it is as it was before.
    Raises OutputError, or FormatError when a source changes or ends early.
    """
    check_output(path, plan.source_files, force=force, needed=plan.total_bytes)
    with OutputFile(path, plan.total_bytes) as output:
        digests = _fill(plan, output, progress)
        _reread(plan, digests, output.temp, path)
        output.sync()
        output.publish()
    return digests


def append(plan: FilePlan, path: Path, *, progress: Progress | None = None) -> dict[Path, str]:
    """Write `plan`, a tail, behind the base that the existing file `path` holds.

    The base's bytes are never written to. On an error they are what remains; where the process is
    killed, a pending footer at the end says where they end. Raises as `write_file`.
    """
    if plan.footer is None:
        raise ValueError("only a tail is appended")
    with AppendedFile(path, plan.footer) as output:
        digests = _fill(plan, output, progress)
        _reread(plan, digests, path, path)
        output.commit()
    return digests


def bytes_to_read(plan: FilePlan) -> int:
    """What `progress` adds up to in `write_file`."""
    digested = plan.digested_files
    spans = (slot.tensor.source for slot in plan.slots)
    return sum(os.stat(file).st_size for file in digested) + sum(
        span.nbytes for span in spans if isinstance(span, TensorRef) and span.file not in digested
    )


def _fill(plan: FilePlan, output: Target, progress: Progress | None) -> dict[Path, str]:
    """All of the plan's bytes into `output`; the digests of the source files."""
    digests: dict[Path, str] = {}
    slots = plan.slots
    for slot in slots:
        if isinstance(slot.tensor.source, bytes):
            output.write(memoryview(slot.tensor.source), slot.offset)
    with _Pipeline(output, progress or (lambda nbytes: None)) as pipeline:
        for file in plan.source_files:
            wanted = [slot for slot in slots if _reads(slot, file)]
            digest = pipeline.run(file, wanted, digested=file in plan.digested_files)
            if digest is not None:
                digests[file] = digest
    for part in plan.parts:
        output.write(memoryview(part.plan.header(digests)), part.offset)
    if plan.footer is not None:
        begin, end = plan.footer.heads_window
        footer = replace(plan.footer, sha256=output.sha256(begin, end))
        output.write(memoryview(footer.encode()), end)
    return digests


def _reads(slot: Slot, file: Path) -> bool:
    return isinstance(slot.tensor.source, TensorRef) and slot.tensor.source.file == file


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


class _Pipeline:
    """Reader (the caller's thread), converting writers and one digesting thread."""

    def __init__(self, output: Target, progress: Progress) -> None:
        threads = min(os.cpu_count() or 1, MAX_THREADS)
        self._output = output
        self._progress = progress
        self._writers = ThreadPoolExecutor(threads, "gguf-mtp-write")
        self._digester = ThreadPoolExecutor(1, "gguf-mtp-digest")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._pending: list[tuple[_Worker, list[Future[None]]]] = []
        for _ in range(2 * threads + 2):
            self._idle.put(_Worker())

    def __enter__(self) -> "_Pipeline":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for executor in (self._writers, self._digester):
            executor.shutdown(wait=True, cancel_futures=True)

    def run(self, file: Path, slots: list[Slot], *, digested: bool) -> str | None:
        """Read `file` once, front to back: the spans of `slots`, or all of it if digested."""
        with SourceFile(file) as source:
            state = hashlib.sha256() if digested else None
            for chunk in _chunks(slots, source.size if digested else None):
                worker = self._take()
                view = worker.buffer[: chunk.nbytes]
                source.read_into(view.data, chunk.offset)
                jobs = []
                if state is not None:
                    jobs.append(self._digester.submit(state.update, view.data))
                if chunk.slot is not None:
                    jobs.append(self._writers.submit(self._store, worker, chunk, chunk.slot))
                self._pending.append((worker, jobs))
                self._progress(chunk.nbytes)
            self._settle(0)
            source.check_unchanged()
            return None if state is None else state.hexdigest()

    def _take(self) -> _Worker:
        if self._idle.empty():
            self._settle(len(self._pending) - 1)
        return self._idle.get()

    def _settle(self, leave: int) -> None:
        """Wait for the oldest chunks until `leave` are pending; raises what their jobs raised."""
        while len(self._pending) > leave:
            worker, jobs = self._pending.pop(0)
            for job in jobs:
                job.result()
            self._idle.put(worker)

    def _store(self, worker: _Worker, chunk: _Chunk, slot: Slot) -> None:
        tensor = slot.tensor
        ref = tensor.source
        if isinstance(ref, bytes):
            raise TypeError("a literal tensor has no chunks")
        data = worker.buffer[: chunk.nbytes]
        begin = chunk.offset - ref.offset
        if not tensor.verbatim:
            value_bytes = SOURCE_BYTES[ref.dtype]
            begin = begin // value_bytes // tensor.type.block_values * tensor.type.block_bytes
            data = worker.encoder.encode(data, ref.dtype, tensor.type)
        if tensor.rows is None:
            self._output.write(data.data, slot.offset + begin)
            return
        row_bytes = tensor.nbytes // tensor.shape[0]
        first = begin // row_bytes
        view = data.data
        for index, row in enumerate(tensor.rows[first : first + len(view) // row_bytes].tolist()):
            part = view[index * row_bytes : (index + 1) * row_bytes]
            self._output.write(part, slot.offset + row * row_bytes)


def _chunks(slots: list[Slot], whole_size: int | None) -> Iterator[_Chunk]:
    """The spans of `slots` in file order, cut to chunks; with `whole_size`, the rest as well."""
    at = 0
    wanted = [(slot.tensor.source, slot) for slot in slots]
    spans = [(ref, slot) for ref, slot in wanted if isinstance(ref, TensorRef)]
    for ref, slot in sorted(spans, key=lambda span: span[0].offset):
        if whole_size is not None:
            yield from _cut(at, ref.offset - at, CHUNK_BYTES, None)
        yield from _cut(ref.offset, ref.nbytes, _step(ref, slot), slot)
        at = ref.offset + ref.nbytes
    if whole_size is not None:
        yield from _cut(at, whole_size - at, CHUNK_BYTES, None)


def _step(ref: TensorRef, slot: Slot) -> int:
    """Bytes per chunk: whole rows where rows are reordered, else whole blocks."""
    if slot.tensor.rows is None:
        # One MiB holds whole blocks of every type, as rows of Q8_0 tensors do.
        return CHUNK_BYTES
    row_bytes = ref.nbytes // ref.shape[0]
    if row_bytes > CHUNK_BYTES:
        raise FormatError(f"{ref.file}: tensor {ref.name} has rows of {row_bytes} bytes")
    return CHUNK_BYTES // row_bytes * row_bytes


def _cut(offset: int, nbytes: int, step: int, slot: Slot | None) -> Iterator[_Chunk]:
    for begin in range(0, nbytes, step):
        yield _Chunk(offset + begin, min(step, nbytes - begin), slot)
