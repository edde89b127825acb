"""What a hub says is in a repository, checked: its names and hashes become paths in the cache.

Source: the hub's API, ``/api/models/{repo}/revision/{revision}?blobs=true``.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gguf_mtp.errors import FetchError, brief
from gguf_mtp.hub.verified import Expected

COMMIT = re.compile("[0-9a-f]{40}")
_HEX = re.compile("[0-9a-f]+")
_SHA1, _SHA256 = 40, 64  # digits


@dataclass(frozen=True)
class Listing:
    """A commit and what is in it; `snapshot` is set where only the cache could be asked."""

    commit: str
    files: dict[str, Expected]
    snapshot: Path | None = None


def listing(info: Any, where: str) -> Listing:
    """The files in an answer of the hub's, as its client has it. Raises FetchError, naming `where`,
    for names that lead elsewhere and for what is not a commit, size or hash."""
    _require_digest(info.sha, (_SHA1,), f"{where}: commit")
    files = {}
    for file in info.siblings or []:
        name = file.rfilename
        if not isinstance(name, str) or not _stays_within(name):
            raise FetchError(f"{where} lists {brief(name)}, which is not a path in a repository")
        files[name] = _expected(file, f"{where}: {brief(name)}")
    return Listing(info.sha, files)


def _stays_within(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return (
        not {"\0", "\\"}.intersection(name)
        and bool(parts)
        and "/".join(parts) == name
        and not {"/", ".."}.intersection(parts)
    )


def _expected(file: Any, where: str) -> Expected:
    size, blob, lfs = file.size, file.blob_id, file.lfs
    sha256 = None if lfs is None else getattr(lfs, "sha256", None)
    if size is not None and (type(size) is not int or size < 0):
        raise FetchError(f"{where}: size is {brief(size)}, expected a number of bytes")
    if blob is not None:
        _require_digest(blob, (_SHA1, _SHA256), f"{where}: blobId")
    if sha256 is not None:
        _require_digest(sha256, (_SHA256,), f"{where}: lfs.sha256")
    return Expected(size, sha256, blob)


def _require_digest(found: object, digits: tuple[int, ...], what: str) -> None:
    if not isinstance(found, str) or len(found) not in digits or not _HEX.fullmatch(found):
        expected = " or ".join(map(str, digits))
        raise FetchError(f"{what} is {brief(found)}, expected {expected} hexadecimal digits")
