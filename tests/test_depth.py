"""The depth controller on a simulated clock: never worse than no MTP, near the best fixed depth.

`depth/simulation.cpp` runs `common/mtp-depth.cpp` itself, without llama.cpp around it, on cost
curves that were measured or that stand for a kind of machine.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import pytest

from llamacpp.pin import PATCHES

HERE = Path(__file__).parent / "depth"
CONTROLLER = PATCHES / "mtp" / "files" / "common"
AUTO = -1
SEEDS = range(4)


@dataclass(frozen=True)
class Curve:
    """Milliseconds a round by width (the last two go on), a draft step, a change of width."""

    rounds: tuple[float, ...]
    draft: float
    switch: float


CURVES = {
    # E2B's shape on two cores with AMX, patched and not, and without AMX: docs/speed.md
    "flat": Curve(
        (92, 98, 105, 111, 117, 130, 142, 158, 190, 195, 220, 240, 255, 265, 276), 1.4, 3
    ),
    "doubles at two": Curve((107, 216, 232, 244, 274, 291, 313, 320), 1.4, 3),
    "not monotonic": Curve((121, 196, 252, 197, 292, 338, 363, 363, 388), 1.4, 3),
    "compute bound": Curve((0.6, 1.0, 1.3, 1.6, 2.0, 2.4, 2.8, 3.2), 0.12, 0.15),
    "memory bound": Curve((20, 20, 20, 20, 20, 20, 20, 20, 20.5, 21), 0.8, 0.3),
    # where rebuilding a graph costs as much as a round
    "fast card": Curve((3, 3.05, 3.1, 3.15, 3.2, 3.3), 0.2, 2),
    "card": Curve((6, 6.1, 6.2, 6.3, 6.4, 6.5), 0.3, 3),
    "mixture of experts": Curve((50, 85, 115, 140, 160, 178, 195, 210, 222), 1.0, 2),
}

Rates = list[float]  # by seed
Rate = Callable[..., Rates]


def at_least(share: float, found: Rates, wanted: Rates) -> bool:
    """Whether `found` is on the mean that share of `wanted`, as far as a few seeds can tell: within
    two standard errors of what they show."""
    ratios = [one / other for one, other in zip(found, wanted, strict=True)]
    return mean(ratios) + 2 * stdev(ratios) / sqrt(len(ratios)) > share


def best_of(rates: Iterable[Rates]) -> Rates:
    return max(rates, key=mean)


def halves_of(first: Rates, second: Rates) -> Rates:
    """The rates over two halves of a text."""
    return [2 / (1 / one + 1 / other) for one, other in zip(first, second, strict=True)]


@pytest.fixture(scope="module")
def rate(tmp_path_factory: pytest.TempPathFactory) -> Rate:
    """Tokens/s by seed."""
    program = tmp_path_factory.mktemp("depth") / "simulation"
    sources = [str(HERE / "simulation.cpp"), str(CONTROLLER / "mtp-depth.cpp")]
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    include = [f"-I{HERE}", f"-I{CONTROLLER}"]
    command = [*compiler, "-O1", "-std=c++17", "-Wall", "-Wextra", "-Werror", *include, *sources]
    subprocess.run([*command, "-o", str(program)], check=True)

    def run(
        curve: Curve,
        depth: int,
        n_seq: int,
        n_tokens: int,
        *chances: float,
        streams: bool = False,
        then: tuple[Curve, ...] = (),
    ) -> Rates:
        rates: Rates = []
        for seed in SEEDS:
            numbers = (seed, depth, n_seq, int(streams), n_tokens, curve.draft, curve.switch)
            rounds = (each.rounds for each in (curve, *then))
            lists = (",".join(map(str, values)) for values in (chances, *rounds))
            result = subprocess.run(
                [str(program), *map(str, numbers), *lists], capture_output=True, check=True
            )
            rates.append(float(json.loads(result.stdout)["rate"]))
        return rates

    return run


# Slots, and whether each has a KV cache of its own.
SLOTS = pytest.mark.parametrize(
    ("n_seq", "streams"), [(1, False), (4, False), (4, True)], ids=["1", "4", "4-streams"]
)


@pytest.mark.parametrize("chance", [0.3, 0.667, 0.9])
@SLOTS
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_no_worse_than_plain_and_near_the_best_depth(
    rate: Rate, curve: Curve, n_seq: int, streams: bool, chance: float
) -> None:
    fixed = [rate(curve, depth, n_seq, 512, chance, streams=streams) for depth in range(6)]
    auto = rate(curve, AUTO, n_seq, 512, chance, streams=streams)
    assert at_least(0.97, auto, fixed[0])
    assert at_least(0.90, auto, best_of(fixed))


@SLOTS
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_finding_out_costs_little(rate: Rate, curve: Curve, n_seq: int, streams: bool) -> None:
    """The first 64 tokens of a fresh server, where nothing is known yet."""
    auto, plain = (rate(curve, depth, n_seq, 64, 0.667, streams=streams) for depth in (AUTO, 0))
    assert at_least(0.93, auto, plain)


@pytest.mark.parametrize("chances", [(0.1, 0.9), (0.9, 0.1)], ids=["rises", "falls"])
def test_follows_a_text_that_changes(rate: Rate, chances: tuple[float, float]) -> None:
    curve = CURVES["mixture of experts"]
    plain = rate(curve, 0, 1, 4096, *chances)
    # What is to be had: the best fixed depth in each half.
    halves = [best_of(rate(curve, n, 1, 2048, chance) for n in range(6)) for chance in chances]
    auto = rate(curve, AUTO, 1, 4096, *chances)
    assert at_least(1, auto, plain)
    assert at_least(0.93, auto, halves_of(*halves))


@pytest.mark.parametrize("loud_first", [True, False])
def test_follows_a_machine_that_changes(rate: Rate, loud_first: bool) -> None:
    """Four slots on a machine with neighbours, in whose loud hours a second token a slot does not
    pay: measurements of one hour must not decide in the next."""
    loud = Curve((95, 105, 112, 117, 140, 160, 180, 197, 220, 245, 270, 290), 1.4, 3)
    quiet = Curve((88, 92, 98, 105, 112, 122, 132, 143, 160, 175, 190, 205), 1.4, 3)
    hours = (loud, quiet) if loud_first else (quiet, loud)
    # What is to be had: the best fixed depth in each half.
    halves = [
        best_of(rate(hour, n, 4, 1024, 0.667, streams=True) for n in range(4)) for hour in hours
    ]
    auto = rate(hours[0], AUTO, 4, 2048, 0.667, streams=True, then=hours[1:])
    assert at_least(0.97, auto, halves_of(*halves))
