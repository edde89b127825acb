"""A base in one of libllama's mixed types: a float GGUF beside the output, quantized there.

Both intermediate files lie in a directory that is removed whatever happens (after a SIGKILL its
name says what it is).
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_mtp.base import base_from_gguf
from gguf_mtp.errors import OutputError
from gguf_mtp.model import Half
from gguf_mtp.output import TEMP_SUFFIX, free_bytes
from gguf_mtp.pipeline import Progress, default_threads
from gguf_mtp.plan import one_gguf, plan
from gguf_mtp.readers.gguf import GgufFile, read_gguf
from gguf_mtp.writer import bytes_to_read, write_file

# Opens a progress display: its label and the total of what is then reported.
Bars = Callable[[str, int], AbstractContextManager[Progress | None]]

# A mixed type's largest block is Q8_0's (34 bytes for 32 values), where rows do not divide by 256.
MOST_BYTES, MOST_VALUES = 34, 32


def no_bars(label: str, total: int) -> AbstractContextManager[Progress | None]:
    """Shows nothing."""
    return nullcontext()


@dataclass(frozen=True)
class Needs:
    """Upper bounds in bytes: the float intermediate, its quantized form, and what is on the disk
    and in memory at once."""

    intermediate: int
    quantized: int
    disk: int
    memory: int


def needs(base: Half, heads_bytes: int) -> Needs:
    """What quantizing `base` takes, known before anything is written."""
    # Imported here and below: most conversions do without the runtime.
    from gguf_mtp.runtime.quantize import BUFFER_BYTES

    layout = plan(base.keys, base.tensors)
    quantized = layout.data_start
    for slot in layout.slots:
        tensor = slot.tensor
        values = tensor.nbytes // tensor.type.block_bytes * tensor.type.block_values
        most = -(-values // MOST_VALUES) * MOST_BYTES
        quantized += layout.alignment + (most if len(tensor.shape) > 1 else tensor.nbytes)
    output = quantized + heads_bytes
    disk = quantized + max(layout.total_bytes, output)
    return Needs(layout.total_bytes, quantized, disk, 2 * BUFFER_BYTES)


@contextmanager
def quantized_base(
    base: Half, name: str, out: Path, bounds: Needs, bars: Bars
) -> Iterator[GgufFile]:
    """The GGUF that ``llama-quantize`` makes of `base` in type `name`; gone when the block ends.

    It lies in the directory of `out`. Raises OutputError and RuntimeUnavailable.
    """
    from gguf_mtp.runtime.quantize import require_library

    require_library()
    free = free_bytes(out.parent)
    if bounds.disk > free:
        raise OutputError(f"{out}: needs up to {bounds.disk} bytes, {free} are free")
    try:
        directory = tempfile.TemporaryDirectory(TEMP_SUFFIX, f".{out.name[:180]}.", out.parent)
    except OSError as error:
        raise OutputError(f"{out}: {error.strerror}") from error
    with directory as place:
        floats, result = (Path(place) / f"{step}.gguf" for step in ("float", "quantized"))
        layout = one_gguf(plan(base.keys, base.tensors))
        with bars("intermediate", bytes_to_read(layout)) as advance:
            write_file(layout, floats, progress=advance)
        _quantize(floats, result, name, layout.total_bytes, bars)
        floats.unlink()
        yield read_gguf(result)


def _quantize(floats: Path, result: Path, name: str, nbytes: int, bars: Bars) -> None:
    from gguf_mtp.runtime.quantize import quantize

    with bars(name, nbytes) as advance:
        shown = 0

        def progress(done: int, total: int) -> None:
            nonlocal shown
            # Only tensors are counted; bytes give a rate and a time left.
            if advance is not None:
                advance(nbytes * done // total - shown)
            shown = nbytes * done // total

        quantize(floats, result, name, threads=default_threads(), progress=progress)


def in_place_of(base: Half, file: GgufFile) -> Half:
    """The quantized keys and tensors under the name of the checkpoint they come from."""
    made = base_from_gguf(file)
    return replace(base, keys=made.keys, tensors=made.tensors)
