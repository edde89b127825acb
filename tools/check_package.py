#!/usr/bin/env python3
"""Build wheel and sdist from the tracked files; check their contents. Exit: 0, 1 wrong, 2 failed.

python tools/check_package.py [--out dist]
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
# What a source release is no use without.
SDIST = (
    "Makefile",
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "patches/cpu/series",
    "patches/mtp/series",
    "tools/patch_llamacpp.py",
    "tests/conftest.py",
    "tests/fixtures/gemma4-tiny/target/model.safetensors",
    "docs/format.md",
)
JUNK = re.compile(r"(^|/)(__pycache__|\.venv|build|\.git|\.mypy_cache|\.ruff_cache)(/|$)|\.pyc$")


def tracked() -> list[str]:
    """Names of the files under version control that are there."""
    command = ["git", "-C", str(REPO), "ls-files", "-z"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [name for name in names.split("\0") if name and (REPO / name).exists()]


def build(out: Path) -> tuple[Path, Path]:
    """Build in a copy of the tracked files, so that nothing else can get in; wheel and sdist."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "tree"
        for name in tracked():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, copy / name)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"building failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def version() -> str:
    """The version, from the one place that has it."""
    text = (REPO / "gguf_mtp" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.M)
    if match is None:
        raise RuntimeError("gguf_mtp/__init__.py: no __version__")
    return match[1]


def findings(wheel: Path, sdist: Path) -> list[str]:
    """What is wrong with the two files; nothing where all is well."""
    found = []
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in tracked() if name.startswith("gguf_mtp/")}
    inside = {name for name in names if name.startswith("gguf_mtp/")}
    meta = f"gguf_mtp-{version()}.dist-info/"
    found += [f"wheel: {name} is missing" for name in sorted(package - inside)]
    found += [f"wheel: {name} is not tracked" for name in sorted(inside - package)]
    found += [
        f"wheel: {name} does not belong there"
        for name in sorted(names - inside)
        if not name.startswith(meta)
    ]
    with tarfile.open(sdist) as tar:
        members = {name.partition("/")[2] for name in tar.getnames()}
    found += [f"sdist: {name} is missing" for name in (*SDIST, *package) if name not in members]
    found += [f"sdist: {name} does not belong there" for name in members if JUNK.search(name)]
    if sdist.name != f"gguf_mtp-{version()}.tar.gz":
        found.append(f"sdist: is called {sdist.name}, expected version {version()}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="keep the built files there")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        try:
            wheel, sdist = build(out)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        wrong = findings(wheel, sdist)
        for line in wrong:
            print(line)
        if not wrong:
            print(
                f"{wheel.name} ({wheel.stat().st_size:,}), {sdist.name} ({sdist.stat().st_size:,})"
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
