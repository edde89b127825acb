"""Fetching and building llama.cpp: what is refused, and what the tool says about it."""

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

import patch_llamacpp
import run_upstream_tests
from llamacpp import build, pin, source
from llamacpp.operations import Case, cases, write_cases
from llamacpp.pin import SetupError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return pin.cache_dir()


def test_a_source_package_with_other_bytes_is_refused(cache: Path) -> None:
    path = cache / "downloads" / pin.SDIST
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not it")
    with pytest.raises(SetupError, match=rf"sha256 is \w+, expected {pin.SDIST_SHA256}"):
        source.fetch_sdist()


def test_unpacking_takes_the_tree_alone_and_drops_the_submodule_pointer(tmp_path: Path) -> None:
    sdist = tmp_path / "package.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name in ("README", "vendor/llama.cpp/.git", "vendor/llama.cpp/src/a.cpp"):
            info = tarfile.TarInfo(f"llama_cpp_python-{pin.PACKAGE_VERSION}/{name}")
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    tree = tmp_path / "trees" / "src"
    source.unpack_tree(sdist, tree)
    assert [p.relative_to(tree) for p in tree.rglob("*") if p.is_file()] == [Path("src/a.cpp")]
    assert [p.name for p in tree.parent.iterdir()] == ["src"]


def test_an_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(SetupError, match="unknown backend 'rocm'; expected auto or one of metal"):
        build.choose_backend("rocm")


def test_auto_takes_the_first_backend_present(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(name: str, present: bool) -> build.Backend:
        return build.Backend(name, lambda: present, ())

    table = (backend("metal", False), backend("cuda", True), backend("cpu", True))
    monkeypatch.setattr(build, "BACKENDS", table)
    assert build.choose_backend("auto").name == "cuda"
    assert build.choose_backend("cpu").name == "cpu"


def test_flags_have_a_build_folder_of_their_own(tmp_path: Path) -> None:
    """CMake remembers them: in one folder, a build without them would still have them."""
    cpu = build.choose_backend("cpu")
    found = [
        build.directory(tmp_path, cpu, "default", flags) for flags in ([], ["-DA=1"], ["-DA=2"])
    ]
    assert found[0] == tmp_path / "build-mtp-cpu-default"
    assert len(set(found)) == 3
    assert found[1] == build.directory(tmp_path, cpu, "default", ["-DA=1"])


def test_a_kind_of_cpu_has_its_instructions_and_no_newer_ones() -> None:
    assert build.cpu_flags(build.NATIVE) == ()
    states = {
        kind: dict(flag.removeprefix("-DGGML_").split("=") for flag in build.cpu_flags(kind))
        for kind in build.CPUS
    }
    on = {kind: {name for name, state in s.items() if state == "ON"} for kind, s in states.items()}
    assert on["x86-64-v2"] == {"SSE42"}
    assert on["x86-64-v3"] - on["x86-64-v2"] == {"AVX", "AVX2", "BMI2", "F16C", "FMA"}
    assert on["x86-64-v4"] - on["x86-64-v3"] == {"AVX512"}
    # ggml turns on what it is not told to leave out.
    assert all(set(s) == on["x86-64-v4"] | {"NATIVE"} for s in states.values())
    assert {s["NATIVE"] for s in states.values()} == {"OFF"}


@pytest.fixture
def built(cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """Builds are noted and not made: CMake flags by the name of the build folder."""
    found: dict[str, tuple[str, ...]] = {}

    def configure(_tree: Path, out: Path, _backend: object, flags: tuple[str, ...]) -> None:
        found[out.name] = flags

    monkeypatch.setattr(build, "configure", configure)
    monkeypatch.setattr(build, "compile_targets", lambda *_: None)
    monkeypatch.setattr(patch_llamacpp, "source_tree", lambda *_: cache / "src")
    monkeypatch.setattr(patch_llamacpp, "_link", lambda *_: None)
    return found


def test_a_variant_of_one_cpu_stays_it_whichever_is_chosen(
    built: dict[str, tuple[str, ...]],
) -> None:
    variants = ["--variant", "exact", "--variant", "avx2", "--backend", "cpu"]
    assert patch_llamacpp.main([*variants, "--cpu", "x86-64-v4", "--cmake-flag=-DA=1"]) == 0
    assert patch_llamacpp.main([*variants, "--cpu", "x86-64-v2", "--cmake-flag=-DA=1"]) == 0
    flags = {kind: build.cpu_flags(kind) for kind in build.CPUS}
    by_variant = {
        name: {f for folder, f in built.items() if f"-{name}-" in folder}
        for name in ("default", "exact", "avx2")
    }
    assert by_variant == {
        "default": {(*flags["x86-64-v4"], "-DA=1"), (*flags["x86-64-v2"], "-DA=1")},
        "exact": {
            ("-DGGML_LLAMAFILE=OFF", *flags["x86-64-v4"], "-DA=1"),
            ("-DGGML_LLAMAFILE=OFF", *flags["x86-64-v2"], "-DA=1"),
        },
        "avx2": {(*flags["x86-64-v3"], "-DA=1")},
    }


@pytest.mark.usefixtures("built")
def test_variants_of_another_cpu_are_not_kept_in_the_record() -> None:
    def recorded(*arguments: str) -> tuple[object, bool]:
        assert patch_llamacpp.main(["--backend", "cpu", *arguments]) == 0
        record = pin.read_record()
        return record["cpu"], "exact" in record

    assert recorded("--variant", "exact") == ("native", True)
    assert recorded() == ("native", True)
    assert recorded("--cpu", "x86-64-v2") == ("x86-64-v2", False)
    assert recorded("--cpu", "x86-64-v2", "--variant", "exact") == ("x86-64-v2", True)
    assert recorded() == ("native", False)


def test_a_failed_build_names_the_first_error_and_the_log(tmp_path: Path) -> None:
    script = "print('[1/2] fine'); print('a.cpp:3: error: no such thing'); raise SystemExit(1)"
    log = tmp_path / "build.log"
    with pytest.raises(SetupError, match=r"build x failed: a\.cpp:3: error: no such thing \(log:"):
        build._run([sys.executable, "-c", script], log, "build x")
    assert "[1/2] fine" in log.read_text()


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (["[1/4] a", "[2/4] b", "[4/4] c"], ["20 %", "50 %", "100 %"]),
        (["[  7%] a", "[ 10%] b", "[ 12%] c"], ["0 %", "10 %"]),
        (["no progress here"], []),
        (["[2/2] inner", "[1/9] a", "[1/2] inner", "[9/9] b"], ["100 %", "10 %", "100 %"]),
    ],
    ids=["ninja", "make", "neither", "one within another"],
)
def test_progress_is_read_from_ninja_and_make(
    lines: list[str], shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    meter = build._Meter("build")
    for line in lines:
        meter.see(line)
    printed = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].strip() for line in printed] == shown


