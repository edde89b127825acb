"""Comparing a fetched file with the size and hash that the hub states.

What was compared once is remembered by size and time of change, as hashing 16 GB takes a while.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from gguf_mtp.errors import FetchError

BLOCK = 1 << 20


@dataclass(frozen=True)
class Expected:
    """What the hub says of a file, as far as it says it: bytes, the SHA-256 of one in its large
    storage, and the git blob id (for such a file that of a pointer)."""

    size: int | None = None
    sha256: str | None = None
    blob_id: str | None = None


def check(path: Path, expected: Expected, name: str) -> None:
    """Raise FetchError unless `path` is as `expected`; what is not is taken out of the cache."""
    blob = path.resolve()
    status = blob.stat()
    if expected.size is not None and status.st_size != expected.size:
        _discard(path, blob, f"{name}: {status.st_size} bytes arrived, expected {expected.size}")
    kind, wanted = ("sha256", expected.sha256) if expected.sha256 else ("git", expected.blob_id)
    if wanted is None:
        return
    stamp = f"{blob} {status.st_size} {status.st_mtime_ns}"
    note = _notes() / hashlib.sha256(f"{wanted} {blob}".encode()).hexdigest()
    if note.exists() and note.read_text("utf-8") == stamp:
        return
    if kind == "sha256":
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {status.st_size}\0".encode(), usedforsecurity=False)
    with blob.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != wanted:
        _discard(path, blob, f"{name}: {kind} is {digest.hexdigest()}, the hub says {wanted}")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(stamp, "utf-8")


def _discard(path: Path, blob: Path, message: str) -> None:
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    raise FetchError(f"{message}; it was removed, run this again to download it again")


def _notes() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "gguf-mtp" / "hub"
