"""``gguf-mtp bench`` and ``validate --html``: what is measured, advised and left behind."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from _report_documents import parse
from _validate_helpers import library_under_test
from gguf_mtp.cli import bench as bench_verb
from gguf_mtp.cli.made import command_line
from gguf_mtp.cli.main import main
from gguf_mtp.report import badges, render
from gguf_mtp.runtime.library import Library
from gguf_mtp.validate.advice import (
    DOES_NOT,
    EVEN,
    PAYS,
    Costs,
    JudgedDraft,
    advise,
    expected_rate,
)
from gguf_mtp.validate.bench import confidence
from gguf_mtp.validate.margins import histogram
from pair_files import Files

REFERENCE = Path(__file__).parent / "fixtures" / "gemma4-tiny" / "reference.npz"

# Two steps cost 10 and 20 ms, a pass 100 ms and 10 more for each token beyond the first.
COSTS = Costs({1: 10.0, 2: 20.0}, {1: 100.0, 2: 110.0, 3: 120.0})
SURE = JudgedDraft((0.9, 0.8), 2)
HALF = JudgedDraft((0.9, 0.3), 1)
NEVER = JudgedDraft((0.2, 0.9), 0)


@pytest.mark.parametrize(
    ("rounds", "n_max", "p_min", "tokens", "milliseconds"),
    [
        ([SURE], 2, 0.0, 3, 140),
        ([SURE], 1, 0.0, 2, 120),
        ([HALF], 2, 0.0, 2, 140),
        ([HALF], 2, 0.5, 2, 20 + 110),  # two steps, the second thrown away
        ([NEVER], 2, 0.5, 1, 10 + 100),  # one step, then a plain pass
        ([SURE], 2, 0.95, 1, 10 + 100),
        ([SURE, NEVER], 2, 0.5, 4, 140 + 110),
    ],
)
def test_expected_speed(
    rounds: list[JudgedDraft], n_max: int, p_min: float, tokens: int, milliseconds: float
) -> None:
    found = expected_rate(rounds, COSTS, n_max, p_min)
    assert found == pytest.approx(1e3 * tokens / milliseconds)


def test_the_cheapest_setting_that_is_as_good_is_advised() -> None:
    advice = advise([SURE] * 10, COSTS)
    assert advice is not None
    assert (advice.best.n_max, advice.best.p_min, advice.verdict) == (2, 0.0, PAYS)
    assert advice.ratio == pytest.approx(3 / 1.4)
    picky = advise([HALF, NEVER, NEVER, NEVER, SURE], COSTS)
    assert picky is not None
    # Above 0.2 the hopeless drafts are not checked, above 0.3 neither is the doubtful token.
    assert picky.best.p_min == pytest.approx(0.35)


def test_drafts_that_never_stand_do_not_pay() -> None:
    advice = advise([NEVER], COSTS)
    assert advice is not None
    assert advice.verdict == DOES_NOT
    assert advice.ratio == pytest.approx(100 / 110)
    assert advise([], COSTS) is None


def test_a_gain_within_the_noise_is_none() -> None:
    rounds = [SURE, NEVER, NEVER]
    quiet, noisy = advise(rounds, COSTS), advise(rounds, COSTS, uncertainty=1.0)
    assert quiet is not None
    assert noisy is not None
    assert quiet.ratio == noisy.ratio == pytest.approx(5 / 3.6)
    assert (quiet.verdict, noisy.verdict) == (PAYS, EVEN)


def test_confidence_is_the_share_among_the_ten_best() -> None:
    row = np.full(50, -100.0, dtype=np.float32)
    row[:4] = np.log([4, 2, 1, 1])
    assert confidence(row) == pytest.approx(0.5)
    assert confidence(np.zeros(50, dtype=np.float32)) == pytest.approx(0.1)
    assert confidence(np.zeros(2, dtype=np.float32)) == pytest.approx(0.5)
    masked = np.full(50, -np.inf, dtype=np.float32)
    masked[7] = 1.0
    assert confidence(masked) == 1.0


def test_margins_are_counted_by_quarter_decades() -> None:
    bins = histogram([0.0, 2e-6, 1.0, 1.1, 1e9])
    assert (bins[0].low, bins[0].count) == (1e-6, 1)
    assert sum(found.count for found in bins) == 5
    assert next(found for found in bins if found.low == pytest.approx(1.0)).count == 2
    assert bins[-1].count == 1
    assert bins[-1].high == pytest.approx(1e3)
    assert all(a.high == pytest.approx(b.low) for a, b in pairwise(bins))
    assert histogram([]) == ()


def test_the_command_is_told_without_folders_or_outputs(tmp_path: Path) -> None:
    words = ["dir/m.gguf", "--n-max", "2", "--prompts", "a b.jsonl", "--prompts", "/x/python"]
    words += ["--json", "--chat", "--html", str(tmp_path / "out.html"), "--device", "cpu"]
    # As the group makes it: click keeps a command's help option from the first context there is.
    context = click.Context(bench_verb.command, info_name="bench", **main.context_settings)
    with context:
        bench_verb.command.parse_args(context, words)
    assert command_line(context) == (
        "gguf-mtp bench m.gguf --n-max 2 --prompts 'a b.jsonl' --prompts python --device cpu --chat"
    )


# --- on the fixture -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> Library:
    return library_under_test()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sets of one prompt each."""
    folder = tmp_path_factory.mktemp("prompts")
    texts = {"code": "def main(args):\n    ", "list": "import os\nimport "}
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(json.dumps({"id": name, "text": text}))
    return [folder / f"{name}.jsonl" for name in texts]


