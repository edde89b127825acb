"""Damaged inputs, many and random but the same every time: a result or one clear line."""

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import _report_documents as reports
import tiny
from gguf_mtp.api import plan_convert, split
from gguf_mtp.cli.inspect import document
from gguf_mtp.errors import GgufMtpError
from gguf_mtp.merged import separate
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.report import badges, render

VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    3,
    2**31,
    2**70,
    1.5,
    1e308,
    5e-324,
    "",
    "x",
    [],
    [1],
    {},
    {"a": 1},
]


def outcome(action: Callable[[], object]) -> str:
    """The name of what came of it; any exception but this package's own passes through."""
    caught: GgufMtpError | None = None
    try:
        action()
    except GgufMtpError as error:
        caught = error
    if caught is None:
        return "accepted"
    assert "\n" not in str(caught)
    assert 0 < len(str(caught)) < 1500
    return type(caught).__name__


def damage(data: bytes, header: int, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(header)
        damaged[at] = rng.choice((0, 1, 255, rng.randrange(256), damaged[at] ^ 1))
    return bytes(damaged)


def mutate(value: Any, rng: random.Random) -> None:
    """Replace or remove something somewhere in a JSON value."""
    spot: tuple[Any, Any] | None = None
    while isinstance(value, dict | list) and value and (spot is None or rng.random() < 0.7):
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        spot = (value, key)
        value = value[key]
    assert spot is not None
    container, key = spot
    if rng.random() < 0.15:
        del container[key]
    else:
        container[key] = copy.deepcopy(rng.choice(VALUES))


def test_damaged_merged_file(tiny_merged: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    data, header = tiny_merged.read_bytes(), read_gguf(tiny_merged).data_start
    path = tmp_path / "damaged.gguf"
    seen: Counter[str] = Counter()
    for _ in range(250):
        path.write_bytes(damage(data, header, rng))
        seen[outcome(lambda: separate(read_gguf(path)))] += 1
        outcome(lambda: json.dumps(document(read_gguf(path))))
    assert seen["accepted"] > 20
    assert seen["FormatError"] > 100


def test_damaged_heads(tiny_merged: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    base, heads = tmp_path / "b.gguf", tmp_path / "h.gguf"
    split(tiny_merged, base, heads)
    data, header = heads.read_bytes(), read_gguf(heads).data_start
    seen: Counter[str] = Counter()
    for _ in range(250):
        heads.write_bytes(damage(data, header, rng))
        seen[outcome(lambda: plan_convert(base, heads))] += 1
    assert seen["accepted"] > 20
    assert seen["FormatError"] > 100


@pytest.mark.parametrize("dialect", ["22738", "atomic", "ik"])
def test_damaged_heads_of_a_dialect(tiny_merged: Path, tmp_path: Path, dialect: str) -> None:
    """Damage within the names and values that the dialect has for itself, where most of it is."""
    rng = random.Random(4)
    base, heads = tmp_path / "b.gguf", tmp_path / "h.gguf"
    split(tiny_merged, base, heads, dialect=dialect)
    data, header = heads.read_bytes(), read_gguf(heads).data_start
    texts = (b"tokenizer.ggml.model", b"tokenizer.ggml.add_space_prefix")
    begin, end = (data.index(text) for text in texts)
    seen: Counter[str] = Counter()
    for _ in range(100):
        damaged = bytearray(damage(data, header, rng))
        damaged[begin:end] = data[begin:end]
        heads.write_bytes(damaged)
        seen[outcome(lambda: plan_convert(base, heads))] += 1
    assert seen.total() - seen["accepted"] > 20


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("target", "config.json"),
        ("target", "tokenizer.json"),
        ("target", "tokenizer_config.json"),
        ("target", "generation_config.json"),
        ("drafter", "config.json"),
    ],
)
def test_damaged_json(tmp_path: Path, role: str, name: str) -> None:
    rng = random.Random(3)
    target = tiny.write_target(tmp_path / "target")
    drafter = tiny.write_drafter(tmp_path / "drafter")
    path = tmp_path / role / name
    original = json.loads(path.read_text(encoding="utf-8"))
    seen: Counter[str] = Counter()
    for _ in range(150):
        value = copy.deepcopy(original)
        mutate(value, rng)
        tiny.write_json(path, value)
        seen[outcome(lambda: plan_convert(target, drafter))] += 1
    assert seen["accepted"] > 5
    assert seen.total() - seen["accepted"] > 5


@pytest.mark.parametrize(
    "original",
    [reports.validation(**reports.beside_the_cpu()), reports.benchmark()],
    ids=["validation", "benchmark"],
)
def test_damaged_reports(original: dict[str, Any]) -> None:
    rng = random.Random(5)
    seen: Counter[str] = Counter()
    for _ in range(250):
        value = copy.deepcopy(original)
        for _ in range(rng.choice((1, 1, 3))):
            mutate(value, rng)
        seen[outcome(partial(render, [("r", value)]))] += 1
        outcome(partial(badges, value))
    assert seen["accepted"] > 20
    assert seen["FormatError"] > 100
