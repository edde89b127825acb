"""What is compared: each cell one build, one set of files, one set of flags."""

from dataclasses import dataclass
from pathlib import Path

STOCK, PATCHED = "stock", "patched"
# The depth up to which a controller may draft.
ADAPTIVE_MAX = 8


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
FUSED = "--spec-draft-fused"
ADAPTIVE = "--spec-adaptive"

PLAIN = Cell("no MTP", PATCHED, 0)
CELLS = (
    PLAIN,
    Cell("no MTP, stock", STOCK, 0),
    *(Cell(f"stock, two files, n={n}", STOCK, n) for n in (1, 3, 5)),
    *(
        Cell(f"patched, step by step, n={n}", PATCHED, n, (FUSED, "off"), needs=FUSED)
        for n in (1, 3, 5)
    ),
    *(Cell(f"patched, n={n}", PATCHED, n) for n in (1, 3, 5)),
    Cell("patched, adaptive", PATCHED, ADAPTIVE_MAX, (ADAPTIVE, "on"), needs=ADAPTIVE),
)
QUICK = ("no MTP", "stock, two files, n=3", "patched, step by step, n=3", "patched, n=3")
QUICK_CELLS = tuple(cell for cell in CELLS if cell.label in (*QUICK, "patched, adaptive"))
SLOT_CELLS = tuple(
    cell
    for cell in CELLS
    if cell.label in ("no MTP", "stock, two files, n=3", "patched, n=3", "patched, adaptive")
)


def synthetic_rates(chance: float, n_max: int) -> str:
    """The ``--spec-synth-rates`` of drafts of which each is accepted with `chance`."""
    return ",".join(f"{chance**position:.6f}" for position in range(1, n_max + 1))
