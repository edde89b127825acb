"""Number types: floats of a checkpoint to F32, F16, BF16, Q8_0 and Q4_0, bit for bit as
gguf-py does it.

Everything works in chunks on reused scratch memory. For 16-bit sources and types there is a table
of all 65536 values, which gguf-py's own conversion fills once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_mtp.ggml import Q4_0, Q8_0, TYPES, GgmlType
from gguf_mtp.model import Tensor, read_tensor
from gguf_mtp.readers.source import TensorRef

Bytes = npt.NDArray[np.uint8]
Halves = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

SOURCE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# Values handled at a time. Threads take turns in the interpreter between numpy's calls: with passes
# of a quarter of this, two of them did no more than one.
PASS_VALUES = 1 << 18
BLOCK_VALUES = 32  # of Q8_0 and Q4_0
MAGNITUDE = np.uint32(0x7FFFFFFF)
# As bits of BF16: the magnitudes from the first on and below the second are normal numbers of F16.
F16_NORMAL, F16_ABOVE = np.uint16(0x3880), np.uint16(0x4780)
F16_BIAS = np.uint16((127 - 15 << 10) % (1 << 16))
BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))


class Encoder:
    """Converts chunks of up to `max_values` values; not for use by two threads at once."""

    def __init__(self, max_values: int) -> None:
        # The widest output is F32.
        self._out = np.empty(4 * max_values, np.uint8)
        self._wide = np.empty(PASS_VALUES, np.float32)
        self._scaled = np.empty(PASS_VALUES, np.float32)
        self._bits = np.empty(PASS_VALUES, np.uint32)
        self._small = np.empty(PASS_VALUES, np.uint16)
        self._signs = np.empty(PASS_VALUES, np.int8)
        self._codes = np.empty(PASS_VALUES, np.int8)
        self._columns = np.empty(PASS_VALUES // 2, np.uint64)

    def encode(self, chunk: Bytes, dtype: str, number: GgmlType) -> Bytes:
        """`chunk`, values of safetensors type `dtype`, as bytes of type `number`.

        Whole blocks only, of 32 values for Q8_0 and Q4_0. The result is valid until the next call;
        where nothing changes it is `chunk` itself.
        """
        if dtype == number.name != "BF16":
            return chunk
        if dtype == "BF16" and number.name == "BF16":
            return self._quiet(chunk)
        n_values = len(chunk) // SOURCE_BYTES[dtype]
        out = self._out[: n_values // number.block_values * number.block_bytes]
        if number.block_bytes == SOURCE_BYTES[dtype] == 2:
            halves = chunk.view(np.uint16)
            for first in range(0, n_values, PASS_VALUES):
                within = slice(first, first + PASS_VALUES)
                self._rewrite(halves[within], dtype, number.name, out.view(np.uint16)[within])
            return out
        step: Callable[[Floats, Bytes], None] = getattr(self, f"_to_{number.name.lower()}")
        source = chunk.reshape(n_values, -1)
        for first in range(0, n_values, PASS_VALUES):
            part = source[first : first + PASS_VALUES].reshape(-1)
            begin, end = (
                values // number.block_values * number.block_bytes
                for values in (first, min(first + PASS_VALUES, n_values))
            )
            if dtype == "BF16" and number.name == "Q8_0":
                self._bf16_to_q8_0(part.view(np.uint16), out[begin:end])
            else:
                step(self._widen(part, dtype), out[begin:end])
        return out

    def _rewrite(self, halves: Halves, dtype: str, target: str, out: Halves) -> None:
        """16 bits by a table; BF16 that F16 holds exactly, which is most of it, by arithmetic."""
        table = _table(dtype, target)
        if dtype != "BF16" or target != "F16":
            np.take(table, halves, out=out, mode="clip")
            return
        # The exponent gets another bias and five bits; all of it modulo 2^16.
        small = self._small[: len(halves)]
        np.left_shift(halves, 3, out=out)
        np.subtract(out, F16_BIAS, out=out)
        np.bitwise_and(out, 0x7FFF, out=out)
        np.bitwise_and(halves, 0x8000, out=small)
        np.bitwise_or(out, small, out=out)
        np.bitwise_and(halves, 0x7FFF, out=small)
        np.subtract(small, F16_NORMAL, out=small)
        others = np.flatnonzero(small >= F16_ABOVE - F16_NORMAL)
        out[others] = table[halves[others]]

    def _widen(self, part: Bytes, dtype: str) -> Floats:
        if dtype == "F32":
            return part.view(np.float32)
        halves = part.view(np.uint16)
        wide = self._wide[: len(halves)]
        if dtype == "BF16":
            _to_upper_half(halves, wide.view(np.uint32))
        else:
            wide[...] = halves.view(np.float16)
        return wide

    def _quiet(self, chunk: Bytes) -> Bytes:
        """BF16 through float: the bytes as they are, but for signalling NaNs, which turn quiet."""
        halves = chunk.view(np.uint16)
        # Negative NaNs are the largest of all unsigned, positive ones of all signed numbers.
        if halves.max(initial=0) <= 0xFF80 and halves.view(np.int16).max(initial=0) <= 0x7F80:
            return chunk
        out = self._out[: len(chunk)]
        np.copyto(out, chunk)
        out.view(np.uint16)[halves << 1 > 0xFF00] |= np.uint16(0x0040)
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
        magnitudes = self._scaled[: len(values)]
        np.bitwise_and(values.view(np.uint32), MAGNITUDE, out=magnitudes.view(np.uint32))
        largest = self._block_max(magnitudes.view(np.uint32))
        signs = self._signs[: len(values)]
        np.right_shift(values.view(np.int32), 31, out=signs, casting="unsafe")
        if not self._write_q8_0(magnitudes, largest.view(np.float32), signs, out):
            _reference(values, out, Q8_0)

    def _bf16_to_q8_0(self, halves: Halves, out: Bytes) -> None:
        """The same with half the work: signs and largest magnitudes are told by 16 bits."""
        small = self._small[: len(halves)]
        signs = self._signs[: len(halves)]
        np.right_shift(halves.view(np.int16), 15, out=small.view(np.int16))
        np.copyto(signs, small.view(np.int16), casting="unsafe")
        np.bitwise_and(halves, 0x7FFF, out=small)
        largest = self._block_max(small).astype(np.uint32) << 16
        magnitudes = self._scaled[: len(halves)]
        _to_upper_half(small, magnitudes.view(np.uint32))
        if not self._write_q8_0(magnitudes, largest.view(np.float32), signs, out):
            _reference(self._widen(halves.view(np.uint8), "BF16"), out, Q8_0)

    def _block_max(self, bits: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The largest of each 32 magnitudes, given by their bit patterns, which order alike (NaNs
        come out above infinity). Reducing columns is several times faster than rows of 32, and
        transposing words of 8 bytes faster than of less."""
        n_blocks = len(bits) // BLOCK_VALUES
        lanes = 8 // bits.itemsize
        columns = self._columns[: len(bits) // lanes].reshape(-1, n_blocks)
        np.copyto(columns, bits.view(np.uint64).reshape(n_blocks, -1).T)
        reduced: npt.NDArray[Any] = np.maximum.reduce(columns.view(bits.dtype), axis=0)
        while len(reduced) > n_blocks:
            reduced = np.maximum(reduced[0::2], reduced[1::2])
        return reduced

    def _write_q8_0(self, magnitudes: Floats, largest: Floats, signs: Codes, out: Bytes) -> bool:
        """Quantize to `out`, overwriting `magnitudes`; False for values that need the reference."""
        if not np.isfinite(largest).all():
            return False
        scale = largest / np.float32(127)
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        if np.isinf(inverse).any():
            return False
        n_blocks = len(largest)
        scaled = magnitudes.reshape(n_blocks, BLOCK_VALUES)
        np.multiply(scaled, inverse[:, None], out=scaled)
        # Truncating rounds halves away from zero once the float below one half is added.
        np.add(scaled, BELOW_HALF, out=scaled)
        codes = self._codes[: len(magnitudes)]
        np.copyto(codes, scaled.reshape(-1), casting="unsafe")
        np.bitwise_xor(codes, signs, out=codes)
        np.subtract(codes, signs, out=codes)
        result = out.reshape(n_blocks, 2 + BLOCK_VALUES)
        np.copyto(result[:, 2:].view(np.int8), codes.reshape(n_blocks, BLOCK_VALUES))
        _write_scales(result, scale)
        return True

    def _to_q4_0(self, values: Floats, out: Bytes) -> None:
        """Blocks of 32: an F16 scale, the value of largest magnitude / -8, and 32 codes of 4 bits,
        the first 16 in the low halves."""
        n_blocks = len(values) // BLOCK_VALUES
        magnitudes = self._scaled[: len(values)]
        np.bitwise_and(values.view(np.uint32), MAGNITUDE, out=magnitudes.view(np.uint32))
        blocks = values.reshape(n_blocks, BLOCK_VALUES)
        largest = self._block_max(magnitudes.view(np.uint32)).view(np.float32)
        if not np.isfinite(largest).all():
            _reference(values, out, Q4_0)
            return
        # The sign of the scale is that of the first value of the largest magnitude.
        at = (magnitudes.reshape(n_blocks, BLOCK_VALUES) == largest[:, None]).argmax(axis=1)
        scale = blocks[np.arange(n_blocks), at] / np.float32(-8)
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        if np.isinf(inverse).any():
            _reference(values, out, Q4_0)
            return
        scaled = magnitudes.reshape(n_blocks, BLOCK_VALUES)
        np.multiply(blocks, inverse[:, None], out=scaled)
        np.add(scaled, np.float32(8.5), out=scaled)
        codes = self._codes[: len(values)].view(np.uint8).reshape(n_blocks, BLOCK_VALUES)
        np.copyto(codes, scaled, casting="unsafe")
        np.minimum(codes, 15, out=codes)
        result = out.reshape(n_blocks, 2 + BLOCK_VALUES // 2)
        np.left_shift(codes[:, 16:], 4, out=result[:, 2:])
        np.bitwise_or(result[:, 2:], codes[:, :16], out=result[:, 2:])
        _write_scales(result, scale)


def _to_upper_half(halves: Halves, out: npt.NDArray[np.uint32]) -> None:
    """Shifted left by 16; in two steps, as numpy casts and shifts at once in small buffers only."""
    np.copyto(out, halves)
    np.left_shift(out, 16, out=out)


def _write_scales(blocks: Bytes, scale: Floats) -> None:
    with np.errstate(over="ignore"):
        halves = scale.astype(np.float16)
    np.copyto(blocks.view(np.uint16)[:, 0], halves.view(np.uint16))


def encoded_tensor(tensor: Tensor) -> Tensor:
    """A small tensor with its bytes read, and converted where it is not verbatim."""
    data = read_tensor(tensor)
    if not tensor.verbatim and isinstance(tensor.source, TensorRef):
        values = np.frombuffer(data, np.uint8).copy()
        dtype = tensor.source.dtype
        encoder = Encoder(len(values) // SOURCE_BYTES[dtype])
        data = encoder.encode(values, dtype, tensor.type).tobytes()
    return replace(tensor, source=data, verbatim=True)


def _reference(values: Floats, out: Bytes, number: GgmlType) -> None:
    """Blocks with values that are not finite, or too small to invert: whatever gguf-py makes."""
    np.copyto(out, _as_gguf_py(values.reshape(-1, BLOCK_VALUES), number).reshape(-1))


def _as_gguf_py(values: Floats, number: GgmlType) -> npt.NDArray[Any]:
    # Imported here: most conversions do without, and it takes longer than appending heads.
    from gguf import GGMLQuantizationType, quants

    with np.errstate(all="ignore"):
        quantized: npt.NDArray[Any] = quants.quantize(values, GGMLQuantizationType(number.id))
    return quantized


@cache
def _table(dtype: str, target: str) -> npt.NDArray[np.uint16]:
    """All 65536 values of 16-bit type `dtype`, as 16-bit type `target`."""
    every = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(all="ignore"):
        if dtype == "BF16":
            wide = (every.astype(np.uint32) << 16).view(np.float32)
        else:
            wide = every.view(np.float16).astype(np.float32)
    return np.ascontiguousarray(_as_gguf_py(wide, TYPES[target])).view(np.uint16)
