"""``gguf-mtp split``: a merged GGUF back into base and heads."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from gguf_mtp.api import plan_split, write_outputs
from gguf_mtp.cli.progress import progress_bar
from gguf_mtp.cli.show import human_bytes, print_notes
from gguf_mtp.drafters.dialects import UPSTREAM, WRITABLE
from gguf_mtp.naming import split_names
from gguf_mtp.writer import bytes_to_read


@click.command()
@click.argument("merged", type=click.Path(path_type=Path))
@click.option(
    "--base-out",
    type=click.Path(path_type=Path),
    help="Where to write the base: a file, or a directory.",
)
@click.option(
    "--heads-out",
    type=click.Path(path_type=Path),
    help="Where to write the heads: a file, or a directory.",
)
@click.option(
    "--dialect",
    type=click.Choice(WRITABLE),
    default=UPSTREAM.name,
    show_default=True,
    help="Whose names the heads get: upstream llama.cpp's, or another program's.",
)
@click.option("--force", is_flag=True, help="Replace existing output files.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    merged: Path,
    base_out: Path | None,
    heads_out: Path | None,
    dialect: str,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Take a merged GGUF of either layout apart: the exact inverse of convert.

    The base is the file that was merged, byte for byte, and one file also where that came in parts.
    The heads are a gemma4-assistant GGUF that
    an unpatched llama.cpp runs with -md; merging the two again gives the same bytes. Other programs
    want other names: --dialect. In a directory the heads are called mtp-NAME.gguf, as llama.cpp
    looks for them beside a base.

    \b
    Example:
      gguf-mtp split e2b-mtp.gguf --base-out e2b.gguf --heads-out mtp-e2b.gguf
    """
    if base_out is None and heads_out is None:
        raise click.UsageError("give --base-out, --heads-out or both")
    base_name, heads_name = split_names(merged)
    if base_out is not None and base_out.is_dir():
        base_out /= base_name
    if heads_out is not None and heads_out.is_dir():
        heads_out /= heads_name
    outputs = plan_split(merged, base_out, heads_out, dialect=dialect)
    total = sum(bytes_to_read(output.plan) for output in outputs)
    with progress_bar(merged.name, total, quiet=quiet or as_json) as advance:
        write_outputs(outputs, force=force, progress=advance)
    if as_json:
        results = [
            {
                "output": str(output.path),
                "bytes": output.plan.total_bytes,
                "tensors": output.plan.n_tensors,
                "notes": [asdict(note) for note in output.notes],
            }
            for output in outputs
        ]
        click.echo(json.dumps({"outputs": results}, indent=2))
    elif not quiet:
        for output in outputs:
            print_notes(output.notes)
            n_tensors = output.plan.n_tensors  # none where bytes are copied unseen
            what = f"{n_tensors} tensors" if n_tensors else "the base's own bytes"
            click.echo(f"{output.path}: {what}, {human_bytes(output.plan.total_bytes)}")
