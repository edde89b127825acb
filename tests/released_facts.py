"""Reads the table of facts about published files, ``released/*.json`` (see its README)."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gguf_mtp.keyvalue import ValueType

FACTS = Path(__file__).resolve().parent / "released"
VALUE_TYPES = {
    "u32": ValueType.UINT32,
    "i32": ValueType.INT32,
    "f32": ValueType.FLOAT32,
    "bool": ValueType.BOOL,
    "str": ValueType.STRING,
}
ITEMS = re.compile(r"arr\[(\w+)\]")


@dataclass(frozen=True)
class Key:
    """A key as printed: `kind` is GGUF's type, ``arr[...]`` for an array; no `value` where only its
    type was printed."""

    name: str
    kind: str
    value: Any = None


@dataclass(frozen=True)
class Facts:
    """What is publicly known about one file. None stands for what nobody printed.

    Fields and provenance: released/README.md.
    """

    name: str
    file: str
    publisher: str
    role: str
    size: str | None
    sources: tuple[str, ...]
    date: str | None
    architecture: str
    dialect: str | None
    like: str | None
    n_keys: int | None
    unprinted_keys: int | None
    n_tensors: int | None
    tensor_types: Mapping[str, int] | None
    f32_matrices: tuple[str, ...]
    keys: tuple[Key, ...]
    all_keys: bool
    key_order: str | None
    without: tuple[str, ...]
    token_types: Mapping[str, int | None]
    shared_kv_tensors: bool | None
    ordered_head: bool | None
    encoders: bool
    scales: bool
    tensor_names: Mapping[str, str]
    lacks_tensors: tuple[str, ...]
    remarks: tuple[str, ...]


@cache
def read_facts(name: str) -> Facts:
    """The facts in ``released/<name>.json``. Raises TypeError for a missing or unknown field."""
    fields = json.loads((FACTS / f"{name}.json").read_text(encoding="utf-8"))
    fields["keys"] = [Key(*key) for key in fields["keys"]]
    lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    return Facts(name=name, **fields | lists)


def all_facts(role: str | None = None, size: str | None = None) -> list[Facts]:
    """Every published file in the table, in the order of its name."""
    found = [read_facts(path.stem) for path in sorted(FACTS.glob("*.json"))]
    return [
        facts
        for facts in found
        if facts.size is not None and role in (None, facts.role) and size in (None, facts.size)
    ]
