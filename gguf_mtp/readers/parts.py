"""A GGUF in parts, as `gguf-split` and the converters write it: found, checked, read as one.

Source: llama.cpp ``src/llama-model-loader.cpp`` and ``tools/gguf-split/gguf-split.cpp``.
"""

import re
from dataclasses import replace
from pathlib import Path

from gguf_mtp.errors import FormatError
from gguf_mtp.keyvalue import ValueType
from gguf_mtp.readers.gguf import GgufFile, read_gguf

PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
PREFIX = "split."
COUNT, NUMBER, TENSORS = "split.count", "split.no", "split.tensors.count"


def read_gguf_parts(path: Path) -> GgufFile:
    """The GGUF at `path` or, where that is a part of one, all of it, without ``split.*`` keys.

    Any part may be given; the others lie beside it. Raises FormatError when one is missing, is
    there twice, or disagrees with the others.
    """
    file = read_gguf(path)
    if _integer(file, COUNT, 0) <= 1:
        return file
    count = _integer(file, COUNT)
    match = PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise FormatError(
            f"{path}: is one of {count} parts, expected a name that ends in "
            f"-00001-of-{count:05}.gguf or the like"
        )
    parts = []
    for number in range(1, count + 1):
        other = path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf")
        if not other.exists():
            raise FormatError(f"{other}: part {number} of {count} is missing")
        parts.append(_checked(read_gguf(other), number, count))
    return _joined(parts)


def require_whole(file: GgufFile) -> None:
    """Raise FormatError where `file` is a part of a model: heads go behind all of one."""
    count = _integer(file, COUNT, 0)
    if count > 1:
        raise FormatError(f"{file.path}: is one of {count} parts with heads behind it")


def _checked(part: GgufFile, number: int, count: int) -> GgufFile:
    for name, expected in ((NUMBER, number - 1), (COUNT, count)):
        found = _integer(part, name)
        if found != expected:
            raise FormatError(f"{part.path}: {name} is {found}, expected {expected}")
    return part


def _joined(parts: list[GgufFile]) -> GgufFile:
    first = parts[0]
    tensors = [ref for part in parts for ref in part.tensors]
    seen: dict[str, Path] = {}
    for ref in tensors:
        if ref.name in seen:
            raise FormatError(f"{ref.file}: tensor {ref.name} is also in {seen[ref.name].name}")
        seen[ref.name] = ref.file
    for part in parts:
        total = _integer(part, TENSORS)
        if total != len(tensors):
            raise FormatError(
                f"{part.path}: {TENSORS} is {total}, but the parts hold {len(tensors)} tensors"
            )
        for key in part.keys:
            if not key.name.startswith(PREFIX) and first.by_name.get(key.name) != key:
                raise FormatError(f"{part.path}: key {key.name} is not as in {first.path.name}")
    keys = tuple(key for key in first.keys if not key.name.startswith(PREFIX))
    size = sum(part.size for part in parts)
    paths = tuple(part.path for part in parts)
    return replace(first, keys=keys, tensors=tuple(tensors), size=size, paths=paths)


def _integer(file: GgufFile, name: str, default: int | None = None) -> int:
    key = file.by_name.get(name)
    if key is None and default is not None:
        return default
    kinds = (ValueType.UINT16, ValueType.INT32, ValueType.UINT32, ValueType.INT64, ValueType.UINT64)
    if key is None or key.type not in kinds:
        found = "missing" if key is None else key.type.name
        raise FormatError(f"{file.path}: {name} is {found}, expected an integer")
    return int(key.value)
