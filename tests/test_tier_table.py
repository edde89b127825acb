"""The table of tiers: what is kept between runs, and what is said of what was found."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tier_table
from gguf_mtp.errors import RuntimeUnavailable
from tier_markdown import TIERS, page_text, table
from tier_table import Cell, Size

SIZE = Size(prompts=1, tokens=4, characters=9)
FEW = (
    "--type",
    "f32",
    "--flash-attn",
    "on",
    "--kv-type",
    "f16",
    "--prompts",
    "1",
    "--tokens",
    "4",
    "--characters",
    "9",
)


def a_report(
    broken: tuple[str, ...] = (), accepted: int = 3, worst: float = 2e-7
) -> dict[str, Any]:
    parted = {"index": 4, "prompt": "p", "what": "token differs", "margin": 0.001, "noise": 0.02}
    tiers = [
        {"tier": t, "holds": t not in broken, "divergences": [parted] if t in broken else []}
        for t in TIERS
    ]
    return {
        "holds": not broken,
        "settings": {"device": "CPU (a processor)"},
        "tiers": tiers,
        "acceptance": {"first_accepted": [{"hits": accepted, "total": 4}]},
        "cross_backend": {"worst": worst},
    }


def of(n_max: int, **changes: str) -> dict[str, Any]:
    cell = {"backend": "cpu", "outtype": "f32", "flash_attn": "on", "kv_type": "f16"}
    return cell | changes | {"n_max": n_max, "prompts": 1, "tokens": 4, "characters": 9}


def row(text: str, number: int = 0) -> list[str]:
    return [part.strip() for part in text.splitlines()[2 + number].split("|")[1:-1]]


def test_a_row_says_at_which_depths_each_tier_holds() -> None:
    found = [
        (of(n), a_report(("L2",) if n in (3, 5, 6) else (), accepted=n % 4)) for n in range(1, 7)
    ]
    first = row(table(found))
    assert first[:7] == ["cpu", "f32", "on", "f16", "1 x 4", "1-6", "1-6"]
    assert first[7] == "1-2, 4, **not 3, 5-6**"
    assert first[-2:] == ["2.0e-07", "0.00-0.75"]


def test_what_did_not_run_is_not_called_held() -> None:
    skipped = a_report()
    skipped["tiers"][5]["holds"] = None
    found = [
        (of(1), skipped),
        (of(1, kv_type="q8_0"), {"refused": "V cache quantization requires flash_attn"}),
        (of(1, backend="vulkan"), a_report()),
        (of(2, backend="vulkan"), {"died": "signal 11"}),
    ]
    text = table(found)
    assert row(text)[10] == "-"
    assert row(text, 1)[5:7] == ["refused", ""]
    assert row(text, 2)[5] == "1, **not 2**"
    assert all(len(row(text, n)) == len(row(text, 0)) for n in range(3))


def test_below_the_table_stands_where_it_ran_and_what_broke() -> None:
    built = {"pin": "0c1e", "patches": "ab" * 32}
    more = [
        (of(3, backend="vulkan") | built, {"died": "signal 11"}),
        *((of(n, kv_type="q8_0") | built, {"refused": "no such cache"}) for n in (1, 2)),
    ]
    text = page_text([(of(1) | built, a_report()), (of(2) | built, a_report(("L2",))), *more])
    assert text.splitlines()[-5:] == [
        "Here cpu is CPU (a processor), on prompts of up to 9 characters; "
        "llama.cpp `0c1e` with series `abababababab`.",
        "",
        "- 2 cells are refused: no such cache",
        "- cpu, f32, FA on, KV f16, n_max 2: L2 parts at token 4 of p: token differs; "
        "margin 0.001, noise 0.02",
        "- vulkan, f32, FA on, KV f16, n_max 3: the process died (signal 11)",
    ]
    assert page_text([(of(1) | built, a_report())]).endswith("`abababababab`.\n")


def test_vulkan_decodes_less_unless_told() -> None:
    asked = tier_table.parser().parse_args([])
    assert tier_table.size_of("cpu", asked) == tier_table.SIZES["cpu"]
    assert tier_table.size_of("vulkan", asked).tokens < tier_table.SIZES["cpu"].tokens
    told = tier_table.parser().parse_args(["--prompts", "3", "--tokens", "5"])
    usual = tier_table.SIZES["vulkan"]
    assert tier_table.size_of("vulkan", told) == Size(3, 5, usual.characters)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{tier_table.BEGIN}\nold\n{tier_table.END}\nafter\n")
    return path


def test_the_page_keeps_what_is_around_the_table(page: Path, tmp_path: Path) -> None:
    for _ in range(2):
        tier_table.put_into_page(page, "| new |\n")
        whole = f"before\n{tier_table.BEGIN}\n| new |\n{tier_table.END}\nafter\n"
        assert page.read_text() == whole
    (tmp_path / "other.md").write_text("nothing\n")
    with pytest.raises(RuntimeUnavailable, match="no place for the table"):
        tier_table.put_into_page(tmp_path / "other.md", "| new |\n")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder, with no models made and no llama.cpp recorded."""
    monkeypatch.setattr(tier_table, "make_models", lambda _work, _types: None)
    monkeypatch.setattr(tier_table, "environment", lambda _backend: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_cells_that_are_there_are_not_run_again(
    work: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def fake_run(command: list[str], env: object) -> Any:
        """Keep one cell and be killed, as by a reboot."""
        cells = [Cell("cpu", "f32", "on", "f16", n) for n in (1, 2, 3)]
        cell = next(c for c in cells if not tier_table.is_kept(c, SIZE, work))
        tier_table.keep(cell, SIZE, work, a_report())
        ran.append(cell.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", fake_run)
    arguments = ["--backend", "cpu", "--n-max", "1", "2", "3", *FEW]
    arguments += ["--work", str(work), "--page", str(page)]
    assert [tier_table.main(arguments) for _ in range(4)] == [130, 130, 130, 0]
    assert ran == [f"cpu-f32-fa_on-kv_f16-n{n}" for n in (1, 2, 3)]
    assert row(page.read_text().split(tier_table.BEGIN + "\n")[1])[5] == "1-3"
    # Of another size they are other cells.
    assert not tier_table.is_kept(Cell("cpu", "f32", "on", "f16", 1), Size(1, 5, 9), work)
    (work / "cpu-f32-fa_on-kv_f16-n1.json").write_text('{"of"')
    assert not tier_table.is_kept(Cell("cpu", "f32", "on", "f16", 1), SIZE, work)


def test_a_process_that_dies_takes_one_cell_with_it(
    work: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Done:
        returncode = -signal.SIGSEGV

    def fake_run(command: list[str], env: object) -> Any:
        """Run the first and the third cell, die in the second."""
        for n in (1, 2, 3):
            cell = Cell("vulkan", "f32", "on", "f16", n)
            if tier_table.is_kept(cell, SIZE, work):
                continue
            if n == 2:
                return Done()
            tier_table.keep(cell, SIZE, work, a_report())
        done = Done()
        done.returncode = 0
        return done

    monkeypatch.setattr(subprocess, "run", fake_run)
    arguments = ["--backend", "vulkan", "--n-max", "1", "2", "3", *FEW]
    assert tier_table.main([*arguments, "--work", str(work), "--page", str(page)]) == 1
    kept = json.loads((work / "vulkan-f32-fa_on-kv_f16-n2.json").read_text())
    assert kept["report"] == {"died": "signal 11"}
    assert "1, 3, **not 2**" in page.read_text()
