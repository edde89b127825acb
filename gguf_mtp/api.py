"""The library surface: `convert`, `attach`, `detach` and `split`, as the verbs use them."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf_mtp.base import ENCODERS_LEFT_OUT, base_from_gguf
from gguf_mtp.drafters.dialects import BY_NAME, UPSTREAM, WRITABLE
from gguf_mtp.drafters.sources import Heads, read_heads
from gguf_mtp.drafters.translate import in_dialect
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.gemma4.outtype import K_QUANTS
from gguf_mtp.gemma4.target import target_half
from gguf_mtp.hub import BASE, HEADS, local_path
from gguf_mtp.merged import INLINE, join, separate
from gguf_mtp.model import Half
from gguf_mtp.namespace import is_merged
from gguf_mtp.naming import output_path
from gguf_mtp.notes import Note
from gguf_mtp.output import check_output, cut
from gguf_mtp.pipeline import Progress
from gguf_mtp.plan import FilePlan, appended, copy_of, one_gguf, plan, span, with_tail
from gguf_mtp.provenance import split_notes
from gguf_mtp.quantized import Bars, Needs, in_place_of, needs, no_bars, quantized_base
from gguf_mtp.readers.checkpoint import read_checkpoint
from gguf_mtp.readers.gguf import GgufFile, read_gguf
from gguf_mtp.readers.parts import read_gguf_parts, require_whole
from gguf_mtp.readers.tail import Footer, is_tail, read_footer
from gguf_mtp.shards import cut_to_parts, part_path
from gguf_mtp.tail import TAIL, heads_in_tail, read_tail, tail_heads
from gguf_mtp.verify import compare_with_sources, manifest_bytes, manifest_path
from gguf_mtp.writer import FileToWrite, append, bytes_to_read, write_file, write_files

LAYOUTS = (INLINE, TAIL)


@dataclass(frozen=True)
class Output:
    """One file to write, or written, and what to tell the user about it; the first of several parts
    vouches for the others, which load with it alone."""

    path: Path
    plan: FilePlan
    notes: tuple[Note, ...] = ()
    vouches: bool = False


@dataclass(frozen=True)
class _Base:
    """A base model; `file` is set where it is all of a GGUF already."""

    half: Half
    file: GgufFile | None = None


@dataclass(frozen=True)
class Options:
    """How to convert. The types are among `gemma4.outtype.OUTTYPES` and `HEADS_TYPES` (None means
    ``auto``) and only for checkpoints, as a GGUF is copied. `layout` is one of `LAYOUTS`. A base
    that has heads is refused unless `replace_heads`. With `hash_base` the SHA-256 of the base's
    weight files is recorded beside the heads'. `metadata` is a JSON file of ``general.*`` keys that
    override what a checkpoint says."""

    outtype: str | None = None
    heads_type: str | None = None
    layout: str = INLINE
    replace_heads: bool = False
    hash_base: bool = False
    metadata: Path | None = None


@dataclass(frozen=True)
class Converted:
    """What was written: the whole, the file or files of it, and the SHA-256 of the sources that
    went into the header."""

    plan: FilePlan
    outputs: list[Output]
    digests: dict[Path, str]


@dataclass(frozen=True)
class Prepared:
    """A conversion that has been checked and can be written. For one of `K_QUANTS` `plan` is that
    of the floats it is made from, and `needs` says what that takes."""

    origin: Path
    base: _Base
    found: Heads
    options: Options
    plan: FilePlan
    needs: Needs | None

    def output_path(self, given: Path) -> Path:
        """`given`, which may be a directory or a template (see `naming`)."""
        asked = self.options.outtype if self.needs else None
        return output_path(given, self.origin, self.base.half, asked)


def prepare(base: Path | str, heads: Path | str, *, quiet: bool = True, **options: Any) -> Prepared:
    """Read both headers, check that the pair fits, and lay out the merged file.

    `base` and `heads` are checkpoint directories or files; as text also repositories of the hub,
    or files in them, which are fetched (see `hub`), without progress where `quiet`. `options` are
    those of `Options`. Raises FormatError, UnsupportedError, PairingError and FetchError.
    """
    chosen = Options(**options)
    base = local_path(base, BASE, quiet=quiet)
    heads = local_path(heads, HEADS, quiet=quiet)
    read, found = _read_pair(base, heads, chosen)
    whole = _lay_out(read, found, chosen)
    takes = None
    if chosen.outtype in K_QUANTS:
        heads_bytes = sum(tensor.nbytes for tensor in found.drafter.half.tensors)
        takes = needs(read.half, heads_bytes)
    return Prepared(base, read, found, chosen, whole, takes)


def plan_convert(base: Path | str, heads: Path | str, **options: Any) -> FilePlan:
    """The plan that `prepare` makes; UnsupportedError for types that libllama lays out."""
    prepared = prepare(base, heads, **options)
    if prepared.needs is not None:
        outtype = prepared.options.outtype
        raise UnsupportedError(f"{outtype} is laid out by llama.cpp: there is no plan of it")
    return prepared.plan


def _read_pair(base: Path, heads: Path, options: Options) -> tuple[_Base, Heads]:
    for path in (base, heads):
        if not os.path.exists(path):
            raise FormatError(f"{path}: no such file or directory")
    if base.is_dir():
        outtype = "auto" if options.outtype in K_QUANTS else options.outtype
        read = _Base(target_half(read_checkpoint(base), outtype or "auto", options.metadata))
    else:
        for option, value in (("--outtype", options.outtype), ("--metadata", options.metadata)):
            if value is not None:
                raise UnsupportedError(
                    f"{base}: is a GGUF and copied as it is; {option} is not possible"
                )
        read = _read_base_gguf(base, options.replace_heads)
    if is_tail(heads):
        raise UnsupportedError(f"{heads}: has a base model in it; split it first (--heads-out)")
    return read, read_heads(heads, read.half, options.heads_type)


def _lay_out(base: _Base, found: Heads, options: Options) -> FilePlan:
    if options.layout == INLINE:
        merged = join(base.half, found, hash_base=options.hash_base)
        return one_gguf(plan(merged.keys, merged.tensors, merged.notes))
    if options.layout != TAIL:
        raise UnsupportedError(f"layout {options.layout!a}, expected one of {LAYOUTS}")
    tail = tail_heads(base.half, found, hash_base=options.hash_base)
    heads_plan = plan(tail.keys, tail.tensors, tail.notes)
    if base.file is not None:
        return with_tail(span(base.file.path, (0, base.file.size)), heads_plan)
    return with_tail(plan(base.half.keys, base.half.tensors), heads_plan)


def _read_base_gguf(path: Path, replace_heads: bool) -> _Base:
    footer = read_footer(path)
    window = None if footer is None else footer.base_window
    if footer is not None and not footer.pending and not replace_heads:
        raise UnsupportedError(f"{path}: already has MTP heads (--replace-heads replaces them)")
    if window is None:
        file = read_gguf_parts(path)
    else:
        file = read_gguf(path, window=window)
        require_whole(file)
    if replace_heads and is_merged(file):
        base, _ = separate(file)
        return _Base(base)
    half = base_from_gguf(file, drop_overlay=replace_heads)
    is_whole = len(file.paths) == 1 and len(half.tensors) == len(file.tensors)
    return _Base(half, file if is_whole else None)


def convert(
    base: Path | str,
    heads: Path | str,
    out: Path,
    *,
    force: bool = False,
    split_max_size: int | None = None,
    verify: bool = False,
    bars: Bars = no_bars,
    threads: int | None = None,
    **options: Any,
) -> Converted:
    """Merge `base` and `heads` into the file `out` (see `prepare` and `write_prepared`)."""
    return write_prepared(
        prepare(base, heads, **options),
        out,
        force=force,
        split_max_size=split_max_size,
        verify=verify,
        bars=bars,
        threads=threads,
    )


def write_prepared(
    prepared: Prepared,
    out: Path,
    *,
    force: bool = False,
    split_max_size: int | None = None,
    verify: bool = False,
    bars: Bars = no_bars,
    threads: int | None = None,
) -> Converted:
    """Write the merged file to `out` (`Prepared.output_path` makes one of a directory or template).

    With `split_max_size` (bytes) a larger one comes in parts, named after it. With `verify` what
    was written is read again and compared with the sources before it gets its name, and a manifest
    is left beside it. `threads` change nothing in the bytes. Raises OutputError, and what reading
    sources raises.
    """
    whole, options = prepared.plan, prepared.options
    if split_max_size is not None and options.layout == TAIL:
        raise UnsupportedError("the tail layout is one file: it cannot be cut into parts")
    with ExitStack() as stack:
        if prepared.needs is not None and options.outtype is not None:
            check_output(out, whole.source_files, force=force, needed=0)
            half = prepared.base.half
            file = stack.enter_context(
                quantized_base(half, options.outtype, out, prepared.needs, bars)
            )
            whole = _lay_out(_Base(in_place_of(half, file), file), prepared.found, options)
        outputs = shard_outputs(whole, out, split_max_size)
        total = sum(bytes_to_read(output.plan) for output in outputs)
        with bars(out.name, total) as advance:
            if not verify:
                digests = write_outputs(outputs, force=force, progress=advance, threads=threads)
            else:
                digests = _write_verified(outputs, force, advance, threads, bars)
    return Converted(whole, outputs, digests)


def _write_verified(
    outputs: list[Output], force: bool, advance: Progress | None, threads: int | None, bars: Bars
) -> dict[Path, str]:
    for output in outputs:
        check_output(manifest_path(output.path), (), force=force, needed=0)

    def describe(file: FileToWrite, temp: Path) -> dict[Path, bytes]:
        with bars(f"reading {file.path.name} again", file.plan.total_bytes) as read:
            manifest = compare_with_sources(file.plan, temp, read or (lambda nbytes: None))
        return {manifest_path(file.path): manifest_bytes(manifest, file.path)}

    return write_outputs(outputs, force=force, progress=advance, threads=threads, describe=describe)


def shard_outputs(whole: FilePlan, out: Path, max_bytes: int | None) -> list[Output]:
    """The files that hold `whole`: `out`, or parts of at most `max_bytes` named after it."""
    plans = [whole] if max_bytes is None else cut_to_parts(whole, max_bytes)
    paths = (part_path(out, at, len(plans)) for at in range(len(plans)))
    return [
        Output(path, part, vouches=at == 0 and len(plans) > 1)
        for at, (path, part) in enumerate(zip(paths, plans, strict=True))
    ]


def plan_attach(
    base: Path,
    heads: Path | str,
    *,
    heads_type: str | None = None,
    replace_heads: bool = False,
    quiet: bool = True,
) -> FilePlan:
    """What `attach` appends to the GGUF `base` in place. Raises as `plan_convert`.

    An interrupted attach is taken for what it is: a base whose tail is to be written again.
    """
    if base.is_dir():
        raise UnsupportedError(f"{base}: is a directory; attach takes a GGUF, convert makes one")
    whole = plan_convert(
        base, heads, quiet=quiet, heads_type=heads_type, layout=TAIL, replace_heads=replace_heads
    )
    if whole.copied is None:
        raise UnsupportedError(f"{base}: {_why_not_attach(base, whole)}")
    return appended(whole)


def _why_not_attach(base: Path, whole: FilePlan) -> str:
    if any(note.code == ENCODERS_LEFT_OUT for note in whole.notes):
        return (
            "holds the vision and audio encoders, and llama.cpp does not load such a file; convert "
            "writes a new one without them (the encoders' own file is for --mmproj)"
        )
    return (
        "its heads are inline, or it is in parts: nothing can be appended; "
        "convert --replace-heads writes a new file"
    )


def attach(
    base: Path,
    heads: Path | str,
    *,
    heads_type: str | None = None,
    replace_heads: bool = False,
    progress: Progress | None = None,
) -> FilePlan:
    """Append `heads` to the file `base` itself, in the tail layout (see `append`)."""
    tail = plan_attach(base, heads, heads_type=heads_type, replace_heads=replace_heads)
    append(tail, base, progress=progress)
    return tail


def detach(path: Path, out: Path | None = None, *, force: bool = False) -> Footer:
    """Give back the base's original bytes: `path` itself cut to them, or a copy of them in `out`.

    Also repairs a file in which attaching was interrupted. Raises FormatError where there is no
    tail, OutputError where the file cannot be changed or written.
    """
    footer = read_footer(path)
    if footer is None:
        raise FormatError(f"{path}: has no heads in a tail (split takes apart what convert merged)")
    if out is None:
        cut(path, footer.base_bytes)
    else:
        write_file(copy_of(path, footer.base_window), out, force=force)
    return footer


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
    tail = read_tail(merged)
    if tail is None:
        base, heads = separate(read_gguf_parts(merged), BY_NAME[dialect])
        base_plan = one_gguf(plan(base.keys, base.tensors))
    else:
        found = heads_in_tail(tail, base_from_gguf(tail.base))
        heads = in_dialect(found.drafter, BY_NAME[dialect])
        heads = replace(heads, keys=(*heads.keys, *found.carried))
        base_plan = copy_of(merged, tail.footer.base_window)
    outputs = []
    if base_out:
        outputs.append(Output(base_out, base_plan, split_notes(heads)))
    if heads_out:
        outputs.append(Output(heads_out, one_gguf(plan(heads.keys, heads.tensors))))
    return outputs


def split(
    merged: Path,
    base_out: Path | None,
    heads_out: Path | None,
    *,
    dialect: str = UPSTREAM.name,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Output]:
    """Take the merged file apart again: the exact inverse of `convert` of two GGUFs."""
    outputs = plan_split(merged, base_out, heads_out, dialect=dialect)
    write_outputs(outputs, force=force, progress=progress)
    return outputs


def write_outputs(
    outputs: list[Output],
    *,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
    describe: Callable[[FileToWrite, Path], dict[Path, bytes]] | None = None,
) -> dict[Path, str]:
    """Write all of `outputs` or none (see `write_files`); the digests of sources."""
    return write_files(
        [FileToWrite(output.plan, output.path, output.vouches) for output in outputs],
        force=force,
        progress=progress,
        threads=threads,
        describe=describe,
    )
