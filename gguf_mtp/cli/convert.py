"""``gguf-mtp convert``: base weights and MTP heads into one GGUF."""

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from gguf_mtp.api import (
    LAYOUTS,
    Output,
    Prepared,
    prepare,
    shard_outputs,
    write_prepared,
)
from gguf_mtp.cli.progress import progress_bar
from gguf_mtp.cli.show import human_bytes, plan_rows, print_notes, print_plan
from gguf_mtp.cli.source import SOURCE
from gguf_mtp.gemma4.outtype import HEADS_TYPES, OUTTYPES
from gguf_mtp.merged import INLINE
from gguf_mtp.namespace import PREFIX
from gguf_mtp.naming import name_notes
from gguf_mtp.plan import FilePlan
from gguf_mtp.quantized import Needs
from gguf_mtp.shards import parse_size
from gguf_mtp.tail import TAIL


def _size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option(
    "--base",
    required=True,
    type=SOURCE,
    help="Gemma 4 checkpoint directory, or a base GGUF (copied as it is), also in parts; or where "
    "on the Hugging Face hub: owner/repo[@revision] or hf://owner/repo[@revision][/file].",
)
@click.option(
    "--heads",
    required=True,
    type=SOURCE,
    help="Drafter: checkpoint directory, GGUF of any dialect (copied as it is), loose safetensors, "
    ".litertlm package; or where on the hub. Also GGUFs of EAGLE-3, DFlash and small models.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The GGUF to write; a directory, or a name with {name} and {outtype} in it, will do.",
)
@click.option(
    "--outtype",
    type=click.Choice(OUTTYPES, case_sensitive=False),
    metavar="TYPE",
    help=f"Number type of the base's matrices: {', '.join(OUTTYPES)}. auto (default) keeps 16-bit "
    "floats. The k types are made by llama.cpp's own quantizer.",
)
@click.option(
    "--heads-type",
    type=click.Choice(HEADS_TYPES, case_sensitive=False),
    help="Number type of the heads' matrices; auto (default) is q8_0.",
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default=INLINE,
    show_default=True,
    help="inline: one model file for the patched llama.cpp. tail: the base's own bytes with the "
    "heads behind, which every llama.cpp loads as the plain base.",
)
@click.option("--replace-heads", is_flag=True, help="Replace the heads of a base that has some.")
@click.option("--hash-base", is_flag=True, help="Record the SHA-256 of the base's files too.")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    help="JSON of general.* keys that override the checkpoint's, as upstream's converter has it.",
)
@click.option(
    "--split-max-size",
    callback=_size,
    metavar="N[K|M|G]",
    help="Cut a larger output into parts of at most this size, which load together.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Read the output again, compare it with the sources, and leave a manifest of SHA-256s "
    "beside it.",
)
@click.option("--threads", type=click.IntRange(1), help="Default: one for each CPU.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    base: str,
    heads: str,
    output: Path,
    outtype: str | None,
    heads_type: str | None,
    layout: str,
    replace_heads: bool,
    hash_base: bool,
    metadata: Path | None,
    split_max_size: int | None,
    verify: bool,
    threads: int | None,
    force: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Merge a base model and its MTP heads into one GGUF.

    The base comes out as llama.cpp's converter writes it, tensor for tensor and byte for byte; the
    heads stand beside it under the prefix "mtp.". Pairs that do not fit are refused before
    anything is written.

    \b
    Example:
      gguf-mtp convert --base e2b.gguf --heads gemma-4-E2B-it-assistant -o .
      gguf-mtp convert --base google/gemma-4-E4B-it \\
        --heads google/gemma-4-E4B-it-assistant --outtype q4_k_m -o .
    """
    options: dict[str, Any] = {
        "outtype": outtype,
        "heads_type": heads_type,
        "layout": layout,
        "replace_heads": replace_heads,
        "hash_base": hash_base,
        "metadata": metadata,
    }
    silent = quiet or as_json
    started = time.monotonic()
    prepared = prepare(base, heads, quiet=silent, **options)
    output = prepared.output_path(output)
    if not silent:
        print_notes(prepared.plan.notes)
    if prepared.needs is not None and not silent:
        click.echo(_needs_text(outtype, prepared.needs), err=not dry_run)
    if dry_run:
        _dry_run(prepared, output, split_max_size, quiet=quiet, as_json=as_json)
        return
    done = write_prepared(
        prepared,
        output,
        force=force,
        split_max_size=split_max_size,
        verify=verify,
        bars=partial(progress_bar, quiet=silent),
        threads=threads,
    )
    seconds = time.monotonic() - started
    plan, digests = done.plan, done.digests
    facts = summary(plan, done.outputs)
    if not silent:
        print_notes(name_notes(done.outputs[0].path))
    if as_json:
        sources = {path.name: digest for path, digest in sorted(digests.items())}
        click.echo(json.dumps(facts | {"sha256": sources}, indent=2))
    elif not quiet:
        base_text = f"{facts['base_tensors']} base" if facts["base_tensors"] else "the base's bytes"
        where = f"{done.outputs[0].path}" + (
            f" and {len(done.outputs) - 1} more parts" if len(done.outputs) > 1 else ""
        )
        click.echo(
            f"{where}: {base_text} and {facts['heads_tensors']} heads tensors, "
            f"{human_bytes(plan.total_bytes)} in {seconds:.1f} s"
        )


def _dry_run(
    prepared: Prepared, output: Path, max_bytes: int | None, *, quiet: bool, as_json: bool
) -> None:
    """What would be written; of a type that llama.cpp lays out, the bounds."""
    if prepared.needs is not None:
        if as_json:
            facts = {"output": str(output), "at_most": asdict(prepared.needs)}
            click.echo(json.dumps(facts, indent=2))
        return
    outputs = shard_outputs(prepared.plan, output, max_bytes)
    if as_json:
        facts = summary(prepared.plan, outputs) | {"plan": plan_rows(prepared.plan)}
        click.echo(json.dumps(facts, indent=2))
    elif not quiet:
        print_notes(name_notes(outputs[0].path))
        print_plan(prepared.plan, outputs[0].path)


def _needs_text(outtype: str | None, bounds: Needs) -> str:
    return (
        f"{outtype}: llama.cpp quantizes an intermediate of {human_bytes(bounds.intermediate)} "
        f"beside the output, which is removed; at most {human_bytes(bounds.disk)} of disk "
        f"and about {human_bytes(bounds.memory)} of memory are in use at once"
    )


def summary(plan: FilePlan, outputs: list[Output]) -> dict[str, Any]:
    """The result for machines. `base_tensors` is None where the base is copied byte for byte."""
    last = plan.parts[-1].plan
    tensors = [slot.tensor for slot in last.slots]
    if plan.footer is None:
        heads = [tensor for tensor in tensors if tensor.name.startswith(PREFIX)]
        base_tensors: int | None = len(tensors) - len(heads)
    else:
        heads = tensors
        base_tensors = len(plan.parts[0].plan.slots) if len(plan.parts) > 1 else None
    return {
        "output": str(outputs[0].path),
        "files": [str(output.path) for output in outputs],
        "bytes": sum(output.plan.total_bytes for output in outputs),
        "layout": INLINE if plan.footer is None else TAIL,
        "keys": sum(len(part.plan.keys) for part in plan.parts),
        "base_tensors": base_tensors,
        "heads_tensors": len(heads),
        "heads_bytes": sum(tensor.nbytes for tensor in heads),
        "notes": [asdict(note) for note in (*plan.notes, *name_notes(outputs[0].path))],
    }
