"""Hostile `.litertlm` packages, and hostile TFLite models in them."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hostile.case import Case, Good, Maker
from litert_bytes import BLOCK, item, package, section

READERS = ("inspect", "extract", "heads", "audit")
# The package's words are there, but for another vocabulary: it fits no base at hand.
SOUND = ("inspect", "extract", "audit")
# `inspect` says of a model in a package what is wrong with it, and goes on.
MODEL_READERS = ("extract", "heads", "audit")
MODEL = item("model_type", "TF_LITE_MTP_Drafter")
HUGE = 0x7FFFFFFF

Bytes = bytearray
Change = Callable[[Bytes], object]


@dataclass(frozen=True)
class Walk:
    """A table of a flatbuffer within `raw`, to find what is to be broken."""

    raw: Bytes
    at: int

    def number(self, at: int, code: str = "<I") -> int:
        return int(struct.unpack_from(code, self.raw, at)[0])

    @property
    def vtable(self) -> int:
        return self.at - self.number(self.at, "<i")

    def field(self, slot: int) -> int:
        """Where the field stands. It must be there."""
        offset = self.number(self.vtable + 4 + 2 * slot, "<H")
        assert offset
        return self.at + offset

    def target(self, slot: int) -> int:
        at = self.field(slot)
        return at + self.number(at)

    def table(self, slot: int) -> "Walk":
        return Walk(self.raw, self.target(slot))

    def item(self, slot: int, index: int = 0) -> "Walk":
        at = self.target(slot) + 4 + 4 * index
        return Walk(self.raw, at + self.number(at))

    def put(self, at: int, value: int, code: str = "<I") -> None:
        struct.pack_into(code, self.raw, at, value)


def root_of(raw: Bytes, begin: int) -> Walk:
    return Walk(raw, begin + struct.unpack_from("<I", raw, begin)[0])


def header(raw: Bytes) -> Walk:
    return root_of(raw, 32)


def first_section(raw: Bytes) -> Walk:
    return header(raw).table(1).item(0)


def model(raw: Bytes) -> Walk:
    return root_of(raw, BLOCK)


def graph(raw: Bytes) -> Walk:
    return model(raw).item(2)


def edited(change: Change) -> Maker:
    def make(good: Good, directory: Path, use: str) -> Path:
        raw = Bytes(good.package.read_bytes())
        change(raw)
        path = directory / "drafter.litertlm"
        path.write_bytes(raw)
        return path

    return make


sound = edited(lambda raw: None)


def whole(data: bytes) -> Maker:
    return edited(lambda raw: raw.__setitem__(slice(None), data))


def litertlm(name: str, hostile: Maker, *says: str, uses: tuple[str, ...] = READERS) -> Case:
    by = tuple(use for use in SOUND if use in uses)
    return Case(f"litertlm: {name}", hostile, sound, uses, says, "refused", by)


def put_begin(value: int) -> Change:
    return lambda raw: first_section(raw).put(first_section(raw).field(1), value, "<Q")


def put_end(value: int) -> Change:
    return lambda raw: first_section(raw).put(first_section(raw).field(2), value, "<Q")


def bomb() -> bytes:
    """Four GiB of zeros, deflated twice over what any reader should take on."""
    state = zlib.compressobj(9)
    start = state.compress(bytes(1 << 20)) + state.flush(zlib.Z_FULL_FLUSH)
    again = state.compress(bytes(1 << 20)) + state.flush(zlib.Z_FULL_FLUSH)
    return start + again * 4095 + state.flush()


def with_bomb(good: Good, directory: Path, use: str) -> Path:
    found = good.package.read_bytes()[BLOCK:]
    found += bytes(-len(found) % BLOCK)
    second = BLOCK + len(found)
    packed = bomb()
    sections = [section(BLOCK, second, 3, MODEL), section(second, second + len(packed), 6)]
    path = directory / "bomb.litertlm"
    path.write_bytes(package(sections, found + packed))
    return path


def two_sections(begin: int, end: int) -> Maker:
    first = section(BLOCK, 2 * BLOCK + 1, 3, MODEL)
    return whole(package([first, section(begin, end)], bytes(2 * BLOCK)))


LITERTLM = (
    litertlm("empty", whole(b""), "0 bytes", uses=("extract", "audit")),
    litertlm(
        "other magic",
        edited(lambda raw: raw.__setitem__(7, 78)),
        "begins with b'LITERTLN', expected b'LITERTLM'",
        uses=("extract", "audit"),
    ),
    litertlm("20 bytes", edited(lambda raw: raw.__delitem__(slice(20, None))), "header needs 32"),
    litertlm("container version 2", edited(lambda raw: raw.__setitem__(8, 2)), "version 2."),
    litertlm("reserved bytes", edited(lambda raw: raw.__setitem__(20, 1)), "hold 1, expected 0"),
    litertlm(
        "header end 2^63",
        edited(lambda raw: struct.pack_into("<Q", raw, 24, 1 << 63)),
        "header end is 9223372036854775808, expected 36 to 16384",
    ),
    litertlm(
        "header end 33",
        edited(lambda raw: struct.pack_into("<Q", raw, 24, 33)),
        "header end is 33, expected 36 to",
    ),
    litertlm(
        "header end 40",
        edited(lambda raw: struct.pack_into("<Q", raw, 24, 40)),
        "header: ",
        "bytes, the end is 8",
    ),
    litertlm(
        "section that ends before it begins",
        edited(put_end(BLOCK - 1)),
        "section 0 (TFLiteModel) begins at 16384 and ends at 16383",
    ),
    litertlm(
        "section past the end",
        edited(put_end(1 << 60)),
        "section 0 (TFLiteModel) ends at 1152921504606846976, the file at",
        "truncated",
    ),
    litertlm(
        "section off its boundary",
        edited(put_begin(BLOCK + 1)),
        "begins at 16385, expected a multiple of 16384",
    ),
    litertlm(
        "item of a section twice",
        whole(package([section(BLOCK, BLOCK + 5, 3, MODEL, MODEL)], bytes(5))),
        "key 'model_type' occurs twice",
    ),
    litertlm("section over the header", edited(put_begin(0)), "begins at 0", "overlap"),
    litertlm(
        "overlapping sections",
        two_sections(2 * BLOCK, 2 * BLOCK + 1),
        "begins at 32768, what is before it ends at 32769: overlap",
    ),
    litertlm(
        "root out of range",
        edited(lambda raw: struct.pack_into("<I", raw, 32, 0xFFFFFF00)),
        "offset 4294967040 needs 4 bytes",
    ),
    litertlm(
        "vtable out of range",
        edited(lambda raw: header(raw).put(header(raw).at, -HUGE, "<i")),
        "vtable at offset",
        "the end is",
    ),
    litertlm(
        "vtable of 3 bytes",
        edited(lambda raw: header(raw).put(header(raw).vtable, 3, "<H")),
        "says 3 and",
        "expected 4 or more",
    ),
    litertlm(
        "vector out of range",
        edited(lambda raw: header(raw).table(1).put(header(raw).table(1).target(0), HUGE)),
        "objects at offset",
        "2147483647 items of 4 bytes, the end is",
    ),
    litertlm(
        "field that is its own table",
        edited(lambda raw: header(raw).put(header(raw).field(1), 0)),
        "section_metadata has offset 0, expected 4 or more",
    ),
    litertlm("cut in a section", edited(lambda raw: raw.__delitem__(slice(60_000, None))), "trunc"),
    Case(
        "litertlm: zlib bomb of 4 GiB as tokenizer",
        with_bomb,
        sound,
        SOUND,
        promise="accepted: a package's tokenizer is not inflated",
    ),
)


def weight(raw: Bytes) -> Walk:
    """The tensor of the first linear layer's integer weight."""
    found = graph(raw)
    count = found.number(found.target(0))
    for index in range(count):
        tensor = found.item(0, index)
        if tensor.number(tensor.vtable, "<H") <= 4 + 2 * 4:
            continue
        if not tensor.number(tensor.vtable + 4 + 2 * 4, "<H"):
            continue
        grid = tensor.table(4)
        has_scales = grid.number(grid.vtable, "<H") > 4 + 2 * 2
        slot = grid.number(grid.vtable + 4 + 2 * 2, "<H") if has_scales else 0
        if slot and grid.number(grid.target(2)) > 1:
            return tensor
    raise AssertionError("no tensor with scales")


