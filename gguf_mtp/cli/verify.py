"""``gguf-mtp verify``: a file against the manifest that convert --verify made of it."""

import json
import os
from pathlib import Path

import click

from gguf_mtp.cli.progress import progress_bar
from gguf_mtp.cli.show import printable
from gguf_mtp.errors import FormatError
from gguf_mtp.verify import compare_with_manifest, manifest_path


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--manifest", type=click.Path(path_type=Path), help="Default: FILE.manifest.json.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(file: Path, manifest: Path | None, quiet: bool, as_json: bool) -> None:
    """Compare FILE, tensor by tensor, with the SHA-256 that its manifest has of each.

    Each part of a file in parts has a manifest of its own. Exit codes: 0 all as written, 1
    something differs, 2 could not tell.

    \b
    Example:
      gguf-mtp verify e2b-mtp.gguf
    """
    stated = manifest or manifest_path(file)
    if not stated.exists():
        raise FormatError(
            f"{stated}: no such manifest; convert --verify leaves one beside its output"
        )
    total = os.path.getsize(file) if os.path.isfile(file) else 0
    with progress_bar(file.name, total, quiet=quiet or as_json) as advance:
        findings = compare_with_manifest(file, stated, advance or (lambda nbytes: None))
    if as_json:
        click.echo(json.dumps({"file": str(file), "findings": findings}, indent=2))
    elif not quiet:
        for finding in findings:
            click.echo(printable(finding, 300))
        if not findings:
            click.echo(f"{file}: as it was written")
    if findings:
        raise click.exceptions.Exit(1)
