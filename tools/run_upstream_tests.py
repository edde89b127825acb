#!/usr/bin/env python3
"""llama.cpp's own tests of what `patches/` touches, built and run on the patched tree.

    python tools/run_upstream_tests.py              # what `make test-llamacpp` runs
    python tools/run_upstream_tests.py --only test-gguf
    python tools/run_upstream_tests.py --only llama-server

Exit codes: 0 all passed, 1 a test failed, 2 could not build or run them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import patch_llamacpp
from gguf_mtp.api import convert, split
from llamacpp import build, series, server_tests
from llamacpp.operations import write_cases
from llamacpp.pin import SetupError

# The operations of the drafter's graph (ordered head, argmax, its layers), and of kernels changed.
# fmt: off
OPERATIONS = ("MUL_MAT", "MUL_MAT_ID", "GET_ROWS", "SET_ROWS", "TOP_K", "ARGMAX", "ARGSORT",
              "TANH", "GEGLU")
# fmt: on

# Of these upstream has cases that take hours on two cores: mixtures of up to 1024 matrices. The
# ordered head is one of 2048, and has cases of its own.
FEWER = {"MUL_MAT_ID": ("-p", "n_mats=[1-9],")}

# Stands for the file of `operations.write_cases`.
CASES = "{cases}"


@dataclass(frozen=True)
class UpstreamTest:
    """One program of llama.cpp's ``tests/``; `why` says which of our changes it is about."""

    name: str
    program: str
    why: str
    arguments: tuple[str, ...] = ()


TESTS = (
    UpstreamTest("test-gguf", "test-gguf", "reading and writing GGUF"),
    UpstreamTest("test-llama-archs", "test-llama-archs", "every architecture loads and computes"),
    UpstreamTest(
        "test-model-resolution", "test-model-resolution", "which files a model's name means"
    ),
    UpstreamTest("test-sampling", "test-sampling", "samplers"),
    *(
        UpstreamTest(
            " ".join(("test-backend-ops", name, *FEWER.get(name, ()))),
            "test-backend-ops",
            "kernels",
            ("test", "-o", name, *FEWER.get(name, ())),
        )
        for name in OPERATIONS
    ),
    UpstreamTest(
        "test-backend-ops, the drafter's shapes",
        "test-backend-ops",
        "kernels in E2B's and E4B's shapes",
        ("test", "--test-file", CASES),
    ),
)
# Said in the summary: what is about the patches but needs more than this machine has.
NOT_RUN = {
    "test-arg-parser": "its last part downloads from ggml.ai",
    "tools/server/tests, what needs a model of another kind": "they come from huggingface.co",
    "test-thread-safety, test-state-restore-fragmented": "their model comes from huggingface.co",
}
DEADLINE_SECONDS = 1800
SERVER = "llama-server"
FIXTURE = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "gemma4-tiny"


