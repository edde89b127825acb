"""The tools and packages there are: one `Check` each."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gguf_mtp import __version__, system

OK, WARN, MISSING = "ok", "warn", "missing"
SECONDS = 10


@dataclass(frozen=True)
class Check:
    """One line: `state` is ok, warn (works without) or missing, `next` is what to do about it."""

    name: str
    state: str
    text: str
    next: str = ""


@dataclass(frozen=True)
class Program:
    """A program that building llama.cpp takes, by the names it may have."""

    name: str
    commands: tuple[str, ...]
    debian: str
    macos: str
    windows: str
    optional: str = ""


_XCODE = "xcode-select --install"
_BUILD_TOOLS = "winget install Microsoft.VisualStudio.2022.BuildTools"
PROGRAMS = (
    Program("compiler", ("c++", "g++", "clang++", "cl"), "apt install g++", _XCODE, _BUILD_TOOLS),
    Program(
        "cmake",
        ("cmake",),
        "apt install cmake",
        "brew install cmake",
        "winget install Kitware.CMake",
    ),
    Program(
        "make",
        ("make", "gmake"),
        "apt install make",
        _XCODE,
        "winget install ezwinports.make",
        "what the Makefile shortens" if system.WINDOWS else "",
    ),
    Program("git", ("git",), "apt install git", _XCODE, "winget install Git.Git"),
    Program(
        "ccache",
        ("ccache",),
        "apt install ccache",
        "brew install ccache",
        "winget install Ccache.Ccache",
        "faster rebuilds",
    ),
)


def program(row: Program) -> Check:
    """Whether a program is there, and the first line of what it says of its version."""
    names = (os.environ.get("CXX", ""), *row.commands) if row.name == "compiler" else row.commands
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        what = _how_to_install(row)
        state = WARN if row.optional else MISSING
        why = f"; only for {row.optional}" if row.optional else ""
        return Check(row.name, state, f"not found{why}", what)
    line = first_line([found, "--version"])
    return Check(row.name, OK, _short(line) or Path(found).name)


def _how_to_install(row: Program) -> str:
    if system.WINDOWS:
        return row.windows
    if sys.platform == "darwin":
        return row.macos
    if os.path.exists("/etc/debian_version"):
        return row.debian
    return "install it with your system's packages"


def first_line(command: list[str]) -> str:
    """The first line that `command` prints; nothing where it fails."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else ""


def _short(line: str) -> str:
    """A version line without what it repeats: ``c++ (Debian 12.2.0-14) 12.2.0``."""
    return re.sub(r"\((.{0,40}?)[^()]*\)", r"(\1)", line)[:60] if len(line) > 60 else line


def versions() -> Check:
    on = f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}"
    return Check("gguf-mtp", OK, f"{__version__}, Python {platform.python_version()}, {on}")


def package(name: str, module: str, extra: str, purpose: str, *, required: bool) -> Check:
    """An optional dependency: there, there in another version than asked for, or not."""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        state = MISSING if required else WARN
        return Check(module, state, f"not installed; {purpose}", f"pip install 'gguf-mtp[{extra}]'")
    pinned = _pinned(name)
    if pinned is not None and pinned != found:
        text = f"{name} {found}, but the patched llama.cpp goes with {pinned}"
        return Check(module, WARN, text, f"pip install 'gguf-mtp[{extra}]'")
    return Check(module, OK, f"{name} {found}")


def _pinned(name: str) -> str | None:
    """The one version that this package asks for, None where it leaves a choice."""
    try:
        wanted = importlib.metadata.requires("gguf-mtp") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (re.match(rf"{re.escape(name)}==([\w.]+)", line) for line in wanted)
    return next((match[1] for match in found if match), None)
