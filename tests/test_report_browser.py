"""Reports opened in a real browser: the page stands, logs nothing and asks for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from _browser import open_page
from _report_documents import HOSTILE, benchmark, parse, tier, validation
from gguf_mtp.report import render


def test_the_check_sees_errors_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://example.invalid/x.png"><script>missing()</script>')
    opened = open_page(page, tmp_path)
    assert any("missing is not defined" in line for line in opened.console)
    assert "http://example.invalid/x.png" in opened.requests


@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_a_report_opens_without_errors_or_requests(scheme: int, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    document = validation()
    document["tiers"].append(tier("L3", True, note=HOSTILE))
    page.write_text(render([("saved", document), ("b", benchmark())]), encoding="utf-8")
    opened = open_page(page, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
    assert opened.console == []
    assert opened.requests == []
    found = parse(opened.dom)
    assert [a["data-tier"] for _, a in found.elements if "data-tier" in a] == [
        "L0", "L2", "base-identical", "L3",
    ]  # fmt: skip
    charts = [a for tag, a in found.elements if tag == "svg" and a.get("class") == "chart"]
    assert len(charts) == 7
    assert HOSTILE in found.text
