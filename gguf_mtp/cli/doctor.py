"""``gguf-mtp doctor``: what this machine has, what fits, what to do next."""

import json

import click
from rich.console import Console
from rich.text import Text

from gguf_mtp.cli.show import hanging, printable
from gguf_mtp.doctor import MISSING, OK, WARN, Examination, examine

STYLES = {OK: "green", WARN: "yellow", MISSING: "red"}
MAX_TEXT = 300
FIRST = """next: gguf-mtp convert --base google/gemma-4-E2B-it \\
        --heads google/gemma-4-E2B-it-assistant -o ."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(as_json: bool) -> None:
    """Say what this machine has, which sizes of Gemma 4 fit, and what to do next.

    A line each: ok, warn (works without it) or missing. What fits is estimated for the file, 8192
    tokens of context and a gigabyte to compute in. Exit codes: 0 nothing is missing, 1 something
    is, 2 failed.

    \b
    Example:
      gguf-mtp doctor
    """
    found = examine()
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print(found)
    if not found.complete:
        raise click.exceptions.Exit(1)


def _print(found: Examination) -> None:
    console = Console(soft_wrap=True, highlight=False)
    width = max(len(check.name) for check in found.checks)
    for check in found.checks:
        line = Text().append(f"{check.state:8}", STYLES[check.state])
        text = hanging(printable(check.text, MAX_TEXT), 8 + width + 2)
        line.append(f"{check.name:{width}}  {text}")
        console.print(line)
    for step in found.next_steps():
        console.print(Text(f"next: {hanging(step, 6)}"))
    if found.complete and not found.next_steps():
        console.print(Text(FIRST))
