"""The names under which heads live in a GGUF, and what marks a file that has them.

Source: this project's format document, format version 1.
"""

from gguf_mtp.readers.gguf import GgufFile

PREFIX = "mtp."
VERSION_KEY = "mtp.format.version"
VERSION = 1
LAYOUT_KEY = "mtp.format.layout"
TOKENIZER = "tokenizer."


def is_merged(file: GgufFile) -> bool:
    """Whether `file` is a base with heads in it, of any format version or layout."""
    return VERSION_KEY in file.by_name and any(ref.name.startswith(PREFIX) for ref in file.tensors)
