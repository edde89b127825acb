"""The tail layout: a base's own bytes, then a complete drafter GGUF that any llama.cpp can load.

The drafter is the one that `split` writes, with the base's tokenizer where its own differs, and
with two keys that mark it. Source: this project's format document, layout "tail", version 1.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_mtp.drafters.dialects import UPSTREAM
from gguf_mtp.drafters.sources import Heads, heads_from_gguf
from gguf_mtp.drafters.translate import in_dialect
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.gemma4.shape import read_shape
from gguf_mtp.gemma4.target import ARCH as BASE_ARCH
from gguf_mtp.keyvalue import string, u32
from gguf_mtp.merge.tokenizer import with_base_tokenizer, without_base_tokenizer
from gguf_mtp.merged import Merged, check_and_describe
from gguf_mtp.model import Half
from gguf_mtp.namespace import LAYOUT_KEY, VERSION, VERSION_KEY
from gguf_mtp.pairing import check_pair
from gguf_mtp.readers.gguf import GgufFile, read_gguf
from gguf_mtp.readers.parts import require_whole
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.readers.tail import Footer, read_footer, require_complete

TAIL = "tail"
MARKS = (VERSION_KEY, LAYOUT_KEY)


@dataclass(frozen=True)
class TailFile:
    """The two GGUFs in a tail file; `heads` has its marks taken off."""

    footer: Footer
    base: GgufFile
    heads: GgufFile


def tail_heads(base: Half, found: Heads, *, hash_base: bool = False) -> Merged:
    """Check that the two belong together; the drafter GGUF that goes behind the base.

    Raises PairingError, FormatError or UnsupportedError.
    """
    provenance, notes = check_and_describe(base, found, hash_base=hash_base)
    half = in_dialect(found.drafter, UPSTREAM)
    keys = with_base_tokenizer(base.keys, half.keys, half.origin)
    marks = (u32(VERSION_KEY, VERSION), string(LAYOUT_KEY, TAIL))
    return Merged((*keys, *provenance, *marks), half.tensors, notes)


def read_tail(path: Path) -> TailFile | None:
    """Both headers of a tail file, None where `path` has no footer.

    Raises FormatError (an interrupted attach among others) and UnsupportedError.
    """
    footer = read_footer(path)
    if footer is None:
        return None
    require_complete(path, footer)
    base = read_gguf(path, window=footer.base_window)
    require_whole(base)
    heads = read_gguf(path, window=footer.heads_window)
    version, layout = (key and key.value for key in map(heads.by_name.get, MARKS))
    if (version, layout) != (VERSION, TAIL):
        raise UnsupportedError(
            f"{path}: heads of format {version!a}, layout {layout!a}; expected {VERSION}, {TAIL!a}"
        )
    keys = tuple(key for key in heads.keys if key.name not in MARKS)
    return TailFile(footer, base, replace(heads, keys=keys))


def heads_in_tail(tail: TailFile, base: Half) -> Heads:
    """The heads as they were before they were attached, checked against digest and `base`."""
    _check_digest(tail)
    keys = without_base_tokenizer(tail.heads.keys, base.keys, str(tail.heads.path))
    found = heads_from_gguf(replace(tail.heads, keys=keys), base)
    check_pair(base, read_shape(base, BASE_ARCH), found.drafter)
    return found


def _check_digest(tail: TailFile) -> None:
    digest = hashlib.sha256()
    with SourceFile(tail.heads.path, tail.footer.heads_window) as source:
        for data in source.pieces():
            digest.update(data)
    if digest.digest() != tail.footer.sha256:
        raise FormatError(
            f"{tail.heads.path}: SHA-256 of the heads is {digest.hexdigest()}, "
            f"the footer says {tail.footer.sha256.hex()}: damaged"
        )
