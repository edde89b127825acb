"""Every mutant breaks the tiers that are there for it, and no other; the report says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from _validate_helpers import library_under_test, require_patches
from gguf_mtp.cli.main import main
from gguf_mtp.errors import FormatError
from gguf_mtp.runtime.bindings import ContextOptions, ModelOptions, Row
from gguf_mtp.runtime.coupled import Draw
from gguf_mtp.runtime.pair import Pair, PairContexts, open_pair
from gguf_mtp.runtime.sampling import (
    CoupledRule,
    MtpSamplingDrafter,
    Place,
    RowOfTarget,
    Rule,
    SamplingLoop,
)
from gguf_mtp.runtime.speculative import MtpDrafter, Round, SpeculativeLoop
from gguf_mtp.validate.distribution import CoupledSamplesAgain, MatchSamplesAgain
from gguf_mtp.validate.prompts import load_prompts
from gguf_mtp.validate.reference import MAX_DIFFERENCE, read_recording
from gguf_mtp.validate.report import Report
from gguf_mtp.validate.suite import Options, validate
from gguf_mtp.validate.tiers import DRAFTS, L0, L1, L2, L3, L4, REFERENCE, SAMPLED
from mutants import (
    AcceptsOneTooFew,
    AcceptsOneTooMany,
    DisturbsTheCache,
    DraftsFromAnotherToken,
    DropsTheBonus,
    EmitsTheDraft,
    FeedsAnotherToken,
    ForgetsRollback,
    KeepsAnotherPrompt,
    OffersOldDrafts,
    ReadsTheNextRow,
    RepeatsADraft,
    RollsBackOneTooFew,
    RollsBackOneTooMany,
    TakesAStaleHiddenRow,
    TakesTheFirstHiddenRow,
    TakesTheLastHiddenRow,
)
from pair_files import Files

REFERENCE_FILE = Path(__file__).parent / "fixtures" / "gemma4-tiny" / "reference.npz"
PROMPTS = load_prompts(["python"])[1:3]
OPTIONS = Options(n_max=3, n_predict=20)


@pytest.fixture(scope="module")
def pair(files: Files) -> Iterator[Pair]:
    plain_cpu = ModelOptions(device="cpu", repack=False)
    library = library_under_test()
    with open_pair(
        base=files.base, heads=files.heads, library=library, options=plain_cpu
    ) as opened:
        yield opened


def holds(report: Report) -> dict[str, bool | None]:
    return {v.tier: v.holds for v in report.verdicts}


@pytest.fixture(scope="module")
def sound(pair: Pair) -> Report:
    """What the loop that is not broken comes to."""
    return validate(pair, PROMPTS, OPTIONS)


# A text that is wrong differs from the plain one as well, by more than a near tie.
TEXT = {L1, L2, L3}
MUTANTS: list[tuple[type[SpeculativeLoop], set[str]]] = [
    (ForgetsRollback, TEXT),
    (RollsBackOneTooFew, TEXT),
    (RollsBackOneTooMany, TEXT),
    (AcceptsOneTooMany, TEXT),
    (ReadsTheNextRow, TEXT),
    (FeedsAnotherToken, TEXT),
    (EmitsTheDraft, TEXT),
    (DropsTheBonus, TEXT),
    (RepeatsADraft, TEXT),
    (KeepsAnotherPrompt, TEXT),
    (TakesTheFirstHiddenRow, {DRAFTS}),
    (TakesTheLastHiddenRow, {DRAFTS}),
    (TakesAStaleHiddenRow, {DRAFTS}),
    (DraftsFromAnotherToken, {DRAFTS}),
    (OffersOldDrafts, {DRAFTS}),
    (DisturbsTheCache, {L0} | TEXT),
    (AcceptsOneTooFew, set()),
]


@pytest.mark.parametrize(
    ("mutant", "broken"), MUTANTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_mutant_breaks_its_tiers(
    mutant: type[SpeculativeLoop], broken: set[str], pair: Pair, sound: Report
) -> None:
    def make(contexts: PairContexts, n_max: int, stop: frozenset[int]) -> SpeculativeLoop:
        return mutant(contexts.target, MtpDrafter(contexts.drafter), n_max, stop)

    report = validate(pair, PROMPTS, OPTIONS, make_loop=make)
    before, after = holds(sound), holds(report)
    assert all(before[tier] for tier in (L0, L1, L3, DRAFTS))
    # Where the text is wrong, so are as a rule the drafts behind it: that is not asked of them.
    exempt = {DRAFTS} if L1 in broken else set()
    assert {t for t, held in after.items() if held is False} - exempt == broken
    assert report.holds is not bool(broken)
    for verdict in report.verdicts:
        if verdict.tier in broken:
            first = verdict.divergences[0]
            assert first.prompt in {prompt.id for prompt in PROMPTS}
            assert first.what
            assert (first.expected_text is None) == (first.expected is None)
    if mutant is AcceptsOneTooFew:
        assert report.acceptance.tokens_per_pass < sound.acceptance.tokens_per_pass - 0.3


class ReadsAnotherCache(MtpDrafter):
    """Reads the cache of a context that has decoded another text."""

    def __init__(self, other: PairContexts, text: Sequence[int]) -> None:
        super().__init__(other.drafter)
        self.other = other
        self.text = text

    def draft(self, last: int, hidden: Row, position: int, n: int) -> list[int]:
        self.other.target.prefill(self.text[:position])
        return super().draft(last, hidden, position, n)


def test_another_cache_shows_in_the_drafts(pair: Pair) -> None:
    text = pair.base.tokenize("something else altogether, which is long enough " * 8)
    with pair.contexts(ContextOptions(n_ctx=256)) as other:

        def make(contexts: PairContexts, n_max: int, stop: frozenset[int]) -> SpeculativeLoop:
            return SpeculativeLoop(contexts.target, ReadsAnotherCache(other, text), n_max, stop)

        report = validate(pair, PROMPTS, OPTIONS, make_loop=make)
    assert {t for t, held in holds(report).items() if held is False} == {DRAFTS}


# --- L4 and sampled-identical -----------------------------------------------------------------

DRAWING = Options(n_max=1, n_predict=12, temperature=0.8, draws=250, places=2)
MATCH = ("match",)
COUPLED = ("coupled",)


class AcceptsEverything(CoupledRule):
    def judge(self, row: RowOfTarget, drafts: Sequence[int], draw: Draw) -> tuple[int, int]:
        return len(drafts), self.sample(row(len(drafts)), draw.after(len(drafts)))


class ForgetsTheTemperature(SamplingLoop):
    """Takes the target's row as it is."""

    def _row(self, i: int) -> Row:
        row: Row = super()._row(i) * np.float32(self.temperature)
        return row


