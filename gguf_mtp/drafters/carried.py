"""Tensors that travel as keys: a stock llama.cpp ignores keys, and fails on tensors, it does not
know.

Each has `.type` (ggml's number), `.shape` (as in a tensor info, contiguous dimension first) and
`.data` (bytes). Source: this project's format document, "The split drafter".
"""

from gguf_mtp.drafters import ordered_head
from gguf_mtp.errors import FormatError
from gguf_mtp.ggml import TYPES_BY_ID
from gguf_mtp.keyvalue import (
    KeyValue,
    ValueType,
    array,
    array_payload,
    byte_array,
    u32,
)
from gguf_mtp.model import Half, Tensor, read_tensor

CARRIED = "mtp.carried."


def carry(tensor: Tensor) -> tuple[KeyValue, ...]:
    """A verbatim tensor as keys."""
    name = CARRIED + tensor.name
    return (
        u32(f"{name}.type", tensor.type.id),
        array(f"{name}.shape", ValueType.UINT64, reversed(tensor.shape)),
        byte_array(f"{name}.data", read_tensor(tensor)),
    )


def restore_carried(half: Half) -> list[Tensor]:
    """The tensors that travel as keys; `carry` is the inverse."""
    names = [
        key.name.removeprefix(CARRIED).removesuffix(".data")
        for key in half.keys
        if key.name.startswith(CARRIED) and key.name.endswith(".data")
    ]
    tensors = []
    for name in names:
        type_id = half.value(f"{CARRIED}{name}.type")
        shape = half.by_name.get(f"{CARRIED}{name}.shape")
        data = half.by_name[f"{CARRIED}{name}.data"]
        number = TYPES_BY_ID.get(type_id) if isinstance(type_id, int) else None
        if number is None or shape is None or shape.item_type is not ValueType.UINT64:
            raise FormatError(f"{half.origin}: {CARRIED}{name} has no usable type and shape")
        dims = tuple(reversed(shape.value))
        fits = 1 <= len(dims) <= 4 and 0 not in dims and number.fits(dims)
        expected = number.nbytes(dims) if fits else -1
        if data.item_type is not ValueType.UINT8 or data.count != expected:
            raise FormatError(
                f"{half.origin}: {data.name} has {data.count} bytes, "
                f"expected {expected} for {number.name} {list(dims)}"
            )
        if name in half.tensor_by_name or name not in ordered_head.NAMES:
            raise FormatError(f"{half.origin}: {data.name} is twice in the file or unknown")
        tensors.append(Tensor(name, number, dims, array_payload(data), verbatim=True))
    return tensors
