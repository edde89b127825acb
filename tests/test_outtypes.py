"""Number types from end to end, and that the bytes depend on nothing else."""

import errno
import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result

import tiny
from gguf_mtp import pipeline
from gguf_mtp.api import convert, plan_convert, split
from gguf_mtp.cli.main import main
from gguf_mtp.errors import OutputError, RuntimeUnavailable, UnsupportedError
from gguf_mtp.output import TEMP_SUFFIX
from gguf_mtp.readers.gguf import GgufFile, read_gguf
from gguf_mtp.runtime import quantize as runtime
from gguf_mtp.writer import bytes_to_read, write_file
from llama_programs import programs


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def stored(file: GgufFile, name: str) -> bytes:
    ref = next(ref for ref in file.tensors if ref.name == name)
    return file.path.read_bytes()[ref.offset :][: ref.nbytes]


def test_q4_0_equals_gguf_py(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    """Every matrix of both halves, also where rows are reordered."""
    for name, outtype in (("f32", "f32"), ("q4_0", "q4_0")):
        out = tmp_path / f"{name}.gguf"
        convert(tiny_target, tiny_drafter, out, outtype=outtype, heads_type=outtype)
    plain, quantized = (read_gguf(tmp_path / f"{name}.gguf") for name in ("f32", "q4_0"))
    assert quantized.by_name["general.file_type"].value == 2
    assert quantized.by_name["mtp.general.file_type"].value == 2
    n_quantized = 0
    for ref in quantized.tensors:
        values = stored(plain, ref.name)
        if ref.dtype == "Q4_0":
            rows = np.frombuffer(values, np.float32).reshape(-1, ref.shape[-1])
            expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q4_0)
            assert stored(quantized, ref.name) == expected.tobytes(), ref.name
            n_quantized += 1
        elif ref.dtype in ("F32", "I32"):
            assert stored(quantized, ref.name) == values
        else:
            # Rows that are no whole number of blocks.
            assert (ref.dtype, ref.shape[-1] % 32 > 0) == ("F16", True)
    assert n_quantized > 50


def test_centroids_are_never_quantized(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path
) -> None:
    for heads_type, expected in (("q4_0", "F32"), ("q8_0", "F32"), ("f16", "F16")):
        plan = plan_convert(tiny_target, tiny_drafter, heads_type=heads_type)
        kinds = {slot.tensor.name: slot.tensor.type.name for slot in plan.slots}
        assert kinds["mtp.masked_embd_centroids.weight"] == expected


def test_native_needs_a_grid(tiny_target: Path, tiny_drafter: Path) -> None:
    with pytest.raises(UnsupportedError, match="keeps a source's own integer grid"):
        plan_convert(tiny_target, tiny_drafter, heads_type="native")


