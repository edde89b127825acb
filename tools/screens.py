"""What a program leaves on a terminal of a given size, by tmux: for pictures and for tests."""

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gguf_mtp.closing import Closing

SECONDS = 300
SETTINGS = """set -g status off
set -g history-limit 5000
set -g default-terminal tmux-256color
"""


class NoTmux(Exception):
    """tmux is not installed."""


class Screen(Closing):
    """One command on a terminal of its own; closing it ends both. Raises NoTmux."""

    def __init__(
        self,
        command: list[str],
        columns: int,
        rows: int = 40,
        cwd: Path | None = None,
        environ: dict[str, str] | None = None,
    ) -> None:
        if shutil.which("tmux") is None:
            raise NoTmux("tmux is not installed")
        self._place = tempfile.TemporaryDirectory()
        place = Path(self._place.name)
        self._socket, self._status = place / "socket", place / "status"
        settings, script = place / "settings", place / "script"
        settings.write_text(SETTINGS, "utf-8")
        # The terminal stays when the command has ended.
        ended = shlex.quote(str(self._status))
        script.write_text(f"{shlex.join(command)}\necho $? > {ended}\nexec sleep {SECONDS}\n")
        hidden = ("NO_COLOR", "COLUMNS", "LINES", "TMUX")
        base = {name: value for name, value in os.environ.items() if name not in hidden}
        self._environ = base | {"LC_ALL": "C.UTF-8"} | (environ or {})
        size = ("-x", str(columns), "-y", str(rows))
        run = shlex.join(["sh", str(script)])
        self._tmux("-f", str(settings), "new-session", "-d", *size, "-c", str(cwd or place), run)

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, encoding="utf-8", env=self._environ
        ).stdout

    def wait(self) -> int:
        """The command's exit code, once it has ended."""
        self.wait_until(lambda: self._status.exists() and bool(self._status.read_text()))
        return int(self._status.read_text())

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Come back when `ready`. Raises TimeoutError."""
        end = time.monotonic() + SECONDS
        while not ready():
            if time.monotonic() > end:
                raise TimeoutError(self.text())
            time.sleep(0.02)

    def text(self, *, colours: bool = False) -> str:
        """All that is on it or was scrolled off, in whole lines as they were printed: one that is
        wider than the terminal shows here. `colours` keeps them as escapes."""
        flags = ["-e"] if colours else []
        shown = self._tmux("capture-pane", "-p", "-J", "-S", "-", *flags)
        return "".join(f"{line.rstrip()}\n" for line in shown.rstrip().splitlines())

    def close(self) -> None:
        subprocess.run(["tmux", "-S", str(self._socket), "kill-server"], capture_output=True)
        self._place.cleanup()
