"""Where a measuring verb leaves its results: a JSON file and a page, besides what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gguf_mtp.report import render
from gguf_mtp.validate.saved import ReportFile


class Outputs:
    """What ``--output`` and ``--html`` name. Earlier reports there are removed at once.

    Raises OutputError for a place where none can be written, or that holds something else.
    """

    def __init__(self, output: Path | None, html: Path | None) -> None:
        if output is not None and html is not None and output.resolve() == html.resolve():
            raise click.UsageError("--output and --html name the same file")
        self._output = None if output is None else ReportFile(output)
        self._html = None if html is None else ReportFile(html)

    def write(self, document: dict[str, Any]) -> str:
        """Write `document` where it was asked for; return it as JSON text."""
        text = json.dumps(document, indent=2, allow_nan=False)
        if self._output is not None:
            self._output.write(text + "\n")
        if self._html is not None:
            self._html.write(render([("report", document)]))
        return text
