"""ggml's number types: id, name, values per block and bytes per block, from gguf-py's tables.

Forks have types of their own. Those are named ``type N`` here and can be copied, as a GGUF's
offsets tell how many bytes their tensors take.
"""

from dataclasses import dataclass
from math import prod

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType


@dataclass(frozen=True)
class GgmlType:
    """One ggml tensor type: `block_values` consecutive values of a row fill `block_bytes`.

    Both are 0 for a type that this version does not know.
    """

    id: int
    name: str
    block_values: int
    block_bytes: int

    @property
    def is_known(self) -> bool:
        return self.block_values > 0

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of `shape` (outermost dimension first); rows must divide evenly.

        For known types only.
        """
        return prod(shape) // self.block_values * self.block_bytes

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether rows of `shape` are whole blocks."""
        return shape[-1] % self.block_values == 0


UNKNOWN = "type "
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
Q4_0 = TYPES["Q4_0"]
I32 = TYPES["I32"]
# No type of ggml's: bytes of another file that are copied without being looked at.
BYTES = GgmlType(-1, "bytes", 1, 1)


def type_by_id(number: int) -> GgmlType:
    """The type with ggml's id `number`, or a stand-in for one that this version does not know."""
    return TYPES_BY_ID.get(number) or GgmlType(number, f"{UNKNOWN}{number}", 0, 0)


def type_by_name(name: str) -> GgmlType:
    """The type of that name; those of `type_by_id` included."""
    return TYPES.get(name) or type_by_id(int(name.removeprefix(UNKNOWN)))
