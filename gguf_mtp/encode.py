"""Number types: floats of a checkpoint to F32, F16, BF16 and Q8_0, bit for bit as gguf-py does it.

Everything works in chunks on reused scratch memory. 16-bit sources are mapped to 16-bit types by
a table of all 65536 values, which gguf-py's own conversion fills once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
from gguf import quants
from gguf.constants import GGMLQuantizationType

from gguf_mtp.ggml import GgmlType
from gguf_mtp.model import Tensor, read_tensor
from gguf_mtp.readers.source import TensorRef

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SOURCE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# Values handled at a time: the scratch of one pass stays in a core's own cache.
PASS_VALUES = 1 << 16
Q8_0_VALUES = 32
Q8_0_BYTES = 34
INFINITY_BITS = 0x7F800000
# The float just below one half: adding it and truncating rounds halves away from zero.
BELOW_HALF_BITS = np.float32(0.5).view(np.uint32) - 1


class Encoder:
    """Converts chunks of up to `max_values` values; not for use by two threads at once."""

    def __init__(self, max_values: int) -> None:
        # The widest output is F32.
        self._out = np.empty(4 * max_values, np.uint8)
        self._wide = np.empty(PASS_VALUES, np.float32)
        self._scaled = np.empty(PASS_VALUES, np.float32)
        self._bits = np.empty(PASS_VALUES, np.uint32)
        self._columns = np.empty((Q8_0_VALUES, PASS_VALUES // Q8_0_VALUES), np.uint32)

    def encode(self, chunk: Bytes, dtype: str, number: GgmlType) -> Bytes:
        """`chunk`, values of safetensors type `dtype`, as bytes of type `number`.

        Whole blocks only: for Q8_0 a multiple of 32 values. The result is valid until the next
        call; where nothing changes it is `chunk` itself.
        """
        if dtype == number.name != "BF16":
            return chunk
        if dtype == "BF16" and number.name == "BF16":
            return self._quiet(chunk)
        n_values = len(chunk) // SOURCE_BYTES[dtype]
        out = self._out[: n_values // number.block_values * number.block_bytes]
        if number.block_bytes == SOURCE_BYTES[dtype] == 2:
            table = _table(dtype, number.name)
            np.take(table, chunk.view(np.uint16), out=out.view(np.uint16), mode="clip")
            return out
        step: Callable[[Floats, Bytes], None] = getattr(self, f"_to_{number.name.lower()}")
        source = chunk.reshape(n_values, -1)
        for first in range(0, n_values, PASS_VALUES):
            part = source[first : first + PASS_VALUES]
            blocks = slice(
                first // number.block_values * number.block_bytes,
                (first + len(part)) // number.block_values * number.block_bytes,
            )
            step(self._widen(part.reshape(-1), dtype), out[blocks])
        return out

    def _widen(self, part: Bytes, dtype: str) -> Floats:
        if dtype == "F32":
            return part.view(np.float32)
        halves = part.view(np.uint16)
        wide = self._wide[: len(halves)]
        if dtype == "BF16":
            np.left_shift(halves, np.uint32(16), out=wide.view(np.uint32), dtype=np.uint32)
        else:
            wide[...] = halves.view(np.float16)
        return wide

    def _quiet(self, chunk: Bytes) -> Bytes:
        """BF16 through float: the bytes as they are, but for signalling NaNs, which turn quiet."""
        halves = chunk.view(np.uint16)
        magnitudes = halves << 1
        if int(magnitudes.max(initial=0)) <= 0xFF00:
            return chunk
        out = self._out[: len(chunk)]
        np.copyto(out, chunk)
        out.view(np.uint16)[magnitudes > 0xFF00] |= np.uint16(0x0040)
        return out

    def _to_f32(self, values: Floats, out: Bytes) -> None:
        np.copyto(out.view(np.float32), values)

    def _to_f16(self, values: Floats, out: Bytes) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out.view(np.float16), values, casting="same_kind")

    def _to_bf16(self, values: Floats, out: Bytes) -> None:
        """Round to nearest even, NaNs made quiet."""
        source = values.view(np.uint32)
        bits = self._bits[: len(source)]
        np.right_shift(source, 16, out=bits)
        np.bitwise_and(bits, 1, out=bits)
        np.add(bits, 0x7FFF, out=bits)
        np.add(bits, source, out=bits)
        np.right_shift(bits, 16, out=bits)
        result = out.view(np.uint16)
        np.copyto(result, bits, casting="unsafe")
        nans = np.isnan(values)
        if nans.any():
            result[nans] = (source[nans] >> 16).astype(np.uint16) | np.uint16(0x0040)

    def _to_q8_0(self, values: Floats, out: Bytes) -> None:
        """Blocks of 32: an F16 scale, the largest magnitude / 127, and 32 rounded quotients."""
        n_blocks = len(values) // Q8_0_VALUES
        blocks = values.reshape(n_blocks, Q8_0_VALUES)
        bits = self._bits[: len(values)]
        # Magnitudes order like their bit patterns, and NaNs come out above infinity. Reducing
        # columns of a transposed copy is several times faster than rows of 32.
        np.bitwise_and(values.view(np.uint32), 0x7FFFFFFF, out=bits)
        columns = self._columns[:, :n_blocks]
        np.copyto(columns, bits.reshape(n_blocks, Q8_0_VALUES).T)
        largest = np.maximum.reduce(columns, axis=0)
        if int(largest.max(initial=0)) >= INFINITY_BITS:
            _reference_q8_0(values, out)
            return
        scale = largest.view(np.float32) / np.float32(127)
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        if np.isinf(inverse).any():
            _reference_q8_0(values, out)
            return
        scaled = self._scaled[: len(values)].reshape(n_blocks, Q8_0_VALUES)
        np.multiply(blocks, inverse[:, None], out=scaled)
        np.bitwise_and(scaled.reshape(-1).view(np.uint32), 0x80000000, out=bits)
        np.bitwise_or(bits, BELOW_HALF_BITS, out=bits)
        np.add(scaled, bits.view(np.float32).reshape(n_blocks, Q8_0_VALUES), out=scaled)
        result = out.reshape(n_blocks, Q8_0_BYTES)
        with np.errstate(over="ignore"):
            result[:, :2] = scale.astype(np.float16).reshape(n_blocks, 1).view(np.uint8)
        np.copyto(result[:, 2:].view(np.int8), scaled, casting="unsafe")


def encoded_tensor(tensor: Tensor) -> Tensor:
    """A small tensor with its bytes read, and converted where it is not verbatim."""
    data = read_tensor(tensor)
    if not tensor.verbatim and isinstance(tensor.source, TensorRef):
        values = np.frombuffer(data, np.uint8).copy()
        dtype = tensor.source.dtype
        encoder = Encoder(len(values) // SOURCE_BYTES[dtype])
        data = encoder.encode(values, dtype, tensor.type).tobytes()
    return replace(tensor, source=data, verbatim=True)


def _reference_q8_0(values: Floats, out: Bytes) -> None:
    """Blocks with values that are not finite, or too small to invert: whatever gguf-py makes."""
    with np.errstate(all="ignore"):
        quantized = quants.quantize(values.reshape(-1, Q8_0_VALUES), GGMLQuantizationType.Q8_0)
    np.copyto(out, quantized.reshape(-1))


@cache
def _table(dtype: str, target: str) -> npt.NDArray[np.uint16]:
    """All 65536 values of 16-bit type `dtype`, as 16-bit type `target`."""
    every = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(all="ignore"):
        if dtype == "BF16":
            wide = (every.astype(np.uint32) << 16).view(np.float32)
        else:
            wide = every.view(np.float16).astype(np.float32)
        number = GGMLQuantizationType[target]
        return np.ascontiguousarray(quants.quantize(wide, number)).view(np.uint16)