@dataclass(frozen=True)
class Result:
    """How one test ended; `state` is passed, failed or timed out."""

    name: str
    state: str
    seconds: float
    detail: str = ""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(argv)
    chosen = [test for test in TESTS if not options.only or test.program in options.only]
    try:
        bin_dir = _build(options, chosen)
        results = [run(test, bin_dir, options.backend) for test in chosen]
        if not options.only or SERVER in options.only:
            results += run_server_tests(bin_dir, _stock_server(options))
    except (SetupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        for result in results:
            print(f"{result.state:9} {result.seconds:7.1f} s  {result.name}  {result.detail}")
        for name, reason in NOT_RUN.items():
            print(f"{'not run':9} {'':9}  {name}  {reason}")
    return 0 if all(result.state == "passed" for result in results) else 1


def _build(options: argparse.Namespace, tests: list[UpstreamTest]) -> Path:
    """Build the tests in a build folder of their own beside the programs'."""
    tree = patch_llamacpp.source_tree(options.tree, series.digest(), patch_llamacpp.SERIES)
    backend = build.choose_backend(options.backend)
    out = build.directory(tree, backend, "tests", options.cmake_flag)
    build.configure(tree, out, backend, ("-DLLAMA_BUILD_TESTS=ON", *options.cmake_flag))
    targets = tuple(dict.fromkeys([*(test.program for test in tests), SERVER]))
    build.compile_targets(out, targets, options.jobs, "build tests")
    return out / "bin"


def run(test: UpstreamTest, bin_dir: Path, backend: str) -> Result:
    """Run one test and keep the end of what it says."""
    tree, cases = bin_dir.parent.parent, bin_dir / "drafter-operations.txt"
    if CASES in test.arguments:
        write_cases(tree, cases)
    arguments = (str(cases) if item == CASES else item for item in test.arguments)
    command = [str(bin_dir / test.program), *arguments]
    if test.program == "test-backend-ops" and backend == "cpu":
        command += ["-b", "CPU"]  # not compared with itself unless it is asked for
    print(f"  {test.name}: {test.why}", file=sys.stderr, flush=True)
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            # Some write beside themselves; models they name by relative paths are the tree's.
            code = subprocess.run(
                command,
                cwd=tree,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=DEADLINE_SECONDS,
            ).returncode
        except subprocess.TimeoutExpired:
            return Result(test.name, "timed out", time.monotonic() - start)
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()] or ["no output"]
    state = "passed" if code == 0 else "failed"
    counted = [line for line in lines if "tests passed" in line]
    detail = counted[-1] if counted else ("" if code == 0 else f"exit {code}: {lines[-1][:200]}")
    if code != 0:
        detail += "".join(f"; {line[:200]}" for line in lines if "FAIL" in line)[:600]
    return Result(test.name, state, time.monotonic() - start, detail)


def _stock_server(options: argparse.Namespace) -> Path:
    """Build the unpatched server."""
    tree = patch_llamacpp.source_tree(None, series.digest(), patch_llamacpp.COMPILER_FIXES)
    backend = build.choose_backend(options.backend)
    out = build.directory(tree, backend, "baseline", options.cmake_flag)
    build.configure(tree, out, backend, tuple(options.cmake_flag))
    build.compile_targets(out, (SERVER,), options.jobs, "build the stock server")
    return out / "bin" / SERVER


def run_server_tests(bin_dir: Path, stock: Path) -> list[Result]:
    """The server's tests: what passes with the stock server passes with ours, and with drafts."""
    tree, program = bin_dir.parent.parent, bin_dir / SERVER
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        merged, base, heads = (Path(scratch) / f"{name}.gguf" for name in ("all", "base", "heads"))
        convert(FIXTURE / "target", FIXTURE / "drafter", merged, outtype="f32", heads_type="f32")
        split(merged, base, heads)
        modes = (
            server_tests.Mode("patched, no drafts", program, merged, ("--spec-type", "none")),
            server_tests.Mode("patched, drafts", program, merged, ("--no-spec-draft-auto-depth",)),
        )
        before = server_tests.passed(tree, server_tests.Mode("stock", stock, base))
        if not before:
            raise SetupError(f"{stock}: none of the server's tests passes")
        for mode in modes:
            name = f"tools/server/tests, {mode.name}"
            print(f"  {name}: what passes with the stock server", file=sys.stderr, flush=True)
            start = time.monotonic()
            found, lost = server_tests.lost(tree, before, mode)
            detail = f"{len(found)} passed, {len(before)} with the stock server"
            detail += "".join(f"; lost {test}" for test in lost)
            state = "failed" if lost else "passed"
            results.append(Result(name, state, time.monotonic() - start, detail))
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    programs = sorted({SERVER, *(test.program for test in TESTS)})
    add("--only", action="append", choices=programs, help="only this (may be repeated)")
    add("--tree", type=Path, help="a llama.cpp checkout of your own, not the pinned tree")
    add("--backend", default="cpu", help="cpu (default), auto, cuda, metal or vulkan")
    add("--cmake-flag", action="append", default=[], help="passed to CMake as it is")
    add("--jobs", type=int, default=os.cpu_count() or 1)
    add("--json", action="store_true", help="print the results as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
