"""What a path inside the hub's cache says: ``models--owner--repo/snapshots/<commit>/…``.

Source: huggingface_hub's guide "Understand caching".
"""

import re
from dataclasses import dataclass
from pathlib import Path

from gguf_mtp.readers.source import name_as_text

_FOLDER = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubOrigin:
    """A repository and the commit of it."""

    repo: str
    commit: str


def hub_origin(path: Path) -> HubOrigin | None:
    """The repository that the hub's client put `path` from, None for any other place."""
    parts = path.absolute().parts
    for at in range(len(parts) - 3, -1, -1):
        match = _FOLDER.fullmatch(parts[at])
        if match and parts[at + 1] == "snapshots" and _COMMIT.fullmatch(parts[at + 2]):
            return HubOrigin(f"{match['owner']}/{match['name']}", parts[at + 2])
    return None


def is_repository_folder(path: Path) -> bool:
    """Whether `path` is where the hub's cache keeps one repository, with all its snapshots."""
    return _FOLDER.fullmatch(path.absolute().name) is not None and (path / "snapshots").is_dir()


def model_name(path: Path) -> str:
    """The name of a model's file or directory; a snapshot in the cache has its repository's."""
    path = path.absolute()
    origin = hub_origin(path)
    if origin is not None and path.name == origin.commit:
        return origin.repo.rpartition("/")[2]
    return name_as_text(path)
