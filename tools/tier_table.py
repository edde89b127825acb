#!/usr/bin/env python3
"""Which tiers hold, by number type, flash attention, KV cache, depth and backend: a table.

    python tools/tier_table.py                                  # all 192 cells
    python tools/tier_table.py --backend cpu --type f32 q4_0    # part of them

Runs `gguf-mtp validate`'s tiers on the embedded pair, one cell after another, and keeps each
cell's report in build/tiers: stopped and started again, it goes on where it was. At the end (or
at once, with --render) the table goes into docs/backends.md. Backends run in processes of their
own, since a process has one llama.cpp; one that dies takes one cell with it, and that is said.
On Vulkan, here a driver on the CPU, cells decode less text; the table says how much. What does
not depend on the depth, base-identical and cross-backend, is tested at the first one alone.

Exit codes: 0 every cell asked for was run, 1 one does not hold or died, 2 could not run.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from gguf_mtp.api import convert, split
from gguf_mtp.errors import GgufMtpError, RuntimeUnavailable
from gguf_mtp.gemma4.outtype import ENCODED
from gguf_mtp.runtime.bindings import ModelOptions
from gguf_mtp.runtime.library import load_library, read_record, record_path
from gguf_mtp.runtime.pair import open_pair
from gguf_mtp.runtime.targets import choose_targets
from gguf_mtp.validate.backends import validate_backends
from gguf_mtp.validate.prompts import load_prompts
from gguf_mtp.validate.suite import Options, validate
from llamacpp.pin import REPO, cache_dir
from tier_markdown import page_text

FIXTURE = REPO / "tests" / "fixtures" / "gemma4-tiny"
WORK = REPO / "build" / "tiers"
PAGE = REPO / "docs" / "backends.md"
BEGIN, END = "<!-- tiers: begin -->", "<!-- tiers: end -->"

TYPES = ("f32", "f16", "q8_0", "q4_0")
FLASH_ATTN = ("on", "off")
KV_TYPES = ("f16", "q8_0")
DEPTHS = (1, 2, 3, 4, 5, 6)
BACKENDS = ("cpu", "vulkan")
PROMPT_SET = "python"


@dataclass(frozen=True)
class Cell:
    """One combination; its report is kept under its name."""

    backend: str
    outtype: str
    flash_attn: str
    kv_type: str
    n_max: int

    @property
    def name(self) -> str:
        """Unique among cells, and a file's name."""
        return f"{self.backend}-{self.outtype}-fa_{self.flash_attn}-kv_{self.kv_type}-n{self.n_max}"


@dataclass(frozen=True)
class Size:
    """How much each cell decodes: `tokens` behind each of the prompts, cut to `characters`."""

    prompts: int
    tokens: int
    characters: int


