"""Apply `patches/` to a llama.cpp tree: no fuzz, all or nothing, harmless when repeated.

There are two series, `patches/cpu/` and `patches/mtp/`. They change different files, and either
applies without the other. Functions here take the folder of one series or that of both.

The hunks of a series are only call sites. The logic lives in whole files under its `files/`, which
are copied into the tree. A folder named for another version (`patches/mtp/b11434/`) holds those
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

# The series, in the order in which they are applied.
FOLDERS = ("cpu", "mtp")


def folders(patches: Path = PATCHES) -> list[Path]:
    """The folders of the series in `patches`, which may be one itself."""
    if (patches / "series").exists():
        return [patches]
    return [patches / name for name in FOLDERS]


def series(patches: Path = PATCHES, version: str | None = None) -> list[Path]:
    """The patch files in the order that `series` lists them; `version` may replace some."""
    return [path for folder in folders(patches) for path in _listed(folder, version)]


def _listed(patches: Path, version: str | None) -> list[Path]:
    lines = (patches / "series").read_text().splitlines()
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if version is None:
        return [patches / name for name in names]
    own = patches / version
    return [own / name if (own / name).exists() else patches / name for name in names]


def versions(patches: Path = PATCHES) -> list[str]:
    """Versions of llama.cpp, besides the pinned one, that have patches of their own."""
    found = (path for folder in folders(patches) for path in folder.glob("*/*.patch"))
    return sorted({path.parent.name for path in found})


def overlay(patches: Path = PATCHES) -> dict[Path, Path]:
    """The whole files that are copied in: where they are, by path relative to the tree."""
    found = {}
    for folder in folders(patches):
        root = folder / "files"
        found.update({p.relative_to(root): p for p in sorted(root.rglob("*")) if p.is_file()})
    return found


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
    for folder in folders(patches):
        for path in [folder / "series", *series(folder)]:
            total.update(path.name.encode() + b"\0" + path.read_bytes())
    for relative, path in overlay(patches).items():
        total.update(str(relative).encode() + b"\0" + path.read_bytes())
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

    content: dict[Path, bytes] = {}
    allowed = set(overlay(patches))  # changed files of a checkout that are our own work
    for folder in folders(patches):
        undone, reverse_failure = _result(tree, folder, reverse=True)
        if undone is not None:
            allowed.update(touched(folder))
            continue
        changed, failure = _result(tree, folder, reverse=False)
        if changed is None:
            _refuse_dirty(tree, allowed)
            raise SetupError(_misfit(tree, folder, failure, reverse_failure))
        content.update(changed)
    _refuse_dirty(tree, allowed)
    _install(tree, content, patches)
    return APPLIED if content else ALREADY


def _misfit(tree: Path, patches: Path, failure: str, reverse_failure: str) -> str:
    if any((tree / path).exists() for path in overlay(patches)):
        return (
            f"{tree}: was patched before and does not match patches/ any more: {reverse_failure};"
            " start from an unpatched tree"
        )
    return (
        f"{tree}: {failure}; patches/ is written for llama.cpp {COMMIT}, so this is another"
        " version or has changes of its own"
    )


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
                name = f"{patch.parent.name}/{patch.name}"
                return None, f"{name} does not apply ({lines[0].removeprefix('error: ')})"
        return {path: (root / path).read_bytes() for path in files}, ""


def _refuse_dirty(tree: Path, allowed: set[Path]) -> None:
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
    wanted.update({relative: path.read_bytes() for relative, path in overlay(patches).items()})
    for relative, data in wanted.items():
        path = tree / relative
        # An unchanged file keeps its time stamp, and the build its objects.
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
