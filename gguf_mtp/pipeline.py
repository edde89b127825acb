"""Moves tensors from source files to planned offsets: threads that read, convert and write.

Each takes the next chunk of a list in the order of the sources, so the bytes that come out do not
depend on how many there are. Memory is set by the chunks and not by the model.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_mtp.encode import SOURCE_BYTES, Bytes, Encoder
from gguf_mtp.errors import FormatError
from gguf_mtp.output import Target
from gguf_mtp.plan import Slot
from gguf_mtp.readers.source import SourceFile, TensorRef

CHUNK_BYTES = 1 << 21
# Output rows gathered at a time where rows are reordered: a drafter's embedding in one go.
GATHERED_BYTES = 1 << 27
MAX_THREADS = 8
# Written bytes after which the kernel is told to begin putting them on the medium.
FLUSH_BYTES = 1 << 25

Progress = Callable[[int], None]


@dataclass(frozen=True)
class _Chunk:
    """A piece of the source of `slot`: `begin` counts from the tensor's first byte."""

    slot: Slot
    ref: TensorRef
    begin: int
    nbytes: int


def default_threads() -> int:
    """As many as there are CPUs for this process, up to `MAX_THREADS`."""
    try:
        n_cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        n_cpus = os.cpu_count() or 1
    return min(n_cpus, MAX_THREADS)


