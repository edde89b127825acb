"""gguf-mtp doctor on machines that have less, or more, than this one."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gguf_mtp.cli.main import main
from gguf_mtp.doctor import MISSING, OK, WARN, Check, Examination, examine
from gguf_mtp.doctor.fits import best_that_fits, cache_bytes, needed
from gguf_mtp.doctor.memory import Place, system_memory
from gguf_mtp.doctor.weights import MIXED, NUMBER_TYPES, heads_bytes, target_bytes
from gguf_mtp.gemma4.config import read_text_config
from gguf_mtp.gemma4.keys import hyperparameters
from gguf_mtp.gemma4.outtype import stored_type
from gguf_mtp.gemma4.released import RELEASED
from gguf_mtp.gemma4.tensors import target_tensors
from gguf_mtp.ggml import BF16
from gguf_mtp.keyvalue import string
from gguf_mtp.model import Tensor
from gguf_mtp.plan import plan
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
    assert found["E4B"].text == "fits as bf16 in memory (15.1 of 16.0 GiB)"
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
    assert {"size": "E4B", "place": "memory", "outtype": "bf16"} in found["fits"]
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
    assert text == "fits as q6_k in CUDA0 (7.0 of 7.0 GiB); bf16 in memory (15.1 of 16.0 GiB)"


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


def test_memory_by_the_library_where_python_cannot_tell(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine_module, "system_memory", lambda: None)
    assert by_name(examine())["memory"].text.endswith("memory unknown on this system")
    cpu = CPU | {"total": 32 * GIB}
    monkeypatch.setattr(examine_module, "_probe", lambda: LIBRARY | {"devices": [GPU, cpu]})
    found = examine()
    assert found.places[-1] == Place("memory", "main memory", 32 * GIB)
    assert by_name(found)["memory"].text.startswith("32.0 GiB")


def test_what_fits() -> None:
    for size in RELEASED:
        takes = [needed(size, outtype) for outtype in NUMBER_TYPES]
        assert takes == sorted(takes, reverse=True)
        assert best_that_fits(size, takes[0]) == NUMBER_TYPES[0]
        assert best_that_fits(size, takes[0] - 1) == NUMBER_TYPES[1]
        assert best_that_fits(size, takes[-1] - 1) is None
    # E2B: 3 full layers of one head of 512, 12 of 256 within window and batch, F16, two of each.
    assert cache_bytes(RELEASED["E2B"].target) == (3 * 512 * 8192 + 12 * 256 * 1024) * 4


# Of the text half, in millions: what model cards say, less what they count of encoders.
@pytest.mark.parametrize(
    ("size", "millions"),
    [("E2B", 4628), ("E4B", 7463), ("12B", 11907), ("26B-A4B", 25233), ("31B", 30697)],
)
def test_parameters_of_the_released_sizes(size: str, millions: int) -> None:
    tensors = target_tensors(RELEASED[size].target)
    assert sum(prod(item.shape) for item in tensors if item.required) // 10**6 == millions


@pytest.mark.parametrize("size", RELEASED)
def test_released_sizes_are_those_that_are_converted(size: str) -> None:
    """What the checkpoints in tests/structures have of a size, all but widths and experts."""
    record = json.loads((Path(__file__).parent / "structures" / f"{size}.json").read_text("utf-8"))
    shared = ("layer_types", "kv_heads", "full_kv_heads")
    own = ("heads", "context_length", "sliding_window", "kv_shared_layers", "double_wide_mlp")
    for role, released, names in (
        ("target", RELEASED[size].target, (*shared, *own, "k_eq_v", "sliding_rope", "full_rope")),
        ("drafter", RELEASED[size].drafter, shared),
    ):
        values = record[role]["config"]["text_config"]
        config = read_text_config(values, size, values["model_type"])
        for name in names:
            assert getattr(released, name) == getattr(config, name), (role, name)
    assert bool(RELEASED[size].centroids) == record["drafter"]["config"]["use_ordered_embeddings"]


@pytest.mark.parametrize("size", RELEASED)
def test_sizes_of_mixed_types_are_those_of_llama_quantize(size: str, tmp_path: Path) -> None:
    """A file of the released shapes whose weights are a hole, sized up by llama-quantize."""
    config = RELEASED[size].target
    tensors = tuple(
        Tensor(item.name, stored_type(item.name, item.shape, BF16), item.shape, b"")
        for item in target_tensors(config)
        if item.required
    )
    keys = (string("general.architecture", "gemma4"), *hyperparameters(config, "gemma4", BF16))
    layout = plan(keys, tensors)
    file = tmp_path / "hole.gguf"
    file.write_bytes(layout.header({}))
    os.truncate(file, layout.total_bytes)
    for outtype in MIXED:
        command = [str(programs("default") / "llama-quantize"), "--dry-run", str(file), outtype]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        (mib,) = re.findall(r"quant size\s+=\s+([\d.]+) MiB", done.stdout + done.stderr)
        assert abs(target_bytes(RELEASED[size], outtype) / 2**20 - float(mib)) < 0.01


def test_heads_take_what_a_converted_drafter_takes() -> None:
    # E2B's drafter: 77,731,328 parameters; all in Q8_0 but norms and centroids, and the ordering.
    assert heads_bytes(RELEASED["E2B"]) == pytest.approx(77.7e6 * 34 / 32 + 2.6e6, rel=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads cgroups")
def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("gguf_mtp.doctor.memory.CGROUP", limit)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for text, expected in (("max\n", whole), (f"{GIB}\n", GIB)):
        limit.write_text(text)
        assert system_memory() == expected