@pytest.mark.parametrize("outtype", ["bf16", "q8_0"])
@pytest.mark.parametrize("layout", ["inline", "tail"])
def test_bytes_do_not_depend_on_the_threads(
    tmp_path: Path,
    tiny_target: Path,
    tiny_drafter: Path,
    monkeypatch: pytest.MonkeyPatch,
    outtype: str,
    layout: str,
) -> None:
    """Nor on where chunks are cut, nor on how many rows are gathered at a time."""
    plan = plan_convert(tiny_target, tiny_drafter, outtype=outtype, layout=layout)
    digests = set()
    for threads in (1, 2, 4):
        for chunk, gathered in ((1 << 20, 1 << 27), (1 << 12, 1 << 12)):
            monkeypatch.setattr(pipeline, "CHUNK_BYTES", chunk)
            monkeypatch.setattr(pipeline, "GATHERED_BYTES", gathered)
            out = tmp_path / f"{threads}-{chunk}.gguf"
            write_file(plan, out, threads=threads)
            digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_progress_adds_up(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    plan = plan_convert(tiny_target, tiny_drafter)
    seen: list[int] = []
    write_file(plan, tmp_path / "m.gguf", progress=seen.append)
    assert sum(seen) == bytes_to_read(plan)


def test_an_early_flush_that_fails_is_fatal(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a write that came to nothing once: that report must not be lost."""
    monkeypatch.setattr(pipeline, "FLUSH_BYTES", 1)
    real_write, real_sync = os.pwrite, os.fsync
    failed: list[int] = []

    def slow(fd: int, data: memoryview, at: int) -> int:
        time.sleep(0.002)
        return real_write(fd, data, at)

    def fail_once(fd: int) -> None:
        if not failed:
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real_sync(fd)

    monkeypatch.setattr(os, "pwrite", slow)
    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(OutputError, match="fsync failed"):
        convert(tiny_target, tiny_drafter, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_split_of_q4_0_merges_to_the_same_bytes(tmp_path: Path) -> None:
    base = tiny.write_target(tmp_path / "target")
    heads = tiny.write_drafter(tmp_path / "drafter")
    merged, again = tmp_path / "m.gguf", tmp_path / "again.gguf"
    convert(base, heads, merged, outtype="q4_0", heads_type="q4_0")
    split(merged, tmp_path / "b.gguf", tmp_path / "h.gguf")
    convert(tmp_path / "b.gguf", tmp_path / "h.gguf", again)
    assert again.read_bytes() == merged.read_bytes()


def quantized_by_llama_cpp(base: Path, out: Path, name: str) -> None:
    program = programs("default") / "llama-quantize"
    subprocess.run([program, base, out, name.upper()], check=True, capture_output=True)


@pytest.mark.parametrize("outtype", ["q4_k_m", "q6_k", "q2_k"])
@pytest.mark.parametrize("layout", ["inline", "tail"])
def test_k_quants_equal_llama_quantize(
    tmp_path: Path, target_dir: Path, drafter_dir: Path, outtype: str, layout: str
) -> None:
    floats = tmp_path / "floats.gguf"
    convert(target_dir, drafter_dir, floats)
    split(floats, tmp_path / "b.gguf", tmp_path / "h.gguf")
    quantized_by_llama_cpp(tmp_path / "b.gguf", tmp_path / "q.gguf", outtype)
    out = tmp_path / "out"
    out.mkdir()
    done = run("convert", "--base", target_dir, "--heads", drafter_dir, "-o", out / "m.gguf",
               "--outtype", outtype, "--layout", layout)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "at most" in done.stderr
    assert [item.name for item in out.iterdir()] == ["m.gguf"]
    split(out / "m.gguf", tmp_path / "q2.gguf", tmp_path / "h2.gguf")
    assert (tmp_path / "q2.gguf").read_bytes() == (tmp_path / "q.gguf").read_bytes()
    # The heads are what they would be beside any base.
    assert (tmp_path / "h2.gguf").read_bytes() == (tmp_path / "h.gguf").read_bytes()


def test_the_bounds_of_k_quants_hold(target_dir: Path, drafter_dir: Path, tmp_path: Path) -> None:
    common = ("convert", "--base", target_dir, "--heads", drafter_dir, "--outtype", "q6_k")
    facts = json.loads(run(*common, "-o", tmp_path / "m.gguf", "--dry-run", "--json").stdout)
    assert list(tmp_path.iterdir()) == []
    programs("default")
    assert run(*common, "-o", tmp_path / "m.gguf", "-q").exit_code == 0
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", None)
    assert (tmp_path / "b.gguf").stat().st_size <= facts["at_most"]["quantized"]
    peak = max(facts["at_most"]["intermediate"], (tmp_path / "m.gguf").stat().st_size)
    assert peak + (tmp_path / "b.gguf").stat().st_size <= facts["at_most"]["disk"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeUnavailable("no")])
def test_nothing_remains_of_a_failed_quantization(
    tmp_path: Path,
    tiny_target: Path,
    tiny_drafter: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    seen: list[str] = []

    def fail(source: Path, out: Path, name: str, **rest: object) -> None:
        seen.extend(item.name for item in tmp_path.iterdir())
        assert read_gguf(source).by_name["general.file_type"].value == 32
        out.write_bytes(b"half")
        raise error

    monkeypatch.setattr(runtime, "require_library", lambda: None)
    monkeypatch.setattr(runtime, "quantize", fail)
    with pytest.raises(type(error)):
        convert(tiny_target, tiny_drafter, tmp_path / "m.gguf", outtype="q4_k_m")
    assert len(seen) == 1
    assert seen[0].endswith(TEMP_SUFFIX)
    assert list(tmp_path.iterdir()) == []


def test_without_a_library_k_quants_say_so_at_once(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "none"))
    common = ("convert", "--base", tiny_target, "--heads", tiny_drafter)
    done = run(*common, "-o", tmp_path / "m.gguf", "--outtype", "q5_k_m", "-q")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'none'}: no such directory")
    assert list(tmp_path.iterdir()) == []
