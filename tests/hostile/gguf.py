"""Hostile GGUFs."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path

import tiny
from gguf_bytes import ARRAY, BOOL, STRING, U8, U32, U64, Info, array, build, pair, text, u32
from gguf_mtp.readers.gguf import read_gguf
from hostile.case import Case, Good, Maker

F32, Q8_0 = 0, 8
I32 = 5
HUGE = 1 << 62
# An output matrix may be in any base, so one more tensor of that name leaves it a whole model.
OUTPUT = b"output.weight"
OUTPUT_DIMS = (tiny.HIDDEN, tiny.VOCAB_SIZE)
OUTPUT_BYTES = 4 * prod(OUTPUT_DIMS)
OUTPUT_BYTES_Q8_0 = 34 * prod(OUTPUT_DIMS) // 32


@dataclass(frozen=True)
class Parts:
    """A GGUF taken to pieces, any of which can be wrong."""

    pairs: tuple[bytes, ...]
    infos: tuple[Info, ...]
    data: bytes

    def build(self, **counts: int) -> bytes:
        return build(self.pairs, self.infos, self.data, **counts)  # type: ignore[arg-type]

    def plus(self, *pairs: bytes) -> "Parts":
        return replace(self, pairs=(*pairs, *self.pairs))

    def tensor(
        self,
        dims: tuple[int, ...] = OUTPUT_DIMS,
        kind: int = F32,
        *,
        name: bytes = OUTPUT,
        shift: int = 0,
        nbytes: int = OUTPUT_BYTES,
    ) -> "Parts":
        """One more tensor after the others, `shift` bytes from where it belongs."""
        info = Info(name, dims, kind, (len(self.data) + shift) % (1 << 64))
        return replace(self, infos=(*self.infos, info), data=self.data + bytes(nbytes))


@cache
def parts_of(path: Path) -> Parts:
    file = read_gguf(path)
    types = {"F32": 0, "F16": 1, "BF16": 30, "I32": 26, "Q8_0": 8, "Q4_0": 2}
    infos = tuple(
        Info(
            ref.name.encode(),
            tuple(reversed(ref.shape)),
            types[ref.dtype],
            ref.offset - file.data_start,
        )
        for ref in file.tensors
    )
    keys = tuple(key.encode() for key in file.keys)
    return Parts(keys, infos, path.read_bytes()[file.data_start :])


# Which of the pair's files each use opens; `inspect` shows any.
# The uses that open a merged file.
MERGED = ("split", "card", "run", "validate", "bench")
SUBJECTS = {"heads": "heads", "attached": "heads"} | dict.fromkeys(MERGED, "merged")
READERS = ("inspect", "base", "attach", "attach in place", "heads", "attached", *MERGED)
BASES = ("inspect", "base", "attach")
HEADS = ("heads", "attached")
# What is no GGUF by its first bytes may be heads of another kind.
NOT_HEADS = ("inspect", "base", "attach", "attach in place", *MERGED)

Change = Callable[[Parts], Parts | bytes]


def made(change: Change) -> Maker:
    """The file that a use opens, changed."""

    def make(good: Good, directory: Path, use: str) -> Path:
        subject = SUBJECTS.get(use, "base")
        found = change(parts_of(getattr(good, subject)))
        path = directory / f"{subject}.gguf"
        path.write_bytes(found.build() if isinstance(found, Parts) else found)
        return path

    return make


def same(parts: Parts) -> Parts:
    return parts


sound = made(same)


def shown(inspected: Change, merged: Change = same) -> Maker:
    """`inspected` for `inspect`, which shows any GGUF; `merged` for uses that need a model."""

    def make(good: Good, directory: Path, use: str) -> Path:
        return made(inspected if use == "inspect" else merged)(good, directory, use)

    return make


def gguf(
    name: str,
    hostile: Change,
    *says: str,
    control: Change | None = None,
    inspected: Change | None = None,
    uses: tuple[str, ...] = READERS,
    controlled_by: tuple[str, ...] = BASES,
    promise: str = "refused",
) -> Case:
    """A case whose sound file is `control`; for `inspect` it is `inspected` where that is given."""
    accepted = made(control) if control else sound
    if inspected:
        accepted = shown(inspected, control or same)
    return Case(name, made(hostile), accepted, uses, says, promise, controlled_by)


def key(kind: int, payload: bytes) -> Change:
    return lambda parts: parts.plus(pair(b"a.key", kind, payload))


def items(kind: int, count: int, payload: bytes = b"") -> Change:
    return lambda parts: parts.plus(array(b"a.key", kind, count, payload))


def alignment(value: int) -> Change:
    return lambda parts: parts.plus(u32(b"general.alignment", value))


def aligned_64(parts: Parts) -> Parts | bytes:
    """The same tensors, each on a multiple of 64."""
    infos, data = [], b""
    bounds = [*(info.offset for info in parts.infos), len(parts.data)]
    for info, end in zip(parts.infos, bounds[1:], strict=True):
        infos.append(replace(info, offset=len(data)))
        data += parts.data[info.offset : end]
        data += bytes(-len(data) % 64)
    pairs = (u32(b"general.alignment", 64), *parts.pairs)
    return build(pairs, infos, data, alignment=64)


def tensor(dims: tuple[int, ...] = OUTPUT_DIMS, kind: int = F32, **fields: object) -> Change:
    return lambda parts: parts.tensor(dims, kind, **fields)  # type: ignore[arg-type]


def first_twice(parts: Parts) -> Parts:
    return replace(parts, infos=(parts.infos[0], *parts.infos))


def many_tensors(count: int) -> Change:
    """That many tensors of one value, the last of which has the first one's name."""

    def change(parts: Parts) -> bytes:
        names = [f"t{number}".encode() for number in range(count - 1)] + [b"t0"]
        infos = [Info(name, (1,), F32, 32 * at) for at, name in enumerate(names)]
        return build(parts.pairs, infos, bytes(32 * count))

    return change


