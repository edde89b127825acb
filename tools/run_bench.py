#!/usr/bin/env python3
"""Stock llama.cpp beside the patched one, on Gemma 4's real shapes and on the trained fixture.

    python tools/run_bench.py            # what `make bench` runs: E2B, E4B and the fixture
    python tools/run_bench.py --quick    # E2B and the fixture, few cells, few tokens

The pairs of real shape have random weights, so their acceptance is synthetic: each draft is
accepted with a given chance, which llama-server calls --spec-synth-rates. The fixture's is real.

Exit codes: 0 measured, 2 could not.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

import patch_llamacpp
from bench import cells, measure, report
from bench.measure import Load, Machine, Section
from bench.models import FILE_TYPES, BenchPair, bench_pair
from bench.programs import BenchError
from bench.shapes import PAIRS
from gguf_mtp import api
from gguf_mtp.errors import GgufMtpError
from gguf_mtp.validate.prompts import load_prompts
from llamacpp.pin import REPO, SetupError

FIXTURE = REPO / "tests" / "fixtures" / "gemma4-tiny"
OUT = REPO / "build" / "bench"
JSON, PLOT = "bench.json", "bench.svg"
SLOTS = 4
PARTS = ("components", "decoding", "slots", "fixture")

console = Console(highlight=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _options(argv)
    try:
        sections, about = run(options)
    except (SetupError, BenchError, GgufMtpError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    report.show(sections, console)
    console.print(f"samples  {options.out / JSON}")
    _plot(sections, about, options.out / PLOT)
    return 0


def run(options: argparse.Namespace) -> tuple[list[Section], dict[str, Any]]:
    """Build, generate, measure; what is measured is saved part by part, so nothing is lost."""
    machine, about = _machine(options)
    sections: list[Section] = []

    def keep(more: list[Section]) -> None:
        sections.extend(more)
        report.write_json(sections, about, options.out / JSON)

    for name in options.pair:
        pair = bench_pair(name, options.target_type, options.drafter_type, _say)
        if "components" in options.part:
            keep(measure.components(pair, machine, options.repetitions, _say))
        if "decoding" in options.part:
            keep(_synthetic(pair, machine, options))
        if "slots" in options.part:
            keep(_slots(pair, machine, options))
    if "fixture" in options.part:
        keep(_fixture(machine, options))
    return sections, about


def _machine(options: argparse.Namespace) -> tuple[Machine, dict[str, Any]]:
    """Build stock and patched with the same flags, and say what they run on."""
    flags = [f"--cmake-flag={flag}" for flag in options.cmake_flag]
    arguments = ["--backend", options.backend, "--variant", "baseline", *flags]
    record = patch_llamacpp.run(patch_llamacpp.parser().parse_args(arguments))
    baseline = record["baseline"]
    assert isinstance(baseline, dict)
    builds = {cells.STOCK: Path(baseline["bin_dir"]), cells.PATCHED: Path(str(record["bin_dir"]))}
    machine = Machine(builds, options.threads, tuple(shlex.split(options.prefix)))
    about = {
        "machine": report.describe_machine(machine, str(record["backend"])),
        "llama.cpp": record["pin"],
        "patches": record["patches"],
        "types": {"target": options.target_type, "drafter": options.drafter_type},
        "cmake_flags": options.cmake_flag,
        "acceptance": options.acceptance,
    }
    return machine, about


def _synthetic(pair: BenchPair, machine: Machine, options: argparse.Namespace) -> list[Section]:
    chosen = cells.quick(cells.CELLS) if options.quick else cells.CELLS
    found = measure.available(chosen, machine, _say)
    sections = []
    for chance in options.acceptance:
        load = Load((measure.RANDOM_PROMPT,), options.n_predict, chance)
        title = f"{pair.name}, synthetic: a draft is accepted with {chance:.2f}"
        sections += measure.decoding(
            f"{pair.name}-{chance:.2f}",
            title,
            pair,
            found,
            load,
            machine,
            options.repetitions,
            _say,
        )
    return sections


def _slots(pair: BenchPair, machine: Machine, options: argparse.Namespace) -> list[Section]:
    found = measure.available(cells.quick(cells.CELLS), machine, _say)
    # Short ones: the clock runs while they are read, which is not what is compared.
    # More than slots: texts end at different times, and a slot that idles is not compared either.
    prompts = tuple(tuple(range(400 + 8 * n, 408 + 8 * n)) for n in range(3 * SLOTS))
    chance = options.acceptance[0]
    load = Load(prompts, options.n_predict, chance, slots=SLOTS)
    title = f"{pair.name}, {SLOTS} slots at once, synthetic: a draft is accepted with {chance:.2f}"
    return measure.decoding(
        f"{pair.name}-slots", title, pair, found, load, machine, options.repetitions, _say
    )


def _fixture(machine: Machine, options: argparse.Namespace) -> list[Section]:
    """The embedded trained pair: acceptance is real, speed is that of a 3-million-weight model."""
    options.out.mkdir(parents=True, exist_ok=True)
    base, drafter, merged = (
        options.out / f"fixture-{name}.gguf" for name in ("base", "drafter", "mtp")
    )
    api.convert(FIXTURE / "target", FIXTURE / "drafter", merged, force=True)
    api.split(merged, base, drafter, force=True)
    pair = BenchPair("fixture", base, drafter, merged)
    # Handing work of this model to a second thread costs more than doing it.
    single = Machine(machine.builds, 1, machine.prefix)
    prompts = tuple(
        prompt.text for prompt in load_prompts(["python"])[: 8 if options.quick else 24]
    )
    sections = []
    for temperature, kinds in ((0.0, cells.CELLS), (0.8, cells.SAMPLED_CELLS)):
        chosen = cells.quick(kinds) if options.quick else kinds
        found = measure.available(chosen, single, _say)
        load = Load(prompts, 128, None, sampling=(("temperature", temperature),))
        title = f"trained fixture, real acceptance, temperature {temperature:g}"
        sections += measure.decoding(
            f"fixture-{temperature:g}", title, pair, found, load, single, options.repetitions, _say
        )
    return sections


def _plot(sections: list[Section], about: dict[str, Any], path: Path) -> None:
    try:
        report.plot(sections, about, path)
    except ImportError:
        console.print("no plot: pip install 'gguf-mtp[bench]' brings matplotlib")
    else:
        console.print(f"plot     {path}")


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--quick", action="store_true", help="E2B and the fixture, few cells, two repetitions")
    add("--pair", action="append", choices=list(PAIRS), help="default: all, or e2b with --quick")
    add("--part", action="append", choices=PARTS, help="measure only this (may be repeated)")
    add("--repetitions", type=int, help="default: 5, or 2 with --quick")
    add("--n-predict", type=int, help="tokens an answer; default: 128, or 64 with --quick")
    add("--acceptance", type=float, action="append", help="chance of each draft; default: 2/3")
    add("--target-type", default="q4_0", choices=list(FILE_TYPES))
    add("--drafter-type", default="q8_0", choices=list(FILE_TYPES))
    add("--threads", type=int, default=os.cpu_count() or 1)
    add(
        "--prefix", default="", help="a command to run each measured program under, such as numactl"
    )
    add("--backend", default="auto", help="auto (default), cpu, cuda, metal or vulkan")
    add("--cmake-flag", action="append", default=[], help="for both builds")
    add("--out", type=Path, default=OUT, help=f"default: {OUT.relative_to(REPO)}")
    options = parser.parse_args(argv)
    full = (list(PAIRS), 5, 128)
    pairs, repetitions, n_predict = (["e2b"], 2, 64) if options.quick else full
    options.pair = options.pair or pairs
    options.part = options.part or list(PARTS)
    options.repetitions = options.repetitions or repetitions
    options.n_predict = options.n_predict or n_predict
    options.acceptance = options.acceptance or [2 / 3]
    return options


if __name__ == "__main__":
    sys.exit(main())
