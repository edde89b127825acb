"""From what was measured to one verdict a tier; a tier that was not tested holds nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from gguf_mtp.runtime.bindings import Model
from gguf_mtp.runtime.speculative import Run
from gguf_mtp.validate.acceptance import Proportion
from gguf_mtp.validate.distribution import ALPHA, Distribution
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.prompts import Prompt
from gguf_mtp.validate.reference import Reference
from gguf_mtp.validate.sampled import Sampled
from gguf_mtp.validate.tiers import (
    BASE,
    DRAFTS,
    L0,
    L1,
    L2,
    L3,
    L4,
    REFERENCE,
    SAMPLED,
    TIERS,
    Divergence,
    Invariance,
    Verdict,
    compare_runs,
    near_ties,
)


@dataclass
class Measured:
    """What the phases of a validation gather; lists have one entry a prompt or a finding."""

    prompts: list[Prompt]
    tokens: list[tuple[int, ...]]
    plain: list[Run] = field(default_factory=list)
    speculative: list[Run] = field(default_factory=list)
    control: list[Divergence] = field(default_factory=list)
    unverified: list[Divergence] = field(default_factory=list)
    misdrafted: list[Divergence] = field(default_factory=list)
    invariance: Invariance | None = None
    flash_attn: str = ""
    base: tuple[list[Divergence], int] | None = None  # and the positions compared
    distribution: Distribution | None = None
    sampled: Sampled | None = None
    reference: Reference | None = None


@dataclass(frozen=True)
class Part:
    """What one tier found: of `units` compared, which diverge; `tokens` looked at."""

    divergences: Sequence[Divergence]
    units: int
    tokens: int
    note: str
    holds: bool | None = None  # None: where nothing diverges


def claims_of(options: Options, measured: Measured, base: Model) -> frozenset[str]:
    """Return the tiers that must hold: those asked for, or the default."""
    if options.claims is not None:
        return options.claims
    claims = {L0, L1, DRAFTS}
    if measured.base is not None:
        claims.add(BASE)
    invariant = measured.invariance is not None and measured.invariance.holds
    if invariant or options.exact:
        claims.add(L2)
    if measured.distribution is not None and _can_tell(measured.distribution):
        claims.add(L4)
    if measured.sampled is not None:
        claims.add(SAMPLED)
    if measured.reference is not None and base.is_all_f32:  # others are reported
        claims.add(REFERENCE)
    return frozenset(claims)


def verdicts_of(measured: Measured, claims: frozenset[str], model: Model) -> Iterator[Verdict]:
    """Give every tier its verdict; `model` spells tokens."""
    parts = _parts(measured)
    noise = _noise_by_prompt(measured)
    for tier in TIERS:
        part = parts[tier]
        if isinstance(part, str):
            yield Verdict(tier, tier in claims, None, Proportion(0, 0), 0, (), part)
            continue
        broken = {(d.prompt, d.index if tier == L4 else 0) for d in part.divergences}
        yield Verdict(
            tier=tier,
            claimed=tier in claims,
            holds=not part.divergences if part.holds is None else part.holds,
            matching=Proportion(part.units - len(broken), part.units),
            tokens=part.tokens,
            divergences=tuple(_spelled(d, model, noise) for d in part.divergences),
            note=part.note,
        )


def _parts(measured: Measured) -> dict[str, Part | str]:
    """Return each tier's part, or why it was not run."""
    n = len(measured.prompts)
    plain_tokens = sum(len(run.tokens) for run in measured.plain)
    mtp_tokens = sum(len(run.tokens) for run in measured.speculative)
    drafted = sum(len(r.drafted) for run in measured.speculative for r in run.rounds)
    differing = [
        found
        for prompt, plain, run in zip(
            measured.prompts, measured.plain, measured.speculative, strict=True
        )
        if (found := compare_runs(prompt.id, plain, run, bits=False)) is not None
    ]
    noise = measured.invariance.noise if measured.invariance else 0.0
    base: Part | str = "needs --against"
    if measured.base is not None:
        base = Part(measured.base[0], n, measured.base[1], "logits bits")
    return {
        L0: Part(measured.control, n, plain_tokens, "ids, logits bits"),
        L1: Part(measured.unverified, n, mtp_tokens, "same batch shapes"),
        L2: Part(differing, n, mtp_tokens, "plain greedy"),
        L3: Part(near_ties(differing, noise), n, mtp_tokens, f"margin <= {noise:.2g}"),
        L4: _distribution_part(measured.distribution),
        SAMPLED: _sampled_part(measured.sampled, n),
        DRAFTS: Part(measured.misdrafted, n, drafted, "drafted again"),
        BASE: base,
        REFERENCE: _reference_part(measured.reference),
    }


def _can_tell(found: Distribution) -> bool:
    return bool(found.rules) and all(rule.can_tell for rule in found.rules)


def _distribution_part(found: Distribution | None) -> Part | str:
    if found is None:
        return "needs --temperature"
    broken = [
        Divergence(
            place.prompt,
            place.index,
            None,
            None,
            None,
            f"{rule.rule}: p = {place.p_value:.2g}, KL {place.first.kl:.3g} and "
            f"{place.second.kl:.3g} over {place.first.draws} draws",
        )
        for rule in found.rules
        for place in rule.breaking()
    ]
    p_values = "p = " + ", ".join(f"{rule.p_value:.2g}" for rule in found.rules)
    wrong = bool(broken) or any(rule.p_value < ALPHA for rule in found.rules)
    if not wrong and not _can_tell(found):
        return f"{p_values}; too few --seeds"
    units = sum(len(rule.places) for rule in found.rules)
    return Part(broken, units, units * found.draws, p_values, holds=not wrong)


def _sampled_part(found: Sampled | None, prompts: int) -> Part | str:
    if found is None:
        return "needs --temperature and the rule coupled"
    ties = len(found.differing) - len(found.breaking)
    note = f"seed {found.seed}, near ties: {ties}"
    return Part(found.breaking, prompts, found.tokens, note)


def _reference_part(found: Reference | None) -> Part | str:
    if found is None:
        return "needs --reference"
    rows = found.base.rows + found.heads.rows
    note = f"largest {found.base.largest:.1g}, {found.heads.largest:.1g}"
    return Part(found.divergences, found.sequences, rows, note)


def _noise_by_prompt(measured: Measured) -> dict[str, float]:
    if measured.invariance is None:
        return {}
    pairs = zip(measured.prompts, measured.invariance.by_prompt, strict=True)
    return {prompt.id: noise for prompt, noise in pairs}


def _spelled(d: Divergence, model: Model, noise: dict[str, float]) -> Divergence:
    """Add the texts of a divergence's tokens, and the noise of its prompt beside a margin."""
    return replace(
        d,
        noise=noise.get(d.prompt) if d.noise is None and d.margin is not None else d.noise,
        expected_text=None if d.expected is None else model.text([d.expected]),
        found_text=None if d.found is None else model.text([d.found]),
    )
