"""How long converting takes, against `cp` of the same bytes and against llama.cpp's converter.

    python tools/bench_convert.py                                  # 4 GB of E2B's shape
    python tools/bench_convert.py --llama-cpp TREE --python PYTHON_WITH_TORCH --outtype q8_0
    python tools/bench_convert.py --only gguf --only attach        # heads into a GGUF of 4 GB
    python tools/bench_convert.py --only threads                   # q8_0 with 1, 2 ... threads
    python tools/bench_convert.py --e4b-16g                        # 16 GB within 1 GiB of memory

Every timing ends with the output on the medium (fsync). "cold" means that everything read was
dropped from the page cache before. All kinds of run take turns, `--runs` times; what is printed are
medians and the slowest, and CPU seconds (user and system) as the median. The checkpoint is
generated once and kept under the cache directory.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_checkpoint import write_pair
from gguf_mtp.pipeline import default_threads
from llamacpp.pin import cache_dir

OUTTYPES = ("bf16", "f16", "q8_0")
GROUPS = ("checkpoint", "gguf", "attach", "threads")
STATES = ("warm", "cold")
PROGRAM = [sys.executable, "-m", "gguf_mtp.cli.main"]


@dataclass
class Timing:
    """The runs of one kind: wall-clock and CPU seconds, and the largest peak memory in bytes."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Case:
    """A kind of run: a command that reads `sources` and writes `out`, which is gone before.

    `control` is the case it is measured against, `undo` what has to follow it.
    """

    name: str
    command: list[str]
    sources: list[Path]
    out: Path | None = None
    control: str | None = None
    undo: list[str] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--size", choices=("e2b", "e4b"), default="e2b")
    add("--layers", type=int, help="fewer layers than the real model (default: 15 of E2B's 35)")
    add("--runs", type=int, default=3)
    add("--only", action="append", choices=GROUPS, help="default: all")
    add("--outtype", action="append", choices=OUTTYPES, help="default: all")
    add("--state", action="append", choices=STATES, help="default: both")
    add("--llama-cpp", type=Path, help="a llama.cpp tree, whose converter is the comparison")
    add("--python", default=sys.executable, help="a python with torch and transformers for it")
    add("--dir", type=Path, default=cache_dir() / "bench", help="where files are made")
    add("--json", type=Path, help="write the figures here")
    add("--e4b-16g", action="store_true", help="one sparse 16 GB conversion under a memory limit")
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    # As installed programs, the converters find their bytecode; it is kept out of all trees.
    os.environ["PYTHONPYCACHEPREFIX"] = str(options.dir / "pycache")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    report = sixteen_gigabytes(options.dir) if options.e4b_16g else compare(options)
    report["machine"] = machine()
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Time everything and print one line for each kind of run."""
    layers = options.layers or (15 if options.size == "e2b" else 6)
    root = options.dir / f"{options.size}-{layers}"
    if not root.exists():
        making = root.with_name(f".{root.name}.{os.getpid()}")
        make_pair(making, options.size, layers, sparse=False)
        making.rename(root)
    base, heads = pair_in(root, options.size)
    groups = options.only or GROUPS
    timings: dict[str, Timing] = {}
    with scratch(options.dir) as place:
        cases = list(all_cases(options, base, heads, place, groups))
        sizes = {
            f"{path.parent.name}/{path.name}": path.stat().st_size
            for case in cases
            for path in case.sources
            if path.suffix in (".safetensors", ".gguf")
        }
        for run in range(-1, options.runs):
            for case in cases:
                for state in options.state or STATES:
                    timing = timings.setdefault(f"{case.name} {state}", Timing())
                    # The first round fills caches, of bytecode too.
                    measure(Timing() if run < 0 else timing, case, cold=state == "cold")
                    if run < 0:
                        break
    controls = {case.name: case.control for case in cases}
    return show(timings, controls, sizes)


def make_pair(root: Path, size: str, layers: int | None, *, sparse: bool) -> tuple[Path, Path]:
    """`write_pair` in a process of its own: a child's peak memory counts its parent's."""
    maker = multiprocessing.get_context("spawn").Process(
        target=write_pair, args=(root, size, layers), kwargs={"sparse": sparse}
    )
    maker.start()
    maker.join()
    if maker.exitcode:
        raise SystemExit("the checkpoint could not be made")
    return pair_in(root, size)


def pair_in(root: Path, size: str) -> tuple[Path, Path]:
    return root / f"{size}-bench", root / f"{size}-bench-assistant"


def all_cases(
    options: argparse.Namespace, base: Path, heads: Path, place: Path, groups: Sequence[str]
) -> Iterator[Case]:
    weights, out = base / "model.safetensors", place / "out.gguf"
    both = [*base.iterdir(), *heads.iterdir()]
    if "checkpoint" in groups:
        yield Case("cp", ["cp", str(weights), str(out)], [weights], out)
        for outtype in options.outtype or OUTTYPES:
            yield Case(outtype, convert_command(base, heads, out, outtype), both, out, "cp")
            if options.llama_cpp:
                command = [options.python, options.llama_cpp / "convert_hf_to_gguf.py", base]
                command += ["--outfile", out, "--outtype", outtype]
                upstream = list(map(str, command))
                yield Case(f"upstream {outtype}", upstream, [*base.iterdir()], out, "cp")
    if "threads" in groups:
        for threads in range(1, default_threads() + 1):
            command = [*convert_command(base, heads, out, "q8_0"), "--threads", str(threads)]
            yield Case(f"q8_0 by {threads}", command, both, out, "q8_0 by 1")
    plain, drafter = place / "base.gguf", place / "drafter.gguf"
    if "gguf" in groups or "attach" in groups:
        once(convert_command(base, heads, out, "bf16"))
        once([*PROGRAM, "split", *map(str, (out, "--base-out", plain, "--heads-out", drafter))])
    if "gguf" in groups:
        yield Case("cp GGUF", ["cp", str(plain), str(out)], [plain], out)
        merge = convert_command(plain, drafter, out)
        yield Case("heads into GGUF", merge, [plain, drafter], out, "cp GGUF")
    if "attach" in groups:
        attach = [*PROGRAM, "attach", str(plain), "--heads", str(drafter), "--in-place", "-q"]
        detach = [*PROGRAM, "detach", str(plain), "-q"]
        yield Case("attach in place", attach, [plain, drafter], undo=detach)


def convert_command(base: Path, heads: Path, out: Path, outtype: str | None = None) -> list[str]:
    command = [*PROGRAM, "convert", "--base", str(base), "--heads", str(heads), "-o", str(out)]
    return [*command, "-q", "--force", *(["--outtype", outtype] if outtype else [])]


def once(command: list[str]) -> tuple[float, int]:
    """Run `command`; its CPU seconds and its peak memory in bytes."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{errors.decode(errors='replace')[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def measure(timing: Timing, case: Case, *, cold: bool) -> None:
    """One run, the output gone before and what is read in the page cache or not."""
    if case.out is not None:
        case.out.unlink(missing_ok=True)
    os.sync()
    for source in case.sources:
        with source.open("rb", 0) as file:
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while not cold and file.read(1 << 22):
                pass
    started = time.perf_counter()
    cpu, peak = once(case.command)
    if case.out is not None:
        fd = os.open(case.out, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    timing.seconds.append(time.perf_counter() - started)
    timing.cpu.append(cpu)
    timing.peak = max(timing.peak, peak)
    if case.undo is not None:
        once(case.undo)


def show(
    timings: dict[str, Timing], controls: dict[str, str | None], sizes: dict[str, int]
) -> dict[str, Any]:
    print(", ".join(f"{name} {nbytes / 1e9:.2f} GB" for name, nbytes in sizes.items()))
    columns = f"{'slowest':>8} {'CPU s':>6} {'MiB':>5} {'of control':>11} {'x upstream':>11}"
    print(f"{'median of each':24} {'s':>7} {columns}")
    rows = {}
    for name, timing in timings.items():
        kind, _, state = name.rpartition(" ")
        control = timings.get(f"{controls[kind]} {state}")
        upstream = timings.get(f"upstream {kind} {state}")
        row = {
            "seconds": timing.seconds,
            "cpu": timing.cpu,
            "peak": timing.peak,
            "of_control": timing.median / control.median if control else None,
            "times_upstream": upstream.median / timing.median if upstream else None,
        }
        rows[name] = row
        ratio = f"{row['of_control']:11.2f}" if control else " " * 11
        faster = f"{row['times_upstream']:11.1f}" if upstream else ""
        print(
            f"{name:24} {timing.median:7.2f} {max(timing.seconds):8.2f} "
            f"{statistics.median(timing.cpu):6.1f} {timing.peak / 2**20:5.0f} {ratio} {faster}"
        )
    return {"sizes": sizes, "runs": rows}


LIMITED = """
import resource, sys
limit = 1 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from gguf_mtp.cli.main import main
main(sys.argv[1:])
"""


def sixteen_gigabytes(directory: Path) -> dict[str, Any]:
    """A sparse E4B checkpoint converted within 1 GiB of address space; everything is deleted."""
    rows = {}
    with scratch(directory) as place:
        base, heads = make_pair(place, "e4b", None, sparse=True)
        size = (base / "model.safetensors").stat().st_size
        print(f"checkpoint of {size / 1e9:.1f} GB, address space limited to 1 GiB")
        for outtype in ("bf16", "q8_0"):
            out = place / "out.gguf"
            command = convert_command(base, heads, out, outtype)
            started = time.perf_counter()
            with subprocess.Popen([sys.executable, "-c", LIMITED, *command[3:]]) as process:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"failed with exit code {process.returncode}")
            seconds, peak = time.perf_counter() - started, usage.ru_maxrss * 1024
            written = out.stat().st_size
            out.unlink()
            print(f"{outtype}: {written / 1e9:.1f} GB in {seconds:.1f} s, "
                  f"peak {peak / 2**20:.0f} MiB resident")  # fmt: skip
            rows[outtype] = {"bytes": written, "seconds": seconds, "peak_rss": peak}
    return {"checkpoint_bytes": size, "runs": rows}


@contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    place = directory / f"run-{os.getpid()}"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


def machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}"


if __name__ == "__main__":
    main()
