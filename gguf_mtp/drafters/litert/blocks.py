"""Integer codes into ggml's blocks of 32, carried over unchanged: int8 to Q8_0, int4 to Q4_0.

Source: llama.cpp ``ggml/src/ggml-common.h`` (`block_q4_0`, `block_q8_0`). A block has one float16
scale, so only the scale is rounded; that a file holds the codes is checked by unpacking it again.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguf_mtp.drafters.litert.weights import Codes, Floats, Weight
from gguf_mtp.errors import FormatError
from gguf_mtp.ggml import Q4_0, Q8_0, GgmlType
from gguf_mtp.readers.source import SourceFile

BLOCK = 32
OFFSET = 8  # of a Q4_0 code
# Rounding to float16 changes a scale by half of this at most, unless it is too small or large.
MAX_SCALE_ERROR = 2.0**-11
BY_TYPE = {"INT8": Q8_0, "INT4": Q4_0, "INT2": Q4_0}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Carried:
    """A matrix in ggml's blocks, and the worst relative error of its scales."""

    type: GgmlType
    data: bytes
    scale_error: float


def refusal(weight: Weight) -> str | None:
    """Why the codes of `weight` cannot be carried, None where they can."""
    if weight.scales is None:
        return "it holds floats"
    if weight.shape[1] % BLOCK or weight.block % BLOCK:
        return f"its {weight.block} values to a scale are no multiple of {BLOCK}"
    if _error(weight.scales) > MAX_SCALE_ERROR:
        return "a scale is outside of float16's range"
    return None


def _error(scales: Floats) -> float:
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16).astype(np.float64)
    return float(np.abs(rounded / scales.astype(np.float64) - 1).max())


def carry(source: SourceFile, name: str, weight: Weight) -> Carried:
    """`weight`, for which `refusal` is None, block by block; `name` is for the message.

    Raises FormatError should the blocks not hold the codes.
    """
    if weight.scales is None:
        raise ValueError(f"{name} holds no codes")
    number = BY_TYPE[weight.tensor.dtype]
    parts = []
    first = 0
    for codes in weight.codes(source):
        scales = np.repeat(
            weight.scales[first : first + len(codes)], weight.block // BLOCK, axis=1
        ).astype(np.float16)
        first += len(codes)
        blocks = _pack(codes.reshape(-1, BLOCK), scales.reshape(-1, 1), number)
        if not np.array_equal(unpack_blocks(blocks, number), codes.reshape(-1, BLOCK)):
            raise FormatError(f"{source.path}: {name}: {number.name} blocks do not hold its codes")
        parts.append(blocks.tobytes())
    return Carried(number, b"".join(parts), _error(weight.scales))


def _pack(codes: Codes, scales: npt.NDArray[np.float16], number: GgmlType) -> Bytes:
    out = np.empty((len(codes), number.block_bytes), np.uint8)
    out[:, :2] = scales.view(np.uint8)
    if number is Q8_0:
        out[:, 2:] = codes.view(np.uint8)
    else:
        # The first half of a block in the low four bits of its bytes, the second in the high.
        lifted = (codes + np.int8(OFFSET)).view(np.uint8)
        out[:, 2:] = lifted[:, : BLOCK // 2] | (lifted[:, BLOCK // 2 :] << np.uint8(4))
    return out


def unpack_blocks(blocks: Bytes, number: GgmlType) -> Codes:
    """The codes in `blocks` [n, block bytes] of Q8_0 or Q4_0."""
    if number is Q8_0:
        return blocks[:, 2:].view(np.int8)
    halves = (blocks[:, 2:] & np.uint8(15), blocks[:, 2:] >> np.uint8(4))
    lifted: Codes = np.concatenate(halves, axis=1).view(np.int8)
    lifted -= np.int8(OFFSET)
    return lifted
