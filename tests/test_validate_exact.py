"""Exact mode: what it turns off, in which order, and what it says where nothing helps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from _validate_helpers import library_under_test
from gguf_mtp.cli.main import main
from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import Model, ModelOptions
from gguf_mtp.runtime.library import Library
from gguf_mtp.validate import exact
from gguf_mtp.validate.exact import Setting, open_exact, settings, widest_equal
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.prompts import load_prompts
from pair_files import Files

PROMPTS = load_prompts(["python", "long"])[:2]


def test_the_cheapest_setting_comes_first() -> None:
    assert settings(ModelOptions(), Options()) == [
        Setting(True, "auto"),
        Setting(False, "auto"),
        Setting(True, "off"),
        Setting(False, "off"),
    ]


def test_what_was_asked_for_stays() -> None:
    assert settings(ModelOptions(repack=False), Options(flash_attn="on")) == [Setting(False, "on")]
    tries = settings(ModelOptions(), Options(flash_attn="on"))
    assert {setting.flash_attn for setting in tries} == {"on"}


class Opened:
    """What stands for a pair; `base` is the setting it was opened in."""

    def __init__(self, repack: bool) -> None:
        self.base = repack


def pretend(monkeypatch: pytest.MonkeyPatch, equal: dict[Setting, int]) -> list[bool]:
    """Make `open_pair` and the measurement say what `equal` says; also record what was opened."""
    opened: list[bool] = []

    @contextmanager
    def open_pair(*, options: ModelOptions, **_: Any) -> Iterator[Opened]:
        opened.append(options.repack)
        yield Opened(options.repack)

    def measure(base: bool, _prompts: object, options: Options) -> int:
        return equal[Setting(base, options.flash_attn)]

    monkeypatch.setattr(exact, "open_pair", open_pair)
    monkeypatch.setattr(exact, "widest_equal", measure)
    return opened


def opened_in(library: Library | None = None) -> Setting:
    with open_exact(library, {}, ModelOptions(), [], Options(n_max=3)) as (pair, options):  # type: ignore[arg-type]
        return Setting(pair.base, options.flash_attn)  # type: ignore[arg-type]


@pytest.mark.parametrize(("good", "tries"), [(0, 1), (1, 2), (3, 4)])
def test_the_first_exact_setting_is_taken(
    monkeypatch: pytest.MonkeyPatch, good: int, tries: int
) -> None:
    order = settings(ModelOptions(), Options())
    opened = pretend(monkeypatch, {s: 4 if i >= good else 1 for i, s in enumerate(order)})
    assert opened_in() == order[good]
    assert len(opened) == tries


@pytest.mark.parametrize(
    ("width", "advice"), [(3, "--n-max 2 would be"), (1, "none is")], ids=["narrower", "none"]
)
def test_where_nothing_is_exact_it_says_what_would_be(
    monkeypatch: pytest.MonkeyPatch, width: int, advice: str
) -> None:
    pretend(monkeypatch, dict.fromkeys(settings(ModelOptions(), Options()), width))
    with pytest.raises(RuntimeUnavailable, match=f"exact to --n-max 3 .*; {advice}"):
        opened_in()


def test_the_exact_build_is_exact_on_a_long_text(files: Files) -> None:
    library = library_under_test()
    if library.choice.origin != "exact record":
        pytest.skip("no exact build is recorded")
    with Model.open(library, files.base, ModelOptions(device="cpu")) as base:
        assert widest_equal(base, PROMPTS, Options(n_max=6, n_predict=16)) == 7


def test_the_command_claims_l2_in_exact_mode(files: Files, tmp_path: Path) -> None:
    library = library_under_test()
    if library.choice.origin != "exact record":
        pytest.skip("no exact build is recorded")
    words = ["validate", files.base, "--heads", files.heads, "--exact", "--json", "--threads", 1]
    words += ["--prompts", "python", "--n-prompts", 1, "--n-predict", 12]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    tiers = {tier["tier"]: tier for tier in data["tiers"]}
    assert tiers["L2"]["claimed"]
    assert tiers["L2"]["holds"]
    assert data["settings"]["repack"] is True
