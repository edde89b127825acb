"""``gguf-mtp detach``: the base's original bytes back."""

import json
from pathlib import Path

import click

from gguf_mtp.api import detach
from gguf_mtp.cli.show import human_bytes


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write a copy without heads.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(file: Path, output: Path | None, force: bool, quiet: bool, as_json: bool) -> None:
    """Take off the heads that attach put behind FILE: what remains are the base's own bytes.

    Without -o FILE itself is cut. It repairs a file in which attaching was interrupted, too. To
    keep the heads use "gguf-mtp split".

    \b
    Example:
      gguf-mtp detach e2b.gguf
    """
    footer = detach(file, output, force=force)
    target = output or file
    if as_json:
        facts = {
            "output": str(target),
            "bytes": footer.base_bytes,
            "heads_bytes": footer.heads_bytes,
            "was_interrupted": footer.pending,
        }
        click.echo(json.dumps(facts, indent=2))
    elif not quiet:
        what = "an interrupted attach" if footer.pending else "heads"
        click.echo(f"{target}: the base's {human_bytes(footer.base_bytes)} without {what}")
