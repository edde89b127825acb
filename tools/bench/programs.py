"""Running llama.cpp's programs for a measurement, and reading what they say about it."""

import json
import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

START_SECONDS = 300


class BenchError(Exception):
    """A measurement that could not be made; ``str()`` is one line."""


@dataclass(frozen=True)
class DraftStatistics:
    """What `common_speculative_print_stats` has counted since the program began, and how often it
    has said so: a server does at the end of each answer."""

    reports: int
    rounds: int
    drafted: int
    accepted: int
    draft_ms: float

    def since(self, other: "DraftStatistics") -> "DraftStatistics":
        return DraftStatistics(
            self.reports - other.reports,
            self.rounds - other.rounds,
            self.drafted - other.drafted,
            self.accepted - other.accepted,
            self.draft_ms - other.draft_ms,
        )


NOTHING_DRAFTED = DraftStatistics(0, 0, 0, 0, 0.0)
# llama.cpp's common/speculative.cpp, common_speculative_print_stats.
_STATISTICS = re.compile(
    r"#calls\(b,g,a\) = *\d+ +\d+ +(?P<rounds>\d+),.*?#gen tokens = *(?P<drafted>\d+), "
    r"#acc tokens = *(?P<accepted>\d+).*?dur\(b,g,a\) = [\d.]+, (?P<draft_ms>[\d.]+),"
)


def draft_statistics(log: str) -> DraftStatistics:
    """The last statistics line of a program's log (``-lv 4``); zeros where there is none."""
    found = list(_STATISTICS.finditer(log))
    if not found:
        return NOTHING_DRAFTED
    last = found[-1]
    rounds, drafted, accepted = (int(last[name]) for name in ("rounds", "drafted", "accepted"))
    return DraftStatistics(len(found), rounds, drafted, accepted, float(last["draft_ms"]))


@cache
def help_text(program: Path) -> str:
    """What ``--help`` prints: which flags this build knows."""
    result = subprocess.run([str(program), "--help"], capture_output=True, text=True, timeout=60)
    return result.stdout + result.stderr


class Server:
    """A running llama-server and its log."""

    def __init__(self, port: int, log: Path) -> None:
        self.address = ("127.0.0.1", port)
        self._url = f"http://127.0.0.1:{port}/completion"
        self._log = log

    def complete(self, prompt: str | Sequence[int], n_predict: int, **options: Any) -> Any:
        """One completion's ``timings``; ``options`` go into the request."""
        body = {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "n_predict": n_predict,
            "ignore_eos": True,
            "cache_prompt": False,
            **options,
        }
        request = urllib.request.Request(
            self._url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)["timings"]
        except (OSError, ValueError, KeyError) as error:
            raise BenchError(f"llama-server: {error}: {last_line(self.log())}") from error

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def statistics(self) -> DraftStatistics:
        """Counted since the server began, as far as it is in the log yet."""
        return draft_statistics(self.log())


def last_line(log: str) -> str:
    """The last error in a log, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["no output"]
    return next((line for line in reversed(lines) if " E " in line), lines[-1])[:300]


@contextmanager
def server(program: Path, arguments: Sequence[str], prefix: Sequence[str]) -> Iterator[Server]:
    """Start llama-server on a free local port; it is stopped at the end.

    Raises BenchError with the log's last error when it does not come up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    with tempfile.NamedTemporaryFile("w", suffix=".log") as out:
        process = subprocess.Popen(
            [*prefix, str(program), *arguments, *address, "-lv", "4"], stdout=out, stderr=out
        )
        try:
            running = Server(port, Path(out.name))
            _wait(process, port, running)
            yield running
        finally:
            process.terminate()
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", port: int, running: Server) -> None:
    # Under a prefix that queues for a quiet machine the wait is the queue's, not the server's.
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(
                f"llama-server ended with {process.returncode}: {last_line(running.log())}"
            )
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise BenchError(f"llama-server was not ready after {START_SECONDS} s")


def run_json(command: Sequence[str], environment: dict[str, str]) -> Any:
    """Run `command` and parse its standard output. Raises BenchError with its last line."""
    result = subprocess.run(
        list(command), capture_output=True, text=True, errors="replace", env=environment
    )
    if result.returncode != 0:
        raise BenchError(f"{Path(command[0]).name}: {last_line(result.stderr)}")
    return json.loads(result.stdout)
