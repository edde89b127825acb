"""One tokenizer for both models of a merged file: the base's is used, and of the drafter's own only
what differs is stored, so that `split` gives it back exactly.

Source: this project's format document, section "Tokenizer".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_mtp.errors import FormatError, UnsupportedError, brief
from gguf_mtp.keyvalue import (
    SCALAR_BYTES,
    SCALARS,
    KeyValue,
    ValueType,
    array,
    array_payload,
    array_with_payload,
    boolean,
)
from gguf_mtp.namespace import PREFIX, TOKENIZER

TOKENS = "tokenizer.ggml.tokens"
# What a token id means depends on these, so both tokenizers must agree on them where both have
# them. Any other key may differ: publishers set them differently for one vocabulary.
VOCABULARY_KEYS = (TOKENS, "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id")
SHARED_KEY = "mtp.tokenizer.shared"
# For each of the base's tokenizer keys, in its order: its position among the drafter's keys, or
# ABSENT where the drafter has no such key or stores one of its own.
POSITIONS_KEY = "mtp.tokenizer.positions"
ABSENT = 0xFFFFFFFF
# Where an array of the drafter's differs from the base's: `<name>.ranges` (begin and end of each
# range) and `<name>.values` (what the drafter has throughout that range).
CHANGED = "mtp.tokenizer.changed."
RANGES, VALUES = ".ranges", ".values"
# A drafter that fills in masked tokens was trained with its own mask token.
MASK = "tokenizer.ggml.mask_token_id"
CHAT_TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class Lent:
    """A drafter's keys once the base's tokenizer serves for both: `own` are those it keeps, under
    their own names, `record` what `restore` needs to give back the others."""

    own: tuple[KeyValue, ...]
    record: tuple[KeyValue, ...]


def lend(base: Sequence[KeyValue], heads: Sequence[KeyValue], where: str) -> Lent:
    """Leave out what the drafter's keys `heads` share with the keys `base`.

    Raises UnsupportedError, naming `where`, for a drafter key whose name is taken by the record.
    """
    ours = {key.name: key for key in base if key.name.startswith(TOKENIZER)}
    positions: dict[str, int] = {}
    own: list[KeyValue] = []
    changes: list[KeyValue] = []
    for position, key in enumerate(heads):
        if _is_record(PREFIX + key.name):
            raise UnsupportedError(f"{where}: key {key.name!a} has a name that merging needs")
        change = _change(ours.get(key.name), key)
        if change is None:
            own.append(key)
        else:
            positions[key.name] = position
            changes += change
    order = [positions.get(name, ABSENT) for name in ours]
    record = (boolean(SHARED_KEY, True), array(POSITIONS_KEY, ValueType.UINT32, order), *changes)
    return Lent(tuple(own), record)


def restore(
    own: Sequence[KeyValue], record: Iterable[KeyValue], base: Sequence[KeyValue], where: str
) -> tuple[KeyValue, ...]:
    """The drafter's keys as they were before `lend`; the inverse of it.

    Raises FormatError, naming `where` and the key, when the record does not fit keys and base.
    """
    stored = {key.name: key for key in record}
    stored.pop(SHARED_KEY, None)
    positions = stored.pop(POSITIONS_KEY, None)
    shared = [key for key in base if key.name.startswith(TOKENIZER)]
    if positions is None or positions.item_type is not ValueType.UINT32:
        raise FormatError(f"{where}: {POSITIONS_KEY} is missing or not an array of UINT32")
    if positions.count != len(shared):
        raise FormatError(
            f"{where}: {POSITIONS_KEY} has {positions.count} entries, "
            f"expected {len(shared)}, the base's tokenizer keys"
        )
    taken = {at: key for at, key in zip(positions.value, shared, strict=True) if at != ABSENT}
    places = {at: _changed_back(key, stored, where) for at, key in taken.items()}
    if stored:
        raise FormatError(f"{where}: {next(iter(stored))} does not belong to a shared key")
    total = len(own) + len(places)
    given = sum(at != ABSENT for at in positions.value)
    if len(places) != given or max(places, default=0) >= max(total, 1):
        raise FormatError(f"{where}: {POSITIONS_KEY} holds positions twice or past {total}")
    rest = iter(own)
    return tuple(places[at] if at in places else next(rest) for at in range(total))


def with_base_tokenizer(
    base: Sequence[KeyValue], heads: Sequence[KeyValue], where: str
) -> tuple[KeyValue, ...]:
    """The keys of a drafter's GGUF with the base's tokenizer in it and the record of its own.

    Unchanged where the drafter's tokenizer keys are the base's. Raises as `lend`.
    """
    ours = {key.name: key for key in base}
    theirs = [key for key in heads if key.name.startswith(TOKENIZER)]
    if all(_same(ours.get(key.name), key) for key in theirs):
        return tuple(heads)
    lent = lend(base, heads, where)
    masks = {key.name: key for key in theirs if key.name == MASK}
    used = [
        masks.pop(key.name, key)
        for key in base
        if key.name.startswith(TOKENIZER) and not key.name.startswith(CHAT_TEMPLATE)
    ]
    kept = (
        key.renamed(PREFIX + key.name) if key.name.startswith(TOKENIZER) else key
        for key in lent.own
    )
    return (*kept, *used, *masks.values(), *lent.record)


def without_base_tokenizer(
    heads: Sequence[KeyValue], base: Sequence[KeyValue], where: str
) -> tuple[KeyValue, ...]:
    """The inverse of `with_base_tokenizer`. Raises FormatError as `restore`."""
    if not any(key.name == POSITIONS_KEY for key in heads):
        return tuple(heads)
    rest, record = take_record(heads)
    prefix = PREFIX + TOKENIZER
    own = [
        key.renamed(key.name.removeprefix(PREFIX)) if key.name.startswith(prefix) else key
        for key in rest
        if not key.name.startswith(TOKENIZER)
    ]
    return restore(own, record, base, where)


def take_record(keys: Iterable[KeyValue]) -> tuple[list[KeyValue], list[KeyValue]]:
    """The keys without the record, and the record."""
    rest: list[KeyValue] = []
    record: list[KeyValue] = []
    for key in keys:
        (record if _is_record(key.name) else rest).append(key)
    return rest, record


def differences(base: Sequence[KeyValue], heads: Sequence[KeyValue]) -> list[str]:
    """Each tokenizer key of the drafter's that the base states otherwise, as text for people."""
    ours = {key.name: key for key in base}
    return [
        _difference(ours.get(key.name), key)
        for key in heads
        if key.name.startswith(TOKENIZER) and not same_value(ours.get(key.name), key)
    ]


