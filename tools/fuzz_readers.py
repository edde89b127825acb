"""Fuzz everything that reads files of strangers: ``make fuzz MINUTES=60``.

One process for each target, guided by coverage (atheris, libFuzzer). Whatever is not this package's
own error of one line, takes over ten seconds of CPU time or a GiB is a finding; its input is kept
in ``build/fuzz/findings``; what was found to reach new code goes to ``build/fuzz/corpus``.
Exit codes: 0 nothing found, 1 a finding, 2 could not run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from fuzz.small import CORPUS, LITERT, PACKAGES, make_small, seeds
from fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "fuzz"
ONE = Path(__file__).resolve().parent / "fuzz" / "one.py"
# By the clock, for what Python cannot interrupt; `one.py` allows less, of CPU time.
MAX_SECONDS = 300
MAX_MIB = 1024
STATISTIC = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)
COVERAGE = re.compile(r"\bcov: (\d+)")


@dataclass(frozen=True)
class Outcome:
    """What fuzzing one target came to. `finding` is the end of what was printed, "" for none."""

    target: str
    inputs: int
    coverage: int
    seconds: float
    finding: str


def write_seeds(directory: Path) -> None:
    """The seeds in `directory`, made anew."""
    with tempfile.TemporaryDirectory() as scratch:
        for target, found in seeds(make_small(Path(scratch))).items():
            for name, data in found.items():
                (directory / target).mkdir(parents=True, exist_ok=True)
                (directory / target / name).write_bytes(data)


def _seed_files(target: str) -> list[Path]:
    """In an order of their own: a directory is read in another one on every disk."""
    if target != "litertlm":
        return sorted((CORPUS / target).iterdir())
    # The suite's own packages, but for the large ones.
    return [LITERT / f"{name}.litertlm" for name in PACKAGES]


def fuzz(target: str, seconds: float, build: Path = BUILD, seed: int | None = None) -> Outcome:
    """Fuzz `target` for `seconds`, startup aside.

    With a `seed` runs of the same code try the same inputs one after the other (but for what the
    code itself does otherwise each time), as far as they get in their time.
    """
    grown, findings = build / "corpus" / target, build / "findings"
    for directory in (grown, findings):
        directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        words = scratch / "words"
        escaped = (word.replace("\\", "\\\\").replace('"', '\\"') for word in TARGETS[target].words)
        words.write_text("".join(f'"{word}"\n'.replace('\n"', '\\x0a"') for word in escaped))
        inputs = scratch / "inputs"
        inputs.write_text(",".join(map(str, _seed_files(target))))
        command = [
            *(sys.executable, str(ONE), target),
            *(f"-max_total_time={max(1, round(seconds))}", f"-timeout={MAX_SECONDS}"),
            *(f"-rss_limit_mb={MAX_MIB}", f"-max_len={TARGETS[target].max_bytes}"),
            *(f"-artifact_prefix={findings}/{target}-", f"-dict={words}"),
            *("-print_final_stats=1", "-verbosity=1", "-len_control=0"),
            *(f"-seed_inputs=@{inputs}", str(grown)),
        ]
        environ = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        if seed is not None:
            command.append(f"-seed={seed}")
            environ |= {"PYTHONHASHSEED": str(seed)}
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, errors="replace"
        )
    text = done.stdout + done.stderr
    stats = dict(STATISTIC.findall(text))
    coverage = COVERAGE.findall(text)
    failed = done.returncode != 0 or "number_of_executed_units" not in stats
    return Outcome(
        target,
        int(stats.get("number_of_executed_units", 0)),
        int(coverage[-1]) if coverage else 0,
        seconds,
        f"exit code {done.returncode}\n{text[-3000:]}" if failed else "",
    )


def report(outcomes: Iterable[Outcome]) -> str:
    return "\n".join(
        f"{found.target:12} {found.inputs:9,} inputs in {found.seconds:.0f} s, "
        f"coverage {found.coverage}{', FINDING' if found.finding else ''}"
        for found in outcomes
    )


@click.command()
@click.option("--minutes", default=11.0, show_default=True, help="For all targets together.")
@click.option("--target", "targets", multiple=True, type=click.Choice(list(TARGETS)))
@click.option("--jobs", default=1, show_default=True, help="Targets at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.option(
    "--seeds", "only_seeds", is_flag=True, help="Write the committed seeds anew, and end."
)
def main(
    minutes: float, targets: tuple[str, ...], jobs: int, as_json: bool, only_seeds: bool
) -> None:
    if only_seeds:
        write_seeds(CORPUS)
        return
    if importlib.util.find_spec("atheris") is None:
        click.echo("error: atheris is not installed (Linux on x86-64 has it)", err=True)
        sys.exit(2)
    chosen = targets or tuple(TARGETS)
    seconds = 60 * minutes * jobs / len(chosen)
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(lambda target: fuzz(target, seconds), chosen))
    if as_json:
        click.echo(json.dumps([asdict(found) for found in outcomes], indent=2))
    else:
        click.echo(report(outcomes))
    for found in outcomes:
        if found.finding:
            click.echo(f"{found.target}: {found.finding}", err=True)
    sys.exit(1 if any(found.finding for found in outcomes) else 0)


if __name__ == "__main__":
    main()
