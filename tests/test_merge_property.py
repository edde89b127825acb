"""Merging and splitting are inverses, whatever keys and tensors the two files hold."""

import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from gguf_mtp.api import convert, split
from gguf_mtp.drafters.dialects import WRITABLE
from gguf_mtp.ggml import F32, TYPES, GgmlType, type_by_id
from gguf_mtp.keyvalue import SCALARS, KeyValue, ValueType, array, scalar, u32
from gguf_mtp.model import Half, Tensor, half_from_gguf, read_tensor
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.writer import write_gguf

UNKNOWN_IDS = (4, 36, 97, 137, 255, 4_000_000_000)
INTEGERS = {
    ValueType.UINT8: (0, 255),
    ValueType.INT8: (-128, 127),
    ValueType.UINT16: (0, 65535),
    ValueType.INT16: (-32768, 32767),
    ValueType.UINT32: (0, (1 << 32) - 1),
    ValueType.INT32: (-(1 << 31), (1 << 31) - 1),
    ValueType.UINT64: (0, (1 << 64) - 1),
    ValueType.INT64: (-(1 << 63), (1 << 63) - 1),
}
names = st.text("abcXYZ019._-é", min_size=1, max_size=24)
NUMBERS = (*TYPES.values(), *map(type_by_id, UNKNOWN_IDS))
# Tensors that a base may have or not, and their shapes: with any of these it is a whole model.
OPTIONAL = {
    "output.weight": (tiny.VOCAB_SIZE, tiny.HIDDEN),
    **{
        f"{matrix}.{scale}": (1,)
        for matrix in ("output", "blk.0.attn_q", "blk.4.ffn_down")
        for scale in ("scale", "input_scale")
    },
}


def scalars(kind: ValueType) -> st.SearchStrategy[int | float | bool]:
    if kind in INTEGERS:
        return st.integers(*INTEGERS[kind])
    if kind is ValueType.BOOL:
        return st.booleans()
    return st.floats(width=32 if kind is ValueType.FLOAT32 else 64)


@st.composite
def keys(draw: st.DrawFn, prefix: str) -> tuple[KeyValue, ...]:
    """Keys of every value type, empty strings and arrays and nested arrays among them."""
    found = []
    for name in draw(st.lists(names, max_size=6, unique=True)):
        full = prefix + name
        form = draw(st.sampled_from(("scalar", "array", "strings", "string", "nested")))
        kind = draw(st.sampled_from(list(SCALARS)))
        if form == "scalar":
            found.append(scalar(full, kind, draw(scalars(kind))))
        elif form == "array":
            found.append(array(full, kind, draw(st.lists(scalars(kind), max_size=5))))
        elif form == "strings":
            items = draw(st.lists(st.binary(max_size=9), max_size=4))
            raw = struct.pack("<IQ", ValueType.STRING, len(items))
            raw += b"".join(struct.pack("<Q", len(item)) + item for item in items)
            found.append(KeyValue(full, ValueType.ARRAY, raw))
        elif form == "string":
            text = draw(st.binary(max_size=20))
            raw = struct.pack("<Q", len(text)) + text
            found.append(KeyValue(full, ValueType.STRING, raw))
        else:
            inner = struct.pack("<IQ", ValueType.UINT8, 3) + draw(st.binary(min_size=3, max_size=3))
            raw = struct.pack("<IQ", ValueType.ARRAY, 1) + inner
            found.append(KeyValue(full, ValueType.ARRAY, raw))
    return tuple(found)


@st.composite
def tensors(draw: st.DrawFn, alignment: int) -> tuple[Tensor, ...]:
    """Tensors of any shape and type; of those nobody knows, whole units of `alignment` bytes."""
    found = []
    for name in draw(st.lists(names, max_size=5, unique=True)):
        shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
        number = draw(st.sampled_from(NUMBERS))
        shape = (*shape, number.block_values or draw(st.integers(1, 40)))
        found.append(filled(f"x.{name}", number, shape, alignment * draw(st.integers(1, 3))))
    return tuple(found)


@st.composite
def optional_tensors(draw: st.DrawFn, alignment: int) -> tuple[Tensor, ...]:
    """Some of `OPTIONAL`, in any order and in any type that fits their rows."""
    found = []
    for name in draw(st.lists(st.sampled_from(list(OPTIONAL)), unique=True)):
        fitting = [number for number in NUMBERS if fits(number, OPTIONAL[name])]
        number, units = draw(st.sampled_from(fitting)), draw(st.integers(1, 3))
        found.append(filled(name, number, OPTIONAL[name], alignment * units))
    return tuple(found)


def fits(number: GgmlType, shape: tuple[int, ...]) -> bool:
    return not number.is_known or number.fits(shape)


