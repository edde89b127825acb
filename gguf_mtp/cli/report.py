"""``gguf-mtp report``: a saved JSON report as a page, or as a line for a model card."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_mtp.output import check_output, write_whole
from gguf_mtp.readers.strict_json import read_object
from gguf_mtp.report import badges, render


@click.command()
@click.argument("saved", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), metavar="OUT", help="Write a page.")
@click.option("--badge", "as_badge", is_flag=True, help="Print a line of Markdown.")
@click.option("--force", is_flag=True, help="Replace an existing page.")
def command(saved: tuple[Path, ...], html: Path | None, as_badge: bool, force: bool) -> None:
    """Render SAVED, what "validate --json" or "bench --json" printed, for people.

    The page is one file that fetches nothing; several reports make one page. The badge is a line
    of plain Markdown for a model card, of each validation.

    \b
    Example:
      gguf-mtp validate e2b-mtp.gguf --json > e2b.json
      gguf-mtp report e2b.json --html e2b.html --badge
    """
    if html is None and not as_badge:
        raise click.UsageError("give --html OUT, --badge or both")
    documents = [(str(path), read_object(path)) for path in saved]
    lines = []
    if as_badge:
        lines = [line for where, document in documents for line in badges(document, where)]
    if html is not None:
        write_page(html, render(documents), inputs=saved, force=force)
    for line in lines:
        click.echo(line)


def write_page(path: Path, page: str, *, inputs: tuple[Path, ...], force: bool) -> None:
    """Put a page at `path`, complete or not at all. Raises OutputError."""
    data = page.encode("utf-8")
    check_output(path, inputs, force=force, needed=len(data))
    write_whole(path, data)
