"""The trained pair as one file and taken apart again, for the tests that run it."""

from dataclasses import dataclass
from pathlib import Path

from gguf_mtp.api import split
from gguf_mtp.drafters.sources import heads_from_gguf
from gguf_mtp.model import half_from_gguf
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.writer import write_gguf


@dataclass(frozen=True)
class Files:
    """One pair, whole and in halves; `with_tensors` is the drafter with its ordered head as
    tensors and its rows in token order, as other publishers' files have it."""

    merged: Path
    base: Path
    heads: Path
    with_tensors: Path


def take_apart(merged: Path, root: Path) -> Files:
    """Write the halves of `merged` into `root`."""
    base, heads, with_tensors = (root / f"{name}.gguf" for name in ("base", "heads", "tensors"))
    split(merged, base, heads)
    drafter = heads_from_gguf(read_gguf(heads), half_from_gguf(read_gguf(base))).drafter
    write_gguf(plan(drafter.half.keys, drafter.half.tensors), with_tensors)
    assert "masked_embd_ordering" in {tensor.name for tensor in read_gguf(with_tensors).tensors}
    return Files(merged, base, heads, with_tensors)
