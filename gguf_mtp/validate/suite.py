"""Running every tier and every measurement over a prompt set, on one pair of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import Context, ContextOptions, Model
from gguf_mtp.runtime.pair import Pair, PairContexts
from gguf_mtp.runtime.sampling import RULES, CoupledRule, Rule, SamplingLoop
from gguf_mtp.runtime.speculative import (
    MtpDrafter,
    RejectAllLoop,
    SpeculativeLoop,
    decode_plainly,
)
from gguf_mtp.validate import distribution as l4
from gguf_mtp.validate.acceptance import acceptance, counted_rounds, novel_rounds
from gguf_mtp.validate.facts import files_of, settings_of
from gguf_mtp.validate.margins import histogram
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.prompts import Prompt, encode
from gguf_mtp.validate.reference import Recorded, compare_with, longest, read_recording
from gguf_mtp.validate.report import PromptFacts, Report, Speed
from gguf_mtp.validate.sampled import compare_sampled
from gguf_mtp.validate.sizes import context_options_for, fitted, stepped
from gguf_mtp.validate.tiers import (
    Divergence,
    compare_prints,
    compare_runs,
    logits_prints,
    measure_invariance,
    redraft,
    replay,
)
from gguf_mtp.validate.verdicts import Measured, claims_of, verdicts_of

__all__ = [
    "LoopFactory",
    "Options",
    "Progress",
    "SamplerFactory",
    "context_options_for",
    "validate",
]

DECODED_FOR_BASE = 8  # output positions whose logits base-identical compares, after the prompt's

# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]
LoopFactory = Callable[[PairContexts, int, frozenset[int]], SpeculativeLoop]
SamplerFactory = Callable[[PairContexts, int, Rule, float], SamplingLoop]


def validate(
    pair: Pair,
    prompts: Sequence[Prompt],
    options: Options,
    against: Path | None = None,
    progress: Progress = lambda _what, _done, _total: None,
    make_loop: LoopFactory = PairContexts.loop,
    reference: Path | None = None,
    make_sampler: SamplerFactory = PairContexts.sampler,
) -> Report:
    """Run every tier on `pair` and return the report.

    `against` is the original base file for base-identical, `reference` a recording of logits.
    `make_loop` and `make_sampler` make the loops under test. Raises RuntimeUnavailable where the
    library cannot run the models, FormatError for a recording that is none.
    """
    if not prompts:
        raise RuntimeUnavailable("no prompts to validate on")
    program, recording = "", list[Recorded]()
    if reference is not None:
        program, recording = read_recording(reference, pair.base.n_vocab)
    tokens = [encode(prompt, pair.base, options.chat) for prompt in prompts]
    context_options = context_options_for(pair.base, max(map(len, tokens)), options)
    texts = [fitted(text, context_options, options) for text in tokens]
    measured = Measured(list(prompts), texts)
    _decode(pair, measured, options, context_options, progress, make_loop)
    _check(pair.base, measured, options, context_options, progress)
    if against is not None:
        measured.base = _compare_bases(pair.base, against, measured, context_options, progress)
    if options.temperature is not None:
        _sample(pair, measured, options, context_options, progress, make_sampler)
    if reference is not None:
        progress("comparing with the reference", 0, 1)
        with pair.contexts(_holding(context_options, longest(recording))) as contexts:
            measured.reference = compare_with(contexts, recording, reference.name, program)
    claims = claims_of(options, measured, pair.base)
    return Report(
        files=files_of(pair, against, reference, progress),
        settings=settings_of(pair, options, context_options, measured.flash_attn),
        verdicts=tuple(verdicts_of(measured, claims, pair.base)),
        invariance=measured.invariance,
        acceptance=acceptance(
            [r for run in measured.speculative for r in counted_rounds(run)], options.n_max
        ),
        novel=acceptance(
            [r for run in measured.speculative for r in novel_rounds(run)], options.n_max
        ),
        min_acceptance=options.min_acceptance,
        speed=Speed(
            plain_tokens=sum(run.decoded_tokens for run in measured.plain),
            plain_seconds=sum(run.decode_seconds for run in measured.plain),
            mtp_tokens=sum(run.decoded_tokens for run in measured.speculative),
            mtp_seconds=sum(run.decode_seconds for run in measured.speculative),
        ),
        prompts=tuple(
            PromptFacts(
                p.id, p.source, len(run.prompt), len(run.tokens), len(run.rounds), p.prompt_set
            )
            for p, run in zip(measured.prompts, measured.speculative, strict=True)
        ),
        distribution=measured.distribution,
        reference=measured.reference,
        margins=histogram(margin for run in measured.plain for margin in run.margins),
    )


def _decode(
    pair: Pair,
    measured: Measured,
    options: Options,
    context_options: ContextOptions,
    progress: Progress,
    make_loop: LoopFactory,
) -> None:
    """Decode every prompt plainly, with drafts, and with drafts all rejected (L0).

    Drafts are also made again from the text (drafts-exact), where the drafter's context is.
    """
    stop = _stop(pair, options)
    with (
        Context(pair.base, context_options) as plain_context,
        pair.contexts(context_options) as contexts,
    ):
        measured.flash_attn = contexts.target.flash_attn
        loop = make_loop(contexts, options.n_max, stop)
        drafter = MtpDrafter(contexts.drafter)
        # The loop's own drafter: what it does to the target's cache is under test as well.
        control = RejectAllLoop(contexts.target, loop.drafter, options.n_max, stop)
        for done, (prompt, tokens) in enumerate(
            zip(measured.prompts, measured.tokens, strict=True)
        ):
            progress("decoding", done, len(measured.prompts))
            plain = decode_plainly(plain_context, tokens, options.n_predict, stop)
            measured.plain.append(plain)
            speculative = loop.run(tokens, options.n_predict)
            measured.speculative.append(speculative)
            found = redraft(contexts.target, drafter, prompt.id, speculative)
            if found is not None:
                measured.misdrafted.append(found)
            rejected = control.run(tokens, options.n_predict)
            found = compare_runs(prompt.id, plain, rejected, bits=True, what="all rejected")
            if found is not None:
                measured.control.append(found)


def _check(
    base: Model,
    measured: Measured,
    options: Options,
    context_options: ContextOptions,
    progress: Progress,
) -> None:
    """Repeat the plain runs (L0), replay the speculative ones (L1), measure batch invariance."""
    with (
        Context(base, context_options) as fresh,
        Context(base, context_options) as wide,
    ):
        total = len(measured.prompts)
        for done, prompt in enumerate(measured.prompts):
            progress("replaying", done, total)
            plain, speculative = measured.plain[done], measured.speculative[done]
            stop = frozenset(plain.tokens[-1:]) if plain.ended else frozenset()
            again = decode_plainly(fresh, plain.prompt, options.n_predict, stop)
            found = compare_runs(prompt.id, plain, again, bits=True, what="repeated")
            if found is not None:
                measured.control.append(found)
            found = replay(fresh, prompt.id, speculative)
            if found is not None:
                measured.unverified.append(found)
        progress("measuring batch invariance", 0, 1)
        measured.invariance = measure_invariance(fresh, wide, measured.plain, options.n_max + 1)


def _compare_bases(
    merged: Model,
    against: Path,
    measured: Measured,
    context_options: ContextOptions,
    progress: Progress,
) -> tuple[list[Divergence], int]:
    """Compare logits of the merged file's base with the base file's; also count positions."""
    with Context(merged, context_options) as context:
        found = list(_all_prints(context, measured, "reading the merged base", progress))
    with (
        Model.open(merged.library, against, merged.options) as base,
        Context(base, context_options) as context,
    ):
        if base.n_vocab != merged.n_vocab:
            raise RuntimeUnavailable(
                f"{against}: a vocabulary of {base.n_vocab}, {merged.path} has {merged.n_vocab}"
            )
        expected = list(_all_prints(context, measured, "reading the base", progress))
    divergences = [
        difference
        for prompt, a, b in zip(measured.prompts, expected, found, strict=True)
        if (difference := compare_prints(prompt.id, a, b)) is not None
    ]
    return divergences, sum(len(prints) for prints in expected)


def _all_prints(
    context: Context, measured: Measured, what: str, progress: Progress
) -> Iterator[list[bytes]]:
    for done, tokens in enumerate(measured.tokens):
        progress(what, done, len(measured.tokens))
        yield logits_prints(context, tokens, DECODED_FOR_BASE)


def _stop(pair: Pair, options: Options) -> frozenset[int]:
    return frozenset() if options.ignore_end else pair.base.end_tokens()


def _sample(
    pair: Pair,
    measured: Measured,
    options: Options,
    context_options: ContextOptions,
    progress: Progress,
    make_sampler: SamplerFactory,
) -> None:
    """Draw by every rule (L4), and compare texts with drafts and without (sampled-identical)."""
    with Context(pair.base, context_options) as alone, pair.contexts(context_options) as contexts:

        def make(name: str) -> SamplingLoop:
            assert options.temperature is not None
            return make_sampler(contexts, options.n_max, RULES[name](), options.temperature)

        measured.distribution = _draw(alone, contexts, measured, options, progress, make)
        if CoupledRule.name in options.rules:
            prompts = zip((p.id for p in measured.prompts), measured.tokens, strict=True)
            measured.sampled = compare_sampled(
                make(CoupledRule.name),
                alone,
                list(prompts),
                options,
                _stop(pair, options),
                measured.invariance.noise if measured.invariance else 0.0,
                lambda done, total: progress("sampling with drafts and without", done, total),
            )


def _draw(
    alone: Context,
    contexts: PairContexts,
    measured: Measured,
    options: Options,
    progress: Progress,
    make: Callable[[str], SamplingLoop],
) -> l4.Distribution:
    """Draw by every rule at the places where the target hesitates most."""
    assert options.temperature is not None
    # A cut of the cache is safe within one batch: a sliding window has not moved on yet.
    longest_text = contexts.target.n_batch - 2 * (options.n_max + 1)
    ids = [prompt.id for prompt in measured.prompts]
    spots = l4.choose_spots(ids, measured.plain, options.places, longest_text)
    rules = tuple(
        l4.measure_rule(make(name), alone, spots, options.draws, options.seed, progress)
        for name in options.rules
    )
    return l4.Distribution(options.temperature, options.seed, options.draws, rules)


def _holding(options: ContextOptions, tokens: int) -> ContextOptions:
    """Return the options with a context that holds as many tokens, at least."""
    return replace(options, n_ctx=max(options.n_ctx, stepped(tokens)))