def run(verb: str, files: Files, prompts: list[Path], *words: object) -> Result:
    fixed = ["--heads", files.heads, "--device", "cpu", "--threads", "1"]
    fixed += [word for path in prompts for word in ("--prompts", path)]
    return CliRunner().invoke(main, [str(w) for w in (verb, files.base, *fixed, *words)])


@pytest.fixture(scope="module")
def benched(
    library: Library, files: Files, prompts: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("bench")
    words = ("--n-max", 2, "--n-predict", 12, "--repetitions", 2, "--json")
    done = run("bench", files, prompts, *words, "--html", folder / "b.html")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), (folder / "b.html").read_text(encoding="utf-8")


def test_bench_measures_every_depth(benched: tuple[dict[str, Any], str]) -> None:
    data, _ = benched
    assert [depth["n"] for depth in data["depths"]] == [0, 1, 2]
    for depth in data["depths"]:
        assert len(depth["rates"]) == len(depth["verify_ms"]) == data["repetitions"] == 2
        assert all(rate > 0 for rate in depth["rates"])
        assert depth["expected_rate"] > 0
    plain, deepest = data["depths"][0], data["depths"][2]
    pairs = zip(deepest["rates"], plain["rates"], strict=True)
    assert deepest["ratios"] == [pytest.approx(a / b) for a, b in pairs]
    assert 1 <= deepest["tokens_per_pass"] <= 3
    assert {task["task"]: task["prompts"] for task in data["tasks"]} == {"code": 1, "list": 1}
    rounds = sum(task["acceptance"]["rounds"] for task in data["tasks"])
    assert rounds == data["acceptance"]["rounds"] > 0
    assert data["advice"]["n_max"] in (1, 2)
    assert data["advice"]["ratio"] == pytest.approx(data["advice"]["rate"] / plain["expected_rate"])


def test_what_is_expected_of_the_deepest_depth_agrees_with_its_rounds(
    benched: tuple[dict[str, Any], str],
) -> None:
    """Costs and acceptance, put together again, are the tokens a second of the same run."""
    data, _ = benched
    deepest = data["depths"][2]
    round_ms = np.median(deepest["draft_ms"]) + np.median(deepest["verify_ms"])
    assert deepest["expected_rate"] == pytest.approx(
        1e3 * deepest["tokens_per_pass"] / round_ms, rel=1e-6
    )


def test_bench_writes_the_page_of_its_json(benched: tuple[dict[str, Any], str]) -> None:
    data, html = benched
    text = parse(html).text
    assert data["advice"]["text"] in text
    assert data["made"]["command"] in text
    assert parse(render([("b", data)])).elements == [*parse(html).elements]


@pytest.mark.usefixtures("library")
def test_bench_prints_tables(files: Files, prompts: list[Path]) -> None:
    done = run("bench", files, prompts, "--n-max", 1, "--n-predict", 6, "--repetitions", 1)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert any(line.startswith("none ") and line.count(" ms") == 1 for line in lines)
    assert any(line.startswith("1 ") and line.count(" ms") == 2 for line in lines)
    tasks = [line.split()[0] for line in lines if line.startswith(("code", "list", "all"))]
    assert tasks == ["code", "list", "all"]
    assert lines[-1].startswith("MTP ")


@pytest.mark.usefixtures("library")
def test_validate_leaves_a_page_and_a_badge(
    files: Files, prompts: list[Path], tmp_path: Path
) -> None:
    page, saved = tmp_path / "v.html", tmp_path / "v.json"
    words = ["--n-predict", 8, "--n-max", 2, "--html", page, "--output", saved, "--badge"]
    # With all that a report can hold, so that no part of it is one the page cannot show.
    words += ["--temperature", 0.8, "--seeds", 4, "--reference", REFERENCE]
    done = run("validate", files, prompts, *words)
    assert done.exit_code == 0, done.output
    document = json.loads(saved.read_text())
    assert sum(b["count"] for b in document["margins"]["bins"]) == 16
    assert done.stdout.splitlines()[-1:] == badges(document)
    assert document["made"]["command"].startswith("gguf-mtp validate ")
    html = page.read_text(encoding="utf-8")
    assert html == render([(str(saved), document)])
    assert "Sampling at temperature 0.8" in html
    assert "Against another program" in html
    verdicts = {a["data-tier"] for _, a in parse(html).elements if "data-tier" in a}
    assert verdicts == {tier["tier"] for tier in document["tiers"]}


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("verb", ["bench", "validate"])
def test_a_failed_run_leaves_no_earlier_page(
    verb: str, files: Files, prompts: list[Path], tmp_path: Path
) -> None:
    page = tmp_path / "old.html"
    page.write_text(render([("old", json.loads(OLD))]), encoding="utf-8")
    done = run(verb, files, prompts, "--html", page, "--ctx", 8)
    assert done.exit_code == 2
    assert not page.exists()
    page.write_text("my own notes")
    done = run(verb, files, prompts, "--html", page)
    assert done.exit_code == 2
    assert "is not a report of gguf-mtp" in done.stderr
    assert page.read_text() == "my own notes"


OLD = json.dumps(
    {
        "schema": "gguf-mtp.bench/1",
        "files": [],
        "settings": {"device": "d", "n_predict": 1},
        "repetitions": 1,
        "depths": [{"n": 0, "rates": [1], "draft_ms": [0], "verify_ms": [1]}],
        "acceptance": {"rounds": 0, "first_accepted": []},
        "tasks": [],
    }
)
