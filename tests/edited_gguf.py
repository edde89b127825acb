"""GGUF files that differ from another one in chosen keys and tensors."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from gguf_mtp import ggml
from gguf_mtp.keyvalue import KeyValue, ValueType, array
from gguf_mtp.model import Tensor, half_from_gguf
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.writer import write_gguf

Keys = Callable[[list[KeyValue]], Iterable[KeyValue]]
Tensors = Callable[[list[Tensor]], Iterable[Tensor]]


def edited(
    source: Path, target: Path, *, keys: Keys = lambda k: k, tensors: Tensors = lambda t: t
) -> Path:
    """Write `target`, which is `source` with its keys and tensors changed."""
    half = half_from_gguf(read_gguf(source))
    new_keys, new_tensors = tuple(keys(list(half.keys))), tuple(tensors(list(half.tensors)))
    write_gguf(plan(new_keys, new_tensors), target, force=True)
    return target


def with_keys(*new: KeyValue) -> Keys:
    """Keys of these names replaced in place, the others appended."""

    def change(keys: list[KeyValue]) -> list[KeyValue]:
        by_name = {key.name: key for key in new}
        return [by_name.pop(key.name, key) for key in keys] + list(by_name.values())

    return change


def without_keys(*prefixes: str) -> Keys:
    return lambda keys: [key for key in keys if not key.name.startswith(prefixes)]


def with_items(name: str, changes: dict[int, int | float]) -> Keys:
    """Single items of the array `name` changed, by their position."""

    def change(keys: list[KeyValue]) -> Iterable[KeyValue]:
        for key in keys:
            if key.name != name:
                yield key
                continue
            assert key.item_type is not None
            values = [changes.get(at, value) for at, value in enumerate(key.value)]
            yield array(name, key.item_type, values)

    return change


def with_token_types(changes: dict[int, int]) -> Keys:
    return with_items("tokenizer.ggml.token_type", dict(changes))


def all_of(*changes: Keys) -> Keys:
    def change(keys: list[KeyValue]) -> Iterable[KeyValue]:
        for one in changes:
            keys = list(one(keys))
        return keys

    return change


def f32_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, ggml.F32, shape, np.zeros(shape, np.float32).tobytes(), verbatim=True)


def without_tensors(*names: str) -> Tensors:
    return lambda tensors: [tensor for tensor in tensors if tensor.name not in names]


def content(path: Path) -> tuple[list[tuple[str, ValueType, bytes]], list[tuple[str, bytes]]]:
    """All keys and all tensors of a GGUF in their order, as bytes."""
    file = read_gguf(path)
    data = path.read_bytes()
    tensors = [
        (f"{ref.name} {ref.dtype} {ref.shape}", data[ref.offset : ref.offset + ref.nbytes])
        for ref in file.tensors
    ]
    return [(key.name, key.type, key.raw) for key in file.keys], tensors
