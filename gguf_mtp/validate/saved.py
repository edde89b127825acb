"""Reports as files: whole or not there, so that no earlier one passes for an interrupted run's."""

from __future__ import annotations

import re
from pathlib import Path

from gguf_mtp.errors import OutputError
from gguf_mtp.output import OutputFile, check_output, write_whole
from gguf_mtp.readers.source import SourceFile

# A schema's name is in the first bytes of every report, whatever its format.
MARK = re.compile(rb"gguf-mtp\.(validate|bench)")
MARK_WITHIN = 4096


class ReportFile:
    """Where a report will be. An earlier report there is removed at once, before the run.

    A file that is no report is not touched: raises OutputError for it, and for a place where
    none can be written. Formats begin with text that holds `MARK`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A device would be removed, too.
        check_output(path, (), force=True, needed=0)
        if path.exists():
            with SourceFile(path) as file:
                start = file.read(0, min(MARK_WITHIN, file.size))
            if start and not MARK.search(start):
                raise OutputError(f"{path}: exists and is not a report of gguf-mtp")
        OutputFile(path, 0).close()  # can it be made at all? So the earlier one can be removed too.
        path.unlink(missing_ok=True)

    def write(self, text: str) -> None:
        """Put the report there, under its name only when all of it is on the medium."""
        write_whole(self.path, text.encode("utf-8"))
