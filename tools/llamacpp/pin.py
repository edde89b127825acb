"""The llama.cpp version that `patches/` is written for, and where its files are kept."""

import json
import os
from pathlib import Path

# The copy inside this source package: its ctypes structs match the library we build from it.
PACKAGE = "llama-cpp-python"
PACKAGE_VERSION = "0.3.36"
SDIST = f"llama_cpp_python-{PACKAGE_VERSION}.tar.gz"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SDIST_TREE = f"llama_cpp_python-{PACKAGE_VERSION}/vendor/llama.cpp"
COMMIT = "0c1e57098"

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
