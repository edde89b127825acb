"""``gguf-mtp card``: the model card of a merged file."""

import os
from pathlib import Path
from typing import Any

import click

from gguf_mtp.card import Facts, render
from gguf_mtp.cli.inspect import MAX_JSON_ITEMS, summary
from gguf_mtp.cli.progress import progress_bar
from gguf_mtp.cli.report import write_page
from gguf_mtp.cli.show import print_notes
from gguf_mtp.digest import file_sha256
from gguf_mtp.errors import UnsupportedError
from gguf_mtp.naming import name_notes
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.strict_json import read_object
from gguf_mtp.tail import read_tail


@click.command()
@click.argument("merged", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write it there, not out.")
@click.option(
    "--report",
    "saved",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help='What "validate --json" printed for MERGED: badge, tiers and acceptance; repeatable.',
)
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def command(
    merged: Path, output: Path | None, saved: tuple[Path, ...], force: bool, quiet: bool
) -> None:
    """Write the model card of MERGED, a file with heads in either layout, for publishing it.

    Front matter for the Hugging Face hub, where both halves come from and their licences, what to
    type in llama.cpp and other programs, and with --report what was proved of this very file, on
    each backend that was validated.

    \b
    Example:
      gguf-mtp validate e2b-mtp.gguf --json > e2b.json
      gguf-mtp card e2b-mtp.gguf --report e2b.json -o README.md
    """
    facts = gather(merged, quiet=quiet)
    if not quiet:
        print_notes(name_notes(merged))
    text = render(facts, [(str(path), read_object(path)) for path in saved])
    if output is None:
        click.echo(text, nl=False)
        return
    write_page(output, text, inputs=(merged, *saved), force=force)


def gather(merged: Path, *, quiet: bool) -> Facts:
    """All that the card says of the file. Raises UnsupportedError for one without heads, and for a
    part of a model."""
    tail = read_tail(merged)
    gguf = read_gguf(merged) if tail is None else tail.base
    found = summary(gguf, tail)
    parts = found["parts"]
    if parts is not None:
        raise UnsupportedError(
            f"{merged}: is part {parts['number']} of {parts['count']}, expected a merged file in "
            f"one piece; join the parts with llama-gguf-split --merge"
        )
    if found["heads"] is None:
        raise UnsupportedError(f"{merged}: has no MTP heads; gguf-mtp convert puts some in")
    keys: dict[str, Any] = {
        key.name: key.head(MAX_JSON_ITEMS) for key in gguf.keys if key.name.startswith("general.")
    }
    size = os.path.getsize(merged)
    with progress_bar(merged.name, size, quiet=quiet) as advance:
        sha256 = file_sha256(merged, advance)
    return Facts(merged, size, found, keys, sha256)
