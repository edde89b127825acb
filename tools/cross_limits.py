#!/usr/bin/env python3
"""How far a backend's logits are from the CPU's, by number type: what the limits are made from.

    python tools/cross_limits.py --backend vulkan

Decodes the same tokens of the embedded pair on both, as the cross-backend tier does, over prompts
of all sets, and prints a row a combination: divergences in nats, and the same where one norm is off
by a twentieth, which a limit is there to find. Exit codes: 0 measured, 2 could not.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import gguf

from gguf_mtp.errors import GgufMtpError, RuntimeUnavailable
from gguf_mtp.runtime.bindings import CPU, KV_TYPES, ModelOptions
from gguf_mtp.runtime.library import DEVICE_BACKENDS, Library, load_library
from gguf_mtp.runtime.pair import open_pair
from gguf_mtp.runtime.targets import Target, choose_targets
from gguf_mtp.validate.cross import Comparison, CpuLogits, Passage, tolerance
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.prompts import encode, load_prompts
from gguf_mtp.validate.sizes import context_options_for
from tier_table import BACKENDS as TABLED
from tier_table import environment, make_models, model_paths

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m")
KV = ("f32", "f16", "q8_0")
N_CTX = 512
WRONG = ("blk.1.post_ffw_norm.weight", 1.05)
HEADINGS = ("type", "KV", "rows", "worst", "mean", "largest", "same best", "wrong norm: worst")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        if options.worker:
            measure(options)
            return 0
        make_models(options.work, options.type)
        words = sys.argv[1:] if argv is None else argv
        environ = environment(options.backend) if options.backend in TABLED else dict(os.environ)
        return subprocess.run(
            [sys.executable, __file__, *words, "--worker"], env=environ, check=False
        ).returncode
    except (GgufMtpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def measure(options: argparse.Namespace) -> None:
    """In a process with the backend's environment: print the table row by row."""
    library = load_library(backend=options.backend)
    (target,) = choose_targets(library, options.backend, None)
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}", flush=True)
    for outtype, kv_type in product(options.type, options.kv_type):
        merged, _ = model_paths(options.work, outtype)
        right = compare(library, target, merged, merged, kv_type, options.prompts)
        wrong = damaged(merged, options.work / "wrong.gguf")
        other = compare(library, Target(CPU), merged, wrong, kv_type, options.prompts)
        best = f"{right.same_best.hits}/{right.same_best.total}"
        figures = (f"{v:.1e}" for v in (right.worst, right.mean, right.largest_difference))
        row = (outtype, kv_type, str(right.rows), *figures, best, f"{other.worst:.1e}")
        print(f"| {' | '.join(row)} |", flush=True)


def compare(
    library: Library, target: Target, merged: Path, other: Path, kv_type: str, n_prompts: int
) -> Comparison:
    """Compare `other` on `target` with `merged` on the CPU, over one prompt of each set."""
    # llama.cpp quantizes a cache only for flash attention.
    flash_attn = "off" if kv_type in ("f32", "f16") else "on"
    settings = Options(n_ctx=N_CTX, kv_type=kv_type, flash_attn=flash_attn, n_predict=1, n_max=1)
    on_cpu = Target(CPU).model_options(ModelOptions())
    with tempfile.TemporaryFile() as store:
        with open_pair(library=library, options=on_cpu, merged=merged) as pair:
            texts = [(p.id, encode(p, pair.base, False)) for p in load_prompts()[:n_prompts]]
            sizes = context_options_for(pair.base, 0, settings)
            passages = [Passage(name, text[: N_CTX // 2]) for name, text in texts]
            recorded = CpuLogits.record(pair, passages, sizes, store, lambda _done, _n: None)
        there = target.model_options(ModelOptions())
        with open_pair(library=library, options=there, merged=other) as pair:
            limit = tolerance(pair.base.ftype, kv_type)
            return recorded.compare(pair, limit, lambda _done, _n: None)


def damaged(merged: Path, out: Path) -> Path:
    """A copy with one layer's norm off by a twentieth."""
    name, factor = WRONG
    shutil.copyfile(merged, out)
    reader = gguf.GGUFReader(out, "r+")
    found = next((t for t in reader.tensors if t.name == name), None)
    if found is None:
        raise RuntimeUnavailable(f"{merged}: has no tensor {name}")
    found.data[...] *= factor
    reader.data.flush()
    return out


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = made.add_argument
    add("--backend", choices=DEVICE_BACKENDS, default="vulkan")
    add("--type", nargs="+", choices=TYPES, default=list(TYPES))
    add("--kv-type", nargs="+", choices=list(KV_TYPES), default=list(KV))
    add("--prompts", type=int, default=8, help="taken from the sets in turns")
    add("--work", type=Path, default=Path("build/cross-limits"), help="where models are kept")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    sys.exit(main())