class MillionDimensions(Info):
    def encode(self) -> bytes:
        return text(self.name) + struct.pack("<I", 10**6) + bytes(64)


def million_dimensions(parts: Parts) -> Parts:
    info = MillionDimensions(OUTPUT, (), F32, len(parts.data))
    return replace(parts, infos=(*parts.infos, info))


def name_of(raw: bytes) -> bytes:
    return raw[8 : 8 + int.from_bytes(raw[:8], "little")]


def shape_key(name: bytes, *values: bytes) -> Change:
    """The key ``ARCH.name`` of the model, whatever its architecture, with another value."""

    def change(parts: Parts) -> Parts:
        old = next(raw for raw in parts.pairs if name_of(raw).endswith(name))
        full = name_of(old)
        kept = (raw for raw in parts.pairs if raw is not old)
        return replace(parts, pairs=(*kept, *(text(full) + value for value in values)))

    return change


def value(kind: int, payload: bytes) -> bytes:
    return struct.pack("<I", kind) + payload


def cut(nbytes: int) -> Change:
    return lambda parts: parts.build()[:nbytes]


def in_key(change: Callable[[bytes], bytes]) -> Change:
    """The first key's encoding, changed."""
    return lambda parts: replace(parts, pairs=(change(parts.pairs[0]), *parts.pairs[1:]))


