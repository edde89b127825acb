"""Which library is loaded, and what is said when none can be."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.library import LogTail, choose_library, read_record, record_path


def write_record(cache: Path, **fields: object) -> dict[str, str]:
    """Write a build record under `cache` and return an environment that points there."""
    environ = {"XDG_CACHE_HOME": str(cache)}
    path = record_path(environ)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(fields))
    return environ


def test_the_environment_comes_first(tmp_path: Path) -> None:
    environ = write_record(tmp_path, lib_dir="/built", pin="abc", patches="p", backend="cpu")
    choice = choose_library(environ=environ | {"LLAMA_CPP_LIB_PATH": "/mine"})
    assert (choice.lib_dir, choice.origin) == (Path("/mine"), "environment")


def test_the_record_comes_next(tmp_path: Path) -> None:
    exact = {"lib_dir": "/exact", "bin_dir": "/exact"}
    environ = write_record(
        tmp_path, lib_dir="/built", pin="abc", patches="p", backend="cuda", exact=exact
    )
    choice = choose_library(environ=environ)
    assert (choice.lib_dir, choice.origin) == (Path("/built"), "record")
    assert choice.record is not None
    assert (choice.record.pin, choice.record.backend) == ("abc", "cuda")
    assert choose_library(exact=True, environ=environ).lib_dir == Path("/exact")


def test_the_bindings_own_library_comes_last(tmp_path: Path) -> None:
    choice = choose_library(environ={"XDG_CACHE_HOME": str(tmp_path)})
    assert (choice.lib_dir, choice.origin) == (None, "bindings")


def test_exact_needs_an_exact_build(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="--variant exact"):
        choose_library(exact=True, environ={"XDG_CACHE_HOME": str(tmp_path / "empty")})
    environ = write_record(tmp_path, lib_dir="/built")
    with pytest.raises(RuntimeUnavailable, match="records no batch-invariant build"):
        choose_library(exact=True, environ=environ)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"lib_dir": 3}',
        '{"lib_dir": "/", "exact": 1}',
        '{"lib_dir": "/", "pin": []}',
        '{"lib_dir": "a\\u0000"}',
        '{"lib_dir": "\\ud800"}',
        '{"lib_dir": "/", "lib_dir": "/"}',
        '{"lib_dir": ' + "[" * 100_000,
    ],
    ids=str.__len__,
)
def test_a_broken_record_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "llamacpp.json"
    path.write_text(text)
    with pytest.raises(RuntimeUnavailable, match=r"not a llama\.cpp record") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


def test_doctor_finds_a_broken_record(tmp_path: Path) -> None:
    environ = write_record(tmp_path, lib_dir=[7])
    clean = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    command = [sys.executable, "-m", "gguf_mtp.cli.main", "doctor", "--json"]
    done = subprocess.run(command, env=clean | environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["llama.cpp"]["state"] == "missing"
    assert "lib_dir is [7], expected a directory" in checks["llama.cpp"]["text"]


def run_validate(tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: a process loads one library for good."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": "a", "text": "b"}\n')
    names = ("LLAMA_CPP_LIB_PATH", "XDG_CACHE_HOME")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "gguf_mtp.cli.main",
            "validate",
            "m.gguf",
            "--prompts",
            str(prompts),
        ],
        env=clean | environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_directory_without_a_library_exits_2(tmp_path: Path) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    done = run_validate(tmp_path, LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path} holds no libllama; run `make patch-llamacpp`\n"


def test_a_directory_that_is_not_there_exits_2(tmp_path: Path) -> None:
    done = run_validate(tmp_path, LLAMA_CPP_LIB_PATH=str(tmp_path / "gone"))
    assert done.returncode == 2
    assert "gone: no such directory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_log_keeps_reasons_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    log = LogTail(keep=4)
    log.write(2, "loading\n")
    log.write(3, "careful\n")
    assert log.reason() == "careful"
    log.write(4, "wrong number ")
    log.write(5, "of tensors\n")
    log.write(4, "failed to load\ngave up\n")
    assert log.reason() == "wrong number of tensors; failed to load"
    assert log.lines()[0] == "careful"
    log.clear()
    assert (log.reason(), log.lines()) == ("", [])
    assert capfd.readouterr().err == ""
    log.echo = True
    log.write(2, "shown\n")
    assert capfd.readouterr().err == "shown\n"


def test_lines_for_debugging_push_none_out_of_the_log() -> None:
    log = LogTail(keep=2)
    log.write(2, "Vulkan0 KV buffer size = 0.07 MiB\n")
    for _ in range(9):
        log.write(1, "input tensor ")
        log.write(5, "is used\n")
    log.write(2, "done\n")
    assert log.lines() == ["Vulkan0 KV buffer size = 0.07 MiB", "done"]
