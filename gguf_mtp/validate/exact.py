"""Exact mode: the cheapest setting of a CPU library whose logits do not depend on the batch width.

The exact build leaves out llamafile's matrix kernels. What else depends on the width there, in
llama.cpp 0c1e57098 (docs/equivalence.md has the measurements):

- repacked weights of types without AMX kernels: four rows are multiplied at a time, and the rest
  one by one, with sums in another order (``ggml-cpu/repack.cpp``);
- flash attention with an F16 or F32 cache of 512 cells and more, on several threads: one row alone
  is split over the cache (``ggml_compute_forward_flash_attn_ext_f16``, ``use_split_kv_path``);
- K-quants from eight rows on (``ggml-cpu/tiled``): no setting, only a smaller n_max.

Which of these a file and a machine meet is not guessed but measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import Context, Model, ModelOptions
from gguf_mtp.runtime.library import Library
from gguf_mtp.runtime.pair import Pair, open_pair
from gguf_mtp.runtime.speculative import decode_plainly
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.prompts import Prompt, encode
from gguf_mtp.validate.sizes import context_options_for, fitted
from gguf_mtp.validate.tiers import measure_invariance

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setting:
    """What exact mode may turn off."""

    repack: bool
    flash_attn: str


def settings(model_options: ModelOptions, options: Options) -> list[Setting]:
    """Return the settings to try, cheapest first; what the user chose stays as it is."""
    asked = Setting(model_options.repack, options.flash_attn)
    tries = [asked]
    if asked.repack:
        tries.append(replace(asked, repack=False))
    if asked.flash_attn == "auto":
        tries += [replace(tried, flash_attn="off") for tried in tries]
    return tries


def widest_equal(base: Model, prompts: Sequence[Prompt], options: Options) -> int:
    """Return the largest width up to n_max + 1 to which all logits are those of width 1.

    Over all prompts and the whole of their outputs: differences may show in one row of a hundred.
    """
    encoded = [encode(prompt, base, options.chat) for prompt in prompts]
    sizes = context_options_for(base, max(map(len, encoded)), options)
    with Context(base, sizes) as narrow, Context(base, sizes) as wide:
        plain = [
            decode_plainly(narrow, fitted(text, sizes, options), options.n_predict)
            for text in encoded
        ]
        for width in range(2, options.n_max + 2):
            if not measure_invariance(narrow, wide, plain, width).holds:
                return width - 1
    return options.n_max + 1


@contextmanager
def open_exact(
    library: Library,
    files: dict[str, Path],
    model_options: ModelOptions,
    prompts: Sequence[Prompt],
    options: Options,
    progress: Progress = lambda _what, _done, _total: None,
) -> Iterator[tuple[Pair, Options]]:
    """Open a pair in the first setting that is exact; also give the options to validate it with.

    Raises RuntimeUnavailable where none is, and says to what n_max one would be.
    """
    tries = settings(model_options, options)
    best = 0
    for done, setting in enumerate(tries):
        progress("looking for an exact setting", done, len(tries))
        chosen = replace(options, flash_attn=setting.flash_attn)
        with open_pair(
            library=library, options=replace(model_options, repack=setting.repack), **files
        ) as pair:
            width = widest_equal(pair.base, prompts, chosen)
            best = max(best, width)
            if width == options.n_max + 1:
                yield pair, chosen
                return
    advice = f"--n-max {best - 1} would be" if best > 1 else "none is"
    raise RuntimeUnavailable(
        f"no setting tried is exact to --n-max {options.n_max} on this machine; {advice}"
    )