def transfer(
    slots: Iterable[Slot],
    files: Iterable[Path],
    digested: Iterable[Path],
    output: Target,
    progress: Progress,
    threads: int,
) -> dict[Path, str]:
    """Bring the tensors of `slots` from `files` to `output`; the SHA-256 of the files `digested`.

    `progress` is called with the number of bytes just read, by one thread at a time. Raises
    FormatError when a source changes or ends early, OutputError when writing fails.
    """
    with ExitStack() as stack:
        sources = {file: stack.enter_context(SourceFile(file)) for file in files}
        shared = _Shared(sources, output, progress, iter(_jobs(slots)))
        with ThreadPoolExecutor(threads + 2, "gguf-mtp") as pool:
            try:
                digests = {
                    file: pool.submit(_digest, sources[file], shared) for file in sorted(digested)
                }
                flusher = pool.submit(_flush, output, shared.stop)
                work: list[Future[Any]] = [pool.submit(_work, shared) for _ in range(threads)]
                work += digests.values()
                finished, _ = wait(work, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
            finally:
                # Also where a signal's exception has come first: the pool waits for its threads.
                shared.stop.set()
            flusher.result()
        for source in sources.values():
            source.check_unchanged()
        return {file: digest.result() for file, digest in digests.items()}


class _Shared:
    """What the threads have in common."""

    def __init__(
        self,
        sources: Mapping[Path, SourceFile],
        output: Target,
        progress: Progress,
        jobs: Iterator[_Chunk],
    ) -> None:
        self.sources = sources
        self._output = output
        self.stop = threading.Event()
        self._progress = progress
        self._jobs = jobs
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def next_job(self) -> _Chunk | None:
        """The next chunk; None when there are no more, or when it is time to stop."""
        with self._lock:
            return None if self.stop.is_set() else next(self._jobs, None)

    def write(self, data: memoryview, offset: int) -> None:
        """All of `data` at `offset`. One thread at a time: the kernel lets only one write to a file
        and has the others spin, who could be reading or converting instead."""
        with self._writing:
            self._output.write(data, offset)

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._progress(nbytes)


def _jobs(slots: Iterable[Slot]) -> Iterator[_Chunk]:
    """Whole tensors where rows are reordered, as they take longest; then chunks in file order."""
    spans = [
        (slot, slot.tensor.source) for slot in slots if isinstance(slot.tensor.source, TensorRef)
    ]
    for slot, ref in spans:
        if slot.tensor.rows is not None:
            yield _Chunk(slot, ref, 0, ref.nbytes)
    order = {file: at for at, file in enumerate(dict.fromkeys(ref.file for _, ref in spans))}
    for slot, ref in sorted(spans, key=lambda span: (order[span[1].file], span[1].offset)):
        if slot.tensor.rows is None:
            # A chunk holds whole blocks of every type.
            for begin in range(0, ref.nbytes, CHUNK_BYTES):
                yield _Chunk(slot, ref, begin, min(CHUNK_BYTES, ref.nbytes - begin))


def _work(shared: _Shared) -> None:
    buffer, encoder = np.empty(CHUNK_BYTES, np.uint8), Encoder(CHUNK_BYTES // 2)
    while (job := shared.next_job()) is not None:
        source = shared.sources[job.ref.file]
        if job.slot.tensor.rows is not None:
            _reorder(shared, source, job, buffer, encoder)
            continue
        data = buffer[: job.nbytes]
        source.read_into(data.data, job.ref.offset + job.begin)
        encoded = _encode(job.slot, job.ref, data, encoder)
        shared.write(encoded.data, job.slot.offset + _stored_bytes(job))
        shared.advance(job.nbytes)


def _encode(slot: Slot, ref: TensorRef, data: Bytes, encoder: Encoder) -> Bytes:
    return data if slot.tensor.verbatim else encoder.encode(data, ref.dtype, slot.tensor.type)


def _stored_bytes(job: _Chunk) -> int:
    """Bytes that the values before the chunk take in the output."""
    tensor = job.slot.tensor
    if tensor.verbatim:
        return job.begin
    n_values = job.begin // SOURCE_BYTES[job.ref.dtype]
    return n_values // tensor.type.block_values * tensor.type.block_bytes


def _reorder(
    shared: _Shared, source: SourceFile, job: _Chunk, buffer: Bytes, encoder: Encoder
) -> None:
    """A tensor whose rows change places: the output in pieces, for each the source front to back.

    Source row i goes to row ``rows[i]``.
    """
    slot, ref, tensor = job.slot, job.ref, job.slot.tensor
    n_rows = tensor.shape[0]
    row_bytes, stored_bytes = ref.nbytes // n_rows, tensor.nbytes // n_rows
    step = len(buffer) // row_bytes
    if step == 0 or tensor.rows is None:
        raise FormatError(f"{ref.file}: tensor {ref.name} has rows of {row_bytes} bytes")
    n_gathered = max(1, GATHERED_BYTES // stored_bytes)
    for first in range(0, n_rows, n_gathered):
        gathered = np.empty((min(n_gathered, n_rows - first), stored_bytes), np.uint8)
        for begin in range(0, n_rows, step):
            if shared.stop.is_set():
                return
            rows = tensor.rows[begin : begin + step] - first
            data = buffer[: len(rows) * row_bytes]
            source.read_into(data.data, ref.offset + begin * row_bytes)
            wanted = (rows >= 0) & (rows < len(gathered))
            picked = data.reshape(len(rows), row_bytes)[wanted].reshape(-1)
            if len(picked):
                encoded = _encode(slot, ref, picked, encoder)
                gathered[rows[wanted]] = encoded.reshape(-1, stored_bytes)
            if first == 0:
                shared.advance(len(data))
        shared.write(gathered.reshape(-1).data, slot.offset + first * stored_bytes)


def _digest(source: SourceFile, shared: _Shared) -> str:
    state = hashlib.sha256()
    for begin in range(0, source.size, CHUNK_BYTES):
        if shared.stop.is_set():
            break
        data = source.read(begin, min(CHUNK_BYTES, source.size - begin))
        state.update(data)
        shared.advance(len(data))
    return state.hexdigest()


def _flush(output: Target, stop: threading.Event) -> None:
    """Have the medium work while there is more to convert, not all at the end."""
    flushed = 0
    while not stop.wait(0.005):
        if output.written - flushed >= FLUSH_BYTES:
            flushed = output.written
            output.sync()
