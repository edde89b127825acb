#!/usr/bin/env python3
"""Record docs/terminal.svg: real runs on the embedded model, on a terminal of 80 columns.

Needs tmux and the patched llama.cpp (`make patch-llamacpp`). Figures are those of this machine.

python tools/terminal_picture.py [--out docs/terminal.svg]
"""

import argparse
import io
import shlex
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from screens import NoTmux, Screen

REPO = Path(__file__).resolve().parent.parent
FIXTURE = REPO / "tests" / "fixtures" / "gemma4-tiny"
PICTURE = REPO / "docs" / "terminal.svg"
COLUMNS = 80
# Run in a directory that has the embedded pair as `base` and `heads`.
COMMANDS = (
    "gguf-mtp convert --base base --heads heads --outtype f32 -o tiny-mtp.gguf",
    'gguf-mtp run tiny-mtp.gguf "def __init__(self, name):" -n 48',
    "gguf-mtp validate tiny-mtp.gguf --prompts python",
)
# rich's own would have the viewer's browser fetch a font.
SVG = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<title>gguf-mtp: convert, run, validate</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas,
"DejaVu Sans Mono", monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g></svg>
"""


def prepare(place: Path) -> None:
    """The names that `COMMANDS` use, in the directory `place`."""
    (place / "base").symlink_to(FIXTURE / "target")
    (place / "heads").symlink_to(FIXTURE / "drafter")


def words(command: str) -> list[str]:
    """`command` as it is started: gguf-mtp is the one beside this Python."""
    program, *arguments = shlex.split(command)
    return [str(Path(sys.executable).with_name(program)), *arguments]


def record(place: Path) -> list[tuple[str, str]]:
    """Each command and what it left on the terminal. Raises RuntimeError where one fails."""
    shown = []
    for command in COMMANDS:
        with Screen(words(command), COLUMNS, rows=60, cwd=place) as screen:
            code = screen.wait()
            if code:
                raise RuntimeError(f"{command}: exit code {code}\n{screen.text()}")
            shown.append((command, screen.text(colours=True)))
    return shown


def picture(shown: list[tuple[str, str]]) -> str:
    """The SVG of commands and their output."""
    console = Console(
        file=io.StringIO(), record=True, width=COLUMNS, force_terminal=True, highlight=False
    )
    for command, output in shown:
        console.print(Text(f"$ {command}", "bold green"))
        console.print(Text.from_ansi(output))
    return console.export_svg(
        title="gguf-mtp", theme=MONOKAI, code_format=SVG, unique_id="terminal"
    )


def main() -> int:
    """Record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            prepare(Path(scratch))
            shown = record(Path(scratch))
    except (NoTmux, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.out.write_text(picture(shown), encoding="utf-8")
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
