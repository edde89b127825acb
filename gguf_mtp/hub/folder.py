"""A local folder given as a base, heads or a package: which file in it is meant.

The choice is that of `choose`, as for a repository. Source of the cache's layout: huggingface_hub's
guide "Understand caching".
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf_mtp.errors import UnsupportedError
from gguf_mtp.hub.choose import CHECKPOINT, PACKAGE, ROLES, Place, choose, listed
from gguf_mtp.hub.origin import hub_origin, is_repository_folder
from gguf_mtp.hub.select import CONFIG
from gguf_mtp.readers.checkpoint import INDEX

ADAPTER = "adapter_config.json"
MAX_COMMIT = 200


@dataclass(frozen=True)
class Found:
    """A path, and what of the source it is where that had to be chosen."""

    path: Path
    chosen: str = ""


def in_folder(path: Path, role: str) -> Found:
    """The file in the folder `path` that has the `role`.

    Files, checkpoints and folders of loose safetensors stay as they are. A repository's folder in
    the hub's cache is its snapshot. Raises UnsupportedError where no file, or more than one,
    will do, and where the folder cannot be read.
    """
    if not path.is_dir():
        return Found(path)
    folder = _snapshot(path) if is_repository_folder(path) else path
    names = _names(folder)
    found = folder if _stays(names, role) else folder / choose(_place(folder), names, role)[0]
    return Found(found, "" if found == path else found.relative_to(path).as_posix())


def _place(folder: Path) -> Place:
    """A repository's name may say that all of it are drafters. That of any other folder does not
    count: a base in a folder called mtp is still a base."""
    origin = hub_origin(folder)
    name = "" if origin is None else origin.repo.rpartition("/")[2]
    return Place(str(folder), name, UnsupportedError)


def _stays(names: list[str], role: str) -> bool:
    """Whether the folder itself is read (or what is wrong with it is said) by other modules."""
    if role == CHECKPOINT:
        return True
    if role == PACKAGE:
        return False
    if any(name in (INDEX, ADAPTER) or name.endswith(".safetensors") for name in names):
        return True
    endings = tuple(ending for wanted in ROLES[role] for ending in wanted.endings)
    return CONFIG in names and not any(name.lower().endswith(endings) for name in names)


def _names(folder: Path) -> list[str]:
    """The files in `folder` and in the folders directly in it, as a repository would list them.

    Not those that are hidden, which download tools make, nor safetensors in inner folders: those
    are models of their own.
    """
    try:
        top = list(_shown(folder.iterdir()))
    except OSError as error:
        raise UnsupportedError(f"{folder}: cannot open: {error.strerror}") from None
    deeper = (path for inner in top if inner.is_dir() for path in _shown(inner.glob("*")))
    files = [path for path in top if path.is_file()]
    files += [path for path in deeper if path.suffix != ".safetensors" and path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _shown(paths: Iterable[Path]) -> Iterator[Path]:
    return (path for path in paths if not path.name.startswith("."))


def _snapshot(path: Path) -> Path:
    """The directory ``snapshots/<commit>`` of a repository in the cache: of its main branch, or
    the only one there is. Raises UnsupportedError."""
    snapshots = path / "snapshots"
    commits = sorted(item.name for item in snapshots.glob("*") if item.is_dir())
    main = _main(path)
    if main in commits:
        return snapshots / main
    if len(commits) == 1:
        return snapshots / commits[0]
    if not commits:
        raise UnsupportedError(f"{path}: holds no snapshots/COMMIT; download the repository again")
    raise UnsupportedError(
        f"{path}: refs/main names none of the {len(commits)} snapshots; name one, as in "
        f"{snapshots / commits[0]}; found: {listed(commits)}"
    )


def _main(path: Path) -> str:
    try:
        with (path / "refs" / "main").open("rb") as file:
            return os.fsdecode(file.read(MAX_COMMIT)).strip()
    except OSError:
        return ""