def same_value(ours: KeyValue | None, theirs: KeyValue) -> bool:
    """Whether both keys say the same; numbers may be of different types."""
    if ours is None or _same(ours, theirs):
        return ours is not None
    return ours.type in SCALARS and theirs.type in SCALARS and bool(ours.value == theirs.value)


def _is_record(name: str) -> bool:
    return name in (SHARED_KEY, POSITIONS_KEY) or name.startswith(CHANGED)


def _same(ours: KeyValue | None, theirs: KeyValue) -> bool:
    return ours is not None and (ours.type, ours.raw) == (theirs.type, theirs.raw)


def _change(ours: KeyValue | None, theirs: KeyValue) -> tuple[KeyValue, ...] | None:
    """What must be stored to make `theirs` of the base's key; None where the whole key must."""
    if ours is None:
        return None
    if _same(ours, theirs):
        return ()
    if not _comparable(ours, theirs):
        return None
    differs, values = _compared(ours, theirs)
    at = np.flatnonzero(differs)
    # A range ends before a gap, or before another value.
    joins = (np.diff(at) == 1) & (values[at[1:]] == values[at[:-1]])
    starts = np.flatnonzero(np.append(True, ~joins))
    ends = np.append(starts[1:], len(at)) - 1
    if len(starts) * (8 + values.itemsize) >= values.nbytes:
        return None
    ranges = np.stack((at[starts], at[ends] + 1), axis=1).astype("<u4")
    name = CHANGED + theirs.name.removeprefix(TOKENIZER)
    kind = theirs.item_type
    assert kind is not None
    return (
        array_with_payload(name + RANGES, ValueType.UINT32, ranges.tobytes()),
        array_with_payload(name + VALUES, kind, values[at[starts]].tobytes()),
    )


def _comparable(ours: KeyValue, theirs: KeyValue) -> bool:
    """Whether both are arrays of as many numbers of one type."""
    return (
        theirs.item_type in SCALAR_BYTES
        and ours.item_type is theirs.item_type
        and ours.count == theirs.count
    )


def _compared(ours: KeyValue, theirs: KeyValue) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]:
    """Where two comparable arrays differ, bit by bit, and the drafter's items as integers."""
    first, second = _items(ours), _items(theirs)
    return first != second, second


def _items(key: KeyValue) -> npt.NDArray[Any]:
    assert key.item_type is not None
    return np.frombuffer(array_payload(key), f"<u{SCALAR_BYTES[key.item_type]}")


def _changed_back(key: KeyValue, stored: dict[str, KeyValue], where: str) -> KeyValue:
    """The base's `key` as the drafter has it; what is used of `stored` is taken out of it."""
    name = CHANGED + key.name.removeprefix(TOKENIZER)
    ranges, values = (stored.pop(name + suffix, None) for suffix in (RANGES, VALUES))
    if ranges is None and values is None:
        return key
    if (
        ranges is None
        or values is None
        or key.item_type not in SCALAR_BYTES
        or ranges.item_type is not ValueType.UINT32
        or values.item_type is not key.item_type
        or ranges.count != 2 * values.count
        or values.count == 0
    ):
        raise FormatError(
            f"{where}: {name}: expected {RANGES} (UINT32, two for each value) and {VALUES} "
            f"(the type of {key.name})"
        )
    bounds = _items(ranges).reshape(-1, 2)
    flat = bounds.reshape(-1).astype(np.int64)
    if (np.diff(flat) < 0).any() or (flat[::2] == flat[1::2]).any() or flat[-1] > key.count:
        raise FormatError(
            f"{where}: {name}{RANGES}: expected ascending ranges within {key.count} items"
        )
    items = _items(key).copy()
    for (begin, end), value in zip(bounds, _items(values), strict=True):
        items[begin:end] = value
    assert key.item_type is not None
    return array_with_payload(key.name, key.item_type, items.tobytes())


def _difference(ours: KeyValue | None, theirs: KeyValue) -> str:
    name = theirs.name.removeprefix(TOKENIZER).removeprefix("ggml.")
    if ours is None:
        return f"{name} (only in the heads)"
    if _comparable(ours, theirs):
        differs, _ = _compared(ours, theirs)
        at = int(np.flatnonzero(differs)[0])
        n_differing = int(differs.sum())
        return (
            f"{name} ({n_differing} of {theirs.count}, first at {at}: "
            f"base {ours.value[at]!a}, heads {theirs.value[at]!a})"
        )
    if ValueType.ARRAY in (ours.type, theirs.type) or theirs.name.startswith(CHAT_TEMPLATE):
        return name
    return f"{name} (base {brief(ours.value)}, heads {brief(theirs.value)})"
