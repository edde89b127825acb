#!/usr/bin/env python3
"""The main job end to end on the embedded small model; what `make demo` runs after set-up.

Base weights and MTP heads become one GGUF, the patched llama.cpp runs it with and without the
heads, and `gguf-mtp validate` says which tiers of equivalence hold.

Exit codes: those of the first step that fails, 1 where the two texts differ.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llamacpp.pin import REPO, read_record

FIXTURE = REPO / "tests" / "fixtures" / "gemma4-tiny"
MERGED = REPO / "build" / "demo" / "gemma4-tiny-mtp.gguf"
BASE = MERGED.with_name("gemma4-tiny.gguf")
PROMPT = '''def read(self, size=-1):
    """Read up to size bytes from the file."""
    if self.closed:
'''
N_PREDICT = 96

# A model this small spends longer handing work to a second thread than doing it.
RUN_FLAGS = ["--temp", "0", "-n", str(N_PREDICT), "-t", "1", "-td", "1", "-c", "1024"]
# Nor need drafting pay: without this, the programs may find that it does not, and stop.
DRAFT_FLAGS = ["--no-spec-draft-auto-depth"]

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Decoding:
    """One run of llama-speculative-simple: its text, and its own figures."""

    text: str
    tokens_per_second: float
    drafted: int
    accepted: int


def main() -> int:
    """Run the steps; returns the exit code."""
    MERGED.parent.mkdir(parents=True, exist_ok=True)
    program = Path(str(read_record()["bin_dir"])) / "llama-speculative-simple"

    console.rule("1  base + heads -> one GGUF", align="left")
    # fmt: off
    step("gguf-mtp", "convert", "--base", FIXTURE / "target", "--heads", FIXTURE / "drafter",
         "--outtype", "f32", "--heads-type", "f32", "--force", "-o", MERGED)
    step("gguf-mtp", "split", MERGED, "--base-out", BASE, "--force")
    # fmt: on

    console.rule("2  the patched llama.cpp runs it", align="left")
    plain = decode(program, "--spec-type", "none")
    mtp = decode(program, *DRAFT_FLAGS)
    same = same_text(plain.text, mtp.text)
    console.print(f"\n[dim]{PROMPT}[/dim]{mtp.text}\n", markup=True)

    table = Table(box=None, pad_edge=False)
    for heading in ("", "without MTP", "with MTP"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("tokens/s", f"{plain.tokens_per_second:.0f}", f"{mtp.tokens_per_second:.0f}")
    table.add_row("drafts accepted", "-", f"{mtp.accepted}/{mtp.drafted}")
    table.add_row("text", "", "the same" if same else "[red]differs[/red]")
    console.print(table)
    console.print(
        "(MTP saves reading weights; this model's fit the CPU's cache: it shows equality)"
    )

    console.rule("3  proof", align="left")
    # fmt: off
    step("gguf-mtp", "validate", MERGED, "--against", BASE,
         "--prompts", "python", "--n-prompts", "32", "--n-predict", "128")
    # fmt: on
    return 0 if same else 1


def step(program: str, *arguments: object) -> None:
    """Show and run one of our commands; its failure ends the demo with its exit code."""
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
    shown = [program, *(shorten(argument) for argument in arguments)]
    console.print(f"$ {shlex.join(shown)}", style="bold")
    code = subprocess.run(command).returncode
    if code != 0:
        sys.exit(code)


def decode(program: Path, *flags: str) -> Decoding:
    """Run the prompt through llama-speculative-simple on the merged file."""
    arguments = ["-m", str(MERGED), *RUN_FLAGS, *flags]
    shown = shlex.join([program.name, *(shorten(a) for a in arguments)])
    console.print(f"$ {shown} -p …", style="bold")
    result = subprocess.run(
        [str(program), *arguments, "-p", PROMPT], capture_output=True, text=True, errors="replace"
    )
    if result.returncode != 0:
        sys.exit(f"error: {program.name} failed: {result.stderr.strip().splitlines()[-1]}")
    return Decoding(
        text=result.stdout.strip().removeprefix("<bos>").removeprefix(PROMPT),
        tokens_per_second=figure(result.stderr, r"decoded .* speed:\s+([\d.]+) t/s"),
        drafted=int(figure(result.stderr, r"n_drafted = (\d+)")),
        accepted=int(figure(result.stderr, r"n_accept  = (\d+)")),
    )


def figure(log: str, pattern: str) -> float:
    """The number that `pattern` captures in the program's log."""
    match = re.search(pattern, log)
    if match is None:
        sys.exit(f"error: no line like {pattern!r} in the program's log")
    return float(match.group(1))


def same_text(a: str, b: str) -> bool:
    """Whether one text begins the other: a round may end a few tokens past the number asked for."""
    n = min(len(a), len(b))
    return n > 0 and a[:n] == b[:n]


def shorten(argument: object) -> str:
    """A path as the user would type it from the checkout's top."""
    path = Path(str(argument))
    return str(path.relative_to(REPO)) if path.is_relative_to(REPO) else str(argument)


if __name__ == "__main__":
    sys.exit(main())