def put_scale(value: float) -> Change:
    def change(raw: Bytes) -> None:
        grid = weight(raw).table(4)
        struct.pack_into("<f", raw, grid.target(2) + 4, value)

    return change


def put_scales(count: int) -> Change:
    def change(raw: Bytes) -> None:
        grid = weight(raw).table(4)
        grid.put(grid.target(2), count)

    return change


def operator(raw: Bytes, slot: int) -> Walk:
    """The first operator that has the field, which a default value leaves out."""
    found = graph(raw)
    for index in range(found.number(found.target(3))):
        candidate = found.item(3, index)
        size = candidate.number(candidate.vtable, "<H")
        if size > 4 + 2 * slot and candidate.number(candidate.vtable + 4 + 2 * slot, "<H"):
            return candidate
    raise AssertionError(f"no operator has field {slot}")


def put_input(value: int, slot: int = 1) -> Change:
    def change(raw: Bytes) -> None:
        found = operator(raw, slot)
        found.put(found.target(slot) + 4, value, "<i")

    return change


def tflite(name: str, change: Change, *says: str) -> Case:
    return Case(
        f"TFLite: {name}",
        edited(change),
        sound,
        MODEL_READERS,
        ("section 0 (tf_lite_mtp_drafter)", *says),
        controlled_by=("extract", "audit"),
    )