class StaysInThePlace(SamplingLoop):
    """Reads the first row for every draft."""

    def _judge(self, drafts: Sequence[int], draw: Draw) -> tuple[int, int]:
        return self.rule.judge(lambda _i: self._row(0), drafts, draw)


class CountsDrafts(SamplingLoop):
    """The noise depends on how many tokens were drafted, not on the position alone.

    Every sample still has the target's distribution.
    """

    drafted = 0

    def start(self, prompt: Sequence[int], seed: int) -> Place:
        self.drafted = 0
        return super().start(prompt, seed)

    def round(self, place: Place, seed: int) -> tuple[Round, Place]:
        done, after = super().round(place, seed)
        self.drafted += len(done.drafted) - done.accepted
        return done, after

    def _draw(self, position: int, seed: int) -> Draw:
        return super()._draw(position + self.drafted, seed)


def drawn(pair: Pair, make: Callable[..., SamplingLoop], rules: tuple[str, ...]) -> Report:
    return validate(pair, PROMPTS, replace(DRAWING, rules=rules), make_sampler=make)


def test_l4_holds_and_says_with_what_evidence(pair: Pair) -> None:
    report = validate(pair, PROMPTS, DRAWING)
    verdict = next(v for v in report.verdicts if v.tier == L4)
    assert verdict.holds
    assert verdict.claimed
    assert (verdict.matching.hits, verdict.matching.total) == (4, 4)
    assert verdict.tokens == 2 * 2 * 250
    evidence = report.to_json()["distribution"]
    assert [rule["rule"] for rule in evidence["rules"]] == ["coupled", "match"]
    for rule in evidence["rules"]:
        assert rule["broken_rule_p_value"] < 1e-3 <= rule["p_value"] <= 1
        assert all(place["first"]["dof"] > 0 for place in rule["places"])


