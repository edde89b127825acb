"""Validating in a process of its own, where environment and library are those of a backend."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hung import HUNG
from llama_programs import programs
from llamacpp.pin import cache_dir

# Variables that choose a library or a device; what runs here sets its own.
CHOOSING = ("LLAMA_CPP_LIB_PATH", "GGML_VK_VISIBLE_DEVICES", "VK_DRIVER_FILES", "VK_ICD_FILENAMES")
SOFTWARE_DRIVERS = ("/usr/share/vulkan/icd.d/lvp_icd*.json", "/etc/vulkan/icd.d/lvp_icd*.json")


def clean_environment() -> dict[str, str]:
    """The environment without anything that chooses a library or device."""
    return {name: value for name, value in os.environ.items() if name not in CHOOSING}


def vulkan_environment() -> dict[str, str]:
    """The environment in which the first Vulkan device is Mesa's software driver.

    Skips the test where there is none; GGUF_MTP_REQUIRE_LLAMA=1 makes that a failure.
    """
    drivers = [p for pattern in SOFTWARE_DRIVERS for p in Path("/").glob(pattern[1:])]
    if not drivers:
        message = "no software Vulkan driver (Debian: mesa-vulkan-drivers)"
        if os.environ.get("GGUF_MTP_REQUIRE_LLAMA") == "1":
            pytest.fail(message)
        pytest.skip(message)
    # Without the first variable ggml passes over devices of type CPU, and without a word everything
    # runs on its own CPU backend. Compiled shaders are kept between runs: 13 seconds become 2.
    return clean_environment() | {
        "GGML_VK_VISIBLE_DEVICES": "0",
        "VK_DRIVER_FILES": str(drivers[0]),
        "VK_ICD_FILENAMES": str(drivers[0]),
        "MESA_SHADER_CACHE_DIR": str(cache_dir() / "mesa-shaders"),
    }


def run_validate(
    *arguments: str | Path, environ: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run ``gguf-mtp validate`` on the recorded library that its arguments ask for."""
    return run_verb("validate", *arguments, environ=environ)


def run_verb(
    verb: str, *arguments: str | Path, environ: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a verb in a process of its own, in which no library is loaded yet."""
    return subprocess.run(
        [sys.executable, "-m", "gguf_mtp.cli.main", verb, *map(str, arguments)],
        env=clean_environment() if environ is None else environ,
        capture_output=True,
        text=True,
        timeout=HUNG,
        check=False,
    )


def report_of(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The JSON report of a run that held."""
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def verdicts(report: dict[str, Any]) -> dict[str, bool | None]:
    """What each tier of a report came to."""
    return {tier["tier"]: tier["holds"] for tier in report["tiers"]}


@contextmanager
def rpc_server(log: Path, variant: str = "default") -> Iterator[str]:
    """Start a server of a build on a free local port; gives its ``host:port``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = programs(variant) / "ggml-rpc-server"
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=clean_environment()) as process,
    ):
        try:
            _wait_until_open(process, port, log)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_until_open(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + HUNG
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the RPC server ended:\n{log.read_text()[-2000:]}"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the RPC server was not ready in time:\n{log.read_text()[-2000:]}")
