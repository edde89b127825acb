"""How long a context a validation needs."""

from __future__ import annotations

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import ContextOptions, Model
from gguf_mtp.validate.options import Options

CONTEXT_STEP = 256


def context_options_for(base: Model, longest: int, options: Options) -> ContextOptions:
    """Choose a context that holds the longest prompt, within what the model was trained for.

    Raises RuntimeUnavailable where it would leave no room for a prompt.
    """
    extra = options.n_predict + options.n_max
    n_ctx = options.n_ctx
    if n_ctx is None:
        n_ctx = min(stepped(longest + extra), base.n_ctx_train)
    if n_ctx <= extra:
        raise RuntimeUnavailable(
            f"a context of {n_ctx} leaves no room for a prompt beside {options.n_predict} new "
            f"and {options.n_max} drafted tokens"
        )
    return ContextOptions(
        n_ctx=n_ctx,
        n_threads=options.n_threads,
        kv_type=options.kv_type,
        flash_attn=options.flash_attn,
    )


def fitted(tokens: tuple[int, ...], context: ContextOptions, options: Options) -> tuple[int, ...]:
    """Cut a prompt to what the context leaves room for."""
    return tokens[: context.n_ctx - options.n_predict - options.n_max]


def stepped(tokens: int) -> int:
    """Round a number of tokens up to a usual context size."""
    return -(-tokens // CONTEXT_STEP) * CONTEXT_STEP
