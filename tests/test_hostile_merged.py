"""The patched llama.cpp over merged files that lie: a refusal that names the fault, or the plain
base; never a crash. Also with its reading code under AddressSanitizer and UBSan (`make
test-sanitize`)."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from gguf_mtp.api import convert, split
from gguf_mtp.errors import GgufMtpError
from hostile_merged import Case, Sound, cases, sound
from hostile_parts import Set, sets
from llama_programs import FIXED_DEPTH, GREEDY, THREADS, programs

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
SANITIZERS = "-fsanitize=address,undefined"
VARIANTS = ("default", "sanitize")
# A failed assertion of ggml starts a debugger to print its stack: that is not looked at here. What
# upstream's loader leaves behind when it refuses a file is upstream's.
ENVIRON = {"GGML_NO_BACKTRACE": "1", "ASAN_OPTIONS": "detect_leaks=0:max_allocation_size_mb=4096"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_merged: Path) -> Sound:
    root = tmp_path_factory.mktemp("sound")
    base, heads, tail = (root / f"{name}.gguf" for name in ("base", "heads", "tail"))
    split(tiny_merged, base, heads)
    convert(base, heads, tail, layout="tail")
    return sound(tiny_merged, base, tail)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, pair: Sound) -> dict[Path, Case]:
    root = tmp_path_factory.mktemp("hostile")
    files = {root / f"{case.name}.gguf": case for case in cases(pair)}
    for path, case in files.items():
        path.write_bytes(case.data)
    return files


@pytest.fixture(scope="module")
def split_sets(tmp_path_factory: pytest.TempPathFactory, pair: Sound) -> dict[Path, Set]:
    root = tmp_path_factory.mktemp("parts")
    return {made.write(root / made.name): made for made in sets(pair)}


@pytest.fixture(scope="module", params=VARIANTS)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """loader_driver.cpp on one of the built libraries."""
    libraries = _libraries(request.param)
    source = libraries.parents[1]
    flags = [SANITIZERS] if request.param == "sanitize" else []
    out = tmp_path_factory.mktemp("driver") / "loader_driver"
    # fmt: off
    subprocess.run(["c++", "-std=c++17", "-O1", *flags, str(HERE / "loader_driver.cpp"),
                    f"-I{source}/include", f"-I{source}/ggml/include", f"-L{libraries}",
                    "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}",
                    "-o", str(out)], check=True)
    # fmt: on
    return out


def _libraries(variant: str) -> Path:
    """Skips where `sanitize` was not built: it is on demand."""
    if variant != "sanitize":
        return programs(variant)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GGUF_MTP_REQUIRE_LLAMA", raising=False)
        return programs(variant)


def lines_of(driver: Path, what: str, paths: Iterable[Path]) -> tuple[list[list[str]], str]:
    """What the driver prints: path, status and reason of each file; and its stderr."""
    done = subprocess.run(
        [str(driver), what, *map(str, paths)],
        env=os.environ | ENVIRON,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()], done.stderr


def results(driver: Path, what: str, files: Mapping[Path, T]) -> Iterator[tuple[T, str, str]]:
    """Of each file: its case, ``ok``, ``refused`` or ``crashed``, and what was said."""
    lines, errors = lines_of(driver, what, files)
    assert [line[0] for line in lines] == [str(path) for path in files], errors[-3000:]
    for path, status, said in lines:
        assert status != "crashed", f"{path}: {said}\n{errors[-5000:]}"
        yield files[Path(path)], status, said


def unexpected(driver: Path, what: str, files: dict[Path, Case]) -> list[str]:
    """The files of which something else came out than their cases say, a line each."""
    wrong = []
    for case, status, said in results(driver, what, files):
        expected = {
            "base": case.base,
            "heads": case.heads,
            "pair": case.base or case.heads or case.pair,
        }[what]
        if expected not in said or (status == "ok") != (expected == ""):
            wrong.append(f"{case.name}: {status}, {said}; expected {expected!r}")
    return wrong


@pytest.mark.parametrize("what", ["base", "heads", "pair"])
def test_refused_with_a_reason_or_loaded(driver: Path, corpus: dict[Path, Case], what: str) -> None:
    assert len(corpus) > 150
    wrong = unexpected(driver, what, corpus)
    assert not wrong, "\n".join(wrong)


def test_the_verbs_survive_them(corpus: dict[Path, Case], tmp_path: Path) -> None:
    """Through the command line, where files are read strictly before llama.cpp gets them: a result
    or one line. What llama.cpp refuses, and more, is refused."""
    programs("default")
    heads, out = tmp_path / "h.gguf", tmp_path / "README.md"
    lines = [
        [f"{verb} {path}", [verb, str(path), *map(str, words)], {}]
        for path in corpus
        for verb, words in (
            ("inspect", ["--json"]),
            ("split", ["--force", "-q", "--heads-out", heads]),
            ("card", ["--force", "-q", "-o", out]),
            ("run", ["a", "-n", 1, "-q"]),
        )
    ]
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    command = [sys.executable, str(HERE / "drive_lines.py"), str(tmp_path / "lines.json")]
    done = subprocess.run(
        [*command, str(tmp_path / "results.json")],
        env=os.environ | ENVIRON | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "results.json").read_text())
    wrong = []
    for key, result in found.items():
        verb, path = key.split(" ", 1)
        case = corpus[Path(path)]
        refused = result["code"] == 2 and re.fullmatch(r"error: [^\n]+\n", result["err"])
        if result["exception"] or not (refused or result["code"] == 0):
            wrong.append(f"{verb} {case.name}: {result}")
        if verb == "run" and (case.base or case.heads or case.pair) and not refused:
            wrong.append(f"run {case.name}: accepted")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("what", ["base", "heads"])
def test_in_parts(driver: Path, split_sets: dict[Path, Set], what: str) -> None:
    """Heads that lie in another part of the set than their keys, or say they do."""
    wrong = []
    for made, status, said in results(driver, what, split_sets):
        expected = made.base if what == "base" else made.heads
        if expected not in said or (status == "ok") != (expected == ""):
            wrong.append(f"{made.name}: {status}, {said}; expected {expected!r}")
    assert not wrong, "\n".join(wrong)


def test_in_parts_in_python(split_sets: dict[Path, Set], tmp_path: Path) -> None:
    wrong = []
    for path, made in split_sets.items():
        said = ""
        try:
            split(path, tmp_path / "b.gguf", tmp_path / "h.gguf", force=True)
        except GgufMtpError as error:
            said = str(error)
        if made.split not in said or (said == "") != (made.split == ""):
            wrong.append(f"{made.name}: {said!r}; expected {made.split!r}")
    assert not wrong, "\n".join(wrong)


def test_the_sanitizers_are_there(driver: Path) -> None:
    """A variant without them would find nothing, nor one whose findings are not seen."""
    library = Path(_linked(driver)).resolve().read_bytes()
    if b"__asan_init" not in driver.read_bytes():
        assert b"__asan" not in library
        return
    assert b"__asan_report_load8" in library
    assert b"__ubsan_handle_type_mismatch" in library
    ((_, status, _),), errors = lines_of(driver, "overflow", [driver])
    assert status == "crashed"
    assert "heap-buffer-overflow" in errors


def _linked(driver: Path) -> str:
    """The libllama that the driver loads."""
    said = subprocess.run(["ldd", str(driver)], capture_output=True, text=True, check=True).stdout
    return next(line.split()[2] for line in said.splitlines() if "libllama.so" in line)


def run_program(path: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """llama-speculative-simple, which finds the heads by itself."""
    program = str(programs("default") / "llama-speculative-simple")
    # fmt: off
    return subprocess.run(
        [program, *THREADS, *GREEDY, "-n", "3", "-c", "64", "-m", str(path), "-p", "a", *more],
        env=os.environ | FIXED_DEPTH | ENVIRON, capture_output=True, text=True,
        errors="replace", timeout=120,
    )
    # fmt: on


def unexpected_of_programs(files: dict[Path, Case]) -> list[str]:
    """As `unexpected`: text, or an exit code of 1 and the reason; what cannot draft runs without
    heads where that is asked for."""

    def check(path: Path) -> str:
        case = files[path]
        # Without a magic at its end, or a key that says so, a file has no heads to load.
        plain = "carries no MTP heads" in case.heads
        expected = case.base or ("" if plain else case.heads or case.pair)
        done = run_program(path)
        if done.returncode not in (0, 1) or (done.returncode == 0) != (expected == ""):
            return f"{case.name}: exit code {done.returncode}, {done.stderr[-600:]}"
        if expected not in done.stderr:
            return f"{case.name}: {expected!r} is not in {done.stderr[-600:]}"
        if expected and not case.base and run_program(path, "--spec-type", "none").returncode:
            return f"{case.name}: does not run as the plain base"
        return ""

    with ThreadPoolExecutor(2) as pool:
        return [text for text in pool.map(check, files) if text]


def test_the_programs_say_the_same(corpus: dict[Path, Case]) -> None:
    wrong = unexpected_of_programs(corpus)
    assert not wrong, "\n\n".join(wrong)
