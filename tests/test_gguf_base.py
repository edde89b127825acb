"""Base models that are GGUFs already: parts, number types nobody knows, files that are none."""

import shutil
from pathlib import Path

import pytest

import tiny
from gguf_mtp.api import attach, convert, plan_convert, split
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.ggml import type_by_id
from gguf_mtp.keyvalue import KeyValue, ValueType, scalar, string
from gguf_mtp.model import Tensor, half_from_gguf
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.parts import read_gguf_parts
from gguf_mtp.writer import write_gguf

COUNT = 3


def split_keys(number: int, count: int, tensors: int) -> tuple[KeyValue, ...]:
    return (
        scalar("split.no", ValueType.UINT16, number),
        scalar("split.count", ValueType.UINT16, count),
        scalar("split.tensors.count", ValueType.INT32, tensors),
    )


def write_parts(source: Path, directory: Path, *, first_is_empty: bool = False) -> list[Path]:
    """The GGUF `source` in three parts, as gguf-split cuts it."""
    half = half_from_gguf(read_gguf(source))
    total = len(half.tensors)
    cuts = [0, 0 if first_is_empty else total // 3, total // 2, total]
    directory.mkdir()
    paths = []
    for number in range(COUNT):
        keys = (*(half.keys if number == 0 else ()), *split_keys(number, COUNT, total))
        path = directory / f"base-{number + 1:05}-of-{COUNT:05}.gguf"
        write_gguf(plan(keys, half.tensors[cuts[number] : cuts[number + 1]]), path)
        paths.append(path)
    return paths


def change_keys(path: Path, change: dict[str, KeyValue]) -> None:
    half = half_from_gguf(read_gguf(path))
    kept = tuple(change.get(key.name, key) for key in half.keys)
    added = tuple(key for name, key in change.items() if name not in half.by_name)
    write_gguf(plan((*kept, *added), half.tensors), path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_merged: Path) -> tuple[Path, Path]:
    """The tiny pair as two GGUFs. Do not write to them."""
    directory = tmp_path_factory.mktemp("pair")
    split(tiny_merged, directory / "base.gguf", directory / "heads.gguf")
    return directory / "base.gguf", directory / "heads.gguf"


@pytest.mark.parametrize("given", range(COUNT))
@pytest.mark.parametrize("first_is_empty", [False, True])
def test_base_in_parts(
    tmp_path: Path, pair: tuple[Path, Path], tiny_merged: Path, given: int, first_is_empty: bool
) -> None:
    parts = write_parts(pair[0], tmp_path / "parts", first_is_empty=first_is_empty)
    convert(parts[given], pair[1], tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == tiny_merged.read_bytes()
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", None)
    assert (tmp_path / "b.gguf").read_bytes() == pair[0].read_bytes()


@pytest.mark.parametrize("layout", ["inline", "tail"])
def test_split_says_that_parts_come_as_one_file(
    tmp_path: Path, pair: tuple[Path, Path], layout: str
) -> None:
    parts = write_parts(pair[0], tmp_path / "parts")
    heads = tiny.write_drafter(tmp_path / "drafter")
    for name, base, expected in (("parts", parts[0], ["one-file"]), ("one", pair[0], [])):
        convert(base, heads, tmp_path / f"{name}.gguf", layout=layout)
        outputs = split(tmp_path / f"{name}.gguf", tmp_path / f"{name}.b.gguf", None)
        assert [note.code for output in outputs for note in output.notes] == expected
        assert outputs[0].path.read_bytes() == pair[0].read_bytes()


def test_a_tail_behind_a_base_in_parts(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """The parts are joined; there is no one file to append to."""
    parts = write_parts(pair[0], tmp_path / "parts")
    convert(parts[0], pair[1], tmp_path / "t.gguf", layout="tail")
    split(tmp_path / "t.gguf", tmp_path / "b.gguf", tmp_path / "h.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == pair[0].read_bytes()
    assert (tmp_path / "h.gguf").read_bytes() == pair[1].read_bytes()
    with pytest.raises(UnsupportedError, match="it is in parts"):
        attach(parts[0], pair[1])


def test_heads_in_parts(tmp_path: Path, pair: tuple[Path, Path], tiny_merged: Path) -> None:
    parts = write_parts(pair[1], tmp_path / "parts")
    convert(pair[0], parts[0], tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == tiny_merged.read_bytes()


def test_provenance_names_all_parts(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    parts = write_parts(pair[0], tmp_path / "parts")
    heads = tiny.write_drafter(tmp_path / "drafter")
    convert(parts[1], heads, tmp_path / "m.gguf", hash_base=True)
    found = {key.name: key.value for key in read_gguf(tmp_path / "m.gguf").keys}
    assert found["mtp.target.files"] == [path.name for path in parts]
    assert len(found["mtp.target.sha256"]) == COUNT


def test_a_set_of_one_part_is_a_plain_file(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    path = Path(shutil.copy(pair[0], tmp_path / "any name.gguf"))
    change_keys(path, {key.name: key for key in split_keys(0, 1, 0)})
    assert read_gguf_parts(path).keys == read_gguf(path).keys


def test_part_missing(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    parts = write_parts(pair[0], tmp_path / "parts")
    parts[1].unlink()
    with pytest.raises(FormatError, match=r"base-00002-of-00003\.gguf: part 2 of 3 is missing"):
        plan_convert(parts[0], pair[1])


def test_part_renamed(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    part = write_parts(pair[0], tmp_path / "parts")[0]
    part = part.rename(part.with_name("base.gguf"))
    with pytest.raises(FormatError, match="one of 3 parts, expected a name that ends in"):
        plan_convert(part, pair[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split.no": scalar("split.no", ValueType.UINT16, 0)}, "split.no is 0, expected 1"),
        ({"split.count": scalar("split.count", ValueType.UINT16, 4)}, "split.count is 4, expected"),
        (
            {"split.tensors.count": scalar("split.tensors.count", ValueType.INT32, 7)},
            "split.tensors.count is 7, but the parts hold",
        ),
        ({"split.no": string("split.no", "1")}, "split.no is STRING, expected an integer"),
        ({"general.name": string("general.name", "?")}, "key general.name is not as in base-00001"),
    ],
    ids=["number", "count", "tensors", "type", "foreign key"],
)
def test_parts_that_disagree(
    tmp_path: Path, pair: tuple[Path, Path], change: dict[str, KeyValue], message: str
) -> None:
    parts = write_parts(pair[0], tmp_path / "parts")
    change_keys(parts[1], change)
    with pytest.raises(FormatError, match=message):
        plan_convert(parts[0], pair[1])


def test_same_part_twice(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    parts = write_parts(pair[0], tmp_path / "parts")
    shutil.copy(parts[2], parts[1])
    change_keys(parts[1], {"split.no": scalar("split.no", ValueType.UINT16, 1)})
    with pytest.raises(FormatError, match=r"is also in base-00002"):
        plan_convert(parts[0], pair[1])


def with_unknown_types(source: Path, out: Path, names: dict[str, int]) -> dict[str, bytes]:
    """A copy of `source` in which the tensors `names` are of types of those ids, bytes made up."""
    half = half_from_gguf(read_gguf(source))
    data: dict[str, bytes] = {}
    tensors = []
    for tensor in half.tensors:
        if tensor.name in names:
            data[tensor.name] = tiny.noise(tensor.name, (96,), "F16")
            number = type_by_id(names[tensor.name])
            tensor = Tensor(tensor.name, number, tensor.shape, data[tensor.name], verbatim=True)
        tensors.append(tensor)
    write_gguf(plan(half.keys, tuple(tensors)), out)
    return data


def test_types_nobody_knows_are_copied(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    last = read_gguf(pair[0]).tensors[-1].name
    names = {"blk.0.attn_q.weight": 137, "blk.1.ffn_up.weight": 255, last: 4}
    data = with_unknown_types(pair[0], tmp_path / "base.gguf", names)
    convert(tmp_path / "base.gguf", pair[1], tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", None)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "base.gguf").read_bytes()
    merged, stored = read_gguf(tmp_path / "m.gguf"), (tmp_path / "m.gguf").read_bytes()
    refs = {ref.name: ref for ref in merged.tensors}
    for name, number in names.items():
        assert refs[name].dtype == f"type {number}"
        assert stored[refs[name].offset :][: len(data[name])] == data[name]


def test_heads_of_an_unknown_type_keep_their_order(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Rows can only be sorted by centroid where their size is known."""
    with_unknown_types(pair[1], tmp_path / "heads.gguf", {"token_embd.weight": 200})
    convert(pair[0], tmp_path / "heads.gguf", tmp_path / "m.gguf")
    assert (
        "mtp.gemma4-assistant.masked_embd.rows_sorted" not in read_gguf(tmp_path / "m.gguf").by_name
    )
    split(tmp_path / "m.gguf", None, tmp_path / "h.gguf")
    assert (tmp_path / "h.gguf").read_bytes() == (tmp_path / "heads.gguf").read_bytes()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.architecture": "clip", "general.type": "mmproj"}, "the vision and audio enc"),
        ({"general.architecture": "clip"}, "the vision and audio encoders"),
        ({"general.architecture": "gemma4-assistant"}, "MTP heads: for --heads"),
        ({"general.architecture": "llama"}, "'llama', expected a base model, 'gemma4'"),
    ],
)
def test_files_that_are_no_base(
    tmp_path: Path, pair: tuple[Path, Path], keys: dict[str, str], message: str
) -> None:
    path = Path(shutil.copy(pair[0], tmp_path / "mmproj-base.gguf"))
    change_keys(path, {name: string(name, value) for name, value in keys.items()})
    with pytest.raises(UnsupportedError, match=message):
        plan_convert(path, pair[1])


def test_siblings_are_left_alone(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """An mmproj file beside the base has no part in it."""
    base = Path(shutil.copy(pair[0], tmp_path / "base.gguf"))
    (tmp_path / "mmproj-base.gguf").write_bytes(b"not looked at")
    convert(base, pair[1], tmp_path / "m.gguf")
    assert (tmp_path / "mmproj-base.gguf").read_bytes() == b"not looked at"


def test_a_base_that_says_nothing_of_shared_layers(tmp_path: Path) -> None:
    """As llama.cpp reads it: all layers have keys and values of their own."""
    base = tiny.write_target(tmp_path / "target", tiny.DENSE)
    heads = tiny.write_drafter(tmp_path / "drafter", tiny.DENSE)
    convert(base, heads, tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", None)
    half = half_from_gguf(read_gguf(tmp_path / "b.gguf"))
    keys = tuple(key for key in half.keys if key.name != "gemma4.attention.shared_kv_layers")
    write_gguf(plan(keys, half.tensors), tmp_path / "silent.gguf")
    assert len(keys) == len(half.keys) - 1
    convert(tmp_path / "silent.gguf", heads, tmp_path / "m2.gguf")
    split(tmp_path / "m2.gguf", tmp_path / "b2.gguf", None)
    assert (tmp_path / "b2.gguf").read_bytes() == (tmp_path / "silent.gguf").read_bytes()


@pytest.mark.parametrize("kind", tiny.KINDS, ids=lambda kind: kind.name)
def test_every_structure(tmp_path: Path, kind: tiny.Kind) -> None:
    base = tiny.write_target(tmp_path / "target", kind)
    heads = tiny.write_drafter(tmp_path / "drafter", kind)
    convert(base, heads, tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", None)
    convert(tmp_path / "b.gguf", heads, tmp_path / "again.gguf")
    first, second = read_gguf(tmp_path / "m.gguf"), read_gguf(tmp_path / "again.gguf")
    assert first.tensors[0].shape == second.tensors[0].shape
    begin, end = first.data_start, second.data_start
    assert (tmp_path / "m.gguf").read_bytes()[begin:] == (tmp_path / "again.gguf").read_bytes()[
        end:
    ]
