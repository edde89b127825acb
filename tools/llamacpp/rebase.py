"""Move patches to another version of the files they change: where each hunk goes, and why not.

A hunk applies where its old lines stand, as they are or elsewhere in the file. Where only its
context has changed, the lines around the change still say where it belongs: context is taken away
from the outside, and the place must then be the only one. What a hunk removes must be there.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

from llamacpp.pin import SetupError
from llamacpp.series import folders, series, versions

APPLIES, OFFSET, MOVED, FAILS = "applies", "applies with offset", "context moved", "fails"
# Lines of context that must agree where the rest has changed, and those a rewritten hunk gets.
LEAST_CONTEXT = 1
CONTEXT = 3


@dataclass(frozen=True)
class Hunk:
    """One change of one file: lines with their ' ', '-' or '+', at line `start` (from 1)."""

    path: str
    start: int
    lines: tuple[str, ...]
    heading: str = ""


@dataclass(frozen=True)
class HunkResult:
    """Where a hunk stands in the other tree (`line`, from 1) or would have; `note` says more."""

    path: str
    line: int
    state: str
    note: str = ""


@dataclass
class PatchResult:
    """What became of one patch, named from `patches/`; `text` is it for the other tree."""

    name: str
    hunks: list[HunkResult] = field(default_factory=list)
    text: str = ""


_FILE = re.compile(r"^diff --git a/(\S+) b/(\S+)$")
_HUNK = re.compile(r"^@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@(.*)$")


def rebase_series(tree: Path, patches: Path) -> list[PatchResult]:
    """Try every patch in order on copies of `tree`'s files; the tree is not changed.

    Of a series for the pinned version and for others, the one that fits `tree` best. Raises
    SetupError for a patch that cannot be read.
    """
    results: list[PatchResult] = []
    for folder in folders(patches):
        prefix = "" if folder == patches else f"{folder.name}/"
        tried: list[list[PatchResult]] = []
        for version in (None, *versions(folder)):
            content: dict[str, list[str] | None] = {}
            tried.append([_rebase(p, prefix, tree, content) for p in series(folder, version)])
        best = min(tried, key=_unfit)
        results += best
    return results


def _unfit(results: list[PatchResult]) -> tuple[int, int]:
    states = [hunk.state for result in results for hunk in result.hunks]
    return states.count(FAILS), states.count(MOVED)


def _rebase(
    patch: Path, prefix: str, tree: Path, content: dict[str, list[str] | None]
) -> PatchResult:
    result = PatchResult(prefix + patch.name)
    head, files = parse(patch)
    parts = [head]
    for path, preamble, hunks in files:
        if path not in content:
            file = tree / path
            content[path] = file.read_text().split("\n") if file.is_file() else None
        lines = content[path]
        parts.append(preamble)
        shift = 0  # by how many lines the hunks before have grown the file
        for hunk in hunks:
            if lines is None:
                result.hunks.append(HunkResult(path, hunk.start, FAILS, ": no such file"))
                parts.append(_render(hunk.start, hunk.lines, shift, hunk.heading))
                continue
            found, at, placed = _place(hunk, lines, shift)
            result.hunks.append(found)
            parts.append(_render(at + 1 - shift, placed, shift, hunk.heading))
            if found.state == FAILS:
                continue
            old, new = _sides(placed)
            lines[at : at + len(old)] = new
            shift += len(new) - len(old)
    result.text = "".join(parts)
    return result


def parse(patch: Path) -> tuple[str, list[tuple[str, str, list[Hunk]]]]:
    """A patch's header, and per file its path, the lines before its hunks, and the hunks."""
    head: list[str] = []
    files: list[tuple[str, list[str], list[Hunk]]] = []
    body: list[str] | None = None
    start, heading = 0, ""

    def close() -> None:
        if body is not None:
            files[-1][2].append(Hunk(files[-1][0], start, tuple(body), heading))

    for line in patch.read_text().splitlines():
        file, hunk = _FILE.match(line), _HUNK.match(line)
        if file:
            close()
            body = None
            files.append((file.group(2), [line], []))
        elif hunk and files:
            close()
            start, heading, body = int(hunk.group(1)), hunk.group(2), []
        elif body is not None and (line[:1] in (" ", "+", "-") or not line):
            body.append(line or " ")
        elif files and body is None:
            files[-1][1].append(line)
        elif files:
            raise SetupError(f"{patch}: cannot read the line {line[:60]!r}")
        else:
            head.append(line)
    close()
    joined = [(path, _text(before), hunks) for path, before, hunks in files]
    return _text(head), joined


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _sides(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines before and after a change."""
    return [x[1:] for x in lines if x[0] != "+"], [x[1:] for x in lines if x[0] != "-"]


def _place(hunk: Hunk, lines: list[str], shift: int) -> tuple[HunkResult, int, tuple[str, ...]]:
    """The report, the index where the old lines begin, and the hunk as it fits there."""
    expected = hunk.start - 1 + shift
    old, _ = _sides(hunk.lines)
    places = list(_matches(old, lines))
    if places:
        at = min(places, key=lambda place: abs(place - expected))
        offset = at - expected
        state = OFFSET if offset else APPLIES
        note = f" of {offset:+d} lines" if offset else ""
        return HunkResult(hunk.path, at + 1, state, note), at, hunk.lines
    before = next(i for i, line in enumerate(hunk.lines) if line[0] != " ")
    after = next(i for i, line in enumerate(reversed(hunk.lines)) if line[0] != " ")
    for dropped in range(1, before + after + 1):
        for top in range(max(0, dropped - after), min(dropped, before) + 1):
            bottom = dropped - top
            if before - top + after - bottom < LEAST_CONTEXT:
                continue
            core = hunk.lines[top : len(hunk.lines) - bottom]
            places = list(_matches(_sides(core)[0], lines))
            if len(places) == 1:
                at, placed = _with_context(core, places[0], lines, before - top, after - bottom)
                note = f": {top} line(s) above and {bottom} below are others now"
                return HunkResult(hunk.path, places[0] + 1, MOVED, note), at, placed
    line, share = _nearest(old, lines)
    note = f": nearest are lines {line + 1}-{line + len(old)}, {share:.0%} alike"
    return HunkResult(hunk.path, hunk.start, FAILS, note), max(0, expected), hunk.lines


def _with_context(
    core: tuple[str, ...], at: int, lines: list[str], before: int, after: int
) -> tuple[int, tuple[str, ...]]:
    """`core` with the lines that now stand around it, up to `CONTEXT` on each side."""
    end = at + len(_sides(core)[0])
    above = lines[max(0, at - max(0, CONTEXT - before)) : at]
    below = lines[end : end + max(0, CONTEXT - after)]
    placed = (*(f" {x}" for x in above), *core, *(f" {x}" for x in below))
    return at - len(above), placed


def _matches(old: Sequence[str], lines: Sequence[str]) -> Iterator[int]:
    for at in range(len(lines) - len(old) + 1):
        if lines[at] == old[0] and lines[at : at + len(old)] == old:
            yield at


def _nearest(old: list[str], lines: list[str]) -> tuple[int, float]:
    """Where the most of `old` is found, and how much of it."""
    known = set(old)
    best = (0, 0.0)
    for at in range(max(1, len(lines) - len(old) + 1)):
        window = lines[at : at + len(old)]
        if known.isdisjoint(window):
            continue
        share = SequenceMatcher(None, old, window, autojunk=False).ratio()
        best = max(best, (at, share), key=lambda pair: pair[1])
    return best


def _render(start: int, lines: Sequence[str], shift: int, heading: str) -> str:
    old, new = _sides(lines)
    head = f"@@ -{start},{len(old)} +{start + shift},{len(new)} @@{heading}"
    return _text([head, *lines])