def filled(name: str, number: GgmlType, shape: tuple[int, ...], unknown_bytes: int) -> Tensor:
    """A tensor of made-up bytes: `unknown_bytes` of them where its type does not say how many."""
    nbytes = number.nbytes(shape) if number.is_known else unknown_bytes
    return Tensor(name, number, shape, tiny.noise(name, (nbytes,), "F16")[:nbytes], verbatim=True)


@dataclass(frozen=True)
class Pair:
    base: Half
    heads: Half


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_merged: Path) -> Pair:
    """The tiny pair, all bytes in memory."""
    root = tmp_path_factory.mktemp("pair")
    split(tiny_merged, root / "b.gguf", root / "h.gguf", dialect="ordered")
    return Pair(loaded(root / "b.gguf"), loaded(root / "h.gguf"))


def loaded(path: Path) -> Half:
    half = half_from_gguf(read_gguf(path))
    own = tuple(key for key in half.keys if not key.name.startswith("mtp."))
    items = tuple(replace(item, source=read_tensor(item)) for item in half.tensors)
    return replace(half, keys=own, tensors=items)


def retyped(tensor: Tensor, old: str, number: GgmlType, unknown_bytes: int) -> Tensor:
    """A tensor of type `old` in another that fits, its bytes made up; others as they are."""
    if tensor.type is not TYPES[old] or not fits(number, tensor.shape):
        return tensor
    return filled(tensor.name, number, tensor.shape, unknown_bytes)


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def same(first: Path, second: Path) -> None:
    """Equal keys and tensors, in order, but for provenance in the second."""
    one, two = (read_gguf(path) for path in (first, second))
    assert [key for key in two.keys if not key.name.startswith("mtp.")] == list(one.keys)
    data = (first.read_bytes(), second.read_bytes())
    spans = [
        [(ref.name, ref.dtype, ref.shape, raw[ref.offset :][: ref.nbytes]) for ref in gguf.tensors]
        for gguf, raw in zip((one, two), data, strict=True)
    ]
    assert spans[0] == spans[1]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_split_undoes_convert(pair: Pair, data: st.DataObject) -> None:
    alignment = data.draw(st.sampled_from((8, 32, 64, 4096)), "alignment")
    added = data.draw(keys("x."), "base keys")
    extra = data.draw(optional_tensors(alignment), "base tensors")
    where = data.draw(st.integers(0, len(pair.base.tensors)), "where")
    base_number = data.draw(st.sampled_from(NUMBERS), "type of the base's matrices")
    base_keys = (*pair.base.keys, u32("general.alignment", alignment), *added)
    original = [retyped(item, "BF16", base_number, alignment) for item in pair.base.tensors]
    base_tensors = (*original[:where], *extra, *original[where:])
    own = data.draw(keys("gemma4-assistant.x."), "heads keys")
    other = data.draw(keys("x."), "other heads keys")
    number = data.draw(st.sampled_from((F32, *TYPES.values())), "type of the heads' matrices")
    heads_tensors = tuple(retyped(item, "Q8_0", number, alignment) for item in pair.heads.tensors)
    dialect = data.draw(st.sampled_from([name for name in WRITABLE if name != "ik"]), "dialect")
    with scratch() as root:
        base, heads, merged = (root / f"{name}.gguf" for name in ("base", "heads", "merged"))
        write_gguf(plan(base_keys, base_tensors), base)
        write_gguf(plan((*pair.heads.keys, *own, *other), heads_tensors), heads)
        convert(base, heads, merged)
        split(merged, root / "b.gguf", root / "h.gguf", dialect="ordered")
        assert (root / "b.gguf").read_bytes() == base.read_bytes()
        same(heads, root / "h.gguf")
        # By way of any other dialect, the heads' tensors are still the same.
        split(merged, None, root / "d.gguf", dialect=dialect)
        convert(base, root / "d.gguf", root / "again.gguf")
        first, second = (read_gguf(path) for path in (merged, root / "again.gguf"))
        raw = (merged.read_bytes(), (root / "again.gguf").read_bytes())
        found = [
            {ref.name: (ref.dtype, text[ref.offset :][: ref.nbytes]) for ref in gguf.tensors}
            for gguf, text in zip((first, second), raw, strict=True)
        ]
        assert found[0] == found[1]


@settings(max_examples=100, deadline=None)
@given(alignment=st.sampled_from((8, 32, 4096)), data=st.data())
def test_written_tensors_read_back(alignment: int, data: st.DataObject) -> None:
    """Sizes of known types by their shape, of others by their place."""
    drawn = data.draw(tensors(alignment))
    with scratch() as root:
        write_gguf(plan((u32("general.alignment", alignment),), drawn), root / "f.gguf")
        refs = read_gguf(root / "f.gguf").tensors
    assert [(ref.name, ref.dtype, ref.shape, ref.nbytes) for ref in refs] == [
        (item.name, item.type.name, item.shape, item.nbytes) for item in drawn
    ]
