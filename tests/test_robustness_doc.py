"""docs/robustness.md says what the tests do."""

import robustness_table
from hostile import CASES


def test_the_tables_are_current() -> None:
    page = robustness_table.PAGE.read_text()
    assert robustness_table.render(page) == page, "run tools/robustness_table.py"


def test_they_are_as_long_as_promised() -> None:
    page = robustness_table.PAGE.read_text()
    assert sum(f"| {case.name} |" in page for case in CASES) == len(CASES) >= 60
    assert robustness_table.vulnerabilities().count("| CVE-") == 10
