"""Hostile weights of checkpoint directories: safetensors and their index."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from hostile.case import Case, Good, Maker, linked

WEIGHTS = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# A tensor of this name is none of the text stack's, and passed over.
EXTRA = "model.vision_tower.extra"
Header = dict[str, Any]
Object = dict[str, Any]


def directory_of(good: Good, use: str) -> Path:
    return good.target if use == "base" else good.drafter


def replaced(
    name: str, change: Callable[[bytes], bytes], source: Callable[[Good, str], Path] = directory_of
) -> Maker:
    """The checkpoint of a use with one file changed."""

    def make(good: Good, directory: Path, use: str) -> Path:
        origin = source(good, use)
        path = linked(origin, directory / origin.name, name)
        (path / name).write_bytes(change((origin / name).read_bytes()))
        return path

    return make


def beside(name: str, data: bytes | None, *without: str, size: int = 0) -> Maker:
    """The checkpoint of a use with a file more (of `size` bytes, if given), and `without` others;
    a FIFO where there is no `data`."""

    def make(good: Good, directory: Path, use: str) -> Path:
        origin = directory_of(good, use)
        path = linked(origin, directory / origin.name, name, *without)
        if data is None:
            os.mkfifo(path / name)
        else:
            (path / name).write_bytes(data)
            if size:
                os.truncate(path / name, size)
        return path

    return make


def unchanged(good: Good, directory: Path, use: str) -> Path:
    return directory_of(good, use)


def safetensors_bytes(header: Header | bytes, data: bytes, length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


HeaderChange = Callable[[Header, bytes], bytes]
READERS = ("base", "heads", "audited")


def with_header(change: HeaderChange) -> Maker:
    def on_bytes(raw: bytes) -> bytes:
        end = 8 + int.from_bytes(raw[:8], "little")
        return change(json.loads(raw[8:end]), raw[end:])

    return replaced(WEIGHTS, on_bytes)


def safetensors(
    name: str,
    hostile: HeaderChange | Maker,
    *says: str,
    control: HeaderChange | None = None,
    uses: tuple[str, ...] = READERS,
    controlled_by: tuple[str, ...] | None = None,
    promise: str = "refused",
    whole: bool = False,
) -> Case:
    made: Any = hostile if whole else with_header(hostile)  # type: ignore[arg-type]
    checked = unchanged if control is None else with_header(control)
    by = controlled_by or (uses if control is None else ("base",))
    return Case(f"safetensors: {name}", made, checked, uses, says, promise, by)


def with_extra(
    dtype: Any = "U8", shape: Any = (4,), span: tuple[int, int] = (0, 4), grow: int = 4
) -> HeaderChange:
    """A tensor more, `span` counted from the end of the data, which grows by `grow` bytes."""

    def change(header: Header, data: bytes) -> bytes:
        offsets = [len(data) + at for at in span]
        header[EXTRA] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        return safetensors_bytes(header, data + bytes(grow))

    return change


def first_entry(change: Callable[[Object], object]) -> HeaderChange:
    def on_header(header: Header, data: bytes) -> bytes:
        change(next(value for name, value in header.items() if name != "__metadata__"))
        return safetensors_bytes(header, data)

    return on_header


def empties(count: int) -> HeaderChange:
    def change(header: Header, data: bytes) -> bytes:
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
        header |= {f"model.vision_tower.{number}": entry for number in range(count)}
        return safetensors_bytes(header, data)

    return change


def inside(text: bytes) -> HeaderChange:
    """`text` behind the header's opening brace."""
    return lambda header, data: safetensors_bytes(
        b"{" + text + json.dumps(header)[1:].encode(), data
    )


