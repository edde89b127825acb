"""Merged models in parts, with heads in a part of their own, that lie: what the patched llama.cpp
and the readers here have to say about each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_mtp.keyvalue import KeyValue, ValueType, scalar, string
from gguf_mtp.model import Tensor
from gguf_mtp.namespace import PREFIX, VERSION_KEY
from gguf_mtp.readers.tail import Footer
from hostile_merged import DRAFTER_WIDTH, Sound, encode, zeros

MANY = ValueType.UINT16


@dataclass(frozen=True)
class Part:
    """The content of one file of a set."""

    keys: tuple[KeyValue, ...]
    tensors: tuple[Tensor, ...]

    def plus(self, *keys: KeyValue) -> "Part":
        """With keys replaced, or added."""
        names = {key.name for key in keys}
        return replace(self, keys=(*(key for key in self.keys if key.name not in names), *keys))

    def without(self, prefix: str) -> "Part":
        return replace(
            self, keys=tuple(key for key in self.keys if not key.name.startswith(prefix))
        )

    def encode(self) -> bytes:
        return encode(self.keys, self.tensors)


@dataclass(frozen=True)
class Set:
    """Two parts, what lies behind each, and which is opened (`links` makes the second the first).

    What is expected of the `base`, of the `heads` and of `split` in Python: "" that it works, else
    a part of the error.
    """

    name: str
    parts: tuple[Part, ...]
    base: str = ""
    heads: str = ""
    split: str = ""
    behind: tuple[bytes, bytes] = (b"", b"")
    opened: int = 1
    count: int = 2
    links: bool = False

    def write(self, directory: Path) -> Path:
        """Returns the file to open."""
        directory.mkdir()
        for at, part in enumerate(self.parts):
            self._path(directory, at + 1).write_bytes(part.encode() + self.behind[at])
        if self.links:
            self._path(directory, 2).unlink()
            self._path(directory, 2).symlink_to(self._path(directory, 1))
        return self._path(directory, self.opened)

    def _path(self, directory: Path, number: int) -> Path:
        return directory / f"m-{number:05}-of-{self.count:05}.gguf"


def in_two(pair: Sound, second: Callable[[Tensor], bool]) -> tuple[Part, Part]:
    """The merged model with some of its tensors in the second part, and all keys in the first."""

    def own(at: int) -> tuple[KeyValue, ...]:
        return (
            scalar("split.no", MANY, at),
            scalar("split.count", MANY, 2),
            scalar("split.tensors.count", ValueType.INT32, len(pair.tensors)),
        )

    groups: tuple[list[Tensor], list[Tensor]] = ([], [])
    for tensor in pair.tensors:
        groups[second(tensor)].append(tensor)
    return Part((*pair.keys, *own(0)), tuple(groups[0])), Part(own(1), tuple(groups[1]))


def of_heads(tensor: Tensor) -> bool:
    return tensor.name.startswith(PREFIX)


def without_heads(part: Part, n_tensors: int) -> Part:
    """A part of the base alone."""
    left = tuple(tensor for tensor in part.tensors if not of_heads(tensor))
    stated = scalar("split.tensors.count", ValueType.INT32, n_tensors)
    return replace(part.without(PREFIX).plus(stated), tensors=left)


def sets(pair: Sound) -> Iterator[Set]:
    first, second = in_two(pair, of_heads)
    yield Set("heads-in-the-second", (first, second))
    yield Set("heads-in-the-first", in_two(pair, lambda tensor: not of_heads(tensor)))
    yield Set("some-heads-in-each", in_two(pair, lambda tensor: tensor.name > "mtp.blk.1"))
    keys = tuple(key for key in first.keys if key.name.startswith(PREFIX))
    lost = "carries no MTP heads", f"key {VERSION_KEY} is not as in"
    yield Set(
        "keys-in-the-second",
        (first.without(PREFIX), second.plus(*keys)),
        "wrong number of tensors",
        *lost,
    )
    version = next(key for key in keys if key.name == VERSION_KEY)
    yield Set(
        "version-in-the-second",
        (first.without(VERSION_KEY), second.plus(version)),
        "wrong number of tensors",
        *lost,
    )
    # Of the other parts llama.cpp reads no keys but their number.
    yield Set(
        "keys-that-differ",
        (first, second.plus(string("mtp.general.architecture", "other"))),
        split="key mtp.general.architecture is not as in",
    )
    missing = "failed to load GGUF split"
    yield Set("missing", (first,), missing, missing, "part 2 of 2 is missing")
    number = "invalid split file idx"
    yield Set("a-link-to-the-first", (first, second), number, number, "split.no is 0", links=True)
    wrong = second.plus(scalar("split.no", MANY, 7))
    yield Set("another-number", (first, wrong), number, number, "split.no is 7, expected 1")
    twice = replace(second, tensors=(*second.tensors, first.tensors[0]))
    yield Set(
        "a-tensor-of-the-base-twice", (first, twice), "is duplicated", "is duplicated", "is also in"
    )
    both = replace(first, tensors=(*first.tensors, second.tensors[0]))
    yield Set(
        "a-tensor-of-the-heads-twice",
        (both, second),
        "is duplicated",
        "is duplicated",
        "is also in",
    )
    odd = zeros("mtp.token_embd.weight", (7, DRAFTER_WIDTH))
    tensors = tuple(odd if item.name == odd.name else item for item in second.tensors)
    yield Set(
        "heads-of-another-shape",
        (first, replace(second, tensors=tensors)),
        heads="'token_embd.weight' has wrong shape",
        split="expected 7, the rows of token_embd.weight",
    )
    none = replace(second, tensors=())
    corrupt = "corrupted model"
    yield Set("no-heads-there", (first, none), corrupt, corrupt, "but the parts hold 85 tensors")
    many = first.plus(scalar("split.count", MANY, 65535))
    name = "invalid split file"
    yield Set("65535-parts", (many, second), name, name, "expected a name that ends in")
    text = first.plus(string("split.count", "2"))
    kind = "key split.count has wrong type"
    yield Set("a-count-of-text", (text, second), kind, kind, "split.count is STRING, expected")
    main = "must be loaded with the first split"
    yield Set("opened-by-the-second", (first, second), main, main, opened=2)

    # Heads in a tail belong to one file.
    n_base = len(first.tensors)
    halves = in_two(replace(pair, tensors=first.tensors), lambda tensor: tensor.name > "blk.1")
    plain = without_heads(halves[0], n_base), without_heads(halves[1], n_base)
    for at, name, heads, split in (
        (0, "first", "", "is one of 2 parts"),
        (1, "second", "carries no MTP heads", "bytes follow the last tensor"),
    ):
        size = len(plain[at].encode())
        footer = Footer(size, len(pair.heads))
        tail = bytes(footer.heads_offset - size) + pair.heads + footer.encode()
        behind = (tail, b"") if at == 0 else (b"", tail)
        yield Set(f"a-tail-behind-the-{name}", plain, "", heads, split, behind)