def test_l4_is_not_called_held_by_a_few_draws(pair: Pair) -> None:
    report = validate(pair, PROMPTS, replace(DRAWING, draws=5, places=1))
    verdict = next(v for v in report.verdicts if v.tier == L4)
    assert verdict.holds is None
    assert not verdict.claimed
    assert "too few --seeds" in verdict.note
    assert report.holds


def with_rule(rule: Callable[[], Rule]) -> Callable[..., SamplingLoop]:
    def make(contexts: PairContexts, n_max: int, _rule: Rule, temperature: float) -> SamplingLoop:
        return contexts.sampler(n_max, rule(), temperature)

    return make


def of_kind(kind: type[SamplingLoop]) -> Callable[..., SamplingLoop]:
    def make(contexts: PairContexts, n_max: int, rule: Rule, temperature: float) -> SamplingLoop:
        drafter = MtpSamplingDrafter(contexts.drafter)
        return kind(contexts.target, drafter, n_max, rule, temperature)

    return make


@pytest.mark.parametrize(
    ("make", "rules", "broken"),
    [
        (with_rule(CoupledSamplesAgain), COUPLED, {L4, SAMPLED}),
        (with_rule(MatchSamplesAgain), MATCH, {L4}),
        (with_rule(AcceptsEverything), COUPLED, {L4, SAMPLED}),
        (of_kind(ForgetsTheTemperature), COUPLED, {L4, SAMPLED}),
        (of_kind(StaysInThePlace), COUPLED, {L4, SAMPLED}),
        (of_kind(StaysInThePlace), MATCH, {L4}),
        (of_kind(CountsDrafts), COUPLED, {SAMPLED}),
    ],
    ids=[
        "coupled-samples-again",
        "match-samples-again",
        "accepts-everything",
        "no-temperature",
        "coupled-first-row",
        "match-first-row",
        "counts-drafts",
    ],
)
def test_a_broken_sampler_breaks_its_tiers(
    pair: Pair, make: Callable[..., SamplingLoop], rules: tuple[str, ...], broken: set[str]
) -> None:
    report = drawn(pair, make, rules)
    assert {t for t, held in holds(report).items() if held is False} == broken
    assert not report.holds


def test_a_sampled_text_does_not_depend_on_drafts(pair: Pair) -> None:
    report = validate(pair, PROMPTS, replace(DRAWING, n_max=3, n_predict=48, draws=1))
    verdict = next(v for v in report.verdicts if v.tier == SAMPLED)
    assert verdict.holds, verdict.divergences
    assert verdict.claimed
    assert (verdict.matching.hits, verdict.matching.total) == (2, 2)
    assert verdict.tokens > 48
    assert verdict.note.startswith("seed 0, near ties: ")


def test_sampled_identical_is_not_called_held_without_its_rule(pair: Pair) -> None:
    report = validate(pair, PROMPTS[:1], replace(DRAWING, rules=MATCH, draws=1))
    verdict = next(v for v in report.verdicts if v.tier == SAMPLED)
    assert (verdict.holds, verdict.claimed) == (None, False)
    assert verdict.note == "needs --temperature and the rule coupled"


# --- the reference ----------------------------------------------------------------------------


def test_the_reference_holds(pair: Pair) -> None:
    report = validate(pair, PROMPTS[:1], OPTIONS, reference=REFERENCE_FILE)
    verdict = next(v for v in report.verdicts if v.tier == REFERENCE)
    assert verdict.holds, verdict.divergences
    assert verdict.claimed
    assert (verdict.matching.total, verdict.tokens) == (4, 4 * (6 + 3))
    evidence = report.to_json()["reference"]
    assert evidence["program"].startswith("transformers 5")
    assert evidence["head"] == "dense"
    assert 0 < evidence["base"]["largest"] < MAX_DIFFERENCE
    assert evidence["base"]["best"] == {"hits": 24, "total": 24}
    assert report.files[-1].role == "reference"


