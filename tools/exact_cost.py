#!/usr/bin/env python3
"""What exact mode costs: the exact build beside the default one, by number type and batch width.

    python tools/exact_cost.py                       # the embedded pair and E2B's shape
    python tools/exact_cost.py fixture:q4_0 e2b:q8_0 --threads 2

For each model it first looks for the setting that `--exact` would take (measured, not assumed),
then times decoding 1 to n_max + 1 tokens at once behind 256 tokens, on both builds in turns. A
ratio is of one round; the table has the middle one and the range. Each run is a process of its own,
since a process has one llama.cpp. E2B's weights are random (`make bench` has them too); models are
kept in the cache and in build/exact-cost.

Exit codes: 0 measured, 2 could not.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from bench.models import FILE_TYPES, bench_pair
from bench.shapes import PAIRS
from gguf_mtp.api import convert
from gguf_mtp.cli.show import wide_console
from gguf_mtp.errors import GgufMtpError, RuntimeUnavailable
from gguf_mtp.runtime.bindings import CPU, ModelOptions
from gguf_mtp.runtime.library import EXACT_HINT, load_library, read_record, record_path
from gguf_mtp.validate.exact import open_exact
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.prompts import Prompt
from llamacpp.pin import REPO

FIXTURE = REPO / "tests" / "fixtures" / "gemma4-tiny"
WORK = REPO / "build" / "exact-cost"
TYPES = ("f32", "f16", "q8_0", "q4_0", "q4_k_m")
MODELS = (*(f"fixture:{kind}" for kind in TYPES), "e2b:q4_0", "e2b:q8_0")
BUILDS = ("default", "exact")
# As long as what is timed behind it, so that attention meets as many cells.
PROMPT = Prompt("cost", "The keeper of the archive went through its eleven rooms. " * 32, "own")
N_CTX = 1024
DECODED = 14


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        if options.choose:
            print(json.dumps(chosen_setting(options.choose, options.n_max, options.threads)))
            return 0
        found = {name: cost(name, options) for name in options.model or MODELS}
    except (GgufMtpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        wide_console().print(as_table(found, options.n_max))
    return 0


def chosen_setting(model: Path, n_max: int, threads: int) -> dict[str, Any]:
    """In a process of the exact build: the setting in which all its logits are exact."""
    options = Options(n_max=n_max, n_predict=DECODED, n_ctx=N_CTX, n_threads=threads)
    files = {"merged": model}
    with open_exact(load_library(), files, ModelOptions(device=CPU), [PROMPT], options) as (
        pair,
        chosen,
    ):
        return {"repack": pair.base.options.repack, "flash_attn": chosen.flash_attn}


def cost(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of each build by width, round by round, and the exact build's setting."""
    model = model_file(name)
    setting = run(__file__, "exact", "--choose", model, *numbers(options, "n_max", "threads"))
    found: dict[str, Any] = {"setting": setting, "threads": options.threads}
    rounds: dict[str, list[dict[str, float]]] = {build: [] for build in BUILDS}
    for number in range(options.rounds):
        for build in BUILDS if number % 2 == 0 else BUILDS[::-1]:
            print(f"{name}: round {number + 1}, {build}", file=sys.stderr, flush=True)
            words = ["--merged", model, "--device", CPU, *numbers(options, "threads", "calls")]
            if build == "exact":
                words += ["--flash-attn", setting["flash_attn"]]
                words += [] if setting["repack"] else ["--no-repack"]
            script = Path(__file__).with_name("bench") / "components.py"
            rounds[build].append(run(script, build, lib_dir(build), *words)["verify"])
    return found | {"milliseconds": rounds}


def numbers(options: argparse.Namespace, *names: str) -> list[str]:
    """Options handed on, as words."""
    return [w for name in names for w in (f"--{name.replace('_', '-')}", str(vars(options)[name]))]


def run(script: str | Path, build: str, *words: object) -> Any:
    """Run a script on a build's library; its JSON. Raises RuntimeUnavailable with its reason."""
    environ = os.environ | {"LLAMA_CPP_LIB_PATH": str(lib_dir(build))}
    command = [sys.executable, str(script), *map(str, words)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeUnavailable(f"{Path(script).name} on the {build} build: {lines[-1]}")
    return json.loads(done.stdout)


def lib_dir(build: str) -> Path:
    """Where a recorded build is."""
    record = read_record(record_path())
    if record is None or record.exact_lib_dir is None:
        raise RuntimeUnavailable(f"{record_path()} records no exact build; {EXACT_HINT}")
    return record.exact_lib_dir if build == "exact" else record.lib_dir


def model_file(name: str) -> Path:
    """The merged file of ``PAIR:TYPE``, made where it is not there yet."""
    pair, _, kind = name.partition(":")
    if pair in PAIRS and kind in FILE_TYPES:
        heads = kind if kind == "f16" else "q8_0"
        return bench_pair(pair, kind, heads, lambda text: print(text, file=sys.stderr)).merged
    if pair != "fixture" or not kind:
        known = ", ".join(("fixture", *PAIRS))
        raise RuntimeUnavailable(f"{name!r} is not PAIR:TYPE with one of {known}")
    WORK.mkdir(parents=True, exist_ok=True)
    out = WORK / f"fixture-{kind}.gguf"
    convert(FIXTURE / "target", FIXTURE / "drafter", out, outtype=kind, force=True)
    return out


def as_table(found: dict[str, Any], n_max: int) -> Table:
    """A row a model: milliseconds of one token on the default build, and ratios by width."""
    widths = [str(width) for width in range(1, n_max + 2)]
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "threads", "exact setting", "ms, width 1"):
        table.add_column(heading)
    for width in widths:
        table.add_column(f"x{width}", justify="right")
    for name, measured in found.items():
        default, exact = (measured["milliseconds"][build] for build in BUILDS)
        setting = measured["setting"]
        table.add_row(
            name,
            str(measured["threads"]),
            f"{'' if setting['repack'] else 'not '}repacked, FA {setting['flash_attn']}",
            f"{median(times['1'] for times in default):.3g}",
            *(spread([e[w] / d[w] for d, e in zip(default, exact, strict=True)]) for w in widths),
        )
    return table


def spread(ratios: Sequence[float]) -> str:
    """The middle ratio and the range."""
    return f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def parser() -> argparse.ArgumentParser:
    """The command line; without options it is everything."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = made.add_argument
    add("model", nargs="*", metavar="PAIR:TYPE", help=f"default: {' '.join(MODELS)}")
    add("--n-max", type=int, default=6, choices=range(1, 8))
    add("--threads", type=int, default=1)
    add("--rounds", type=int, default=5, help="of both builds, in turns")
    add("--calls", type=int, default=9, help="of each width a round; the middle one counts")
    add("--json", action="store_true", help="print every measurement instead of the table")
    add("--choose", type=Path, help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    sys.exit(main())
