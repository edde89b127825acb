"""One row of the table of hostile inputs, and the commands that open such files."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tiny
from gguf_mtp.api import convert, split
from gguf_mtp.drafters.litert.checkpoint import write_checkpoint
from gguf_mtp.drafters.litert.package import read_drafter
from litert_fixtures import fixture


@dataclass(frozen=True)
class Good:
    """A small pair in every form, from which inputs are made: checkpoint directories, GGUFs of base
    and heads, both in one in the two layouts, and a package with the checkpoint taken out of it."""

    target: Path
    drafter: Path
    base: Path
    heads: Path
    merged: Path
    tail: Path
    package: Path
    extracted: Path


def make_good(root: Path) -> Good:
    """Write the pair into the empty directory `root`."""
    good = Good(
        target=tiny.write_target(root / "target"),
        drafter=tiny.write_drafter(root / "drafter"),
        base=root / "base.gguf",
        heads=root / "heads.gguf",
        merged=root / "merged.gguf",
        tail=root / "tail.gguf",
        package=fixture("mixed"),
        extracted=root / "extracted",
    )
    convert(good.target, good.drafter, good.merged, verify=True)
    split(good.merged, good.base, good.heads)
    convert(good.base, good.heads, good.tail, layout="tail")
    write_checkpoint(read_drafter(good.package), good.extracted)
    return good


# Use -> the command line that opens an input, which writes to the empty directory `out`.
Line = Callable[[Good, Path, Path], list[object]]


def _convert(good: Good, base: Path, heads: Path, out: Path) -> list[object]:
    return ["convert", "--base", base, "--heads", heads, "-o", out / "o.gguf"]


USES: dict[str, Line] = {
    "inspect": lambda good, path, out: ["inspect", path, "--json"],
    "base": lambda good, path, out: _convert(good, path, good.heads, out),
    "heads": lambda good, path, out: _convert(good, good.base, path, out),
    "attach": lambda good, path, out: (
        ["attach", path, "--heads", good.heads, "-o", out / "o.gguf"]
    ),
    "attach in place": lambda good, path, out: (
        ["attach", path, "--heads", good.heads, "--in-place"]
    ),
    "attached": lambda good, path, out: (
        ["attach", good.base, "--heads", path, "-o", out / "o.gguf"]
    ),
    "split": lambda good, path, out: (
        ["split", path, "--base-out", out / "b.gguf", "--heads-out", out / "h.gguf"]
    ),
    "detach": lambda good, path, out: ["detach", path, "-o", out / "o.gguf"],
    "extract": lambda good, path, out: ["extract", path, "-o", out / "drafter"],
    "audit": lambda good, path, out: ["audit", "--litert", path, "--hf", good.extracted],
    "audited": lambda good, path, out: ["audit", "--litert", good.package, "--hf", path],
    "verify": lambda good, path, out: ["verify", good.merged, "--manifest", path],
    "card": lambda good, path, out: ["card", path, "-q", "-o", out / "README.md"],
    "run": lambda good, path, out: ["run", path, "a", "-n", 2, "-q"],
    "validate": lambda good, path, out: _measure("validate", path, out, "--backend", "cpu"),
    "bench": lambda good, path, out: _measure("bench", path, out, "--repetitions", 1),
    "report": lambda good, path, out: ["report", path, "--badge", "--html", out / "r.html"],
    "card report": lambda good, path, out: (
        ["card", good.merged, "-q", "--report", path, "-o", out / "README.md"]
    ),
    "prompts": lambda good, path, out: _measure(
        "validate", good.merged, out, "--backend", "cpu", "--prompts", path
    ),
    "record": lambda good, path, out: ["run", good.merged, "a", "-n", 2, "-q"],
    "metadata": lambda good, path, out: (
        [*_convert(good, good.target, good.drafter, out), "--metadata", path]
    ),
}


def _measure(verb: str, path: Path, out: Path, *more: object) -> list[object]:
    few = ["--n-prompts", 1, "--n-predict", 2, "--n-max", 1]
    return [verb, path, *few, "--output", out / "o.json", *more]


# What a use needs in its environment to open `path`: the record of builds, and no other library.
ENVIRON: dict[str, Callable[[Path], dict[str, str]]] = {
    "record": lambda path: {"XDG_CACHE_HOME": str(path.parents[1]), "LLAMA_CPP_LIB_PATH": ""},
}
# These run llama.cpp, those where their input is sound.
RUNS = frozenset({"run", "validate", "bench"})
RUNS_SOUND = RUNS | {"prompts", "record"}
# Uses that end in 1 where an input is sound: what they compare differs.
FINDS = frozenset({"audited"})
WRITES_NOTHING = frozenset(
    {"inspect", "audit", "audited", "verify", "attach in place", "run", "record"}
)

# Writes an input for a use into an empty directory; returns its path.
Maker = Callable[[Good, Path, str], Path]


@dataclass(frozen=True)
class Case:
    """A hostile input. `says` are words that the one line of error must have, besides the file's
    name; where there are none the input is harmless and must be accepted, as `promise` says.
    `notes` are words that what is printed then must have.

    `control` makes the nearest input that is sound, which each of `controlled_by` must accept.
    """

    name: str
    hostile: Maker
    control: Maker
    uses: tuple[str, ...]
    says: tuple[str, ...] = ()
    promise: str = "refused"
    controlled_by: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_refused(self) -> bool:
        return bool(self.says)

    @property
    def control_uses(self) -> tuple[str, ...]:
        return self.uses if self.controlled_by is None else self.controlled_by


def linked(source: Path, directory: Path, *without: str) -> Path:
    """`directory`, made, with links to the files of `source` but those `without`."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name not in without:
            os.symlink(path, directory / path.name)
    return directory
