"""Write the tables of docs/robustness.md from the tests, hostile inputs and CVE regressions, and
how many of each there are."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from hostile import CASES, GROUPS  # noqa: E402
from hostile.case import Case  # noqa: E402

PAGE = ROOT / "docs" / "robustness.md"
CVES = ROOT / "tests" / "test_cve.py"
MARK = "<!-- {}: written by tools/robustness_table.py -->\n"


def _row(case: Case) -> str:
    said = "; ".join(f"`{words}`" for words in case.says)
    promise = f"refused: {said}" if case.is_refused else case.promise
    test = "refused" if case.is_refused else "harmless"
    name, promise = (text.replace("|", "\\|") for text in (case.name, promise))
    return f"| {name} | {', '.join(case.uses)} | {promise} | {test} |\n"


def inputs() -> str:
    parts = []
    for title, cases in GROUPS.items():
        parts.append(f"\n### {title} ({len(cases)})\n| input | opened as | promise | test |\n")
        parts.append("|---|---|---|---|\n")
        parts += map(_row, cases)
    return "".join(parts)


def vulnerabilities() -> str:
    lines = ["\n| number | what it was, and what keeps it out | test |\n|---|---|---|\n"]
    for node in ast.parse(CVES.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_cve_"):
            text = " ".join((ast.get_docstring(node) or "").split())
            number = node.name.removeprefix("test_").replace("_", "-").upper()
            lines.append(f"| {number} | {text} | `{node.name}` |\n")
    return "".join(lines)


def faults(page: str) -> list[str]:
    """The rows of the table of faults, which is written by hand."""
    section = page.split("## Faults while writing\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if re.match(r"\| (?!fault|-)", line)]


def counts(page: str) -> str:
    refused = sum(case.is_refused for case in CASES)
    openings = sum(len(case.uses) for case in CASES)
    return (
        f"\nInputs: {len(CASES)}, of which {refused} are refused, opened in {openings} ways. "
        f"Faults: {len(faults(page))}. "
        f"Known vulnerabilities: {vulnerabilities().count('| CVE-')}.\n"
    )


def render(page: str) -> str:
    """`page` with its tables as the tests have them."""
    for name, table in (
        ("counts", counts(page)),
        ("inputs", inputs()),
        ("vulnerabilities", vulnerabilities()),
    ):
        begin, end = MARK.format(name), MARK.format(f"end of {name}")
        if not (begin in page and end in page):
            raise ValueError(f"{PAGE}: no marks for {name}")
        pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
        page = pattern.sub(lambda _, t=table, b=begin, e=end: f"{b}{t}\n{e}", page)  # type: ignore[misc]
    return page


def main() -> None:
    PAGE.write_text(render(PAGE.read_text()))


if __name__ == "__main__":
    main()
