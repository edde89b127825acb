"""The tool that measures what exact mode costs: what it runs, and what it makes of it."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import exact_cost
from gguf_mtp.errors import RuntimeUnavailable

SETTING = {"repack": False, "flash_attn": "off"}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Runs are noted and not made; the exact build takes twice as long, and ever longer."""
    found: list[tuple[str, list[str]]] = []

    def fake_run(_script: object, build: str, *words: object) -> Any:
        found.append((build, [str(word) for word in words]))
        if "--choose" in words:
            return SETTING
        slower = len(found) if build == "exact" else 1
        return {"verify": {str(width): 4.0 * width * slower for width in range(1, 9)}}

    monkeypatch.setattr(exact_cost, "run", fake_run)
    monkeypatch.setattr(exact_cost, "lib_dir", lambda build: Path("/lib") / build)
    monkeypatch.setattr(exact_cost, "model_file", lambda name: Path(f"{name}.gguf"))
    return found


def test_builds_take_turns_in_the_setting_that_was_found(
    ran: list[tuple[str, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exact_cost.main(["fixture:q4_0", "--rounds", "3", "--threads", "2", "--json"]) == 0
    builds = [build for build, _ in ran]
    assert builds == ["exact", "default", "exact", "exact", "default", "default", "exact"]
    for build, words in ran[1:]:
        assert words[0] == f"/lib/{build}"
        assert ("--no-repack" in words) == (build == "exact")
        assert "--threads 2" in " ".join(words)
    found = json.loads(capsys.readouterr().out)["fixture:q4_0"]
    assert found["setting"] == SETTING
    out = io.StringIO()
    table = exact_cost.as_table({"fixture:q4_0": found}, n_max=1)
    Console(file=out, width=200).print(table)
    row = out.getvalue().splitlines()[-1].split()
    # Rounds took 3, 4 and 7 times as long as the default build's.
    assert row[-4:] == ["4.00", "(3.00-7.00)", "4.00", "(3.00-7.00)"]
    assert " ".join(row[:7]) == "fixture:q4_0 2 not repacked, FA off 4"


@pytest.mark.parametrize("name", ["fixture", "fixture:", "e2b:q9_9", "other:f16"])
def test_what_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"is not PAIR:TYPE with one of fixture, e2b"):
        exact_cost.model_file(name)


def test_a_run_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import sys; sys.exit('error: no such model')")
    monkeypatch.setattr(exact_cost, "lib_dir", lambda _build: tmp_path)
    with pytest.raises(
        RuntimeUnavailable, match=r"fails\.py on the exact build: error: no such model"
    ):
        exact_cost.run(script, "exact")
