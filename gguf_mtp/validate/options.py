"""What a validation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_mtp.runtime.sampling import RULES


@dataclass(frozen=True)
class Options:
    """What to run: sizes in tokens, the compute settings, and which tiers are claimed.

    `claims` None means the default: L0, L1 and drafts-exact; base-identical where a base is
    given; L2 where the measured logits do not depend on the batch shape, or in exact mode; L4
    where the draws can tell; the reference where one is given for a file that is all F32.
    Elsewhere L2 and the reference are reported, not claimed.

    L4 is measured where `temperature` is set: `draws` at each of `places` by every one of
    `rules`, from seeds that follow from `seed`. There the tier sampled-identical is tested and
    claimed as well, with `seed` itself, if the rule `coupled` is one of them.
    """

    n_max: int = 3
    n_predict: int = 64
    n_ctx: int | None = None
    n_threads: int = 1
    kv_type: str = "f16"
    flash_attn: str = "auto"
    exact: bool = False
    ignore_end: bool = False
    chat: bool = False
    claims: frozenset[str] | None = None
    min_acceptance: float | None = None
    temperature: float | None = None
    draws: int = 500
    places: int = 8
    seed: int = 0
    rules: tuple[str, ...] = tuple(RULES)
