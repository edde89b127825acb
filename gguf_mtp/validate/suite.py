"""Running every tier and every measurement over a prompt set, on one pair of models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import Context, ContextOptions, Model, ModelOptions
from gguf_mtp.runtime.library import Library
from gguf_mtp.runtime.pair import Pair, PairContexts
from gguf_mtp.runtime.speculative import (
    MtpDrafter,
    RejectAllLoop,
    Run,
    SpeculativeLoop,
    decode_plainly,
)
from gguf_mtp.validate.acceptance import Proportion, acceptance, counted_rounds, novel_rounds
from gguf_mtp.validate.prompts import Prompt
from gguf_mtp.validate.report import FileFacts, PromptFacts, Report, Settings, Speed
from gguf_mtp.validate.tiers import (
    BASE,
    DRAFTS,
    L0,
    L1,
    L2,
    L3,
    TIERS,
    Divergence,
    Invariance,
    Verdict,
    compare_prints,
    compare_runs,
    logits_prints,
    measure_invariance,
    near_ties,
    redraft,
    replay,
)

DECODED_FOR_BASE = 8  # output positions whose logits base-identical compares, after the prompt's
CONTEXT_STEP = 256

# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]
LoopFactory = Callable[[PairContexts, int, frozenset[int]], SpeculativeLoop]


@dataclass(frozen=True)
class Options:
    """What to run: sizes in tokens, the compute settings, and which tiers are claimed.

    `claims` None means the default: L0, L1 and drafts-exact; base-identical where a base is
    given; L2 where the measured logits do not depend on the batch shape, or where an exact
    library runs a file that is all F32. Elsewhere L2 is reported, not claimed.
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


@dataclass
class Measured:
    """What the decoding phases gather, one entry a prompt."""

    prompts: list[Prompt]
    tokens: list[tuple[int, ...]]
    plain: list[Run] = field(default_factory=list)
    speculative: list[Run] = field(default_factory=list)
    control: list[Divergence] = field(default_factory=list)
    unverified: list[Divergence] = field(default_factory=list)
    misdrafted: list[Divergence] = field(default_factory=list)
    invariance: Invariance | None = None
    flash_attn: str = ""


def validate(
    pair: Pair,
    prompts: Sequence[Prompt],
    options: Options,
    against: Path | None = None,
    progress: Progress = lambda _what, _done, _total: None,
    make_loop: LoopFactory = PairContexts.loop,
) -> Report:
    """Run every tier on `pair` and return the report.

    `against` is the original base file for base-identical. `make_loop` makes the loop under
    test. Raises RuntimeUnavailable where the library cannot run the models.
    """
    if not prompts:
        raise RuntimeUnavailable("no prompts to validate on")
    encode = pair.base.tokenize_turn if options.chat else pair.base.tokenize
    tokens = [encode(prompt.text) for prompt in prompts]
    context_options = _context_options(pair.base, max(map(len, tokens)), options)
    room = context_options.n_ctx - options.n_predict - options.n_max
    measured = Measured(list(prompts), [t[:room] for t in tokens])
    _decode(pair, measured, options, context_options, progress, make_loop)
    _check(pair.base, measured, options, context_options, progress)
    base = None
    if against is not None:
        base = _compare_bases(pair.base, against, measured, context_options, progress)
    claims = _claims(options, measured.invariance, pair.base, against is not None)
    return Report(
        files=_file_facts(pair, against, progress),
        settings=_settings(pair, options, context_options, measured.flash_attn),
        verdicts=tuple(_verdicts(measured, base, claims)),
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
            PromptFacts(p.id, p.source, len(run.prompt), len(run.tokens), len(run.rounds))
            for p, run in zip(measured.prompts, measured.speculative, strict=True)
        ),
    )


