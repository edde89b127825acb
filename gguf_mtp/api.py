"""The library surface: `convert` and `split`, as the verbs of the command line use them."""

from dataclasses import dataclass
from pathlib import Path

from gguf_mtp.base import base_from_gguf
from gguf_mtp.drafters.dialects import BY_NAME, UPSTREAM, WRITABLE
from gguf_mtp.drafters.sources import read_heads
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.gemma4.target import target_half
from gguf_mtp.merged import join, separate
from gguf_mtp.model import Half
from gguf_mtp.output import check_output
from gguf_mtp.plan import Plan, plan
from gguf_mtp.readers.checkpoint import read_checkpoint
from gguf_mtp.readers.parts import read_gguf_parts
from gguf_mtp.writer import Progress, write_gguf


@dataclass(frozen=True)
class Output:
    """One file to write, or written."""

    path: Path
    plan: Plan


def plan_convert(
    base: Path,
    heads: Path,
    *,
    outtype: str | None = None,
    heads_type: str | None = None,
    replace_heads: bool = False,
    hash_base: bool = False,
) -> Plan:
    """Read both headers, check that the pair fits, and lay out the merged file.

    `base` and `heads` are checkpoint directories or GGUF files. The types are among
    `gemma4.outtype.OUTTYPES` (None means ``auto``) and only for directories, as a GGUF is copied.
    With `hash_base` the SHA-256 of the base's weight files is recorded beside the heads'.
    Raises FormatError, UnsupportedError and PairingError.
    """
    for path in (base, heads):
        if not path.exists():
            raise FormatError(f"{path}: no such file or directory")
    base_half = _read_base(base, outtype, replace_heads)
    found = read_heads(heads, base_half, heads_type)
    merged = join(base_half, found, hash_base=hash_base)
    return plan(merged.keys, merged.tensors, merged.notes)


def _read_base(base: Path, outtype: str | None, replace_heads: bool) -> Half:
    if base.is_dir():
        return target_half(read_checkpoint(base), outtype or "auto")
    if outtype is not None:
        raise UnsupportedError(f"{base}: is a GGUF and copied as it is; --outtype is not possible")
    return base_from_gguf(read_gguf_parts(base), drop_overlay=replace_heads)


def convert(
    base: Path,
    heads: Path,
    out: Path,
    *,
    outtype: str | None = None,
    heads_type: str | None = None,
    replace_heads: bool = False,
    hash_base: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Merge `base` and `heads` into the one GGUF `out` (see `plan_convert`, `write_gguf`)."""
    merged = plan_convert(
        base,
        heads,
        outtype=outtype,
        heads_type=heads_type,
        replace_heads=replace_heads,
        hash_base=hash_base,
    )
    write_gguf(merged, out, force=force, progress=progress)
    return merged


def plan_split(
    merged: Path,
    base_out: Path | None,
    heads_out: Path | None,
    *,
    dialect: str = UPSTREAM.name,
) -> list[Output]:
    """The files that `split` writes: the base, the heads, or both.

    `dialect` is one of `drafters.dialects.WRITABLE`; UnsupportedError is raised for another.
    """
    if dialect not in WRITABLE:
        raise UnsupportedError(f"dialect {dialect!a}, expected one of {', '.join(WRITABLE)}")
    base, heads = separate(read_gguf_parts(merged), BY_NAME[dialect])
    wanted = [(base_out, base), (heads_out, heads)]
    return [Output(path, plan(half.keys, half.tensors)) for path, half in wanted if path]


def split(
    merged: Path,
    base_out: Path | None,
    heads_out: Path | None,
    *,
    dialect: str = UPSTREAM.name,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Output]:
    """Take the merged GGUF apart again: the exact inverse of `convert` of two GGUFs."""
    outputs = plan_split(merged, base_out, heads_out, dialect=dialect)
    write_outputs(outputs, force=force, progress=progress)
    return outputs


def write_outputs(
    outputs: list[Output], *, force: bool = False, progress: Progress | None = None
) -> None:
    """Write all of `outputs`, after checking that each of them can be."""
    total = sum(output.plan.total_bytes for output in outputs)
    for output in outputs:
        check_output(output.path, output.plan.source_files, force=force, needed=total)
    for output in outputs:
        write_gguf(output.plan, output.path, force=force, progress=progress)