SIZES = {"cpu": Size(2, 24, 1000), "vulkan": Size(1, 6, 12)}


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(argv)
    asked = cells(options)
    try:
        if options.worker:
            return work(asked, size_of(asked[0].backend, options), options.work)
        if not options.render:
            fill(asked, options)
        # Whatever was asked for: the page is of all that is kept.
        everything = cells(parser().parse_args([]))
        put_into_page(options.page, page_text(list(kept(everything, options.work))))
    except (GgufMtpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    found = [report for _, report in kept(asked, options.work)]
    print(f"{len(found)} of {len(asked)} cells; the table is in {options.page}")
    return int(any(report.get("holds") is False or "died" in report for report in found))


def cells(options: argparse.Namespace) -> list[Cell]:
    """All combinations asked for: those of a backend together, and the depths one by one."""
    every = product(
        options.backend, options.n_max, options.type, options.flash_attn, options.kv_type
    )
    return [
        Cell(backend, outtype, flash_attn, kv_type, n_max)
        for backend, n_max, outtype, flash_attn, kv_type in every
    ]


def size_of(backend: str, options: argparse.Namespace) -> Size:
    """How much a backend's cells decode."""
    usual = SIZES[backend]
    asked = {name: getattr(options, name) or default for name, default in asdict(usual).items()}
    return Size(**asked)


def fill(asked: Sequence[Cell], options: argparse.Namespace) -> None:
    """Run what is not there yet, a process for each backend, and another after one that died."""
    make_models(options.work, options.type)
    for backend in options.backend:
        own, size = [cell for cell in asked if cell.backend == backend], size_of(backend, options)
        while missing := [c for c in own if not is_kept(c, size, options.work)]:
            print(f"{backend}: {len(own) - len(missing)} of {len(own)} cells kept", flush=True)
            command = [sys.executable, __file__, "--worker", "--work", str(options.work)]
            for flag, value in asdict(size).items():
                command += [f"--{flag}", str(value)]
            for flag in ("type", "flash_attn", "kv_type", "n_max"):
                command += [f"--{flag.replace('_', '-')}", *map(str, getattr(options, flag))]
            code = subprocess.run(
                [*command, "--backend", backend], env=environment(backend)
            ).returncode
            if code >= 0 and not all(is_kept(cell, size, options.work) for cell in own):
                raise RuntimeUnavailable(f"the {backend} cells cannot run; the reason is above")
            if code < 0:
                keep_died(missing, size, options.work, -code)


def keep_died(missing: Sequence[Cell], size: Size, work_dir: Path, signal: int) -> None:
    """Note for the first cell that is still missing that the process died in it."""
    cell = next((c for c in missing if not is_kept(c, size, work_dir)), None)
    if cell is not None:
        keep(cell, size, work_dir, {"died": f"signal {signal}"})


def make_models(work_dir: Path, types: Sequence[str]) -> None:
    """Convert the embedded pair to each type, and split off the base to compare with."""
    work_dir.mkdir(parents=True, exist_ok=True)
    for name in types:
        merged, base = model_paths(work_dir, name)
        convert(
            FIXTURE / "target",
            FIXTURE / "drafter",
            merged,
            outtype=name,
            heads_type=name if name in ENCODED else "auto",
            force=True,
        )
        split(merged, base, None, force=True)


def model_paths(work_dir: Path, outtype: str) -> tuple[Path, Path]:
    """The merged file of a type and its base alone."""
    return work_dir / f"merged-{outtype}.gguf", work_dir / f"base-{outtype}.gguf"


def environment(backend: str) -> dict[str, str]:
    """The environment of a backend's process: the first Vulkan device, whatever its kind."""
    if backend != "vulkan":
        return dict(os.environ)
    shaders = {"MESA_SHADER_CACHE_DIR": str(cache_dir() / "mesa-shaders")}
    return {"GGML_VK_VISIBLE_DEVICES": "0"} | shaders | os.environ


def work(asked: Sequence[Cell], size: Size, work_dir: Path) -> int:
    """In a backend's own process: run its missing cells. Returns the exit code."""
    backend = asked[0].backend
    library = load_library(backend=backend)
    (target,) = choose_targets(library, backend, None)
    prompts = [
        replace(prompt, text=prompt.text[: size.characters])
        for prompt in load_prompts([PROMPT_SET])[: size.prompts]
    ]
    for number, cell in enumerate(asked, start=1):
        if is_kept(cell, size, work_dir):
            continue
        merged, base = model_paths(work_dir, cell.outtype)
        options = Options(
            n_max=cell.n_max,
            n_predict=size.tokens,
            kv_type=cell.kv_type,
            flash_attn=cell.flash_attn,
            ignore_end=True,
        )
        began = time.monotonic()
        files = {"merged": merged}
        try:
            if cell.n_max == DEPTHS[0]:
                (found,) = validate_backends(
                    library, files, [target], prompts, options, ModelOptions(), base
                )
                report = found.to_json()
            else:
                on_target = target.model_options(ModelOptions())
                with open_pair(library=library, options=on_target, **files) as pair:
                    report = validate(pair, prompts, options).to_json()
        except RuntimeUnavailable as error:
            report = {"refused": str(error).removeprefix(f"{merged}: ")}
        keep(cell, size, work_dir, report)
        seconds = time.monotonic() - began
        print(f"{number}/{len(asked)} {cell.name}: {outcome(report)} ({seconds:.0f} s)", flush=True)
    return 0


def outcome(report: dict[str, Any]) -> str:
    """A cell's result in a word."""
    if "refused" in report:
        return f"refused: {report['refused']}"
    return "holds" if report["holds"] else "DOES NOT HOLD"


def identity(cell: Cell, size: Size) -> dict[str, Any]:
    """What a kept report must have been made with to count."""
    record = read_record(record_path())
    built = {"pin": record.pin, "patches": record.patches} if record else {}
    return asdict(cell) | asdict(size) | built


def keep(cell: Cell, size: Size, work_dir: Path, report: dict[str, Any]) -> None:
    """Keep a cell's report, whole or not at all."""
    path = work_dir / f"{cell.name}.json"
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps({"of": identity(cell, size), "report": report}, indent=1))
    os.replace(scratch, path)


def is_kept(cell: Cell, size: Size, work_dir: Path) -> bool:
    """Whether a report for this very cell, size and llama.cpp is there."""
    try:
        kept_of = json.loads((work_dir / f"{cell.name}.json").read_text())["of"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(kept_of == identity(cell, size))


def kept(asked: Sequence[Cell], work_dir: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What each kept cell is of, and its report."""
    for cell in asked:
        try:
            fields = json.loads((work_dir / f"{cell.name}.json").read_text())
            yield fields["of"], fields["report"]
        except (OSError, ValueError, KeyError, TypeError):
            continue


def put_into_page(page: Path, text: str) -> None:
    """Replace what stands between the page's markers."""
    whole = page.read_text()
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RuntimeUnavailable(f"{page}: no place for the table: {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def usual_sizes(field: str) -> str:
    """What `SIZES` says of each backend, for the help."""
    return ", ".join(f"{asdict(size)[field]} on {backend}" for backend, size in SIZES.items())


def parser() -> argparse.ArgumentParser:
    """The command line; without options it is everything."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = made.add_argument
    add("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    add("--type", nargs="+", choices=TYPES, default=list(TYPES))
    add("--flash-attn", nargs="+", choices=FLASH_ATTN, default=list(FLASH_ATTN))
    add("--kv-type", nargs="+", choices=KV_TYPES, default=list(KV_TYPES))
    add("--n-max", nargs="+", type=int, choices=DEPTHS, default=list(DEPTHS))
    add("--prompts", type=int, help=f"prompts a cell; default: {usual_sizes('prompts')}")
    add("--tokens", type=int, help=f"tokens a prompt; default: {usual_sizes('tokens')}")
    add("--characters", type=int, help=f"of a prompt; default: {usual_sizes('characters')}")
    add("--work", type=Path, default=WORK, help="where cells are kept")
    add("--page", type=Path, default=PAGE, help="the page that takes the table")
    add("--render", action="store_true", help="run nothing, write the table of what is kept")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    sys.exit(main())