TFLITE = (
    tflite("identifier", lambda raw: raw.__setitem__(BLOCK + 7, 57), "identifier is b'TFL9'"),
    tflite(
        "schema version 9",
        lambda raw: model(raw).put(model(raw).field(0), 9),
        "schema version is 9, expected 3",
    ),
    tflite(
        "root out of range",
        lambda raw: struct.pack_into("<I", raw, BLOCK, HUGE),
        "offset 2147483647 needs 4 bytes, the end is",
    ),
    tflite(
        "vtable out of range",
        lambda raw: graph(raw).put(graph(raw).at, -HUGE, "<i"),
        "graph 0: vtable at offset",
    ),
    tflite(
        "vector out of range",
        lambda raw: graph(raw).put(graph(raw).target(0), HUGE),
        "tensors at offset",
        "2147483647 items",
    ),
    tflite(
        "offset of 0",
        lambda raw: graph(raw).put(graph(raw).field(0), 0),
        "tensors has offset 0, expected 4 or more",
    ),
    tflite(
        "tensor index -2",
        put_input(-2),
        "tensor in inputs -2 is out of range",
    ),
    tflite("tensor index too big", put_input(HUGE), "tensor in inputs 2147483647 is out of range"),
    tflite("output index -1", put_input(-1, 2), "tensor in outputs -1 is out of range"),
    tflite(
        "buffer index 2^32 - 1",
        lambda raw: weight(raw).put(weight(raw).field(2), 0xFFFFFFFF),
        "buffer 4294967295 is out of range",
    ),
    tflite(
        "operator code too big",
        lambda raw: operator(raw, 0).put(operator(raw, 0).field(0), 99_999),
        "code 99999 is out of range",
    ),
    tflite("scale NaN", put_scale(float("nan")), "scale 0 is nan, expected a number above 0"),
    tflite("scale infinite", put_scale(float("inf")), "scale 0 is inf"),
    tflite("scale 0", put_scale(0.0), "scale 0 is 0.0"),
    tflite("a scale too few", put_scales(2), "has 2 scales, expected"),
    tflite("2^31 - 1 scales", put_scales(HUGE), "scale at offset", "2147483647 items of 4 bytes"),
)
