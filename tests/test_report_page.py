"""Pages and badges made of saved reports: what they say, what they refuse, what they escape."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from _report_documents import HOSTILE, benchmark, beside_the_cpu, parse, share, tier, validation
from gguf_mtp.cli.main import main
from gguf_mtp.errors import FormatError
from gguf_mtp.report import badges, render


def page(document: dict[str, Any]) -> str:
    return render([("saved.json", document)])


def test_each_tier_is_told_in_plain_words_with_its_verdict() -> None:
    parsed = parse(page(validation()))
    verdicts = {a["data-tier"]: a["data-verdict"] for _, a in parsed.elements if "data-tier" in a}
    assert verdicts == {"L0": "holds", "L2": "breaks", "base-identical": "not tested"}
    assert "The text is the same, token by token" in parsed.text
    assert "Everything claimed holds: L0" in parsed.text
    assert "1 of 2 prompts (25-75 %), 16 tokens; how it was compared" in parsed.text
    assert "needs --against" in parsed.text


def test_a_claim_that_breaks_is_the_headline() -> None:
    document = validation(holds=False, tiers=[tier("L0", True), tier("L1", False)])
    assert "Claimed, and does not hold: L1" in parse(page(document)).text


def test_missed_acceptance_is_the_headline_where_the_tiers_hold() -> None:
    floor = {"asked": 0.9, "holds": False}
    text = parse(page(validation(holds=False, acceptance_floor=floor))).text
    assert "Drafts were accepted less often than asked" in text
    assert "accepted in 90 % of rounds: not reached" in text


def test_a_divergence_is_shown_with_its_tokens_margin_and_noise() -> None:
    text = parse(page(validation())).text
    assert "L2 p1 4 token differs 7 ␣return 9 ⏎ 0.001 0.02 a tie" in text


def test_a_tier_unknown_here_is_shown_by_its_name() -> None:
    parsed = parse(page(validation(tiers=[tier("L9", True, note="a new idea")])))
    assert "L9" in parsed.text
    assert "a new idea" in parsed.text


def test_charts_have_their_values_and_a_title() -> None:
    parsed = parse(page(validation()))
    labels = [a["aria-label"] for tag, a in parsed.elements if tag == "svg" and "aria-label" in a]
    assert len(labels) == 3
    assert "all rounds: 0.8 (0.25 to 0.75)" in parsed.text
    assert "moved by the batch shape" in parsed.text
    assert "texts part here" in parsed.text


def test_margins_are_drawn_as_a_histogram() -> None:
    bins = [{"low": 0.01, "high": 0.1, "count": 3}, {"low": 0.1, "high": 1.0, "count": 7}]
    parsed = parse(page(validation(margins={"bins": bins})))
    assert sum(a.get("class") == "bar" for _, a in parsed.elements) == 2


def test_without_drafts_there_is_nothing_to_draw_but_a_page() -> None:
    empty = {"rounds": 0, "tokens_per_pass": None, "first_accepted": [share(0, 0)]}
    nothing: dict[str, Any] = {"plain": {}, "mtp": {}, "ratio": None}
    document = validation(
        acceptance=empty, acceptance_novel=empty, speed=nothing, tiers=[], batch_invariance=None
    )
    parsed = parse(page(document))
    assert "Nothing was claimed" in parsed.text
    assert not any(tag == "svg" for tag, _ in parsed.elements)


def test_what_is_needed_to_repeat_it_is_there() -> None:
    made = {"gguf_mtp": "9.9", "command": "gguf-mtp validate m.gguf --n-max 2", "python": "3.1"}
    text = parse(page(validation(made=made))).text
    for part in ("ab" * 32, "1,234", "abcdef", made["command"], "9.9", "CPU (a processor)"):
        assert part in text


def _with_text_everywhere(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {key: _with_text_everywhere(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_text_everywhere(item, text) for item in value]
    return text if isinstance(value, str) else value


def _elements(html: str) -> list[str]:
    return [tag for tag, _ in parse(html).elements]


def test_text_of_a_report_never_becomes_markup() -> None:
    made = {"gguf_mtp": "1", "command": "c", "python": "3"}
    clean = validation(made=made)
    clean["settings"]["a key from elsewhere"] = "value"
    for document in (
        clean,
        clean | beside_the_cpu(),
        benchmark(made=made) | {"settings": clean["settings"]},
    ):
        _check_hostile(document)


def _check_hostile(clean: dict[str, Any]) -> None:
    hostile = _with_text_everywhere(clean, HOSTILE) | {"schema": clean["schema"]}
    hostile["settings"][HOSTILE] = hostile["settings"].pop("a key from elsewhere")
    assert HOSTILE in parse(page(hostile)).text
    for tag in ("script", "img"):
        assert tag not in _elements(page(hostile))
    assert _elements(page(hostile)) == _elements(
        page(_with_text_everywhere(clean, "x") | {"schema": clean["schema"]})
    )


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=30))
def test_any_text_leaves_the_elements_of_a_page_alone(text: str) -> None:
    document = validation(tiers=[tier("L0", True, note="plain")])
    document["prompts"][0]["id"] = document["files"][0]["name"] = text
    assert _elements(page(document)) == _elements(page(validation(tiers=[tier("L0", True)])))


def test_a_page_refers_to_nothing_outside_itself() -> None:
    for tag, attributes in parse(page(validation())).elements:
        for name in ("src", "href", "action", "data", "srcset"):
            assert attributes.get(name) in (None, "data:,"), (tag, attributes)
    assert "url(" not in page(validation())
    assert "@import" not in page(validation())


def test_several_reports_make_one_page() -> None:
    one, two = validation(), validation()
    two["files"][0]["name"] = "second.gguf"
    html = render([("a", one), ("b", two)])
    assert _elements(html).count("h1") == 2
    assert _elements(html).count("html") == 1


# --- several backends -----------------------------------------------------------------------


def on_two_backends(**changes: Any) -> dict[str, Any]:
    made = {"gguf_mtp": "9.9", "command": "gguf-mtp validate m.gguf --backend all"}
    return {
        "schema": "gguf-mtp.validate-backends/1",
        "holds": True,
        "backends": [
            validation(backend="cpu", made=made, not_tested={"metal": "not in this llama.cpp"}),
            validation(made=made) | beside_the_cpu(),
        ],
    } | changes


def test_each_backend_has_its_part_of_the_page() -> None:
    parsed = parse(page(on_two_backends()))
    assert sum(tag == "h1" for tag, _ in parsed.elements) == 2
    assert "gguf-mtp validate, backend cpu" in parsed.text
    assert "gguf-mtp validate, backend vulkan" in parsed.text
    assert parsed.text.count("gguf-mtp validate m.gguf --backend all") == 2
    assert parsed.text.count("Nothing was run on metal (not in this llama.cpp).") == 1
    assert parsed.text.count("Beside the CPU") == 1
    assert "largest divergence, KL in nats 2e-06 1e-05" in parsed.text
    assert "working memory lay in Vulkan0 9 MiB, CPU 1 MiB" in parsed.text
    assert len(badges(on_two_backends())) == 2


@pytest.mark.parametrize(
    ("backends", "message"),
    [([], "no report to show"), ([{"schema": 1}], "s.backends[0].schema: found 1, expected text")],
)
def test_backends_have_reports(backends: list[Any], message: str) -> None:
    with pytest.raises(FormatError) as caught:
        render([("s", on_two_backends(backends=backends))])
    assert str(caught.value) == message


# --- a benchmark ----------------------------------------------------------------------------


def test_a_benchmark_is_told_by_depth() -> None:
    parsed = parse(page(benchmark()))
    depths = [a["data-depth"] for _, a in parsed.elements if "data-depth" in a]
    assert depths == ["0", "1", "2"]
    assert "MTP pays on this machine MTP pays here: take two" in parsed.text
    assert "2 16 (15-17) 1.60 (1.50-1.70) 2 5 (4-6) 105 (100-110) 10" in parsed.text
    assert "4 prompts, up to 8 tokens each, 2 repetitions" in parsed.text
    assert "code 3 90.0 % 70.0 % 2.3" in parsed.text
    charts = [a for tag, a in parsed.elements if tag == "svg" and a.get("class") == "chart"]
    assert len(charts) == 4


def test_a_benchmark_without_advice_or_tasks_is_a_page() -> None:
    parsed = parse(page(benchmark(advice=None, tasks=[])))
    assert "how fast with drafts" in page(benchmark(advice=None))
    assert "on this machine MTP" not in parsed.text


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([], "s.depths: none is 0, plain decoding"),
        ([{"n": 0, "rates": []}], "s.depths[0].rates: empty, expected a number for each"),
    ],
)
def test_a_benchmark_needs_its_samples(depths: list[Any], message: str) -> None:
    with pytest.raises(FormatError) as caught:
        render([("s", benchmark(depths=depths))])
    assert str(caught.value).startswith(message)


def test_a_validation_and_a_benchmark_share_a_page() -> None:
    parsed = parse(render([("a", validation()), ("b", benchmark())]))
    assert sum(tag == "h1" for tag, _ in parsed.elements) == 2
    with pytest.raises(FormatError, match=r"^b\.schema: .*expected gguf-mtp\.validate/1$"):
        badges(benchmark(), "b")


# --- what is wrong with a document ----------------------------------------------------------


def _changed(place: str, value: Any) -> dict[str, Any]:
    """A validation with the value at `place`, such as ``tiers.0.claimed``, replaced."""
    document: Any = deepcopy(validation())
    *path, last = place.split(".")
    inner = document
    for step in path:
        inner = inner[int(step) if step.isdigit() else step]
    inner[last] = value
    result: dict[str, Any] = document
    return result


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("schema", "other/1", "s.schema: found 'other/1', expected one of gguf-mtp.validate/1, "),
        ("schema", 1, "s.schema: found 1, expected text"),
        ("tiers", {}, "s.tiers: found {}, expected a list"),
        ("tiers.0.claimed", 1, "s.tiers[0].claimed: found 1, expected true or false"),
        ("tiers.0.prompts", None, "s.tiers[0].prompts: found None, expected an object"),
        (
            "acceptance.first_accepted",
            [3],
            "s.acceptance.first_accepted[0]: found 3, expected an",
        ),
        ("settings.n_max", True, "s.settings.n_max: found True, expected an integer"),
        ("speed.ratio", "fast", "s.speed.ratio: found 'fast', expected a number"),
        ("speed.ratio", 10**400, "s.speed.ratio: found 1000"),
        ("files.0.sha256", None, "s.files[0].sha256: found None, expected text"),
    ],
)
def test_a_wrong_field_is_named(place: str, value: Any, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        render([("s", _changed(place, value))])
    assert str(caught.value).startswith(message)


def test_a_missing_field_is_named() -> None:
    document = validation()
    del document["speed"]["plain"]
    with pytest.raises(FormatError, match=r"^s\.speed\.plain: missing$"):
        render([("s", document)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
PLACES = ["holds", "tiers", "tiers.1.divergences", "batch_invariance", "acceptance", "prompts",
          "speed.ratio", "settings", "tiers.1.divergences.0.margin", "batch_invariance.noise",
          "acceptance.first_accepted", "cross_backend", "margins", "made", "distribution",
          "reference"]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_any_json_gives_a_page_or_a_format_error(place: str, value: Any) -> None:
    try:
        html = render([("s", _changed(place, value))])
    except FormatError:
        return
    assert html.rstrip().endswith("</html>")


# --- the badge ------------------------------------------------------------------------------


def test_badge_says_what_holds_and_what_does_not() -> None:
    made = {"gguf_mtp": "9.9"}
    (line,) = badges(validation(made=made))
    assert line == (
        "**MTP verified** by gguf-mtp 9.9 · L0 hold on 2 prompts, 16 tokens · L2 break · "
        "2.30 tokens a pass at n\\_max 2 · Q8\\_0 on CPU (a processor) · sha256 abababababababab"
    )
    assert badges(validation(holds=False))[0].startswith("**MTP NOT verified** by gguf-mtp · ")


def test_badge_escapes_markdown_and_stays_one_line() -> None:
    document = validation(made={"gguf_mtp": "**\n[x](y)<b>"})
    (line,) = badges(document)
    assert "\n" not in line
    assert "\\*\\* \\[x\\](y)\\<b\\>" in line


# --- the verb -------------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved.json"
    path.write_text(json.dumps(validation()), encoding="utf-8")
    return path


def test_report_writes_a_page_and_prints_a_badge(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    done = run(saved, "--html", out, "--badge")
    assert done.exit_code == 0, done.output
    assert out.read_text(encoding="utf-8") == render([(str(saved), validation())])
    assert done.stdout == badges(validation())[0] + "\n"


def test_report_needs_to_be_told_what_to_make(saved: Path) -> None:
    assert run(saved).exit_code == 2


def test_report_replaces_a_page_only_by_force(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    out.write_text("mine")
    refused = run(saved, "--html", out)
    assert (refused.exit_code, out.read_text()) == (2, "mine")
    assert refused.stderr == f"error: {out}: exists (--force replaces it)\n"
    assert run(saved, "--html", out, "--force").exit_code == 0
    assert "<!doctype html>" in out.read_text(encoding="utf-8")


def test_report_never_replaces_its_input(saved: Path) -> None:
    done = run(saved, "--html", saved, "--force")
    assert done.exit_code == 2
    assert "is also the input" in done.stderr
    assert json.loads(saved.read_text()) == validation()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"schema": NaN}', "NaN is not a JSON number"),
        ("{}", "schema: missing"),
    ],
)
def test_report_says_what_is_wrong_with_a_file(text: str, message: str, tmp_path: Path) -> None:
    path, out = tmp_path / "saved.json", tmp_path / "out.html"
    path.write_text(text)
    done = run(path, "--html", out, "--badge")
    assert done.exit_code == 2
    assert str(path) in done.stderr
    assert message in done.stderr
    assert not out.exists()
