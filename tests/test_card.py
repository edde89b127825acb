"""Model cards: what stands in them, of whose file a report may be, and names that are markup."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from click.testing import CliRunner, Result

import _report_documents as documents
from gguf_mtp.api import convert
from gguf_mtp.card import Facts, front_matter, render
from gguf_mtp.card.runtimes import RUNTIMES
from gguf_mtp.cli.card import gather
from gguf_mtp.cli.main import main

TESTS = Path(__file__).resolve().parent
HOSTILE = "a|b`c` <script>x</script> [l](http://e) ![i](j) # h\n---\nlicense: mit\n```\n$x$"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def front(card: str) -> dict[str, Any]:
    start, matter, _ = card.split("---\n", 2)
    assert start == ""
    fields: dict[str, Any] = yaml.safe_load(matter)
    return fields


def of(path: Path) -> dict[str, Any]:
    """A saved validation of the file at `path`."""
    facts = gather(path, quiet=True)
    named = {"role": "merged", "name": path.name, "size": facts.size, "sha256": facts.sha256}
    return documents.validation(files=[named])


def test_a_card(tiny_merged: Path, tmp_path: Path) -> None:
    out = tmp_path / "README.md"
    result = run("card", tiny_merged, "-o", out)
    assert (result.exit_code, result.output) == (0, "")
    card = out.read_text()
    assert card == run("card", tiny_merged).stdout
    fields = front(card)
    assert (fields["license"], fields["language"]) == ("apache-2.0", ["en"])
    assert "mtp" in fields["tags"]
    assert "Not validated" in card
    assert "| base's licence | apache-2.0 |" in card
    assert "llama-server -m merged.gguf\n" in card
    assert "-m merged-base.gguf -md mtp-merged-base.gguf" not in card
    assert "-m merged-base.gguf -md mtp-merged.gguf" in card
    again = run("card", tiny_merged, "-o", out)
    assert again.exit_code == 2
    assert "exists" in again.stderr


def test_the_layout_decides_what_a_stock_build_does(
    tiny_target: Path, tiny_drafter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x-mtp.gguf"
    convert(tiny_target, tiny_drafter, out, layout="tail")
    card = run("card", out).stdout
    assert "as it is, from the one file** (tested): runs the base without MTP" in card
    assert "-m x.gguf -md mtp-x.gguf" in card


def test_what_is_called_tested_has_a_test() -> None:
    for runtime in RUNTIMES:
        if runtime.test:
            file, _, name = runtime.test.partition("::")
            assert f"def {name}(" in (TESTS / file).read_text()
    assert {r.program for r in RUNTIMES if not r.test} >= {"LM Studio", "koboldcpp"}


def test_a_report_of_that_file(tiny_merged: Path, tmp_path: Path) -> None:
    saved = tmp_path / "r.json"
    documents_text = json.dumps(of(tiny_merged))
    saved.write_text(documents_text)
    card = run("card", tiny_merged, "--report", saved).stdout
    assert "**MTP verified** by gguf-mtp" in card
    assert "| L2 | breaks (reported), 1 of 2 prompts |\n" in card
    assert "| base-identical | not tested |\n" in card
    assert "| first k drafts all accepted | k=1 | k=2 | tokens a pass |\n" in card


def test_reports_of_several_backends(tiny_merged: Path, tmp_path: Path) -> None:
    """One of two backends and one of a third: a badge and a column of each."""
    cpu, vulkan, cuda = (of(tiny_merged) | {"backend": n} for n in ("cpu", "vulkan", "cuda"))
    vulkan |= {"tiers": [documents.tier("L0", True), documents.tier("L2", True)]}
    cuda |= {"acceptance": documents.drafts(8, 5, 3)}
    both = {"schema": "gguf-mtp.validate-backends/1", "holds": True, "backends": [cpu, vulkan]}
    saved = [tmp_path / "both.json", tmp_path / "cuda.json"]
    for path, document in zip(saved, (both, cuda), strict=True):
        path.write_text(json.dumps(document))
    card = run("card", tiny_merged, "--report", saved[0], "--report", saved[1]).stdout
    lines = card.splitlines()
    badges = [n for n, line in enumerate(lines) if line.startswith("**MTP verified**")]
    assert [n - badges[0] for n in badges] == [0, 2, 4]  # paragraphs, not one
    at = lines.index("| tier | cpu | vulkan | cuda |")
    assert lines[at - 1] == ""
    assert lines[at + 1 : at + 4] == [
        "|---|---|---|---|",
        "| L0 " + "| holds (claimed), 2 of 2 prompts " * 3 + "|",
        "| L2 | breaks (reported), 1 of 2 prompts | holds (claimed), 2 of 2 prompts "
        "| breaks (reported), 1 of 2 prompts |",
    ]
    assert "| first k drafts all accepted | k=1 | k=2 | k=3 | tokens a pass |" in lines
    assert "| cpu, all rounds | 80.0 % | 50.0 % | - | 2.30 |" in lines
    assert "| cuda, all rounds | 80.0 % | 50.0 % | 30.0 % | 2.30 |" in lines
    vulkan["files"][0]["sha256"] = "1" * 64
    saved[0].write_text(json.dumps(both))
    refused = run("card", tiny_merged, "--report", saved[0])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"{saved[0]}.backends[1].files: is of a file with sha256" in refused.stderr


def test_a_report_of_another_file_is_refused(tiny_merged: Path, tmp_path: Path) -> None:
    saved = tmp_path / "r.json"
    document = of(tiny_merged)
    document["files"][0]["sha256"] = "0" * 64
    saved.write_text(json.dumps(document))
    result = run("card", tiny_merged, "--report", saved)
    assert result.exit_code == 2
    assert (
        f"{saved}.files: is of a file with sha256 '{'0' * 64}', {tiny_merged} has" in result.stderr
    )
    document["files"][0]["role"] = "base"
    saved.write_text(json.dumps(document))
    assert "no merged file was validated" in run("card", tiny_merged, "--report", saved).stderr


def test_a_file_without_heads(tiny_target: Path, tiny_merged: Path, tmp_path: Path) -> None:
    base = tmp_path / "b.gguf"
    assert run("split", tiny_merged, "--base-out", base, "-q").exit_code == 0
    result = run("card", base)
    assert result.stderr == f"error: {base}: has no MTP heads; gguf-mtp convert puts some in\n"


def test_names_are_no_markup(tiny_merged: Path) -> None:
    facts = gather(tiny_merged, quiet=True)
    said = dict.fromkeys(("source.name", "source.license", "target.repository"), HOSTILE)
    heads = dict(facts.heads) | {"name": HOSTILE, "provenance": dict(facts.provenance) | said}
    keys = {"general.license": HOSTILE, "general.license.link": f"https://e/{HOSTILE}"}
    keys["general.languages"] = ["en", HOSTILE]  # type: ignore[assignment]
    hostile = Facts(
        path=tiny_merged.with_name("a b`;rm -rf ~`\n```.gguf"),
        size=facts.size,
        summary=dict(facts.summary) | {"name": HOSTILE, "heads": heads},
        keys=keys,
        sha256=facts.sha256,
    )
    card = render(hostile)
    fields = front(card)
    assert fields["license"] == "other"
    assert (fields["language"], "license_link" in fields, "base_model" in fields) == (
        ["en"],
        False,
        False,
    )
    body = card.split("---\n", 2)[2]
    clean = render(replace(facts, path=Path("x.gguf"))).split("---\n", 2)[2]
    assert body.count("\n") == clean.count("\n")
    assert sum(line.startswith("```") for line in body.splitlines()) == sum(
        line.startswith("```") for line in clean.splitlines()
    )
    assert not re.search(r"(?<!\\)[<|`\[]", body.splitlines()[1])
    assert r"\<script\>" in body
    assert "llama-server -m 'a b`;rm -rf ~`?```.gguf'" in body


def test_where_it_was_fetched_from(tiny_merged: Path) -> None:
    facts = gather(tiny_merged, quiet=True)
    said = {
        "target.repository": "google/gemma-4-E2B-it",
        "target.revision": "1" * 40,
        "source.repository": "google/gemma-4-E2B-it-assistant",
    }
    heads = dict(facts.heads) | {"provenance": dict(facts.provenance) | said}
    summary = dict(facts.summary) | {"heads": heads, "types": {"Q8_0": 3}}
    known = replace(facts, summary=summary)
    fields = yaml.safe_load(front_matter(known).strip("-"))
    assert fields["base_model"] == ["google/gemma-4-E2B-it", "google/gemma-4-E2B-it-assistant"]
    assert fields["base_model_relation"] == "quantized"
    assert r"| base from | google/gemma-4-E2B-it at 111111111111 |" in render(known)