GGUF = (
    gguf(
        "empty file", lambda parts: b"", "magic at offset 0 needs 4 bytes, 0 remain", uses=NOT_HEADS
    ),
    gguf("header cut at byte 3", cut(3), "magic at offset 0 needs 4", "remain", uses=NOT_HEADS),
    *(
        gguf(f"header cut at byte {at}", cut(at), "at offset", "bytes")
        for at in (7, 15, 23, 31, 40, 47)
    ),
    gguf("header cut in an array", cut(3000), "at offset", "bytes"),
    gguf("bad magic", lambda p: b"GGUG" + p.build()[4:], "b'GGUG'", uses=NOT_HEADS),
    gguf("version 0", lambda p: p.build(version=0), "version is 0, expected one of (2, 3)"),
    gguf(
        "version 1",
        lambda p: p.build(version=1),
        "version is 1, expected",
        control=lambda p: p.build(version=2),
    ),
    gguf("version 4", lambda p: p.build(version=4), "version is 4, expected"),
    gguf("big-endian", lambda p: p.build(version=3 << 24), "big-endian"),
    gguf("2^63 keys", lambda p: p.build(n_pairs=1 << 63), "key-value count is 9223372036854775808"),
    gguf(
        "2^63 tensors", lambda p: p.build(n_tensors=1 << 63), "tensor count is 9223372036854775808"
    ),
    gguf(
        "length of a key past the end",
        in_key(lambda raw: struct.pack("<Q", HUGE) + raw[8:]),
        "name of key 0 at offset 32 needs 4611686018427387904 bytes",
    ),
    gguf(
        "empty key",
        lambda p: p.plus(pair(b"", U8, b"\0")),
        "key 0 at offset 24 has an empty name",
        control=lambda p: p.plus(pair(b"k", U8, b"\0")),
    ),
    gguf(
        "key that is not UTF-8",
        lambda p: p.plus(pair(b"\xff\xfe", U8, b"\0")),
        "key 0 at offset 24 has a name that is not UTF-8",
        control=lambda p: p.plus(pair("ä".encode(), U8, b"\0")),
    ),
    gguf(
        "key with a control character",
        lambda p: p.plus(pair(b"a\x1b[2J", U8, b"\0")),
        "key 0 at offset 24 has control characters in its name: 'a\\x1b[2J'",
    ),
    gguf("key with NUL", lambda p: p.plus(pair(b"a\0b", U8, b"\0")), "control characters"),
    gguf("duplicate key", lambda p: p.plus(p.pairs[0]), "occurs twice", "at offset"),
    gguf(
        "value type 13",
        key(13, bytes(8)),
        "key a.key has value type 13 at offset 37, expected 0 to 12",
        control=key(12, bytes(8)),
    ),
    gguf(
        "length of a string past the end",
        key(STRING, struct.pack("<Q", 1 << 40)),
        "value of key a.key at offset 49 needs 1099511627776 bytes",
        control=key(STRING, text(b"x" * 1000)),
    ),
    gguf(
        "array of 2^62 numbers",
        items(U64, HUGE),
        "value of key a.key has 4611686018427387904 items",
        "bytes remain",
        control=items(U64, 3, bytes(24)),
    ),
    gguf(
        "array of 2^62 strings",
        items(STRING, HUGE),
        "4611686018427387904 items",
        "bytes remain",
        control=items(STRING, 2, text(b"") + text(b"x")),
    ),
    gguf("array of type 77", items(77, 1), "array value of key a.key has value type 77 at offset"),
    gguf(
        "string of an array past the end",
        items(STRING, 1, struct.pack("<Q", HUGE)),
        "value of key a.key at offset 53 needs 4611686018427387912 bytes",
    ),
    gguf(
        "arrays nested 2000 deep",
        items(ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 2000),
        "nests arrays deeper than 4",
        control=items(ARRAY, 1, struct.pack("<IQ", U8, 1) + b"x"),
    ),
    gguf(
        "a million empty arrays in one",
        items(ARRAY, 1_000_000, struct.pack("<IQ", U8, 0) * 1_000_000),
        "nests 1000000 arrays",
        "at most 4096",
        control=items(ARRAY, 4096, struct.pack("<IQ", U8, 0) * 4096),
        uses=("inspect", "base", "heads"),
    ),
    gguf(
        "20,000 arrays of one string",
        lambda p: p.plus(
            *(array(b"k%d" % at, STRING, 1, text(b"x")) for at in range(20_000)),
        ),
        uses=("inspect", "base"),
        promise="accepted: read in time that the header's size bounds",
    ),
    gguf("bool 7", key(BOOL, b"\7"), "neither 0 nor 1", control=key(BOOL, b"\1")),
    gguf("bool 7 in an array", items(BOOL, 2, b"\1\7"), "neither 0 nor 1"),
    gguf("alignment 0", alignment(0), "general.alignment is 0", control=alignment(32)),
    gguf("alignment 3", alignment(3), "general.alignment is 3", control=aligned_64),
    gguf("alignment 2^31", alignment(1 << 31), "general.alignment is 2147483648"),
    gguf(
        "alignment of the wrong type",
        lambda p: p.plus(pair(b"general.alignment", U64, struct.pack("<Q", 32))),
        "general.alignment has type UINT64, expected UINT32",
    ),
    gguf("no dimensions", tensor(()), "has 0 dimensions, expected 1 to 4"),
    gguf(
        "5 dimensions",
        tensor((1,) * 5),
        "has 5 dimensions, expected 1 to 4",
        control=tensor(),
        inspected=tensor((2,) * 4, nbytes=64),
    ),
    gguf("1e6 dimensions", million_dimensions, "has 1000000 dimensions, expected 1 to 4"),
    gguf("a dimension of 0", tensor((8, 0)), "shape (0, 8), expected 1 to 2^63-1 elements"),
    gguf("a negative dimension", tensor(((1 << 64) - 1,)), "expected 1 to 2^63-1 elements"),
    gguf(
        "dimensions whose product wraps",
        tensor((1 << 32, 1 << 32)),
        "expected 1 to 2^63-1 elements",
        control=tensor(),
    ),
    gguf("bytes that wrap", tensor((HUGE,)), "truncated"),
    gguf(
        "bytes of blocks that wrap",
        tensor(((1 << 62) + 32, 1), Q8_0, nbytes=64),
        "truncated",
        control=tensor(kind=Q8_0, nbytes=OUTPUT_BYTES_Q8_0),
    ),
    gguf(
        "tensor type 255 without bytes",
        tensor(kind=255, nbytes=0),
        "unknown type 255",
        "its size cannot be told",
    ),
    gguf(
        "tensor type 255 with a part of its bytes",
        tensor(kind=255, nbytes=63),
        "unknown type 255, and 63 bytes follow its offset: its size cannot be told",
    ),
    gguf(
        "two tensors of type 255 in one place",
        lambda p: p.tensor((1,), 255, name=b"output.scale", nbytes=0).tensor(kind=255, nbytes=64),
        "tensor output.scale has unknown type 255, and 0 bytes",
        control=lambda p: p.tensor((1,), 255, name=b"output.scale", nbytes=64).tensor(),
    ),
    gguf(
        "tensor type 255",
        tensor(kind=255, nbytes=64),
        control=tensor(),
        uses=BASES,
        promise="accepted: copied as it is, all bytes up to the next tensor",
    ),
    gguf(
        "tensor type 4, removed from ggml",
        tensor(kind=4, nbytes=64),
        uses=BASES,
        promise="accepted: copied as it is",
    ),
    gguf(
        "row that is no multiple of its block",
        tensor((48, tiny.VOCAB_SIZE), Q8_0, nbytes=OUTPUT_BYTES_Q8_0),
        "rows of 48 values, Q8_0 needs a multiple of 32",
        control=tensor(kind=Q8_0, nbytes=OUTPUT_BYTES_Q8_0),
    ),
    gguf("offset past the end", tensor(shift=1 << 40), "expected", "leaves a hole"),
    gguf("offset near 2^64", tensor(shift=-(1 << 41)), "expected", "leaves a hole"),
    gguf("unaligned offset", tensor(shift=4), "not a multiple of 32"),
    gguf("overlapping tensors", tensor(shift=-32), "overlaps the tensor before it"),
    gguf("a hole between tensors", tensor(shift=32, nbytes=32 + OUTPUT_BYTES), "leaves a hole"),
    gguf("duplicate tensor", first_twice, "occurs twice"),
    gguf(
        "60,000 tensors, the last a duplicate",
        many_tensors(60_000),
        "tensor t0 occurs twice",
        uses=("inspect", "base"),
    ),
    gguf(
        "100,000 tensors",
        many_tensors(100_000),
        "tensor count is 100000",
        "limit 65536",
        uses=("inspect", "base"),
    ),
    gguf(
        "tensor name of 64 bytes",
        tensor(name=b"n" * 64),
        "name of 64 bytes, at most 63 fit",
        control=tensor(),
        inspected=tensor(name=b"n" * 63),
    ),
    gguf("empty tensor name", tensor(name=b""), "has an empty name"),
    gguf("tensor name with NUL", tensor(name=b"a\0b"), "control characters in its name: 'a\\x00b'"),
    gguf(
        "tensor name with ../",
        tensor(name=b"../../etc/passwd"),
        uses=("inspect",),
        promise="accepted: names are never paths",
    ),
    gguf(
        "base with a tensor of an unknown name",
        tensor(name=b"../../etc/passwd"),
        "tensor '../../etc/passwd' is not part of a gemma4 model",
        control=tensor(),
        uses=("base", "attach", "attach in place"),
        controlled_by=("base", "attach", "attach in place"),
    ),
    gguf("truncated data", lambda p: p.build()[:-100], "the file at", "truncated"),
    gguf("trailing bytes", lambda p: p.build() + bytes(33), "33 bytes follow the last tensor"),
    gguf(
        "bytes behind a header without tensors",
        lambda p: build(p.pairs) + bytes(64),
        "bytes follow the header of a file without tensors",
    ),
    gguf(
        "general.architecture as a long array",
        lambda p: replace(
            p,
            pairs=(
                array(b"general.architecture", U8, 20_000_000, bytes(20_000_000)),
                *(raw for raw in p.pairs if name_of(raw) != b"general.architecture"),
            ),
        ),
        "general.architecture is [0, 0,",
        uses=("base", "heads"),
    ),
    *(
        gguf(
            f"drafter with {what}",
            lambda p, value=value: replace(  # type: ignore[misc]
                p,
                pairs=(
                    *(raw for raw in p.pairs if b"nextn_predict_layers" not in raw),
                    u32(b"gemma4-assistant.nextn_predict_layers", value),
                ),
            ),
            f"nextn_predict_layers is {value}, expected 2",
            uses=HEADS,
            controlled_by=HEADS,
        )
        for what, value in (("0 MTP layers", 0), ("4e9 MTP layers", 4_000_000_000))
    ),
    gguf(
        "drafter that does not say how many MTP layers",
        lambda p: replace(
            p, pairs=tuple(raw for raw in p.pairs if b"nextn_predict_layers" not in raw)
        ),
        uses=HEADS,
        controlled_by=HEADS,
        promise="accepted: taken from the tensors, with a note",
    ),
    *(
        gguf(
            f"{name} {what}",
            shape_key(f".{name}".encode(), encoded),
            f"{name} is",
            "expected",
            uses=("base", "attach", *HEADS, "split", "run", "validate", "bench"),
            controlled_by=("base", "attach", *HEADS, "card", "run"),
        )
        for name, what, encoded in (
            ("block_count", "0", value(U32, struct.pack("<I", 0))),
            ("block_count", "of 1e9", value(U32, struct.pack("<I", 10**9))),
            ("block_count", "that is text", value(STRING, text(b"2"))),
            ("attention.head_count", "0", value(U32, struct.pack("<I", 0))),
            ("attention.head_count", "-1", value(I32, struct.pack("<i", -1))),
            ("attention.head_count", "that is text", value(STRING, text(b"2"))),
        )
    ),
    gguf(
        "block_count missing",
        shape_key(b".block_count"),
        "block_count",
        uses=("base", "attach"),
        controlled_by=("base", "attach"),
    ),
    gguf(
        "base that states MTP layers of its own",
        lambda p: p.plus(u32(b"gemma4.nextn_predict_layers", 4_000_000_000)),
        "gemma4.nextn_predict_layers is 4000000000, expected none",
        uses=("base", "attach"),
        controlled_by=("base", "attach"),
        control=lambda p: p.plus(u32(b"gemma4.nextn_predict_layers", 0)),
    ),
)
