"""ggml's number types: id, name, values per block and bytes per block.

Source: gguf-py ``gguf/constants.py`` (importing it takes longer than appending heads to a file).
Forks have types of their own. Those are named ``type N`` here and can be copied, as a GGUF's
offsets tell how many bytes their tensors take.
"""

from dataclasses import dataclass
from math import prod


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
    number: GgmlType(number, name, block_values, block_bytes)
    for number, name, block_values, block_bytes in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
}
TYPES = {number.name: number for number in TYPES_BY_ID.values()}
# ggml's version of what is in the blocks (``general.quantization_version``).
QUANTIZATION_VERSION = 2

F32 = TYPES["F32"]
F16 = TYPES["F16"]
BF16 = TYPES["BF16"]
Q4_0 = TYPES["Q4_0"]
Q8_0 = TYPES["Q8_0"]
I32 = TYPES["I32"]
# No type of ggml's: bytes of another file that are copied without being looked at.
BYTES = GgmlType(-1, "bytes", 1, 1)


def type_by_id(number: int) -> GgmlType:
    """The type with ggml's id `number`, or a stand-in for one that this version does not know."""
    return TYPES_BY_ID.get(number) or GgmlType(number, f"{UNKNOWN}{number}", 0, 0)


def type_by_name(name: str) -> GgmlType:
    """The type of that name; those of `type_by_id` included."""
    return TYPES.get(name) or type_by_id(int(name.removeprefix(UNKNOWN)))
