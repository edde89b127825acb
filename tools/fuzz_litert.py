"""Fuzz the reader of `.litertlm` for as long as you like: ``make fuzz-litert MINUTES=60``.

Mutates the fixtures, structure and values, and runs everything that reads a package. Whatever is
not this package's own error, takes over ten seconds of CPU time or half a GiB is a finding; its
input is kept.
Exit codes: 0 nothing found, 1 a finding.
"""

from __future__ import annotations

import random
import resource
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType

import click

from gguf_mtp.cli.inspect_litertlm import document
from gguf_mtp.drafters.litert.checkpoint import read_values
from gguf_mtp.drafters.litert.package import read_drafter
from gguf_mtp.errors import GgufMtpError

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "litert"
MAX_SECONDS = 10
# Beyond what is mapped at the start; the fixtures are a tenth of a MiB.
MAX_MEMORY = 512 << 20
NUMBERS = (0, 1, 2, 3, 4, 8, 255, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(out))
        if rng.random() < 0.2:
            at = rng.randrange(min(len(out), 800))
        kind = rng.random()
        if kind < 0.35:
            out[at] = rng.randrange(256)
        elif kind < 0.7:
            at -= at % 4
            out[at : at + 4] = rng.choice(NUMBERS).to_bytes(4, "little")
        elif kind < 0.9:
            source = rng.randrange(len(out))
            length = rng.choice((2, 4, 8, 64))
            out[at : at + length] = out[source : source + length]
        else:
            del out[rng.randrange(len(out)) :]
            if not out:
                out += b"\0"
    return bytes(out)


def read_everything(path: Path) -> str:
    try:
        document(path)
        drafter = read_drafter(path, ignore_names=True)
        for weight in drafter.weights.values():
            read_values(drafter, weight)
    except GgufMtpError as error:
        return type(error).__name__
    return "accepted"


def too_slow(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {MAX_SECONDS} s of CPU time")


@click.command()
@click.option("--minutes", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(minutes: float, seed: int) -> None:
    signal.signal(signal.SIGPROF, too_slow)
    rng = random.Random(seed)
    sources = [path.read_bytes() for path in sorted(FIXTURES.glob("*.litertlm"))]
    sources = [data for data in sources if len(data) < 400_000]
    counts: Counter[str] = Counter()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_MEMORY, resource.RLIM_INFINITY))
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "fuzzed.litertlm"
        while time.monotonic() < end:
            data = mutated(rng.choice(sources), rng)
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
            try:
                counts[read_everything(path)] += 1
            except Exception as error:
                kept = Path(f"fuzz-litert-{sum(counts.values())}.litertlm")
                kept.write_bytes(data)
                click.echo(f"finding, kept as {kept}: {error!r}", err=True)
                raise
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    click.echo(f"{sum(counts.values())} inputs: {listed}; {peak} MiB resident at most")


if __name__ == "__main__":
    main()
