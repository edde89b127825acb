"""Apply `patches/` to a llama.cpp tree: no fuzz, all or nothing, harmless when repeated.

The hunks of the series are only call sites. The logic lives in whole files under `patches/files/`,
which are copied in beside them. A folder named for another version (`patches/b11434/`) holds those
patches that have to look different there, under the same names.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from llamacpp.pin import COMMIT, PATCHES, SetupError

APPLIED = "applied"
ALREADY = "already applied"


def series(patches: Path = PATCHES, version: str | None = None) -> list[Path]:
    """The patch files in the order that `series` lists them; `version` may replace some."""
    lines = (patches / "series").read_text().splitlines()
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if version is None:
        return [patches / name for name in names]
    own = patches / version
    return [own / name if (own / name).exists() else patches / name for name in names]


def versions(patches: Path = PATCHES) -> list[str]:
    """Versions of llama.cpp, beside the pinned one, that have patches of their own."""
    return sorted({path.parent.name for path in patches.glob("*/*.patch")})


def overlay(patches: Path = PATCHES) -> list[Path]:
    """Paths, relative to the tree, of the whole files that go in beside the hunks."""
    root = patches / "files"
    return sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())


def touched(patches: Path = PATCHES) -> list[Path]:
    """Paths, relative to the tree, of the upstream files that the hunks change."""
    return _touched(series(patches))


def _touched(order: list[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for patch in order:
        for match in re.finditer(r"^\+\+\+ b/(\S+)", patch.read_text(), re.MULTILINE):
            found[Path(match.group(1))] = None
    return list(found)


def digest(patches: Path = PATCHES) -> str:
    """One hash over the series and its files: what a build is keyed by."""
    total = hashlib.sha256()
    for path in [patches / "series", *series(patches)]:
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    for relative in overlay(patches):
        total.update(str(relative).encode() + b"\0" + (patches / "files" / relative).read_bytes())
    return total.hexdigest()


def subset(word: str, into: Path, patches: Path = PATCHES) -> Path:
    """A patches folder at `into` with only those patches whose name contains `word`."""
    chosen = [path for path in series(patches) if word in path.name]
    for path in chosen:
        shutil.copyfile(path, into / path.name)
    (into / "series").write_text("".join(f"{path.name}\n" for path in chosen))
    return into


def apply(tree: Path, patches: Path = PATCHES) -> str:
    """Bring `tree` to the patched state; returns APPLIED or ALREADY.

    Raises SetupError, with the tree unchanged, when it is not a llama.cpp tree, is another version,
    or is a git checkout with changes of the user's own.
    """
    missing = [path for path in touched(patches) if not (tree / path).is_file()]
    if missing:
        raise SetupError(f"{tree}: not the llama.cpp tree that patches/ expects: no {missing[0]}")

    undone, reverse_failure = _result(tree, patches, reverse=True)
    if undone is not None:
        _refuse_dirty(tree, patches, allowed={*touched(patches), *overlay(patches)})
        _install(tree, {}, patches)
        return ALREADY

    _refuse_dirty(tree, patches, allowed=set(overlay(patches)))
    content, failure = _result(tree, patches, reverse=False)
    if content is None and any((tree / path).exists() for path in overlay(patches)):
        raise SetupError(
            f"{tree}: was patched before and does not match patches/ any more: {reverse_failure};"
            " start from an unpatched tree"
        )
    if content is None:
        raise SetupError(
            f"{tree}: {failure}; patches/ is written for llama.cpp {COMMIT}, so this is another"
            " version or has changes of its own"
        )
    _install(tree, content, patches)
    return APPLIED


def _result(tree: Path, patches: Path, *, reverse: bool) -> tuple[dict[Path, bytes] | None, str]:
    """The touched files after a version's series; or None and why the pinned one does not fit."""
    content, failure = _tried(tree, series(patches), reverse=reverse)
    for version in versions(patches):
        if content is None:
            content, _ = _tried(tree, series(patches, version), reverse=reverse)
    return content, failure


def _tried(tree: Path, order: list[Path], *, reverse: bool) -> tuple[dict[Path, bytes] | None, str]:
    """The touched files after the patches, tried on copies; or None and why they do not fit."""
    files = _touched(order)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for path in files:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree / path, root / path)
        for patch in reversed(order) if reverse else order:
            # The ceiling keeps git from taking the scratch folder for a part of a repository above.
            result = subprocess.run(
                ["git", "apply", *(["--reverse"] if reverse else []), str(patch)],
                cwd=root,
                env={**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)},
                capture_output=True,
                text=True,
            )
            if result.returncode != 0:
                lines = result.stderr.strip().splitlines() or ["git apply failed"]
                return None, f"{patch.name} does not apply ({lines[0].removeprefix('error: ')})"
        return {path: (root / path).read_bytes() for path in files}, ""


def _refuse_dirty(tree: Path, patches: Path, allowed: set[Path]) -> None:
    if not (tree / ".git").exists():
        return
    result = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise SetupError(f"{tree}: git status failed: {result.stderr.strip()}")
    changed = [Path(line[3:]) for line in result.stdout.splitlines()]
    foreign = [path for path in changed if path not in allowed]
    if foreign:
        raise SetupError(
            f"{tree}: {len(foreign)} changed file(s), first {foreign[0]};"
            " commit or stash them, then run this again"
        )


def _install(tree: Path, content: dict[Path, bytes], patches: Path) -> None:
    wanted = dict(content)
    for relative in overlay(patches):
        wanted[relative] = (patches / "files" / relative).read_bytes()
    for relative, data in wanted.items():
        path = tree / relative
        # An unchanged file keeps its time stamp, and the build its objects.
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
