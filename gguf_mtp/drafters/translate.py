"""From a dialect to upstream's keys and tensors, and back, as the rows of `dialects` say."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gguf_mtp.drafters.carried import carry
from gguf_mtp.drafters.dialects import (
    COUNT,
    DIALECTS,
    TARGET_ARCH,
    UPSTREAM,
    Dialect,
    Key,
)
from gguf_mtp.drafters.drafter import Drafter
from gguf_mtp.drafters.families import MTP
from gguf_mtp.drafters.ordered_head import (
    CENTROIDS,
    NAMES,
    ORDERING,
    decode_ordering,
    encode_ordering,
)
from gguf_mtp.encode import encoded_tensor
from gguf_mtp.errors import FormatError, PairingError, UnsupportedError
from gguf_mtp.gemma4.target import ARCH as BASE_ARCH
from gguf_mtp.keyvalue import KeyValue, boolean, string
from gguf_mtp.model import Half, Tensor
from gguf_mtp.namespace import TOKENIZER
from gguf_mtp.unique import first_repeated

ARCHITECTURE = "general.architecture"
LAYER = re.compile(r"\bblk\.(\d+)\.")


def dialect_of(half: Half) -> Dialect | None:
    """The dialect of MTP heads that `half` is in, None where it is in none."""
    arch = half.value(ARCHITECTURE)
    for dialect in DIALECTS:
        if dialect.arch == arch and _is_marked(half, dialect):
            return dialect
    return None


def _is_marked(half: Half, dialect: Dialect) -> bool:
    return not dialect.marks or any(
        mark in half.tensor_by_name or f"{dialect.arch}.{mark}" in half.by_name
        for mark in dialect.marks
    )


def to_upstream(half: Half, dialect: Dialect) -> Half:
    """The drafter in `half` under upstream's names, the token ordering as upstream has it.

    What upstream has and `dialect` lacks is not there yet. Raises FormatError where names collide
    or the ordering is none, PairingError where the heads are for another architecture.
    """
    keys = list(_upstream_keys(half, dialect))
    tensors = list(_upstream_tensors(half, dialect))
    result = replace(half, keys=_unique(half, keys), tensors=tuple(tensors))
    twice = first_repeated(tensor.name for tensor in tensors)
    if twice is not None:
        raise FormatError(f"{half.origin}: tensor {twice} is there under two names")
    wanted = result.value(f"{UPSTREAM.arch}.{TARGET_ARCH}")
    if wanted not in (None, BASE_ARCH):
        raise PairingError(
            f"{half.origin}: {TARGET_ARCH} is {wanted!a}, expected {BASE_ARCH!a}, the base's"
        )
    return _with_token_list(result, dialect)


def _upstream_keys(half: Half, dialect: Dialect) -> Iterable[KeyValue]:
    rules = {key.name: key for key in dialect.keys}
    prefix = f"{dialect.arch}."
    for key in half.keys:
        name = key.name.removeprefix(prefix)
        if key.name == ARCHITECTURE:
            yield string(ARCHITECTURE, UPSTREAM.arch)
        elif not key.name.startswith(prefix):
            if not dialect.embedded_under or key.name.startswith(TOKENIZER):
                yield key
        elif name in rules:
            yield from _meant(half, rules[name], key)
        elif not dialect.embedded_under:
            yield key.renamed(f"{UPSTREAM.arch}.{name}")


def _meant(half: Half, rule: Key, key: KeyValue) -> Iterable[KeyValue]:
    try:
        value = rule.read(key) if rule.read else key
    except FormatError as error:
        raise FormatError(f"{half.origin}: {error}") from None
    return [value.renamed(f"{UPSTREAM.arch}.{name}") for name in rule.means]


def _unique(half: Half, keys: list[KeyValue]) -> tuple[KeyValue, ...]:
    """`keys`, each name once: several spellings may stand beside one another if they agree."""
    found: dict[str, KeyValue] = {}
    for key in keys:
        other = found.setdefault(key.name, key)
        if other is not key and other.value != key.value:
            raise FormatError(
                f"{half.origin}: {key.name} is given twice: {other.value!a} and {key.value!a}"[:300]
            )
    return tuple(found.values())


def _upstream_tensors(half: Half, dialect: Dialect) -> Iterable[Tensor]:
    names = {theirs: ours for ours, theirs in dialect.tensors.items()}
    for tensor in half.tensors:
        name = _renamed(tensor.name, names)
        if name is not None:
            yield replace(tensor, name=name)
        elif not dialect.embedded_under:
            yield tensor


def _renamed(name: str, names: dict[str, str]) -> str | None:
    """`name` as `names` maps it, ``*`` standing for the layer; None where it does not."""
    layer = LAYER.search(name)
    if layer is None:
        return names.get(name)
    target = names.get(LAYER.sub("blk.*.", name, count=1))
    return None if target is None else target.replace("*", layer[1])


def _with_token_list(half: Half, dialect: Dialect) -> Half:
    ordering, centroids = (half.tensor_by_name.get(name) for name in (ORDERING, CENTROIDS))
    embedding = half.tensor_by_name.get("token_embd.weight")
    if ordering is None or embedding is None:
        return half
    stated = half.value(f"{UPSTREAM.arch}.{COUNT}")
    count = stated if isinstance(stated, int) else centroids.shape[0] if centroids else 0
    n_vocab = embedding.shape[0]
    decoded = decode_ordering(half.origin, ordering, dialect.ordering, count, n_vocab)
    tensors = tuple(decoded if tensor is ordering else tensor for tensor in half.tensors)
    return replace(half, tensors=tensors)


def in_dialect(drafter: Drafter, dialect: Dialect) -> Half:
    """The drafter as a GGUF of `dialect`.

    Where the dialect's programs fail on the ordered head's tensors, those travel as keys. Raises
    UnsupportedError for what has no dialects.
    """
    if drafter.family is not MTP:
        if dialect is not UPSTREAM:
            raise UnsupportedError(
                f"{drafter.half.origin}: --dialect is for MTP heads, found {drafter.family.name}"
            )
        return drafter.half
    half = from_upstream(drafter.half, dialect)
    if dialect.loads_ordered_head:
        return half
    head = [half.tensor_by_name[name] for name in NAMES if drafter.ordered]
    keys = (*half.keys, *(key for tensor in head for key in carry(encoded_tensor(tensor))))
    return replace(
        half, keys=keys, tensors=tuple(item for item in half.tensors if item not in head)
    )


def from_upstream(half: Half, dialect: Dialect) -> Half:
    """The upstream drafter `half` as `dialect` stores it; the inverse of `to_upstream`.

    Keys that both have stay where they are; those only `dialect` has come last.
    """
    names = {key.means[0]: key.name for key in dialect.keys}
    prefix = f"{UPSTREAM.arch}."
    keys = []
    for key in half.keys:
        name = key.name.removeprefix(prefix)
        if key.name == ARCHITECTURE:
            keys.append(string(ARCHITECTURE, dialect.arch))
        elif not key.name.startswith(prefix):
            keys.append(key)
        elif name not in dialect.lacks:
            keys.append(key.renamed(f"{dialect.arch}.{names.get(name, name)}"))
    present = {key.name for key in keys}
    ordered = ORDERING in half.tensor_by_name
    for name, value in dialect.states.items():
        full = f"{dialect.arch}.{names.get(name, name)}"
        if full not in present:
            # The flags all speak of the ordered head.
            keys.append(string(full, value) if isinstance(value, str) else boolean(full, ordered))
    return replace(half, keys=tuple(keys), tensors=tuple(_dialect_tensors(half, dialect)))


def _dialect_tensors(half: Half, dialect: Dialect) -> Iterable[Tensor]:
    names = dict(dialect.tensors)
    for tensor in half.tensors:
        if tensor.name in dialect.lacks:
            continue
        if tensor.name == ORDERING:
            count = half.tensor_by_name[CENTROIDS].shape[0]
            stored = encode_ordering(tensor, dialect.ordering, dialect.ordering_type, count)
        else:
            stored = tensor
        yield replace(stored, name=_renamed(tensor.name, names) or tensor.name)


@dataclass(frozen=True)
class Overlay:
    """Heads of an embedded dialect taken off a base: the base without them, and the dialect."""

    base: Half
    dialect: Dialect


def overlay_of(half: Half) -> Overlay | None:
    """The embedded heads in a base's GGUF, None where there are none."""
    for dialect in DIALECTS:
        if not dialect.embedded_under or half.value(ARCHITECTURE) != dialect.arch:
            continue
        if _is_marked(half, dialect):
            return Overlay(_without(half, dialect), dialect)
    return None


def _without(half: Half, dialect: Dialect) -> Half:
    names = {theirs: ours for ours, theirs in dialect.tensors.items()}
    tensors = tuple(item for item in half.tensors if _renamed(item.name, names) is None)
    listed = {f"{dialect.arch}.{key.name}" for key in dialect.keys}
    area = f"{dialect.arch}.{dialect.embedded_under}"
    keys = tuple(
        key for key in half.keys if key.name not in listed and not key.name.startswith(area)
    )
    return replace(half, keys=keys, tensors=tensors)