def _context_options(base: Model, longest: int, options: Options) -> ContextOptions:
    """Choose a context that holds the longest prompt, within what the model was trained for."""
    extra = options.n_predict + options.n_max
    n_ctx = options.n_ctx
    if n_ctx is None:
        n_ctx = min(-(-(longest + extra) // CONTEXT_STEP) * CONTEXT_STEP, base.n_ctx_train)
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
    stop = frozenset() if options.ignore_end else pair.base.end_tokens()
    with (
        Context(pair.base, context_options) as plain_context,
        pair.contexts(context_options) as contexts,
    ):
        measured.flash_attn = contexts.target.flash_attn
        loop = make_loop(contexts, options.n_max, stop)
        drafter = MtpDrafter(contexts.drafter)
        control = RejectAllLoop(contexts.target, drafter, options.n_max, stop)
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


def _claims(
    options: Options, invariance: Invariance | None, base: Model, has_base: bool
) -> frozenset[str]:
    if options.claims is not None:
        return options.claims
    claims = {L0, L1, DRAFTS}
    if has_base:
        claims.add(BASE)
    measured_invariant = invariance is not None and invariance.holds
    if measured_invariant or (options.exact and base.is_all_f32):
        claims.add(L2)
    return frozenset(claims)


def _verdicts(
    measured: Measured,
    base: tuple[list[Divergence], int] | None,
    claims: frozenset[str],
) -> Iterator[Verdict]:
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
    beyond = near_ties(differing, noise)
    n = len(measured.prompts)
    parts: dict[str, tuple[list[Divergence], int, str] | None] = {
        L0: (measured.control, plain_tokens, "ids, logits bits"),
        L1: (measured.unverified, mtp_tokens, "same batch shapes"),
        L2: (differing, mtp_tokens, "plain greedy"),
        L3: (beyond, mtp_tokens, f"margin <= {noise:.2g}"),
        DRAFTS: (measured.misdrafted, drafted, "drafted again"),
        BASE: None if base is None else (*base, "logits bits"),
    }
    for tier in TIERS:
        part = parts[tier]
        if part is None:
            note = "needs --against"
            yield Verdict(tier, tier in claims, None, Proportion(0, 0), 0, (), note)
            continue
        divergences, tokens, note = part
        broken = {d.prompt for d in divergences}
        yield Verdict(
            tier=tier,
            claimed=tier in claims,
            holds=not divergences,
            matching=Proportion(n - len(broken), n),
            tokens=tokens,
            divergences=tuple(divergences),
            note=note,
        )


def _settings(
    pair: Pair, options: Options, context_options: ContextOptions, flash_attn_used: str
) -> Settings:
    library: Library = pair.base.library
    record = library.choice.record
    backend = "cpu" if library.choice.origin == "exact record" else record and record.backend
    return Settings(
        n_max=options.n_max,
        n_predict=options.n_predict,
        n_ctx=context_options.n_ctx,
        n_threads=options.n_threads,
        kv_type=options.kv_type,
        flash_attn=options.flash_attn,
        flash_attn_used=flash_attn_used,
        exact=options.exact,
        chat=options.chat,
        quantization=pair.base.ftype,
        heads_quantization=pair.heads.ftype,
        device=_device(library, pair.base.options),
        library_version=library.version,
        library_commit=record.pin if record else "",
        library_patches=record.patches if record else "",
        library_backend=backend or "",
        library_features=library.features,
        bindings_version=library.bindings_version,
    )


def _device(library: Library, options: ModelOptions) -> str:
    """Describe where layers go: the named device, or all accelerators there are."""
    devices = library.devices()
    wanted = (options.device or "").lower()
    if options.gpu_layers == 0:
        wanted = "cpu"
    accelerators = [d for d in devices if not d.is_cpu and wanted in ("", d.name.lower())]
    chosen = accelerators or [d for d in devices if d.is_cpu]
    return ", ".join(f"{d.name} ({d.description})" for d in chosen) or "unknown"


def _file_facts(pair: Pair, against: Path | None, progress: Progress) -> tuple[FileFacts, ...]:
    if pair.base.path == pair.heads.path:
        named = [("merged", pair.base.path)]
    else:
        named = [("base", pair.base.path), ("heads", pair.heads.path)]
    if against is not None:
        named.append(("against", against))
    facts = []
    for done, (role, path) in enumerate(named):
        progress("hashing files", done, len(named))
        facts.append(FileFacts(role, path.name, path.stat().st_size, _sha256(path)))
    return tuple(facts)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
