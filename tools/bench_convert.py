"""How long converting takes, against `cp` of the same bytes and against llama.cpp's converter.

    python tools/bench_convert.py                                  # 2 GB of E2B's shape
    python tools/bench_convert.py --llama-cpp TREE --python PYTHON_WITH_TORCH
    python tools/bench_convert.py --e4b-16g                        # 16 GB within 1 GiB of memory

Every timing ends with the output on the medium (fsync). "cold" means that the source was dropped
from the page cache before. Runs of one kind are spread over the whole session, as machines drift;
what is printed is the fastest and, as spread, the slowest. The checkpoint is generated once and
kept under the cache directory.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_checkpoint import write_pair
from llamacpp.pin import cache_dir

OUTTYPES = ("bf16", "f16", "q8_0")


@dataclass
class Timing:
    """The runs of one kind: wall-clock seconds, and the largest peak memory in bytes."""

    seconds: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def best(self) -> float:
        return min(self.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--size", choices=("e2b", "e4b"), default="e2b")
    add("--layers", type=int, help="fewer layers than the real model (default: 5 of E2B's 35)")
    add("--runs", type=int, default=3)
    add("--outtype", action="append", choices=OUTTYPES, help="default: all")
    add("--warm-only", action="store_true", help="leave the cold runs out")
    add("--llama-cpp", type=Path, help="a llama.cpp tree, whose converter is the comparison")
    add("--python", default=sys.executable, help="a python with torch and transformers for it")
    add("--dir", type=Path, default=cache_dir() / "bench", help="where files are made")
    add("--json", type=Path, help="write the figures here")
    add("--e4b-16g", action="store_true", help="one sparse 16 GB conversion under a memory limit")
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    report = sixteen_gigabytes(options.dir) if options.e4b_16g else compare(options)
    report["machine"] = machine()
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Time everything and print one line for each kind of run."""
    layers = options.layers or (5 if options.size == "e2b" else 6)
    root = options.dir / f"{options.size}-{layers}"
    if not root.exists():
        making = root.with_name(f".{root.name}.{os.getpid()}")
        write_pair(making, options.size, layers, sparse=False)
        making.rename(root)
    base, heads = root / f"{options.size}-bench", root / f"{options.size}-bench-assistant"
    weights = base / "model.safetensors"
    outtypes = options.outtype or OUTTYPES
    with scratch(options.dir) as place:
        out = place / "out.gguf"
        plain, drafter = place / "base.gguf", place / "drafter.gguf"
        once(convert_command(base, heads, out, "bf16"))
        command = ["split", out, "--base-out", plain, "--heads-out", drafter, "-q"]
        once([*PROGRAM, *map(str, command)])
        cases: dict[str, tuple[Path, Callable[[], Any]]] = {
            "cp": (weights, lambda: copy(weights, out)),
            "cp GGUF": (plain, lambda: copy(plain, out)),
            "heads into GGUF": (plain, lambda: once(convert_command(plain, drafter, out))),
        }
        for outtype in outtypes:
            cases[outtype] = weights, lambda o=outtype: once(convert_command(base, heads, out, o))  # type: ignore[misc]
            if options.llama_cpp:
                command = [options.python, options.llama_cpp / "convert_hf_to_gguf.py", base]
                command += ["--outfile", out, "--outtype", outtype]
                upstream = list(map(str, command))
                cases[f"upstream {outtype}"] = weights, lambda c=upstream: upstream_run(c, out)  # type: ignore[misc]
        timings: dict[str, Timing] = {}
        for run in range(options.runs):
            for name, (source, work) in cases.items():
                slow = name.startswith("upstream")
                for state in ("warm",) if options.warm_only or slow else ("warm", "cold"):
                    if not slow or run == 0:
                        measure(timings.setdefault(f"{name} {state}", Timing()), source, work,
                                out, cold=state == "cold")  # fmt: skip
        timings["attach in place"] = Timing()
        for _ in range(options.runs):
            attach = [*PROGRAM, "attach", str(plain), "--heads", str(drafter), "--in-place", "-q"]
            measure(timings["attach in place"], plain, lambda: once(attach), None, cold=False)  # noqa: B023
            once([*PROGRAM, "detach", str(plain), "-q"])
        sizes = {"weights": weights.stat().st_size, "base GGUF": plain.stat().st_size}
    return show(timings, sizes)


PROGRAM = [sys.executable, "-m", "gguf_mtp.cli.main"]


def convert_command(base: Path, heads: Path, out: Path, outtype: str | None = None) -> list[str]:
    command = [*PROGRAM, "convert", "--base", str(base), "--heads", str(heads), "-o", str(out)]
    return [*command, "-q", "--force", *(["--outtype", outtype] if outtype else [])]


def once(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-2000:]}")


def upstream_run(command: list[str], out: Path) -> None:
    once(command)
    sync(out)


def copy(source: Path, out: Path) -> None:
    once(["cp", str(source), str(out)])
    sync(out)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def measure(
    timing: Timing, source: Path, work: Callable[[], Any], out: Path | None, *, cold: bool
) -> None:
    """One run, the output gone before and the source in the page cache or not."""
    if out is not None:
        out.unlink(missing_ok=True)
    os.sync()
    if cold:
        fd = os.open(source, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    else:
        with source.open("rb", 0) as file:
            while file.read(1 << 22):
                pass
    started = time.perf_counter()
    work()
    timing.seconds.append(time.perf_counter() - started)
    timing.peak = max(timing.peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def show(timings: dict[str, Timing], sizes: dict[str, int]) -> dict[str, Any]:
    print(", ".join(f"{name} {nbytes / 1e9:.2f} GB" for name, nbytes in sizes.items()))
    print(f"{'run':24} {'s':>7} {'slowest':>8} {'of cp':>7} {'x upstream':>11}")
    rows = {}
    for name, timing in timings.items():
        kind, _, state = name.rpartition(" ")
        control = timings.get(f"{'cp GGUF' if 'GGUF' in kind else 'cp'} {state}")
        upstream = timings.get(f"upstream {kind} warm") if state == "warm" else None
        row = {
            "seconds": timing.seconds,
            "of_cp": timing.best / control.best if control else None,
            "times_upstream": upstream.best / timing.best if upstream else None,
        }
        rows[name] = row
        ratio = f"{row['of_cp']:7.2f}" if control else " " * 7
        faster = f"{row['times_upstream']:11.1f}" if upstream else ""
        print(f"{name:24} {timing.best:7.2f} {max(timing.seconds):8.2f} {ratio} {faster}")
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
        base, heads = write_pair(place, "e4b", None, sparse=True)
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
