"""The SHA-256 of a file, for what is told of it; copying makes its own on the way (`pipeline`)."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from gguf_mtp.readers.source import SourceFile


def file_sha256(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Return it in hexadecimal. `advance` is called with the bytes of each block read.

    Raises FormatError where the file cannot be read or is changing.
    """
    digest = hashlib.sha256()
    with SourceFile(path) as file:
        for data in file.pieces():
            digest.update(data)
            if advance:
                advance(len(data))
    return digest.hexdigest()
