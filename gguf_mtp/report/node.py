"""Checked access to a saved report: a wrong or missing value is an error that names its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from gguf_mtp.errors import FormatError, brief

T = TypeVar("T")
KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "an integer"}


class Node:
    """A JSON object and where it stands. Each getter raises FormatError for another type.

    `maybe_…` getters take a missing key and null for None.
    """

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        self._fields: dict[str, Any] = _typed(value, dict, where)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def text(self, key: str) -> str:
        return _typed(self._required(key), str, self._place(key))

    def integer(self, key: str) -> int:
        return _typed(self._required(key), int, self._place(key))

    def flag(self, key: str) -> bool:
        return _typed(self._required(key), bool, self._place(key))

    def number(self, key: str) -> float:
        return _number(self._required(key), self._place(key))

    def child(self, key: str) -> Node:
        return Node(self._required(key), self._place(key))

    def children(self, key: str) -> list[Node]:
        items = _typed(self._required(key), list, self._place(key))
        return [Node(item, f"{self._place(key)}[{i}]") for i, item in enumerate(items)]

    def numbers(self, key: str) -> list[float]:
        items = _typed(self._required(key), list, self._place(key))
        return [_number(item, f"{self._place(key)}[{i}]") for i, item in enumerate(items)]

    def maybe_text(self, key: str) -> str | None:
        return None if self._fields.get(key) is None else self.text(key)

    def maybe_integer(self, key: str) -> int | None:
        return None if self._fields.get(key) is None else self.integer(key)

    def maybe_flag(self, key: str) -> bool | None:
        return None if self._fields.get(key) is None else self.flag(key)

    def maybe_number(self, key: str) -> float | None:
        return None if self._fields.get(key) is None else self.number(key)

    def maybe_child(self, key: str) -> Node | None:
        return None if self._fields.get(key) is None else self.child(key)

    def maybe_children(self, key: str) -> list[Node]:
        return [] if self._fields.get(key) is None else self.children(key)

    def maybe_numbers(self, key: str) -> list[float]:
        return [] if self._fields.get(key) is None else self.numbers(key)

    def scalars(self) -> list[tuple[str, str]]:
        """Every field that is no object or list, as text, in the order of the file."""
        return [
            (key, _shown(value))
            for key, value in self._fields.items()
            if not isinstance(value, dict | list)
        ]

    def _place(self, key: str) -> str:
        return f"{self.where}.{key}"

    def _required(self, key: str) -> Any:
        if key not in self._fields:
            raise FormatError(f"{self._place(key)}: missing")
        return self._fields[key]


def _typed(value: Any, kind: type[T], where: str) -> T:
    # bool is an int in Python, but true is no number in JSON.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FormatError(f"{where}: found {brief(value)}, expected {KINDS[kind]}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(f"{where}: found {brief(value)}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise FormatError(f"{where}: found {brief(value)}, out of range") from None


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
