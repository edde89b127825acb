"""``gguf-mtp inspect``: heads of every dialect, heads without an ordered head, and parts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import tiny
from gguf_mtp.api import convert, split
from gguf_mtp.cli.main import main
from gguf_mtp.drafters.dialects import WRITABLE
from gguf_mtp.keyvalue import u32
from gguf_mtp.model import half_from_gguf
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.writer import write_gguf

ORDERED = {"centroids": tiny.CENTROIDS, "top_k": tiny.TOP_K, "rows_sorted": False}


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def summary(path: Path) -> dict[str, Any]:
    result = run("inspect", path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)["summary"]
    return found


def head(path: Path) -> list[str]:
    """The lines before the tables."""
    result = run("inspect", path)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.split("\n\n")[0].splitlines()


@pytest.mark.parametrize("dialect", WRITABLE)
def test_heads_alone_in_every_dialect(tmp_path: Path, tiny_merged: Path, dialect: str) -> None:
    """All tensors are counted, those that AtomicChat calls ``mtp.*`` too; so is the ordered head,
    under whatever names."""
    heads = tmp_path / "h.gguf"
    split(tiny_merged, None, heads, dialect=dialect)
    found, tensors = summary(heads), read_gguf(heads).tensors
    assert sum(found["types"].values()) == len(tensors)
    assert found["bytes"] == sum(ref.nbytes for ref in tensors)
    assert found["merged"] is False
    assert found["ordered_head"] == {**ORDERED, "carried": dialect == "upstream"}
    lines = head(heads)
    assert "  MTP heads  all of this file is heads: --heads takes it" in lines
    assert lines[-1].startswith("  ordered    16 centroids, top 4; rows in token order")


def heads_without_centroids(directory: Path, dialect: str, key: str) -> Path:
    """Heads without an ordered head whose file has the key that states its size, as published ones
    have it."""
    drafter = tiny.write_drafter(directory / "drafter", replace(tiny.E2B, ordered=False))
    target = tiny.write_target(directory / "target")
    convert(target, drafter, directory / "first.gguf")
    split(directory / "first.gguf", directory / "base.gguf", directory / "h.gguf", dialect=dialect)
    half = half_from_gguf(read_gguf(directory / "h.gguf"))
    path = directory / "heads.gguf"
    write_gguf(plan((*half.keys, u32(key, 2048)), half.tensors), path)
    return path


@pytest.mark.parametrize(
    ("dialect", "key"),
    [
        ("upstream", "gemma4-assistant.masked_embd.centroid_count"),
        ("atomic", "gemma4_assistant.n_centroids"),
        ("ik", "gemma4_mtp.centroid_count"),
    ],
)
def test_keys_alone_make_no_ordered_head(tmp_path: Path, dialect: str, key: str) -> None:
    heads = heads_without_centroids(tmp_path, dialect, key)
    files = [heads]
    for layout in ("inline", "tail"):
        files.append(tmp_path / f"{layout}.gguf")
        convert(tmp_path / "base.gguf", heads, files[-1], layout=layout)
        assert summary(files[-1])["heads"]["layout"] == layout
    for path in files:
        assert summary(path)["ordered_head"] is None
        assert not [line for line in head(path) if line.startswith("  ordered")]


@pytest.mark.parametrize("layout", ["inline", "tail"])
def test_an_ordered_head_in_either_layout(tmp_path: Path, tiny_merged: Path, layout: str) -> None:
    split(tiny_merged, tmp_path / "b.gguf", tmp_path / "h.gguf")
    convert(tmp_path / "b.gguf", tmp_path / "h.gguf", tmp_path / "m.gguf", layout=layout)
    inline = layout == "inline"
    assert summary(tmp_path / "m.gguf")["ordered_head"] == {
        **ORDERED,
        "rows_sorted": inline,
        "carried": not inline,
    }


@pytest.fixture
def parts(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> list[Path]:
    convert(tiny_target, tiny_drafter, tmp_path / "m.gguf", split_max_size=200_000)
    return sorted(tmp_path.glob("m-*.gguf"))


def test_every_part_tells_of_the_whole_set(parts: list[Path], tiny_merged: Path) -> None:
    whole = summary(tiny_merged)
    assert whole.pop("parts") is None
    count = len(parts)
    with_heads = [
        at
        for at, path in enumerate(parts, 1)
        if any(ref.name.startswith("mtp.") for ref in read_gguf(path).tensors)
    ]
    assert 1 not in with_heads
    for number, path in enumerate(parts, 1):
        found = summary(path)
        assert found.pop("parts") == {
            "number": number,
            "count": count,
            "bytes": sum(part.stat().st_size for part in parts),
            "heads": with_heads,
            "problem": None,
        }
        assert found == whole
        lines = head(path)
        assert lines[0].endswith(f", part {number} of {count}")
        assert f"  parts      {count} files, " in lines[4]
        assert f"MTP heads in part {with_heads[0]}" in lines[4]
        assert lines[5].startswith("  MTP heads  gemma4-assistant")


def test_a_part_alone_says_which_is_missing(parts: list[Path]) -> None:
    parts[1].unlink()
    problem = f"{parts[1]}: part 2 of {len(parts)} is missing"
    found = summary(parts[0])
    assert found["parts"] == {
        "number": 1,
        "count": len(parts),
        "bytes": None,
        "heads": [],
        "problem": problem,
    }
    assert (found["merged"], found["heads"]) == (False, None)
    lines = head(parts[0])
    assert lines[4].startswith(f"  parts      {problem}; ")
    assert lines[5] == "  MTP heads  in another part of this model"


def test_a_card_of_a_part_is_refused(parts: list[Path]) -> None:
    for number, path in enumerate(parts, 1):
        result = run("card", path, "-q")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == (
            f"error: {path}: is part {number} of {len(parts)}, expected a merged file in one "
            f"piece; join the parts with llama-gguf-split --merge\n"
        )
