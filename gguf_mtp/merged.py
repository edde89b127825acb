"""The `mtp.` namespace: a drafter's keys and tensors within a base's GGUF, and back out of it.

Source: this project's format document, layout "inline", format version 1.
"""

from dataclasses import dataclass, replace

from gguf_mtp.drafters.dialects import UPSTREAM, Dialect
from gguf_mtp.drafters.drafter import Drafter, drafter_from_half
from gguf_mtp.drafters.sources import Heads
from gguf_mtp.drafters.translate import in_dialect
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.gemma4.shape import read_shape
from gguf_mtp.gemma4.target import ARCH as BASE_ARCH
from gguf_mtp.keyvalue import KeyValue, boolean, string, u32
from gguf_mtp.merge.tokenizer import lend, restore, take_record
from gguf_mtp.model import Half, Tensor, half_from_gguf
from gguf_mtp.namespace import (
    LAYOUT_KEY,
    PREFIX,
    VERSION,
    VERSION_KEY,
)
from gguf_mtp.notes import Note
from gguf_mtp.pairing import check_pair, pair_notes
from gguf_mtp.provenance import SOURCE, TARGET, Digests, check_target, describe
from gguf_mtp.readers.gguf import MAX_NAME_BYTES, GgufFile, stated_alignment

INLINE = "inline"
EMBEDDING = "token_embd.weight"
ROWS_SORTED_KEY = "mtp.gemma4-assistant.masked_embd.rows_sorted"
OWN_KEYS = (VERSION_KEY, LAYOUT_KEY, ROWS_SORTED_KEY)


@dataclass(frozen=True)
class Merged:
    """The whole content of a merged file, in order, and what to tell the user about it."""

    keys: tuple[KeyValue | Digests, ...]
    tensors: tuple[Tensor, ...]
    notes: tuple[Note, ...] = ()


def join(base: Half, found: Heads, *, hash_base: bool = False) -> Merged:
    """Check that the two belong together and lay one into the other's namespace.

    Provenance that `found` carries from an earlier conversion is kept, else it is described afresh.
    Raises PairingError, FormatError or UnsupportedError.
    """
    provenance, notes = check_and_describe(base, found, hash_base=hash_base)
    drafter, heads = found.drafter, found.drafter.half
    lent = lend(base.keys, heads.keys, heads.origin)
    keys = [
        *base.keys,
        u32(VERSION_KEY, VERSION),
        string(LAYOUT_KEY, INLINE),
        *(key.renamed(PREFIX + key.name) for key in lent.own),
    ]
    if _sorts_rows(drafter):
        keys.append(boolean(ROWS_SORTED_KEY, True))
    keys += lent.record
    tensors = [_into_namespace(tensor, drafter, heads.origin) for tensor in heads.tensors]
    return Merged((*keys, *provenance), (*base.tensors, *tensors), notes)


def check_and_describe(
    base: Half, found: Heads, *, hash_base: bool
) -> tuple[tuple[KeyValue | Digests, ...], tuple[Note, ...]]:
    """Check that the two belong together; the provenance that `found` carries, or a fresh one, and
    what to tell the user."""
    base_shape = read_shape(base, BASE_ARCH)
    heads = found.drafter.half
    check_target(found.carried, base, base_shape, heads)
    check_pair(base, base_shape, found.drafter)
    ordered = found.drafter.ordered is not None
    notes = (
        *base.notes,
        *heads.notes,
        *found.notes,
        *pair_notes(base, heads, found.carried, ordered=ordered),
    )
    fresh = describe(base, base_shape, heads, found.facts, hash_base=hash_base)
    return found.carried or fresh, notes


def _into_namespace(tensor: Tensor, drafter: Drafter, origin: str) -> Tensor:
    name = PREFIX + tensor.name
    if len(name.encode()) > MAX_NAME_BYTES:
        raise UnsupportedError(
            f"{origin}: tensor {tensor.name} has a name of {len(tensor.name.encode())} bytes, "
            f"at most {MAX_NAME_BYTES - len(PREFIX)} fit behind {PREFIX!r}"
        )
    if tensor.name == EMBEDDING and drafter.ordered is not None and _sorts_rows(drafter):
        return replace(tensor, name=name, rows=drafter.ordered.sorted_positions)
    return replace(tensor, name=name)


def _sorts_rows(drafter: Drafter) -> bool:
    """Whether the embedding's rows go sorted by centroid into the file; the loader sorts others."""
    if drafter.ordered is None:
        return False
    return drafter.half.tensor_by_name[EMBEDDING].type.is_known


def separate(file: GgufFile, dialect: Dialect = UPSTREAM) -> tuple[Half, Half]:
    """The base and the heads of a merged file, each as the GGUF that `split` writes.

    The heads' rows are in token order, their names `dialect`'s.
    Raises FormatError when the file is not merged or its parts do not fit together.
    """
    if VERSION_KEY not in file.by_name:
        raise FormatError(f"{file.path}: no {VERSION_KEY}: not a merged file, which convert makes")
    version, layout = (_plain(file, name) for name in (VERSION_KEY, LAYOUT_KEY))
    if version != VERSION or layout != INLINE:
        raise UnsupportedError(
            f"{file.path}: format {version!a}, layout {layout!a}; expected {VERSION}, {INLINE!a}"
        )
    whole = half_from_gguf(file)
    base = replace(
        whole,
        keys=tuple(key for key in whole.keys if not key.name.startswith(PREFIX)),
        tensors=tuple(item for item in whole.tensors if not item.name.startswith(PREFIX)),
    )
    drafter, provenance = _drafter_of(file, whole, base)
    check_pair(base, read_shape(base, BASE_ARCH), drafter)
    heads = in_dialect(drafter, dialect)
    return base, replace(heads, keys=(*heads.keys, *provenance))


def _plain(file: GgufFile, name: str) -> object:
    key = file.by_name.get(name)
    return None if key is None else key.value


def _drafter_of(file: GgufFile, whole: Half, base: Half) -> tuple[Drafter, tuple[KeyValue, ...]]:
    rest, record = take_record(key for key in whole.keys if key.name.startswith(PREFIX))
    own, provenance = [], []
    for key in rest:
        if key.name.startswith((SOURCE, TARGET)):
            provenance.append(key)
        elif key.name not in OWN_KEYS:
            own.append(key.renamed(key.name.removeprefix(PREFIX)))
    keys = restore(own, record, base.keys, str(file.path))
    stated_alignment(keys, f"{file.path}: heads")
    tensors = tuple(
        replace(item, name=item.name.removeprefix(PREFIX))
        for item in whole.tensors
        if item.name.startswith(PREFIX)
    )
    drafter = drafter_from_half(replace(whole, keys=keys, tensors=tensors))
    is_sorted = _plain(file, ROWS_SORTED_KEY)
    if is_sorted not in (None, drafter.ordered is not None):
        raise FormatError(f"{file.path}: {ROWS_SORTED_KEY} is {is_sorted!a} without ordered head")
    if drafter.ordered is None or not is_sorted:
        return drafter, tuple(provenance)
    canonical = tuple(
        replace(item, rows=drafter.ordered.ordering) if item.name == EMBEDDING else item
        for item in drafter.half.tensors
    )
    return replace(drafter, half=replace(drafter.half, tensors=canonical)), tuple(provenance)
