"""JSON read strictly: UTF-8 without BOM, no duplicate keys, no NaN, no half characters, bounded
size, no odd depth."""

import gc
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguf_mtp.errors import FormatError, brief
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.unique import first_repeated

MAX_BYTES = 1 << 28
# Gemma's tokenizer has half a million: its merges. Each costs some sixty bytes, or three of JSON.
MAX_CONTAINERS = 1 << 22
MAX_NUMBER_DIGITS = 64
# What shows that a file may hold a longer integer.
_TOO_LONG = b"0" * MAX_NUMBER_DIGITS
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
# Half of a character beyond 16 bits, as JSON escapes it; the other half should be beside it.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(encoded: bytes, where: str) -> dict[str, Any]:
    """Parse `encoded` as one JSON object, all of whose text can be written as UTF-8 again.

    Raises FormatError, naming `where`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = first_repeated(name for name, _ in pairs)
            raise FormatError(f"{where}: key {brief(twice)} occurs twice")
        return result

    def refuse_constant(text: str) -> Any:
        raise FormatError(f"{where}: {text} is not a JSON number")

    def integer(text: str) -> int:
        if len(text) > MAX_NUMBER_DIGITS:
            raise FormatError(f"{where}: a number has {len(text)} digits")
        return int(text)

    def number(text: str) -> float:
        if len(text) > MAX_NUMBER_DIGITS:
            raise FormatError(f"{where}: a number has {len(text)} digits")
        value = float(text)
        if not math.isfinite(value):
            raise FormatError(f"{where}: number {text} is out of range")
        return value

    containers = encoded.count(b"{") + encoded.count(b"[")
    if containers > MAX_CONTAINERS:
        raise FormatError(
            f"{where}: {containers} brackets and braces open, at most {MAX_CONTAINERS} may"
        )
    try:
        with _uncollected():
            value = json.loads(
                encoded.decode("utf-8"),
                object_pairs_hook=unique,
                parse_constant=refuse_constant,
                # A tokenizer has hundreds of thousands of integers.
                parse_int=integer if _TOO_LONG in encoded.translate(_DIGITS) else None,
                parse_float=number,
            )
            if _SURROGATE.search(encoded):
                json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise FormatError(f"{where}: {half!a} is half a character: not valid Unicode") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise FormatError(f"{where}: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise FormatError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for reference cycles within: in a million new objects it takes longer than they."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in the file at `path`."""
    return parse_object(read_small(path, MAX_BYTES), str(path))


def read_small(path: Path, limit: int) -> bytes:
    """The whole file at `path`; FormatError when it holds more than `limit` bytes."""
    with SourceFile(path) as source:
        if source.size > limit:
            raise FormatError(f"{path}: {source.size} bytes, at most {limit} are read")
        return source.read(0, source.size)
