"""The measurements: a repetition goes through all cells in turn, so that noise hits all alike."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench.cells import AUTO_DEPTH, PATCHED, STOCK, Cell, synthetic_rates
from bench.models import BenchPair
from bench.programs import (
    NOTHING_DRAFTED,
    BenchError,
    DraftStatistics,
    Server,
    help_text,
    run_json,
    server,
)

TOOLS = Path(__file__).resolve().parents[1]
# Of the made-up words; real prompts come from the fixture's corpus.
RANDOM_PROMPT = tuple(range(400, 464))
LOG_SECONDS = 5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """Where and how the programs run: builds by name, threads, a command put before each."""

    builds: dict[str, Path]
    threads: int
    prefix: tuple[str, ...] = ()

    def program(self, build: str, name: str) -> Path:
        return self.builds[build] / name


@dataclass
class Section:
    """One comparison: per label a list of samples, one a repetition. `unit` says what the numbers
    are; `reference` is the label that ratios are against."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    reference: str
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, label: str, value: float) -> None:
        self.samples.setdefault(label, []).append(value)


@dataclass(frozen=True)
class Load:
    """What a server is asked: prompts (one after the other, or one a slot), tokens, sampling."""

    prompts: tuple[str | tuple[int, ...], ...]
    n_predict: int
    chance: float | None  # synthetic acceptance of each draft; None: real
    slots: int = 1
    sampling: tuple[tuple[str, float], ...] = (("temperature", 0.0),)


def available(cells: Iterable[Cell], machine: Machine, say: Say) -> list[Cell]:
    """The cells whose flags their builds know."""
    known = []
    for cell in cells:
        text = help_text(machine.program(cell.build, "llama-server"))
        if cell.needs is None or cell.needs in text:
            known.append(cell)
        else:
            say(f"left out: {cell.label} (this build has no {cell.needs})")
    return known


def components(
    pair: BenchPair, machine: Machine, repetitions: int, say: Say, *, calls: int = 5
) -> list[Section]:
    """Verification by width and one drafter step by head, through the bindings."""
    two_files = ("--base", str(pair.base), "--drafter", str(pair.drafter))
    runs = {
        "stock, dense head": (STOCK, two_files),
        "patched, dense head": (PATCHED, two_files),
        "patched, ordered head": (PATCHED, ("--merged", str(pair.merged))),
    }
    verify = Section(
        f"{pair.name}-verify", f"{pair.name}: verification by width", "ms", False, "stock, width 1"
    )
    drafter = Section(
        f"{pair.name}-drafter",
        f"{pair.name}: one drafter step without sampling, by head",
        "ms",
        False,
        "stock, dense head",
    )
    environment = {**os.environ, "PYTHONPATH": str(TOOLS)}
    for repetition in range(repetitions):
        for label, (build, files) in runs.items():
            say(f"{pair.name} {label}, {repetition + 1} of {repetitions}")
            options = ["--threads", str(machine.threads), "--calls", str(calls)]
            command = [sys.executable, "-m", "bench.components", str(machine.builds[build])]
            found = run_json([*machine.prefix, *command, *files, *options], environment)
            drafter.add(label, found["drafter"])
            if "dense" in label:
                for width, ms in found["verify"].items():
                    verify.add(f"{build}, width {width}", ms)
    return [verify, drafter]


def decoding(
    name: str,
    title: str,
    pair: BenchPair,
    cells: Sequence[Cell],
    load: Load,
    machine: Machine,
    repetitions: int,
    say: Say,
) -> list[Section]:
    """Tokens per second of llama-server, and what drafting costs in it, cell by cell."""
    speed = Section(name, f"{title}: tokens/s", "tokens/s", True, cells[0].label)
    draft = Section(f"{name}-draft", f"{title}: drafting, per drafted token", "ms", False, "")
    round_ms = Section(f"{name}-round", f"{title}: one round", "ms", False, cells[0].label)
    length = Section(f"{name}-length", f"{title}: tokens a round", "tokens", True, cells[0].label)
    for repetition in range(repetitions):
        for cell in cells:
            say(f"{name} {cell.label}, {repetition + 1} of {repetitions}")
            sample = _serve(cell, pair, load, machine, repetition)
            speed.add(cell.label, sample["tokens/s"])
            round_ms.add(cell.label, sample["round ms"])
            length.add(cell.label, sample["tokens a round"])
            if "draft ms" in sample:
                draft.add(cell.label, sample["draft ms"])
    draft.reference = next(iter(draft.samples), "")
    return [speed, draft, round_ms, length]


def _serve(
    cell: Cell, pair: BenchPair, load: Load, machine: Machine, repetition: int
) -> dict[str, float]:
    """Start a server, warm it up, and time its answers."""
    threads = str(machine.threads)
    # fmt: off
    arguments = [*cell.arguments(pair.base, pair.drafter, pair.merged), "-t", threads,
                 "-td", threads, "-c", str(2048 * load.slots), "-np", str(load.slots),
                 "-fit", "off"]
    # fmt: on
    if load.chance is not None and cell.n_max:
        arguments += ["--spec-synth-rates", synthetic_rates(load.chance, cell.n_max)]
    # The seed also drives synthetic acceptance: the same in every cell of a repetition, another in
    # every request, as texts that are answered together do not fail together.
    seeds = range(1 + repetition * len(load.prompts), 1 + (repetition + 1) * len(load.prompts))
    requests = [
        (prompt, {**dict(load.sampling), "seed": seed})
        for prompt, seed in zip(load.prompts, seeds, strict=True)
    ]
    program = machine.program(cell.build, "llama-server")
    with server(program, arguments, machine.prefix) as running:
        prompt, options = requests[0]
        running.complete(prompt, 8, **options)
        before = _counted(running, cell, 1)
        start = time.perf_counter()
        if load.slots == 1:
            answers = [running.complete(p, load.n_predict, **options) for p, options in requests]
            seconds = sum(answer["predicted_ms"] for answer in answers) / 1000
        else:
            with ThreadPoolExecutor(load.slots) as threads_pool:
                jobs = [
                    threads_pool.submit(running.complete, prompt, load.n_predict, **options)
                    for prompt, options in requests
                ]
                answers = [job.result() for job in jobs]
            seconds = time.perf_counter() - start
        after = _counted(running, cell, 1 + len(load.prompts))
    tokens = sum(answer["predicted_n"] for answer in answers)
    drafted = after.since(before)
    accepted = sum(answer.get("draft_n_accepted", 0) for answer in answers)
    # A controller may find that nothing is worth drafting; a fixed depth must draft.
    if cell.n_max and drafted.drafted == 0 and AUTO_DEPTH not in cell.flags:
        raise BenchError(f"{cell.label}: nothing was drafted ({program})")
    # Every round emits one token of the target's own.
    rounds = tokens - accepted
    sample = {
        "tokens/s": tokens / seconds,
        "round ms": 1000 * seconds * load.slots / rounds,
        "tokens a round": tokens / rounds,
    }
    if drafted.drafted:
        sample["draft ms"] = drafted.draft_ms / drafted.drafted
    return sample


def _counted(running: Server, cell: Cell, answers: int) -> DraftStatistics:
    """The statistics once `answers` are in them: the log is written behind the answer."""
    if cell.n_max == 0:
        return NOTHING_DRAFTED
    deadline = time.monotonic() + LOG_SECONDS
    while time.monotonic() < deadline:
        found = running.statistics()
        if found.reports >= answers:
            return found
        time.sleep(0.05)
    raise BenchError(f"{cell.label}: no statistics of drafting in llama-server's log")
