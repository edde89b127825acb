"""ggml's number types: id, name, values per block and bytes per block, from gguf-py's tables."""

from dataclasses import dataclass
from math import prod

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType


@dataclass(frozen=True)
class GgmlType:
    """One ggml tensor type: `block_values` consecutive values of a row fill `block_bytes`."""

    id: int
    name: str
    block_values: int
    block_bytes: int

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of `shape` (outermost dimension first); rows must divide evenly."""
        return prod(shape) // self.block_values * self.block_bytes

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether rows of `shape` are whole blocks."""
        return shape[-1] % self.block_values == 0


TYPES_BY_ID = {
    int(number): GgmlType(int(number), number.name, *GGML_QUANT_SIZES[number])
    for number in GGMLQuantizationType
}
TYPES = {number.name: number for number in TYPES_BY_ID.values()}

F32 = TYPES["F32"]
F16 = TYPES["F16"]
BF16 = TYPES["BF16"]
Q4_0 = TYPES["Q4_0"]
Q8_0 = TYPES["Q8_0"]
I32 = TYPES["I32"]
