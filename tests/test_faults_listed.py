"""docs/robustness.md names, for every fault, a test that there is."""

import re
from pathlib import Path

import robustness_table

HERE = Path(__file__).resolve().parent


def test_every_fault_has_its_test() -> None:
    page = (HERE.parent / "docs" / "robustness.md").read_text()
    rows = robustness_table.faults(page)
    assert len(rows) >= 14
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert all(named)
    code = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    there = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    assert {name for names in named for name in names} <= there
    section = page.split("## Faults while writing\n")[1].split("\n## Vulnerabilities")[0]
    assert set(re.findall(r"`(test_\w+)`", section)) <= there