def without_a_scale(path: Path, folder: Path) -> Path:
    """Copy a GGUF and set one layer's output scale to 1, as a converter that forgets it would."""
    copy = Path(shutil.copy(path, folder / "unscaled.gguf"))
    names = {t.name: t for t in gguf.GGUFReader(path).tensors}
    raw = np.memmap(copy, dtype=np.uint8, mode="r+")
    offset = names["blk.2.layer_output_scale.weight"].data_offset
    raw[offset : offset + 4] = np.frombuffer(np.float32(1).tobytes(), np.uint8)
    raw.flush()
    return copy


def test_a_wrong_conversion_breaks_the_reference_alone(files: Files, tmp_path: Path) -> None:
    """Everything agrees with itself; it is only not the model."""
    library = library_under_test()
    wrong = without_a_scale(files.base, tmp_path)
    options = ModelOptions(device="cpu", repack=False)
    with open_pair(base=wrong, heads=files.heads, library=library, options=options) as opened:
        report = validate(opened, PROMPTS[:1], OPTIONS, reference=REFERENCE_FILE)
    assert {t for t, held in holds(report).items() if held is False} == {REFERENCE}
    assert not report.holds
    first = next(v for v in report.verdicts if v.tier == REFERENCE).divergences[0]
    assert first.what.startswith("base: logits differ by")


def test_one_file_meets_the_ordered_head_of_the_reference(files: Files) -> None:
    library = library_under_test()
    require_patches(library)
    options = ModelOptions(device="cpu", repack=False)
    with open_pair(merged=files.merged, library=library, options=options) as one:
        report = validate(one, PROMPTS[:1], OPTIONS, reference=REFERENCE_FILE)
    assert report.reference is not None
    assert report.reference.head == "ordered"
    assert holds(report)[REFERENCE]


def recording(tmp_path: Path, **changes: Any) -> Path:
    with np.load(REFERENCE_FILE) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name.startswith("seq0_")}
    kept = {name: a for name, a in {**kept, **changes}.items() if a is not None}
    np.savez(tmp_path / "r.npz", **kept)
    return tmp_path / "r.npz"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq0_base_logits": None}, "holds no seq0_base_logits"),
        ({"seq0_rows": None}, "not a recording of logits: seq0_rows is not a file"),
        ({"seq0_ids": np.zeros(4)}, r"seq0_ids is float64 \[4\], expected integers \[any\]"),
        ({"seq0_base_logits": np.zeros((6, 9), "f4")}, r"expected floats \[6, 2048\]"),
        ({"seq0_rows": np.array([0, 1, 2, 3, 4, 999], "i4")}, "seq0_rows is out of range"),
        ({"seq0_ids": np.full(48, 5000, "i4")}, "seq0_ids is out of range"),
        ({"seq0_draft_position": np.array(0, "i4")}, "seq0_draft_position is out of range"),
        ({"seq0_draft_dense_logits": np.zeros((1, 2048), "f4")}, r"expected floats \[3, 2048\]"),
        ({"seq0_ids": np.array([{}], object)}, "not a recording of logits"),
    ],
)
def test_what_is_no_recording_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        read_recording(recording(tmp_path, **changes), 2048)


def test_files_that_are_no_recording_are_refused(tmp_path: Path, files: Files) -> None:
    (tmp_path / "cut.npz").write_bytes(REFERENCE_FILE.read_bytes()[:5000])
    (tmp_path / "text.npz").write_text("hello")
    for name in ("cut.npz", "text.npz"):
        with pytest.raises(FormatError, match=rf"{name}: not a recording of logits \(\.npz\)$"):
            read_recording(tmp_path / name, 2048)
    with pytest.raises(FormatError, match=r"gone\.npz: No such file or directory$"):
        read_recording(tmp_path / "gone.npz", 2048)
    words = ["validate", files.base, "--heads", files.heads, "--reference", tmp_path / "cut.npz"]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 2
    assert "not a recording of logits" in done.stderr


def test_claims_need_what_they_test(files: Files) -> None:
    needs = [
        (L4, (), "--temperature"),
        (SAMPLED, (), "--temperature"),
        (SAMPLED, ("--temperature", "1", "--rule", "match"), "--rule coupled"),
        (REFERENCE, (), "--reference"),
    ]
    for tier, more, option in needs:
        done = CliRunner().invoke(main, ["validate", str(files.base), "--claim", tier, *more])
        assert done.exit_code == 2
        assert f"--claim {tier} needs {option}" in done.stderr