def padded(header: Header, data: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return safetensors_bytes(encoded + b" " * (1 + len(encoded) % 2), data)


def many_then_twice(header: Header, data: bytes) -> bytes:
    names = ",".join(f'"t{number}":0' for number in range(200_000))
    return safetensors_bytes(f'{{{names},"t0":0}}'.encode(), data)


def shifted(header: Header, data: bytes) -> bytes:
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [at + 8 for at in entry["data_offsets"]]
    return safetensors_bytes(header, bytes(8) + data)


def reversed_offsets(entry: Object) -> None:
    entry["data_offsets"] = entry["data_offsets"][::-1]


SAFETENSORS = (
    safetensors("empty file", lambda header, data: b"", "0 bytes, a safetensors header needs 8"),
    safetensors("7 bytes", lambda header, data: bytes(7), "7 bytes, a safetensors header needs 8"),
    safetensors(
        "header over 100 MB",
        beside(WEIGHTS, struct.pack("<Q", 100_000_001), size=100_000_100),
        "header length is 100000001",
        "limit 100000000",
        whole=True,
    ),
    safetensors(
        "header past the end",
        lambda header, data: safetensors_bytes(header, data, 1 << 40),
        "header length is 1099511627776, but",
    ),
    safetensors(
        "header of 2^63 bytes",
        lambda header, data: safetensors_bytes(header, data, 1 << 63),
        "header length is 9223372036854775808, but",
    ),
    safetensors("header not JSON", lambda header, data: safetensors_bytes(b"{", data), "not JSON"),
    safetensors("header not UTF-8", inside(b'"\xff":0,'), "not UTF-8 at byte 2"),
    safetensors(
        "header an array", lambda header, data: safetensors_bytes(b"[]", data), "found list"
    ),
    safetensors(
        "header nested 100,000 deep", inside(b'"a":' + b"[" * 100_000), "nested too deeply"
    ),
    safetensors(
        "header of five million arrays",
        inside(b'"a":[' + b"[]," * 5_000_000 + b"[]],"),
        "brackets and braces open, at most 4194304",
    ),
    safetensors("duplicate key", inside(b'"a":0,"a":0,'), "key 'a' occurs twice"),
    safetensors("200,000 keys, the last a duplicate", many_then_twice, "key 't0' occurs twice"),
    safetensors("NaN", inside(b'"a":NaN,'), "NaN is not a JSON number"),
    safetensors("number of 5000 digits", inside(b'"a":' + b"9" * 5000 + b","), "5000 digits"),
    safetensors(
        "overlap", with_extra(span=(-4, 0)), "overlaps another tensor", control=with_extra()
    ),
    safetensors("hole", with_extra(span=(4, 8), grow=8), "leaves a hole", control=with_extra()),
    safetensors("hole at the start", shifted, "expected", "leaves a hole"),
    safetensors(
        "three offsets",
        first_entry(lambda entry: entry["data_offsets"].append(9)),
        "data_offsets is [",
        "expected [begin, end]",
    ),
    safetensors(
        "no dtype",
        first_entry(lambda entry: entry.pop("dtype")),
        "expected dtype, shape and data_offsets",
    ),
    safetensors(
        "dtype that is a number",
        first_entry(lambda entry: entry.update(dtype=7)),
        "unknown dtype 7",
    ),
    safetensors("reversed", first_entry(reversed_offsets), "data_offsets is [", "[begin, end]"),
    safetensors(
        "trailing bytes",
        lambda header, data: safetensors_bytes(header, data + b"\0"),
        "tensors end at",
        "trailing bytes",
    ),
    safetensors(
        "truncated", lambda header, data: safetensors_bytes(header, data[:-1]), "truncated"
    ),
    safetensors("shape/size mismatch", with_extra("F32", [2]), "span 4 bytes, F32 [2] needs 8"),
    safetensors(
        "shape whose bytes wrap", with_extra("F32", [1 << 62, 4]), "span 4 bytes", "needs 7378697"
    ),
    safetensors(
        "negative dimension", with_extra(shape=[-4]), "shape is [-4], expected up to 8 sizes"
    ),
    safetensors("float dimension", with_extra(shape=[4.0]), "shape is [4.0], expected"),
    safetensors("true for a dimension", with_extra(shape=[True]), "shape is [True], expected"),
    safetensors("nine dimensions", with_extra(shape=[1] * 8 + [4]), "expected up to 8 sizes"),
    safetensors("unknown dtype", with_extra("Q9"), "unknown dtype 'Q9'", control=with_extra("I8")),
    safetensors(
        "metadata of numbers",
        lambda header, data: safetensors_bytes(header | {"__metadata__": {"a": 1}}, data),
        "__metadata__ is not an object of strings",
    ),
    safetensors(
        "100,000 empty tensors",
        empties(100_000),
        uses=("base",),
        promise="accepted: valid, and read in bounded time",
    ),
    safetensors("unaligned data", padded, promise="accepted: valid"),
    safetensors(
        "only pickled weights",
        beside("pytorch_model.bin", b"\x80\x04cos\nsystem\n", WEIGHTS),
        "no model*.safetensors (pickled weights are not read)",
        whole=True,
    ),
    safetensors(
        "pickled weights beside safetensors",
        beside("pytorch_model.bin", b"\x80\x04cos\nsystem\n"),
        whole=True,
        promise="accepted: not opened",
    ),
)


def sharded(good: Good, use: str) -> Path:
    path = good.target.with_name("sharded")
    return path if path.exists() else tiny.write_target(path, shards=2)


def sound_shards(good: Good, directory: Path, use: str) -> Path:
    return sharded(good, use)


IndexChange = Callable[[Object, list[str]], object]


def index(name: str, change: IndexChange | bytes, *says: str, promise: str = "refused") -> Case:
    """`change` gets the weight map and the names of both shards."""

    def on_bytes(raw: bytes) -> bytes:
        if isinstance(change, bytes):
            return change
        weights = json.loads(raw)["weight_map"]
        change(weights, sorted(set(weights.values())))
        return json.dumps({"weight_map": weights}).encode()

    return Case(
        f"index: {name}",
        replaced(INDEX_NAME, on_bytes, sharded),
        sound_shards,
        READERS,
        says,
        promise,
        ("base",),
    )


def linked_shard(to: str) -> Maker:
    """The first shard a symbolic link to `to`, or to a copy of its bytes elsewhere."""

    def make(good: Good, directory: Path, use: str) -> Path:
        origin = sharded(good, use)
        name = "model-00001-of-00002.safetensors"
        path = linked(origin, directory / origin.name, name)
        (directory / "blob").write_bytes((origin / name).read_bytes())
        (path / name).symlink_to(to or directory / "blob")
        return path

    return make


def first_to(value: Any) -> IndexChange:
    return lambda weights, shards: weights.update({next(iter(weights)): value})


def tensor_in_two(good: Good, directory: Path, use: str) -> Path:
    origin = sharded(good, use)
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    path = linked(origin, directory / origin.name, names[1])
    (path / names[1]).symlink_to(origin / names[0])
    return path


INDEX = (
    index("absolute path", first_to("/etc/passwd"), "'/etc/passwd' is not a plain file name"),
    index("path with ../", first_to("../m.safetensors"), "is not a plain file name"),
    index("path with a backslash", first_to("..\\m.safetensors"), "is not a plain file name"),
    index("two dots for a name", first_to(".."), "bad shard for", "'..'"),
    index("name with NUL", first_to("a\0b"), "bad shard for"),
    index("name of half a character", first_to("\ud800.safetensors"), "'\\ud800' is half a char"),
    index("name of 5000 letters", first_to("a" * 5000), "3 shards are missing, first: 'aaa"),
    index("number for a name", first_to(7), "bad shard for", ": 7"),
    index("missing shard", first_to("none.safetensors"), "first: 'none.safetensors'"),
    Case(
        "index: shard that links to a device",
        linked_shard("/dev/zero"),
        linked_shard(""),
        READERS,
        ("model-00001-of-00002.safetensors: not a regular file",),
        "refused; links to regular files are followed, as in Hugging Face's cache",
        ("base",),
    ),
    index(
        "tensor in another shard",
        lambda weights, shards: weights.update(dict.fromkeys(weights, shards[0])),
        "is mapped to model-00001-of-00002.safetensors, but is in",
        promise="refused",
    ),
    index(
        "tensor in no shard",
        lambda weights, shards: weights.update({"absent": shards[0]}),
        "tensor 'absent' is mapped to model-00001-of-00002.safetensors, but is in no shard",
    ),
    index(
        "tensor that is not listed",
        lambda weights, shards: weights.pop(next(iter(weights))),
        "is not in model.safetensors.index.json",
    ),
    Case(
        "index: tensor in two shards",
        tensor_in_two,
        sound_shards,
        READERS,
        ("is also in model-00001-of-00002.safetensors",),
        controlled_by=("base",),
    ),
    index("weight_map an array", b'{"weight_map": []}', "weight_map is not a filled object"),
    index("weight_map missing", b"{}", "weight_map is not a filled object"),
    index("duplicate key", b'{"weight_map": {"a": "b", "a": "c"}}', "key 'a' occurs twice"),
)
