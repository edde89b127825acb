"""The writing verbs as the fault tests run them: what each is given and what it leaves behind."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import tiny
from faults import FaultServer, Run
from gguf_mtp.api import attach, convert, split
from gguf_mtp.output import TEMP_SUFFIX
from litert_fixtures import fixture

TEMP = re.compile(rf"\..+\.[0-9a-f]{{12}}{re.escape(TEMP_SUFFIX)}")
Files = dict[str, bytes]


@dataclass(frozen=True)
class Inputs:
    """Files that the cases read; none of them may change."""

    target: Path
    drafter: Path
    base: Path
    heads: Path
    merged: Path
    tail: Path
    package: Path


def make_inputs(root: Path) -> Inputs:
    target = tiny.write_target(root / "target")
    drafter = tiny.write_drafter(root / "drafter")
    base, heads, merged, tail = (root / f"{name}.gguf" for name in ("b", "h", "merged", "tail"))
    convert(target, drafter, merged, outtype="f32", heads_type="f32")
    split(merged, base, heads)
    shutil.copyfile(base, tail)
    attach(tail, heads)
    package = root / "package.litertlm"
    shutil.copyfile(fixture("mixed"), package)
    return Inputs(target, drafter, base, heads, merged, tail, package)


@dataclass(frozen=True)
class Case:
    """A verb that writes new files into a directory OUT.

    `arguments` name fields of `Inputs` in braces. `marks` are the outputs without which the others
    beside them are nothing: where one is there, all have to be of the same age.
    """

    name: str
    arguments: str
    marks: frozenset[str] = frozenset()

    def command(self, inputs: Inputs, out: Path) -> list[str]:
        values = {name: str(path) for name, path in vars(inputs).items()}
        return self.arguments.format(**values, out=out).split()


_CONVERT = "convert --base {base} --heads {heads} --force"
CASES = (
    Case(
        "convert",
        "convert --base {target} --heads {drafter} --force --threads 2 -o {out}/m.gguf",
    ),
    Case("convert-tail", f"{_CONVERT} --layout tail -o {{out}}/m.gguf"),
    Case(
        "convert-parts",
        f"{_CONVERT} --split-max-size 600K -o {{out}}/m.gguf",
        frozenset({"m-00001-of-00003.gguf"}),
    ),
    Case(
        "convert-verify",
        f"{_CONVERT} --verify -o {{out}}/m.gguf",
        frozenset({"m.gguf.manifest.json"}),
    ),
    Case("detach-copy", "detach {tail} --force -o {out}/m.gguf"),
    Case("split", "split {merged} --force --base-out {out}/b.gguf --heads-out {out}/h.gguf"),
    Case("extract", "extract {package} --native --force -o {out}/d", frozenset({"d/config.json"})),
)


def read_files(directory: Path) -> Files:
    """Every file below `directory` by its path there."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


class Bench:
    """Runs one case again and again, with the same files in the directory before each run.

    `new` is what it writes, `clean` a run that finds older files of the same names.
    """

    def __init__(self, server: FaultServer, case: Case, inputs: Inputs, root: Path) -> None:
        self.server, self.case, self.inputs, self.out = server, case, inputs, root / "out"
        self.out.mkdir()
        self.command = case.command(inputs, self.out)
        first = self.run()
        assert first.code == 0, first.stderr
        self.new = read_files(self.out)
        assert case.marks <= self.new.keys()
        self.old: Files = {}
        self.reset(old=True)
        self.clean = self.run()
        assert self.check(killed=False) == self.new

    def run(self, **fault: object) -> Run:
        return self.server.run(self.command, self.out.parent, **fault)  # type: ignore[arg-type]

    def reset(self, *, old: bool) -> None:
        """An empty directory, or one that holds older files of the same names."""
        shutil.rmtree(self.out)
        self.out.mkdir()
        self.old = {name: f"old {name}".encode() for name in self.new} if old else {}
        for name, data in self.old.items():
            (self.out / name).parent.mkdir(exist_ok=True)
            (self.out / name).write_bytes(data)

    def check(self, *, killed: bool) -> Files:
        """What is there is old or new, whole and fits together; only what was `killed` has left
        temporary files, under names that say so. Returns the rest."""
        found = read_files(self.out)
        temps = {name for name in found if TEMP.fullmatch(Path(name).name)}
        assert killed or not temps
        files = {name: data for name, data in found.items() if name not in temps}
        for name, data in files.items():
            assert data in (self.old.get(name), self.new.get(name)), name
        for mark in self.case.marks & files.keys():
            age = self.new if files[mark] == self.new[mark] else self.old
            assert files == age, mark
        return files