def test_another_tree_is_one_line_and_exit_2(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert patch_llamacpp.main(["--tree", str(tmp_path), "--backend", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: not the llama.cpp tree")
    assert len(error.splitlines()) == 1


def test_no_record_says_what_to_run(cache: Path) -> None:
    with pytest.raises(SetupError, match="make patch-llamacpp"):
        pin.read_record()
    pin.record_path().parent.mkdir(parents=True, exist_ok=True)
    pin.record_path().write_text(json.dumps({"pin": "x"}))
    assert pin.read_record() == {"pin": "x"}


def test_operations_are_numbered_as_the_tree_numbers_them(tmp_path: Path) -> None:
    header = tmp_path / "ggml" / "include" / "ggml.h"
    header.parent.mkdir(parents=True)
    names = ["NONE", *sorted({case.operation for case in cases()})]
    header.write_text("enum ggml_op {\n" + "".join(f"  GGML_OP_{n},\n" for n in names) + "};\n")
    count = write_cases(tmp_path, tmp_path / "cases")
    lines = [line.split() for line in (tmp_path / "cases").read_text().splitlines()]
    assert len(lines) == count == len(cases())
    assert [names[int(line[0])] for line in lines] == [case.operation for case in cases()]
    for case, line in zip(cases(), lines, strict=True):
        # number, type, 4 dimensions, parameters and their count, sources of 9 and theirs, a name
        assert len(line) == 6 + 1 + len(case.parameters) + 1 + 9 * len(case.sources) + 1

    header.write_text("enum ggml_op {\n  GGML_OP_NONE,\n};\n")
    with pytest.raises(SetupError, match=r"no operation GGML_OP_ARGMAX"):
        write_cases(tmp_path, tmp_path / "cases")


def test_a_case_is_a_line_of_numbers() -> None:
    case = Case("CONCAT", ("i32", (3, 4)), (("i32", (2, 4)), ("i32", (1, 4))), (0,))
    assert case.line(22) == ("22 26 3 4 1 1 1 0 2 26 2 4 1 1 0 0 0 0 26 1 4 1 1 0 0 0 0 -\n")


@pytest.mark.parametrize(
    ("script", "state", "detail"),
    [
        ("echo '  12/12 tests passed'", "passed", "12/12 tests passed"),
        ("echo fine", "passed", ""),
        ("echo '  11/12 tests passed'; exit 1", "failed", "11/12 tests passed"),
        ("echo broken; exit 3", "failed", "exit 3: broken"),
    ],
)
def test_an_upstream_test_is_judged_by_its_exit_code(
    tmp_path: Path, script: str, state: str, detail: str
) -> None:
    bin_dir = tmp_path / "build" / "bin"
    bin_dir.mkdir(parents=True)
    program = bin_dir / "test-x"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    test = run_upstream_tests.UpstreamTest("x", "test-x", "nothing")
    result = run_upstream_tests.run(test, bin_dir, "cpu")
    assert (result.state, result.detail) == (state, detail)
