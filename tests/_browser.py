"""Opening a page in headless Chromium: the DOM it ends up with, what it logged, what it fetched."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hung import HUNG

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Opened:
    """`console` holds what the page's console got, `requests` every address asked for."""

    dom: str
    console: list[str]
    requests: list[str]


def browser() -> str:
    """The browser's path; skips the test where there is none."""
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    pytest.skip(f"no browser is installed (looked for {', '.join(NAMES)})")


def open_page(page: Path, work: Path, *options: str) -> Opened:
    """Load `page` from disk, in a profile of its own under `work`."""
    log = work / "net.json"
    command = [
        browser(),
        "--headless",
        "--no-sandbox",  # the tests may run as root, in a container
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={work / 'profile'}",
        f"--log-net-log={log}",
        "--enable-logging=stderr",
        *options,
        "--dump-dom",
        page.resolve().as_uri(),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=HUNG, check=False
    )
    assert done.returncode == 0, done.stderr
    return Opened(
        dom=done.stdout,
        console=[line for line in done.stderr.splitlines() if ":CONSOLE" in line],
        requests=_requests(json.loads(log.read_text(encoding="utf-8"))),
    )


def _requests(log: dict[str, Any]) -> list[str]:
    """The addresses of all requests in a net log that are not the browser's own business."""
    starts = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [event.get("params", {}) for event in log["events"] if event["type"] == starts]
    # A page's requests have its origin as initiator; the browser's have none.
    pages = [p for p in started if p.get("initiator", "not an origin") != "not an origin"]
    return [p["url"] for p in pages if "url" in p]
