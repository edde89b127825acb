"""``gguf-mtp convert``: base weights and MTP heads into one GGUF."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gguf_mtp.api import plan_convert
from gguf_mtp.cli.progress import exit_on_signals, progress_bar
from gguf_mtp.cli.show import human_bytes, plan_rows, print_notes, print_plan
from gguf_mtp.gemma4.outtype import OUTTYPES
from gguf_mtp.namespace import PREFIX
from gguf_mtp.plan import Plan
from gguf_mtp.writer import bytes_to_read, write_gguf


@click.command()
@click.option(
    "--base",
    required=True,
    type=click.Path(path_type=Path),
    help="Gemma 4 checkpoint directory, or a base GGUF (copied as it is).",
)
@click.option(
    "--heads",
    required=True,
    type=click.Path(path_type=Path),
    help="Drafter checkpoint directory, or a gemma4-assistant GGUF (copied as it is).",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The GGUF to write.",
)
@click.option(
    "--outtype",
    type=click.Choice(OUTTYPES),
    help="Number type of the base's matrices; auto (default) keeps 16-bit floats.",
)
@click.option(
    "--heads-type",
    type=click.Choice(OUTTYPES),
    help="Number type of the heads' matrices; auto (default) is q8_0.",
)
@click.option("--hash-base", is_flag=True, help="Record the SHA-256 of the base's files too.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    base: Path,
    heads: Path,
    output: Path,
    outtype: str | None,
    heads_type: str | None,
    hash_base: bool,
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
      gguf-mtp convert --base gemma-4-E2B-it --heads gemma-4-E2B-it-assistant -o e2b-mtp.gguf
    """
    with exit_on_signals():
        plan = plan_convert(
            base, heads, outtype=outtype, heads_type=heads_type, hash_base=hash_base
        )
        if not (quiet or as_json):
            print_notes(plan.notes)
        if dry_run:
            if as_json:
                click.echo(json.dumps(summary(plan, output) | {"plan": plan_rows(plan)}, indent=2))
            elif not quiet:
                print_plan(plan, output)
            return
        started = time.monotonic()
        with progress_bar(output.name, bytes_to_read(plan), quiet=quiet or as_json) as advance:
            digests = write_gguf(plan, output, force=force, progress=advance)
        seconds = time.monotonic() - started
    if as_json:
        sources = {path.name: digest for path, digest in sorted(digests.items())}
        click.echo(json.dumps(summary(plan, output) | {"sha256": sources}, indent=2))
    elif not quiet:
        result = summary(plan, output)
        click.echo(
            f"{output}: {result['base_tensors']} base and {result['heads_tensors']} heads tensors, "
            f"{human_bytes(plan.total_bytes)} in {seconds:.1f} s"
        )


def summary(plan: Plan, output: Path) -> dict[str, Any]:
    """The result for machines."""
    heads = [slot.tensor for slot in plan.slots if slot.tensor.name.startswith(PREFIX)]
    return {
        "output": str(output),
        "bytes": plan.total_bytes,
        "keys": len(plan.keys),
        "base_tensors": len(plan.slots) - len(heads),
        "heads_tensors": len(heads),
        "heads_bytes": sum(tensor.nbytes for tensor in heads),
        "notes": [asdict(note) for note in plan.notes],
    }
