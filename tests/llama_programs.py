"""Running the built llama.cpp programs the way a user would, for the tests that compare texts."""

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hung import HUNG
from llamacpp.pin import SetupError, read_record

# A model this small spends longer handing work to a second thread than doing it.
THREADS = ("-t", "1", "-td", "1")
GREEDY = ("--temp", "0")


def programs(variant: str) -> Path:
    """Folder of a variant's programs: ``default``, ``exact`` or ``stock``.

    Skips the test where it was not built; GGUF_MTP_REQUIRE_LLAMA=1 makes that a failure.
    """
    try:
        record: dict[str, Any] = read_record()
        chosen = record if variant == "default" else record[variant]
    except (SetupError, KeyError) as error:
        if os.environ.get("GGUF_MTP_REQUIRE_LLAMA") == "1":
            raise
        pytest.skip(f"no {variant} build of llama.cpp: {error}")
    return Path(chosen["bin_dir"])


# On a model this small drafting may not pay, and what pays is a matter of the clock: always draft,
# unless it is the choice that is tested. A stock build does not know the variable.
FIXED_DEPTH = {"LLAMA_ARG_SPEC_DRAFT_AUTO_DEPTH": "off"}


@dataclass(frozen=True)
class Output:
    """What one run of llama-speculative-simple said."""

    text: str
    log: str
    stats: dict[str, Any]

    def figure(self, name: str) -> int:
        """An integer the program reports, such as ``n_accept``."""
        match = re.search(rf"\b{name}\s*= (\d+)", self.log)
        assert match is not None, f"no {name} in:\n{self.log[-2000:]}"
        return int(match.group(1))


def speculative_simple(
    bin_dir: Path,
    *arguments: str | Path,
    prompt: str,
    n_predict: int = 64,
    program: str = "llama-speculative-simple",
    stats: Path | None = None,
) -> Output:
    """Run llama-speculative-simple, or `program`, greedily; fails the test when it does.

    With `stats`, a path to use, the patched programs' statistics are read as well.
    """
    # fmt: off
    command = [str(bin_dir / program), *THREADS, *GREEDY, "-n", str(n_predict), "-c", "1024",
               *map(str, arguments), "-p", prompt]
    # fmt: on
    if stats is not None:
        command += ["--spec-stats", str(stats)]
    for _ in range(10):
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=HUNG,
            env=os.environ | FIXED_DEPTH,
        )
        assert result.returncode == 0, f"{command}\n{result.stderr[-2000:]}"
        # Upstream's program may end before its logger has written the last lines.
        if "n_accept" in result.stderr:
            break
    figures = {} if stats is None else json.loads(stats.read_text())
    return Output(result.stdout.strip(), result.stderr, figures)


class Server:
    """A running llama-server."""

    def __init__(self, port: int) -> None:
        self.port = port

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """POST `body` as JSON and return the JSON answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=HUNG) as answer:
            reply: dict[str, Any] = json.load(answer)
        return reply

    def complete(self, prompt: str, n_predict: int, **sampling: Any) -> dict[str, Any]:
        """Completion, greedy unless `sampling` differs; the answer has ``tokens``, ``timings``."""
        fixed = {"cache_prompt": False, "return_tokens": True}
        body = {"prompt": prompt, "n_predict": n_predict, "temperature": 0, **fixed, **sampling}
        return self.post("/completion", **body)


@contextmanager
def server(bin_dir: Path, *arguments: str | Path, log: Path, slots: int = 1) -> Iterator[Server]:
    """Start llama-server on a free local port and stop it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # fmt: off
    command = [str(bin_dir / "llama-server"), *THREADS, "-c", f"{1024*slots}", "-np", str(slots),
               "--host", "127.0.0.1", "--port", str(port), *map(str, arguments)]
    # fmt: on
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | FIXED_DEPTH) as process,
    ):
        try:
            _wait_until_ready(process, port, log)
            yield Server(port)
        finally:
            process.terminate()


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + HUNG
    while time.monotonic() < deadline:
        assert process.poll() is None, f"llama-server ended:\n{log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"llama-server was not ready in time:\n{log.read_text()[-2000:]}")
