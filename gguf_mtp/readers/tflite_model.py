"""What a TFLite model holds: graphs, signatures, quantization, and where constants' bytes are.

Source: LiteRT ``tflite/converter/schema/schema.fbs``. Only what identifies and decodes weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np

from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.readers.tflite_names import TYPES

NO_TENSOR = -1
COMPOSITE = "STABLEHLO_COMPOSITE"
BLOCKWISE = "Blockwise"


@dataclass(frozen=True)
class Place:
    """Bytes of the file, `offset` counted from its start."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class External:
    """Bytes of another section, `offset` counted from the start of that one."""

    group: str
    offset: int
    nbytes: int
    packing: str


Data: TypeAlias = Place | External


@dataclass(frozen=True)
class Quantization:
    """How codes become values: ``value = (code - zero_point) * scale``, per index of `axis`.

    `details` is the kind of a scheme beyond that, "" for none. Blockwise: `scales_tensor` (of the
    same graph) holds one scale for each `block_size` values of a row; -1 stands for no tensor.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    details: str = ""
    scales_tensor: int = NO_TENSOR
    zero_points_tensor: int = NO_TENSOR
    block_size: int = 0


@dataclass(frozen=True)
class TfliteTensor:
    """A value of a graph; a constant where it has `data`. `dtype` is the schema's own name."""

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Data | None
    quantization: Quantization | None
    sparse: bool

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """What its values need, by type and shape; 0 for a type without a fixed width."""
        return -(-self.elements * TYPES.get(self.dtype, 0) // 8)


@dataclass(frozen=True)
class Operator:
    """A step of a graph; tensor indices, `NO_TENSOR` for an input left out.

    `name` is the built-in operator, or a custom one's own name; `composite` names what a composite
    stands for and `decomposition` is the graph that spells it out. `option` is the first field of
    the options: the fused activation of ADD, SUB, MUL, DIV and FULLY_CONNECTED, whether a GELU is
    the tanh approximation.
    """

    index: int
    name: str
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    option: int
    composite: str
    decomposition: int


@dataclass(frozen=True)
class Graph:
    index: int
    name: str
    tensors: tuple[TfliteTensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class Signature:
    """An entry point: names of inputs and outputs -> tensors of `graph`."""

    key: str
    graph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


@dataclass(frozen=True)
class TfliteModel:
    where: str
    description: str
    graphs: tuple[Graph, ...]
    signatures: tuple[Signature, ...]


def locate(tensor: TfliteTensor, weights: Place | None, where: str) -> Place:
    """Where in the file the bytes of a constant are, given its model's section of weights.

    Raises FormatError where the tensor is no constant, its bytes are not what type and shape need
    or are outside of that section; UnsupportedError for packings and types not known.
    """
    what = f"{where}: tensor {tensor.index} ({tensor.name!a})"
    if tensor.data is None:
        raise FormatError(f"{what} is not a constant")
    if tensor.dtype not in TYPES or TYPES[tensor.dtype] == 0:
        raise UnsupportedError(f"{what} has unknown type {tensor.dtype}")
    place = tensor.data
    if isinstance(place, External):
        if place.packing not in ("", "unpacked"):
            raise UnsupportedError(f"{what} has packing {place.packing!a}, expected 'unpacked'")
        if weights is None:
            raise FormatError(
                f"{what} has its bytes outside of the model, and there is no section of "
                "TFLiteWeights with them; give the complete .litertlm package"
            )
        if place.offset + place.nbytes > weights.nbytes:
            raise FormatError(
                f"{what} ends at {place.offset + place.nbytes} of the weights, "
                f"which end at {weights.nbytes}: truncated"
            )
        place = Place(weights.offset + place.offset, place.nbytes)
    if place.nbytes != tensor.nbytes:
        raise FormatError(
            f"{what} has {place.nbytes} bytes, "
            f"{tensor.dtype} {list(tensor.shape)} needs {tensor.nbytes}"
        )
    return place


def unpack_codes(raw: bytes, dtype: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """`count` signed integers from their packing: INT8, or INT4 or INT2 with the first value in
    the lowest bits of a byte."""
    packed = np.frombuffer(raw, np.uint8)
    bits = TYPES[dtype]
    if bits == 8:
        return packed.view(np.int8)
    per_byte = 8 // bits
    codes = np.empty((len(packed), per_byte), np.int8)
    for position in range(per_byte):
        # To the top of the byte, and back down with the sign.
        shifted = (packed << np.uint8(8 - bits * (position + 1))).view(np.int8)
        np.right_shift(shifted, np.int8(8 - bits), out=codes[:, position])
    return codes.reshape(-1)[:count]


def constants(graph: Graph) -> Iterator[TfliteTensor]:
    return (tensor for tensor in graph.tensors if tensor.data is not None)
