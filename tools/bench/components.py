"""The parts of a round, timed through the bindings: verification by width, the drafter by head.

A process has one llama.cpp, so the caller runs this module once per library and repetition:

    python -m bench.components LIB_DIR --base F (--drafter F | --merged F) --threads 2

It prints one JSON object: milliseconds, each the median of a few calls.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PROMPT = tuple(range(300, 300 + 256))
WIDTHS = tuple(range(1, 9))


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("library", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--drafter", type=Path)
    parser.add_argument("--merged", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--flash-attn", default="auto")
    parser.add_argument("--no-repack", action="store_true")
    parser.add_argument("--device", help="default: all the library has")
    options = parser.parse_args(argv)
    os.environ["LLAMA_CPP_LIB_PATH"] = str(options.library)
    json.dump(measure(options), sys.stdout)
    return 0


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Load the pair once and time each part on it."""
    from gguf_mtp.runtime import ContextOptions, ModelOptions, open_pair

    files = {name: getattr(options, name) for name in ("base", "merged")}
    context = ContextOptions(n_ctx=1024, n_threads=options.threads, flash_attn=options.flash_attn)
    loaded = ModelOptions(repack=not options.no_repack, device=options.device)
    with (
        open_pair(heads=options.drafter, options=loaded, **files) as pair,
        pair.contexts(context) as contexts,
    ):
        target, drafter = contexts.target, contexts.drafter
        target.prefill(PROMPT)
        verify = {}
        for width in WIDTHS:

            def decode(width: int = width) -> None:
                target.decode(PROMPT[:width], len(PROMPT))

            verify[str(width)] = _median_ms(decode, options.calls, lambda: target.keep(len(PROMPT)))
        hidden = np.random.Generator(np.random.SFC64(0)).standard_normal(
            pair.base.n_embd_out, np.float32
        )

        def draft() -> None:
            drafter.decode_with_hidden(PROMPT[0], hidden, len(PROMPT))

        return {"verify": verify, "drafter": _median_ms(draft, 4 * options.calls)}


def _median_ms(
    call: Callable[[], None], calls: int, after: Callable[[], None] = lambda: None
) -> float:
    times = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
        after()
    return statistics.median(times[1:])  # the first builds the graph


if __name__ == "__main__":
    sys.exit(main())
