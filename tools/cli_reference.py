#!/usr/bin/env python3
"""Write docs/cli.md from the command line itself. Exit codes: 0 done or the same, 1 stale.

python tools/cli_reference.py            # write
python tools/cli_reference.py --check    # compare, write nothing
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import click

from gguf_mtp.cli.main import VERBS, main

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 96
HEADER = """# The command line

Written by `tools/cli_reference.py` from the program itself; a test compares.

**Exit codes** of every verb: 0 done, or what was asked holds; 1 a finding (a claimed tier does not
hold, a difference, something missing); 2 could not do it, with one line `error: …` on stderr (two
more where a command line is wrong: how it is used); 130 and 143 ended by SIGINT and SIGTERM.

**Output.** Results go to stdout; notes, progress and errors to stderr. Progress is drawn on a
terminal only. `NO_COLOR` turns colours off, `COLUMNS` sets the width. `--json` prints one JSON
document and nothing else: [json.md](json.md).
"""


def reference() -> str:
    """The whole document."""
    parts = [HEADER, f"## gguf-mtp\n\n```text\n{_help(main, 'gguf-mtp')}```\n"]
    with click.Context(main, info_name="gguf-mtp", **main.context_settings) as parent:
        for verb in sorted(VERBS):
            command = main.get_command(parent, verb)
            assert command is not None
            parts.append(f"## gguf-mtp {verb}\n\n```text\n{_help(command, verb, parent)}```\n")
    return "\n".join(parts)


def _help(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    # Both widths: click takes the smaller of the terminal's and the largest.
    settings: dict[str, Any] = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    if parent is None:
        settings |= command.context_settings
    with click.Context(command, info_name=name, parent=parent, **settings) as context:
        lines = command.get_help(context).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def run(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args(argv)
    text = reference()
    if not options.check:
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if DOCUMENT.is_file() and DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print(f"{DOCUMENT} is stale: run tools/cli_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(run())
