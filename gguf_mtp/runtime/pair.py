"""A base model and its MTP heads, from one merged file or two, with their contexts."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gguf_mtp.closing import Closing
from gguf_mtp.drafters.families import MTP
from gguf_mtp.errors import PairingError, RuntimeUnavailable, UnsupportedError
from gguf_mtp.namespace import is_merged
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.tail import read_footer, require_complete
from gguf_mtp.runtime.bindings import CPU, Context, ContextOptions, Model, ModelOptions
from gguf_mtp.runtime.library import BUILD_HINT, Library, load_library
from gguf_mtp.runtime.placement import KV_CACHE, require_on_devices
from gguf_mtp.runtime.sampling import MtpSamplingDrafter, Rule, SamplingLoop
from gguf_mtp.runtime.speculative import MtpDrafter, SpeculativeLoop


@dataclass(frozen=True)
class PairContexts(Closing):
    """A target's context and the drafter's that reads its cache; closed together."""

    target: Context
    drafter: Context

    def loop(self, n_max: int, stop: frozenset[int] = frozenset()) -> SpeculativeLoop:
        """Return a greedy speculative loop over these contexts."""
        return SpeculativeLoop(self.target, MtpDrafter(self.drafter), n_max, stop)

    def sampler(self, n_max: int, rule: Rule, temperature: float) -> SamplingLoop:
        """Return a loop that samples at a temperature, over these contexts."""
        drafter = MtpSamplingDrafter(self.drafter)
        return SamplingLoop(self.target, drafter, n_max, rule, temperature)

    def close(self) -> None:
        """Free both: the drafter first, since it points into the target's cache."""
        self.drafter.close()
        self.target.close()


@dataclass(frozen=True)
class Pair(Closing):
    """A base model and its heads; use as a context manager."""

    base: Model
    heads: Model

    def contexts(self, options: ContextOptions) -> PairContexts:
        """Make a target context and its drafter's, in the one order that works.

        Raises RuntimeUnavailable where llama.cpp cannot make them, or where weights, KV cache or
        compute buffers turn out not to lie on the devices that were named.
        """
        with ExitStack() as stack:
            target = stack.enter_context(Context(self.base, options))
            drafter = stack.enter_context(Context(self.heads, options, target=target))
            self._require_devices(target)
            stack.pop_all()
        # Of the target every row: the first draft after a prompt needs the prompt's last one.
        target.enable_hidden(outputs_only=False)
        drafter.enable_hidden(outputs_only=True)
        return PairContexts(target, drafter)

    def _require_devices(self, target: Context) -> None:
        chosen = self.base.options
        if chosen.device in (None, CPU) or chosen.gpu_layers >= 0:
            return
        parts = {
            "base's weights": self.base.placement,
            "heads' weights": self.heads.placement,
            KV_CACHE: target.cache_placement,
            "compute buffers": target.compute_placement,
        }
        require_on_devices(str(chosen.device), parts)

    def close(self) -> None:
        """Free both models, the heads first."""
        self.heads.close()
        self.base.close()


def open_pair(
    *,
    merged: Path | None = None,
    base: Path | None = None,
    heads: Path | None = None,
    library: Library | None = None,
    options: ModelOptions | None = None,
) -> Pair:
    """Open a base model with its heads: from one `merged` file, or from `base` and `heads`. A
    merged file as `heads` stands for the heads in it.

    A merged file of the inline layout needs the patched library; one of the tail layout and two
    files work with any. Raises RuntimeUnavailable where a file or the library does not serve,
    FormatError for a damaged tail, PairingError where heads are for another base, UnsupportedError
    for a drafter that is no MTP heads.
    """
    library = library or load_library()
    options = options or ModelOptions()
    with ExitStack() as stack:
        if merged is not None and base is None and heads is None:
            # The heads first: of a file that has none, this says so in a word.
            head_model = stack.enter_context(_open_heads(library, merged, options))
            base_model = stack.enter_context(Model.open(library, merged, options))
        elif base is not None and heads is not None and merged is None:
            _require_head_support(library, heads)
            is_merged_file = _carries_heads(library, heads)
            opened = (_open_heads if is_merged_file else Model.open)(library, heads, options)
            head_model = stack.enter_context(opened)
            base_model = stack.enter_context(Model.open(library, base, options))
        else:
            raise RuntimeUnavailable("name a merged file, or a base and its heads")
        _require_match(base_model, head_model)
        stack.pop_all()
    return Pair(base_model, head_model)


def _open_heads(library: Library, merged: Path, options: ModelOptions) -> Model:
    footer = read_footer(merged) if merged.is_file() else None
    if footer is None:
        return Model.open_heads(library, merged, options)
    require_complete(merged, footer)
    # The ordered head travels as keys there, which no library takes up here: all rows are scored.
    return Model.open_at(library, merged, footer.heads_offset, options)


def _carries_heads(library: Library, path: Path) -> bool:
    if not path.is_file():
        return False
    return read_footer(path) is not None or (library.is_patched and library.has_heads(path))


def _require_head_support(library: Library, heads: Path) -> None:
    """Refuse what would take the process down: stock llama.cpp crashes on an ordered head."""
    if library.is_patched or not heads.is_file():
        return
    file = read_gguf(heads)
    if is_merged(file):
        raise RuntimeUnavailable(
            f"{heads}: is a merged file, which {library.directory} cannot load heads from; "
            f"{BUILD_HINT}"
        )
    if any(tensor.name.startswith("masked_embd_") for tensor in file.tensors):
        raise RuntimeUnavailable(
            f"{heads}: has an ordered head, which {library.directory} cannot load; {BUILD_HINT}"
        )


def _require_match(base: Model, heads: Model) -> None:
    if heads.architecture not in MTP.architectures:
        raise UnsupportedError(
            f"{heads.path}: its drafter is {heads.architecture!a}, which llama.cpp's programs run; "
            "here only MTP heads are"
        )
    for what, expected, found in (
        ("hidden size", base.n_embd_out, heads.n_embd_out),
        ("vocabulary", base.n_vocab, heads.n_vocab),
    ):
        if expected != found:
            raise PairingError(
                f"{heads.path}: heads are for a {what} of {found}, {base.path} has {expected}"
            )
