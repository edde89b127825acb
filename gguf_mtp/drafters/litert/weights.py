"""Constants as weights: integer codes with their scales, or floats, read row by row.

Source: the TFLite quantization specification; symmetric schemes only, one scale for each row or
for each block of one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_mtp.drafters.litert.dataflow import Dataflow
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.readers.tflite_model import BLOCKWISE, NO_TENSOR, Place, TfliteTensor, unpack_codes
from gguf_mtp.readers.tflite_names import TYPES

Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]

INTEGER_TYPES = ("INT8", "INT4", "INT2")
FLOAT_TYPES = {"FLOAT32": "<f4", "FLOAT16": "<f2", "BFLOAT16": "<u2"}
# Rows are handled this many values at a time.
CHUNK_VALUES = 1 << 20


@dataclass(frozen=True, eq=False)
class Weight:
    """The constant behind a role. `shape` is [rows, columns] of a matrix, [elements] of a vector.

    Integers have `scales` [rows, columns / block]: a value is ``code * scale``, in float32. Floats
    are multiplied by `factor`.
    """

    tensor: TfliteTensor
    place: Place
    shape: tuple[int, ...]
    scales: Floats | None
    factor: float = 1.0

    @property
    def is_integer(self) -> bool:
        return self.scales is not None

    @property
    def block(self) -> int:
        """The values of a row that share one scale."""
        return self.shape[-1] // self.scales.shape[1] if self.scales is not None else 0

    def codes(self, source: SourceFile) -> Iterator[Codes]:
        """The integer codes, some whole rows at a time: int8 [rows, columns]."""
        columns = self.shape[-1]
        for raw, rows in self._rows(source):
            yield unpack_codes(raw, self.tensor.dtype, rows * columns).reshape(rows, columns)

    def values(self, source: SourceFile) -> Iterator[Floats]:
        """The values in float32, some whole rows at a time. Raises FormatError for infinite ones
        and those that are no numbers."""
        for part in self._values(source):
            if not np.isfinite(part).all():
                raise FormatError(
                    f"{source.path}: tensor {self.tensor.index} ({self.tensor.name!a}) "
                    "holds values that are not finite"
                )
            yield part

    def _values(self, source: SourceFile) -> Iterator[Floats]:
        if self.scales is None:
            for raw, _ in self._rows(source):
                yield _product(self._widened(raw), np.float32(self.factor))
            return
        first = 0
        for codes in self.codes(source):
            rows = len(codes)
            scales = self.scales[first : first + rows]
            blocks = codes.reshape(rows, scales.shape[1], -1).astype(np.float32)
            yield _product(blocks, scales[:, :, None]).reshape(rows, -1)
            first += rows

    def _widened(self, raw: bytes) -> Floats:
        numbers: npt.NDArray[Any] = np.frombuffer(raw, FLOAT_TYPES[self.tensor.dtype])
        if self.tensor.dtype == "BFLOAT16":
            numbers = (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return numbers.astype(np.float32)

    def _rows(self, source: SourceFile) -> Iterator[tuple[bytes, int]]:
        """The bytes of some whole rows, and how many; what shares a byte stays together."""
        rows = self.shape[0] if len(self.shape) > 1 else 1
        row_bits = self.shape[-1] * TYPES[self.tensor.dtype]
        step = max(8, CHUNK_VALUES // self.shape[-1] // 8 * 8)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            begin = first * row_bits // 8
            end = -(-(first + count) * row_bits // 8)
            yield source.read(self.place.offset + begin, end - begin), count


@np.errstate(over="ignore", invalid="ignore")
def _product(values: Floats, factor: Floats | np.float32) -> Floats:
    return values * factor


def read_weight(flow: Dataflow, value: int, role: str, vector: bool) -> Weight:
    """The weight in the constant `value`, checked. A `vector` may be spelled [1, 1, n].

    Raises FormatError, naming `role`, for scales, zero points and sizes that do not fit, and
    UnsupportedError for number types and quantization schemes that are not known.
    """
    tensor = flow.tensor(value)
    where = f"{flow.where}: {role}: tensor {value} ({tensor.name!a})"
    if tensor.dtype not in INTEGER_TYPES and tensor.dtype not in FLOAT_TYPES:
        raise UnsupportedError(f"{where} has type {tensor.dtype}, which is not known for a weight")
    if tensor.sparse:
        raise UnsupportedError(f"{where} is sparse")
    if tensor.elements < 1:
        raise FormatError(f"{where} has shape {list(tensor.shape)}")
    shape = (tensor.elements,) if vector else tensor.shape
    place = flow.place(value)
    if tensor.dtype in FLOAT_TYPES:
        # Norms may carry quantization that means nothing.
        return Weight(tensor, place, shape, None)
    return Weight(tensor, place, shape, _scales(flow, tensor, shape, where))


def _scales(flow: Dataflow, tensor: TfliteTensor, shape: tuple[int, ...], where: str) -> Floats:
    quantization = tensor.quantization
    if quantization is None:
        raise FormatError(f"{where} holds integers without a scale")
    if quantization.details == BLOCKWISE:
        scales = _block_scales(flow, tensor, shape, where)
    elif quantization.details:
        raise UnsupportedError(
            f"{where} has quantization details {quantization.details}, expected none or {BLOCKWISE}"
        )
    else:
        count = len(quantization.scales)
        if count > 1 and quantization.axis != 0:
            raise UnsupportedError(f"{where} has scales along axis {quantization.axis}, expected 0")
        if count not in (1, shape[0]) or len(shape) != 2:
            raise FormatError(
                f"{where} of shape {list(shape)} has {count} scales, expected {shape[0]}"
            )
        if len(quantization.zero_points) not in (0, 1, count):
            raise FormatError(
                f"{where} has {len(quantization.zero_points)} zero points for {count} scales"
            )
        listed = np.array(quantization.scales, np.float32)
        scales = np.broadcast_to(listed[:, None], (shape[0], 1)).copy()
    if any(quantization.zero_points):
        raise UnsupportedError(f"{where} has a non-zero zero point")
    bad = np.flatnonzero(~(np.isfinite(scales) & (scales > 0)))
    if len(bad):
        raise FormatError(
            f"{where}: scale {int(bad[0])} is {scales.flat[int(bad[0])]}, expected a number above 0"
        )
    return scales


def _block_scales(
    flow: Dataflow, tensor: TfliteTensor, shape: tuple[int, ...], where: str
) -> Floats:
    details = tensor.quantization
    if details is None or len(shape) != 2:
        raise FormatError(f"{where} is blockwise and of shape {list(shape)}, expected a matrix")
    if details.block_size < 1 or shape[1] % details.block_size:
        raise FormatError(
            f"{where} has blocks of {details.block_size} values in rows of {shape[1]}"
        )
    for index in (details.scales_tensor, details.zero_points_tensor):
        if not NO_TENSOR <= index < len(flow.graph.tensors):
            raise FormatError(f"{where}: tensor {index} of its scales is out of range")
    if details.zero_points_tensor != NO_TENSOR and any(flow.read(details.zero_points_tensor)):
        raise UnsupportedError(f"{where} has a non-zero zero point")
    scales_of = flow.tensor(details.scales_tensor)
    expected = shape[0] * shape[1] // details.block_size
    if (
        details.scales_tensor == NO_TENSOR
        or scales_of.dtype not in ("FLOAT16", "FLOAT32")
        or scales_of.elements != expected
    ):
        raise FormatError(
            f"{where}: its scales are {scales_of.dtype} {list(scales_of.shape)}, "
            f"expected {expected} floats"
        )
    numbers = np.frombuffer(flow.read(scales_of.index), FLOAT_TYPES[scales_of.dtype])
    return numbers.astype(np.float32).reshape(shape[0], -1)
