"""Unique symbols of ggml's CPU library: none are ours.

The dynamic linker takes a unique symbol (type ``u``) from the first library that has it, even where
libraries are opened apart. Of a process that opens one library for each kind of CPU, a kernel would
then be another CPU's.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from llama_programs import programs

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")


def cpu_libraries(bin_dir: Path) -> list[Path]:
    """ggml's CPU library in a build, or its libraries for each kind of CPU."""
    found = sorted(bin_dir.glob("libggml-cpu*.so"))
    assert found, f"no libggml-cpu in {bin_dir}"
    return found


def unique(library: Path) -> set[str]:
    """Names of the unique symbols that `library` defines."""
    command = ["nm", "-D", "--defined-only", "--format=posix", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    fields = [line.split() for line in done.stdout.splitlines()]
    assert len(fields) > 0
    return {name for name, kind, *_ in fields if kind == "u"}


@pytest.mark.parametrize("variant", ["default", "exact", "avx2"])
def test_unique_symbols_are_upstreams(variant: str) -> None:
    (stock,) = cpu_libraries(programs("stock"))
    (patched,) = cpu_libraries(programs(variant))
    assert unique(patched) <= unique(stock)
