"""What is compared: each cell one build, one set of files, one set of flags."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

STOCK, PATCHED = "stock", "patched"
# The depth up to which the controller may draft: that of the deepest fixed cell.
AUTO_MAX = 5


@dataclass(frozen=True)
class Cell:
    """One way to decode. `n_max` 0 is without MTP. `needs` is a flag that the build's ``--help``
    must know: a build without it leaves the cell out."""

    label: str
    build: str
    n_max: int
    flags: tuple[str, ...] = ()
    needs: str | None = None

    def arguments(self, base: Path, drafter: Path, merged: Path) -> list[str]:
        """Model files and flags."""
        arguments = ["-m", str(base if self.build == STOCK else merged)]
        if self.n_max == 0:
            return [*arguments, *(["--spec-type", "none"] if self.build == PATCHED else [])]
        if self.build == STOCK:
            arguments += ["-md", str(drafter), "--spec-type", "draft-mtp"]
        return [*arguments, "--spec-draft-n-max", str(self.n_max), *self.flags]


# Flags of features that a patch series may or may not have.
ONE_GRAPH, AUTO_DEPTH = "--spec-draft-one-graph", "--spec-draft-auto-depth"
COUPLED = "--spec-draft-coupled"
FIXED = (f"--no-{AUTO_DEPTH[2:]}",)
STEPS = (*FIXED, f"--no-{ONE_GRAPH[2:]}")

PLAIN = Cell("no MTP", PATCHED, 0)
CELLS = (
    PLAIN,
    Cell("no MTP, stock", STOCK, 0),
    *(Cell(f"stock, two files, n={n}", STOCK, n) for n in (1, 3, 5)),
    *(Cell(f"patched, step by step, n={n}", PATCHED, n, STEPS, ONE_GRAPH) for n in (1, 3, 5)),
    *(Cell(f"patched, one graph, n={n}", PATCHED, n, FIXED, ONE_GRAPH) for n in (1, 3, 5)),
    Cell("patched, auto depth", PATCHED, AUTO_MAX, (AUTO_DEPTH,), AUTO_DEPTH),
)
# Coupled sampling differs from the exact match only where sampling is random.
SAMPLED_CELLS = (
    *CELLS,
    Cell("patched, coupled, n=3", PATCHED, 3, (*FIXED, COUPLED), COUPLED),
)
QUICK = frozenset(
    {
        "no MTP",
        "no MTP, stock",
        "stock, two files, n=3",
        "patched, step by step, n=3",
        "patched, one graph, n=3",
        "patched, coupled, n=3",
        "patched, auto depth",
    }
)


def quick(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Those of `cells` that a short run is about."""
    return tuple(cell for cell in cells if cell.label in QUICK)


def synthetic_rates(chance: float, n_max: int) -> str:
    """The ``--spec-synth-rates`` of drafts of which each is accepted with `chance`."""
    return ",".join(f"{chance**position:.6f}" for position in range(1, n_max + 1))
