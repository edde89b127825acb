"""``gguf-mtp attach``: heads behind a base GGUF's own bytes."""

import json
import time
from pathlib import Path
from typing import Any

import click

from gguf_mtp.api import Output, plan_attach, plan_convert
from gguf_mtp.cli.convert import summary
from gguf_mtp.cli.progress import progress_bar
from gguf_mtp.cli.show import human_bytes, print_notes
from gguf_mtp.cli.source import SOURCE
from gguf_mtp.gemma4.outtype import HEADS_TYPES
from gguf_mtp.tail import TAIL
from gguf_mtp.writer import append, bytes_to_read, write_file


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.option(
    "--heads",
    required=True,
    type=SOURCE,
    help="What convert takes: a drafter checkpoint directory, a drafter GGUF, a repository …",
)
@click.option("--in-place", is_flag=True, help="Append to BASE itself.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write a copy with heads.")
@click.option(
    "--heads-type",
    type=click.Choice(HEADS_TYPES, case_sensitive=False),
    help="Number type of the heads' matrices; auto (default) is q8_0.",
)
@click.option("--replace-heads", is_flag=True, help="Replace heads that are attached already.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    base: Path,
    heads: str,
    in_place: bool,
    output: Path | None,
    heads_type: str | None,
    replace_heads: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Put MTP heads behind the bytes of BASE, a GGUF, without changing any of them.

    The file still loads as the plain base everywhere; gguf-mtp and the patched llama.cpp find the
    heads at its end. In place that is appending: it takes a moment whatever the base's size, the
    base's bytes are never written to, and "gguf-mtp detach" takes the heads off again, also where
    attaching was interrupted.

    \b
    Example:
      gguf-mtp attach e2b.gguf --heads gemma-4-E2B-it-assistant --in-place
    """
    if in_place == (output is not None):
        raise click.UsageError("give --in-place or -o OUTPUT")
    target = output or base
    options: dict[str, Any] = {
        "heads_type": heads_type,
        "replace_heads": replace_heads,
        "quiet": quiet or as_json,
    }
    started = time.monotonic()
    if output is None:
        plan = plan_attach(base, heads, **options)
    else:
        plan = plan_convert(base, heads, layout=TAIL, **options)
    if not (quiet or as_json):
        print_notes(plan.notes)
    with progress_bar(target.name, bytes_to_read(plan), quiet=quiet or as_json) as advance:
        if output is None:
            append(plan, base, progress=advance)
        else:
            write_file(plan, output, force=force, progress=advance)
    seconds = time.monotonic() - started
    facts = summary(plan, [Output(target, plan)])
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    elif not quiet:
        click.echo(
            f"{target}: {facts['heads_tensors']} heads tensors attached, "
            f"{human_bytes(facts['heads_bytes'])} in {seconds:.1f} s"
        )
