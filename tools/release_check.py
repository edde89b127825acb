#!/usr/bin/env python3
"""The release checklist, each point checked. Exit codes: 0 all done, 1 something is not.

python tools/release_check.py             # minutes: builds, installs, lints, tests
python tools/release_check.py --quick     # without lint and tests
"""

import argparse
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

import check_package
import cli_reference

REPO = check_package.REPO
FIXTURE = REPO / "tests" / "fixtures" / "gemma4-tiny"


def clean_tree() -> str:
    status = _output("git", "-C", str(REPO), "status", "--porcelain")
    return f"not committed: {status.splitlines()[0]}" if status else ""


def changelog() -> str:
    """The newest heading is this version, with a date."""
    lines = (REPO / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    newest = next((line for line in lines if line.startswith("## ")), "")
    if not newest.startswith(f"## {check_package.version()} ("):
        return f"CHANGELOG.md begins with {newest!r}, the version is {check_package.version()}"
    return "CHANGELOG.md: no date yet" if "unreleased" in newest else ""


def tag_is_free() -> str:
    tag = f"v{check_package.version()}"
    return f"{tag} exists" if _output("git", "-C", str(REPO), "tag", "--list", tag) else ""


def reference() -> str:
    return "docs/cli.md is stale" if cli_reference.run(["--check"]) else ""


def package_and_install() -> str:
    """What `pipx run` does: the wheel in an environment of its own, run from elsewhere."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        wheel, sdist = check_package.build(place / "dist")
        wrong = check_package.findings(wheel, sdist)
        if wrong:
            return wrong[0]
        venv.create(place / "venv", with_pip=True)
        scripts = place / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        _run(str(scripts / "python"), "-m", "pip", "install", "--quiet", str(wheel), cwd=place)
        program = str(scripts / "gguf-mtp")
        if check_package.version() not in _output(program, "--version", cwd=place):
            return "gguf-mtp --version says something else"
        pair = ("--base", str(FIXTURE / "target"), "--heads", str(FIXTURE / "drafter"))
        _run(program, "convert", *pair, "-o", "merged.gguf", "--quiet", cwd=place)
        _run(program, "inspect", "merged.gguf", cwd=place)
    return ""


def lint() -> str:
    _run("make", "lint", cwd=REPO)
    return ""


def tests() -> str:
    _run("make", "test", cwd=REPO)
    return ""


QUICK: dict[str, Callable[[], str]] = {
    "everything is committed": clean_tree,
    "the changelog has this version and its date": changelog,
    "the tag is free": tag_is_free,
    "the command line reference is up to date": reference,
    "wheel and sdist are complete; the wheel installs and converts": package_and_install,
}
SLOW: dict[str, Callable[[], str]] = {"lint": lint, "tests": tests}


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def _output(*command: str, cwd: Path | None = None) -> str:
    return _run(*command, cwd=cwd).strip()


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without lint and tests")
    options = parser.parse_args(argv)
    failed = 0
    for name, check in (QUICK if options.quick else QUICK | SLOW).items():
        try:
            wrong = check()
        except (OSError, RuntimeError) as error:
            wrong = str(error)
        print(f"{'FAIL' if wrong else 'ok':5} {name}{f': {wrong}' if wrong else ''}", flush=True)
        failed += bool(wrong)
    if not failed:
        print(f"next: git tag v{check_package.version()}, push it, twine upload what was built")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
