"""The patched llama.cpp over merged files that lie: a refusal that names the fault, or the plain
base; never a crash. Also with its reading code under AddressSanitizer and UBSan (`make
test-sanitize`)."""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gguf_mtp.api import convert, split
from hostile_merged import Case, Sound, cases, sound
from llama_programs import FIXED_DEPTH, GREEDY, THREADS, programs

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


def results(driver: Path, what: str, files: dict[Path, Case]) -> Iterator[tuple[Case, str, str]]:
    """Of each file: the case, ``ok``, ``refused`` or ``crashed``, and what was said."""
    done = subprocess.run(
        [str(driver), what, *map(str, files)],
        env=os.environ | ENVIRON,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(path) for path in files], done.stderr[-3000:]
    for path, status, said in lines:
        assert status != "crashed", f"{path}: {said}\n{done.stderr[-5000:]}"
        yield files[Path(path)], status, said


@pytest.mark.parametrize("what", ["base", "heads", "pair"])
def test_refused_with_a_reason_or_loaded(driver: Path, corpus: dict[Path, Case], what: str) -> None:
    assert len(corpus) > 150
    wrong = []
    for case, status, said in results(driver, what, corpus):
        expected = {
            "base": case.base,
            "heads": case.heads,
            "pair": case.base or case.heads or case.pair,
        }[what]
        if expected not in said or (status == "ok") != (expected == ""):
            wrong.append(f"{case.name}: {status}, {said}; expected {expected!r}")
    assert not wrong, "\n".join(wrong)


def test_the_sanitizers_are_there() -> None:
    """A variant without them would find nothing."""
    library = _libraries("sanitize") / "libllama.so"
    data = library.resolve().read_bytes()
    assert b"__asan_report_load8" in data
    assert b"__ubsan_handle_type_mismatch" in data


def test_the_programs_say_the_same(corpus: dict[Path, Case]) -> None:
    """llama-speculative-simple, which finds the heads by itself: text, or an exit code of 1 and the
    reason; what cannot draft runs without heads where that is asked for."""
    program = str(programs("default") / "llama-speculative-simple")

    def run(path: Path, *more: str) -> "subprocess.CompletedProcess[str]":
        # fmt: off
        return subprocess.run(
            [program, *THREADS, *GREEDY, "-n", "3", "-c", "64", "-m", str(path), "-p", "a", *more],
            env=os.environ | FIXED_DEPTH | ENVIRON, capture_output=True, text=True,
            errors="replace", timeout=120,
        )
        # fmt: on

    def check(path: Path) -> str:
        case = corpus[path]
        # Without a magic at its end, or a key that says so, a file has no heads to load.
        plain = "carries no MTP heads" in case.heads
        expected = case.base or ("" if plain else case.heads or case.pair)
        done = run(path)
        if done.returncode not in (0, 1) or (done.returncode == 0) != (expected == ""):
            return f"{case.name}: exit code {done.returncode}, {done.stderr[-600:]}"
        if expected not in done.stderr:
            return f"{case.name}: {expected!r} is not in {done.stderr[-600:]}"
        if expected and not case.base and run(path, "--spec-type", "none").returncode:
            return f"{case.name}: does not run as the plain base"
        return ""

    with ThreadPoolExecutor(2) as pool:
        wrong = [text for text in pool.map(check, corpus) if text]
    assert not wrong, "\n\n".join(wrong)
