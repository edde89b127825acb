"""Files are read strictly before llama.cpp gets them, which ends the process where some lie."""

from pathlib import Path

from gguf_mtp.base import base_from_gguf
from gguf_mtp.drafters.drafter import ARCH as DRAFTER_ARCH
from gguf_mtp.drafters.drafter import drafter_from_half
from gguf_mtp.gemma4.shape import read_shape
from gguf_mtp.gemma4.target import ARCH as BASE_ARCH
from gguf_mtp.merged import separate
from gguf_mtp.model import half_from_gguf
from gguf_mtp.namespace import is_merged
from gguf_mtp.readers.gguf import GgufFile
from gguf_mtp.readers.parts import read_gguf_parts
from gguf_mtp.tail import read_tail


def require_sound(path: Path) -> None:
    """Check what the headers of a model file say: a merged file of either layout, a base or heads.

    No weights are read. Of another architecture only the form is checked. Raises FormatError,
    PairingError or UnsupportedError.
    """
    tail = read_tail(path)
    if tail is None:
        _check(read_gguf_parts(path))
    else:
        _check(tail.base)
        _check(tail.heads, drafts=True)


def _check(file: GgufFile, *, drafts: bool = False) -> None:
    if is_merged(file):
        separate(file)
        return
    half = half_from_gguf(file)
    arch = half.value("general.architecture")
    if arch == BASE_ARCH and not drafts:
        # Heads that another program has embedded are that program's.
        read_shape(base_from_gguf(file, drop_overlay=True), BASE_ARCH)
    elif arch == DRAFTER_ARCH:
        drafter_from_half(half)
