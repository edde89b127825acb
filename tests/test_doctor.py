"""gguf-mtp doctor on machines that have less, or more, than this one."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gguf_mtp.cli.main import main
from gguf_mtp.doctor import MISSING, OK, WARN, Check, Examination, examine
from gguf_mtp.doctor.fits import BITS, SIZES, best_that_fits
from gguf_mtp.doctor.memory import Place, system_memory
from llama_programs import programs

examine_module = sys.modules["gguf_mtp.doctor.examine"]
GIB = 1 << 30
CPU = {"name": "CPU", "description": "a processor", "cpu": True, "free": GIB, "total": GIB}
GPU = {"name": "CUDA0", "description": "a GPU", "cpu": False, "free": 7 * GIB, "total": 8 * GIB}
LIBRARY = {"directory": "/lib", "version": "0.5", "patched": True, "devices": [CPU]}


def executable(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no programs, no library and 16 GiB of memory; returns its PATH."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(examine_module, "system_memory", lambda: 16 * GIB)
    monkeypatch.setattr(examine_module, "_probe", lambda: {"error": "no libllama"})
    return tools


def by_name(found: Examination) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


def test_nothing_there(bare: Path) -> None:
    found = by_name(examine())
    assert {n for n, c in found.items() if c.state == MISSING} >= {"compiler", "cmake", "llama.cpp"}
    assert found["ccache"].state == WARN
    assert found["llama.cpp"].text == "no libllama"
    assert found["E4B"].text == "fits as q8_0 in memory (9.1 of 16.0 GiB)"
    assert found["31B"].state == WARN
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert all(line.split()[0] in (OK, WARN, MISSING, "next:") for line in lines)
    assert any(line.startswith("next: make patch-llamacpp") for line in lines)


def test_json(bare: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["complete"]) == (1, False)
    assert found["schema"] == "gguf-mtp.doctor/1"
    assert {"size": "E4B", "place": "memory", "outtype": "q8_0"} in found["fits"]
    assert found["next"][-1]


def test_a_library_makes_the_compiler_optional(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_module, "_probe", lambda: LIBRARY)
    found = examine()
    assert by_name(found)["compiler"].state == WARN
    assert by_name(found)["llama.cpp"].text == "patched, 0.5 in /lib"
    assert by_name(found)["devices"].text == "CPU (a processor)"


def test_stock(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_module, "_probe", lambda: LIBRARY | {"patched": False})
    check = by_name(examine())["llama.cpp"]
    assert (check.state, check.text) == (WARN, "stock, no MTP from one file: 0.5 in /lib")


def test_a_gpu_comes_first(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_module, "_probe", lambda: LIBRARY | {"devices": [GPU, CPU]})
    found = examine()
    assert [place.name for place in found.places] == ["CUDA0", "memory"]
    text = by_name(found)["E4B"].text
    assert text == "fits as q5_k_m in CUDA0 (6.5 of 7.0 GiB); q8_0 in memory (9.1 of 16.0 GiB)"


def test_a_gpu_that_is_not_used(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(bare, "nvidia-smi", "echo 'NVIDIA X, Y, 8192, 7168'; echo nonsense")
    monkeypatch.setattr(examine_module, "_probe", lambda: LIBRARY)
    found = examine()
    assert found.places[0] == Place("GPU0", "NVIDIA X, Y", 8 * GIB, 7 * GIB)
    assert by_name(found)["devices"].state == WARN
    assert "BACKEND=cuda" in by_name(found)["devices"].next


def test_programs_that_fail_or_print_escapes(bare: Path) -> None:
    executable(bare, "cmake", "exit 1")
    executable(bare, "git", "printf '\\033[31mred\\033[0m\\n'")
    found = by_name(examine())
    assert (found["cmake"].state, found["cmake"].text) == (OK, "cmake")
    assert "\x1b" not in CliRunner().invoke(main, ["doctor"]).stdout


def test_a_library_that_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path, "python", "kill -SEGV $$")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "ends the process that loads it" in examine_module._probe()["error"]
    executable(tmp_path, "python", "echo text")
    assert "cannot be asked" in examine_module._probe()["error"]


@pytest.mark.parametrize(("variant", "patched"), [("default", True), ("stock", False)])
def test_the_real_libraries(variant: str, patched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(programs(variant)))
    probed: dict[str, Any] = examine_module._probe()
    assert probed["patched"] is patched, probed
    cpu = next(device for device in probed["devices"] if device["cpu"])
    assert cpu["total"] > 0


def test_what_fits() -> None:
    order = list(BITS)
    for size in SIZES:
        needed = [size.needed(outtype) for outtype in order]
        assert needed == sorted(needed, reverse=True)
        assert best_that_fits(size, needed[0]) == order[0]
        assert best_that_fits(size, needed[0] - 1) == order[1]
        assert best_that_fits(size, needed[-1] - 1) is None
    # E2B: 3 full layers of one head of 512, 12 of 256 within the window, F16 keys and values.
    assert SIZES[0].cache_bytes(8192) == (3 * 512 * 8192 + 12 * 256 * 512) * 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads cgroups")
def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("gguf_mtp.doctor.memory.CGROUP", limit)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for text, expected in (("max\n", whole), (f"{GIB}\n", GIB)):
        limit.write_text(text)
        assert system_memory() == expected
