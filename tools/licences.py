"""Write docs/licences.md: what is installed with this project, and under which licence.

Direct dependencies come from the project's own metadata; what they bring from theirs. Of a package
that is not installed here the page keeps what it says.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "licences.md"
PROJECT = "gguf-mtp"
# Where a package's metadata says nothing; from the licence file in it.
KNOWN = {
    "atheris": "Apache-2.0",
    "huggingface-hub": "Apache-2.0",
    "matplotlib": "PSF-2.0 (Matplotlib's own)",
}
NAME = re.compile(r"[A-Za-z0-9._-]+")
EXTRA = re.compile(r"extra == [\"'](\w+)[\"']")
ROW = re.compile(r"\| (\S+) \| (.+?) \| (.+?) \|")
HEAD = """# Licences of what is installed

gguf-mtp itself is MIT. Written by `tools/licences.py`; a test compares it with pyproject.toml and
with what is installed.

| package | licence | needed by |
|---|---|---|
"""
TAIL = """
Built from source by `make patch-llamacpp`, checked by SHA-256 when it is downloaded: llama.cpp
(MIT), within the source package of llama-cpp-python (MIT).
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def dependencies() -> dict[str, set[str]]:
    """Every package and what needs it: ``gguf-mtp``, an extra of it as ``[dev]``, or a package."""
    found: dict[str, set[str]] = {}
    pending: list[str] = []
    for line in requires(PROJECT) or []:
        extra = EXTRA.search(line)
        _add(found, pending, line, f"[{extra[1]}]" if extra else PROJECT)
    while pending:
        name = pending.pop()
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for line in lines:
            # Extras of others, and what is for other systems and older Pythons, is not installed.
            if ";" not in line:
                _add(found, pending, line, name)
    return found


def _add(found: dict[str, set[str]], pending: list[str], line: str, by: str) -> None:
    match = NAME.match(line)
    if match is None:
        raise ValueError(f"no requirement: {line!r}")
    name = normal(match[0])
    if name == PROJECT:
        return
    if name not in found:
        pending.append(name)
    found.setdefault(name, set()).add(by)


def licence(name: str) -> str | None:
    """What the installed package `name` says, None where it is not installed."""
    if name in KNOWN:
        return KNOWN[name]
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return None
    stated = next((about[key] for key in ("License-Expression", "License") if key in about), "")
    if stated and len(stated) < 80 and "\n" not in stated:
        return str(stated)
    for line in about.get_all("Classifier") or []:
        if line.startswith("License :: OSI Approved :: "):
            return str(line).rsplit(" :: ", 1)[1]
    return "not stated"


def rows(page: str) -> dict[str, tuple[str, str]]:
    """Licence and reason by package, as a page has them."""
    return {m[1]: (m[2], m[3]) for m in ROW.finditer(page) if m[1] not in ("package", "---")}


def render(before: str) -> str:
    """The page; `before` is what it was."""
    old = rows(before)
    lines = []
    for name, by in sorted(dependencies().items()):
        found = licence(name) or old.get(name, ("not installed here",))[0]
        lines.append(f"| {name} | {found} | {', '.join(sorted(by))} |\n")
    return HEAD + "".join(lines) + TAIL


def main() -> None:
    PAGE.write_text(render(PAGE.read_text() if PAGE.exists() else ""))


if __name__ == "__main__":
    main()
