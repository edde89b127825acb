"""How a repository, or a file in one, is written: ``hf://owner/repo@revision/file``.

The grammar is that of huggingface_hub's ``HfFileSystem`` paths for models. ``owner/repo`` and
``owner/repo@revision`` do without the scheme.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote

from gguf_mtp.errors import UnsupportedError

SCHEME = "hf://"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
# Slashes in a revision are %2F, but for the names that the hub itself gives.
_REVISION = r"refs/(?:pr|convert)/[^/@]+|[^/@]+"
_WHOLE = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>{_REVISION}))?(?:/(?P<file>.+))?")
# What ends like this is a file that does not exist, not a repository.
_FILES = (".gguf", ".safetensors", ".litertlm", ".tflite", ".json", ".npz")


@dataclass(frozen=True)
class Reference:
    """A repository at a revision (None: its main branch), or one file in it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{revision}{f'/{self.file}' if self.file else ''}"


def parse(source: str) -> Reference | None:
    """What `source` names on the hub; None for what can only be a local path.

    Raises UnsupportedError for a malformed ``hf://``.
    """
    explicit = source.startswith(SCHEME)
    match = _WHOLE.fullmatch(source.removeprefix(SCHEME).rstrip("/") if explicit else source)
    if match is not None and (explicit or _is_bare_name(match)):
        revision = match["revision"]
        return Reference(match["repo"], unquote(revision) if revision else None, match["file"])
    if explicit:
        raise UnsupportedError(f"{source}: expected hf://owner/repo[@revision][/file]")
    return None


def _is_bare_name(match: re.Match[str]) -> bool:
    return match["file"] is None and not match["repo"].lower().endswith(_FILES)
