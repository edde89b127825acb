"""A TFLite graph without the steps that only move or retype values, RMS norms as one step each.

Exporters differ in reshapes, in where they quantize and in how they spell a norm; what is left
here is the same for all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gguf_mtp.errors import FormatError
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.readers.tflite_model import (
    COMPOSITE,
    NO_TENSOR,
    Graph,
    Operator,
    Place,
    TfliteModel,
    TfliteTensor,
    locate,
)

TRANSPARENT = frozenset(
    ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "CAST", "TRANSPOSE", "EXPAND_DIMS", "SQUEEZE")
)
RMS_NORM = "RMS_NORM"
NORM_COMPOSITE = "odml.rms_norm"
SMALL_ELEMENTS = 1 << 16
FLOATS = {"FLOAT32": "<f4", "FLOAT16": "<f2"}
INTEGERS = {"INT32": "<i4", "INT64": "<i8"}


@dataclass(frozen=True)
class Node:
    """A step; `inputs` and `output` are values: tensors before anything transparent.

    `operator` is the step in the file, for a decomposed norm its last. `epsilon` is a norm's, None
    where the file does not tell.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    operator: Operator
    epsilon: float | None = None

    def __str__(self) -> str:
        name = f"{self.name} {self.operator.composite}" if self.name == COMPOSITE else self.name
        return f"{name} (operator {self.operator.index})"


class Dataflow:
    """Graph `index` of `model`. `weights` is the package's section of weights for the model.

    Raises FormatError when a value is used before it is made, or made twice.
    """

    def __init__(
        self, source: SourceFile, model: TfliteModel, index: int, weights: Place | None
    ) -> None:
        self.model = model
        self.graph: Graph = model.graphs[index]
        self.where = f"{model.where}: graph {index}"
        self._source = source
        self._weights = weights
        self._makers = self._find_makers()
        self._epsilons: dict[int, float | None] = {}
        self._values = list(range(len(self.graph.tensors)))
        for operator in self.graph.operators:
            if operator.name in TRANSPARENT and operator.inputs[:1] not in ((), (NO_TENSOR,)):
                # Operators come in order, so what they read has its value already.
                for index in operator.outputs:
                    self._values[index] = self._values[operator.inputs[0]]
        norms = dict(self._norms())
        inner = {operator for _, inside in norms.values() for operator in inside}
        self.nodes = [
            norms[operator.index][0] if operator.index in norms else self._node(operator)
            for operator in self.graph.operators
            if operator.name not in TRANSPARENT and operator.index not in inner
        ]
        self._made_by = {output: node for node in self.nodes for output in node.operator.outputs}

    def _find_makers(self) -> dict[int, Operator]:
        makers: dict[int, Operator] = {}
        ready = set(self.graph.inputs)
        for operator in self.graph.operators:
            for index in operator.inputs:
                if index == NO_TENSOR or index in ready:
                    continue
                if self.graph.tensors[index].data is None:
                    raise FormatError(
                        f"{self.where}: operator {operator.index} ({operator.name}) uses tensor "
                        f"{index} before it is made"
                    )
            for index in operator.outputs:
                if index in ready or self.graph.tensors[index].data is not None:
                    raise FormatError(
                        f"{self.where}: operator {operator.index} ({operator.name}) makes tensor "
                        f"{index} a second time"
                    )
                ready.add(index)
                makers[index] = operator
        return makers

    def value(self, index: int) -> int:
        return NO_TENSOR if index == NO_TENSOR else self._values[index]

    def tensor(self, value: int) -> TfliteTensor:
        return self.graph.tensors[value]

    def _node(self, operator: Operator) -> Node:
        inputs = tuple(self.value(index) for index in operator.inputs)
        output = operator.outputs[0] if operator.outputs else NO_TENSOR
        return Node(operator.name, inputs, output, operator)

    @cached_property
    def users(self) -> dict[int, list[Node]]:
        """Value -> the nodes that read it, each once."""
        found: dict[int, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                if value != NO_TENSOR:
                    found.setdefault(value, []).append(node)
        return found

    def maker(self, value: int) -> Node | None:
        """The node that makes `value`; None for an input or a constant."""
        return self._made_by.get(value)

    def is_constant(self, value: int) -> bool:
        return value != NO_TENSOR and self.graph.tensors[value].data is not None

    def steps_to(self, index: int) -> Iterator[str]:
        """The names of the transparent steps between tensor `index` and its value."""
        at = index
        while at != self._values[index]:
            maker = self._makers[at]
            yield maker.name
            at = maker.inputs[0]

    def place(self, value: int) -> Place:
        """Where the bytes of the constant `value` are (see `locate`)."""
        return locate(self.tensor(value), self._weights, self.where)

    def read(self, value: int) -> bytes:
        place = self.place(value)
        return self._source.read(place.offset, place.nbytes)

    def numbers(self, value: int) -> npt.NDArray[np.float64] | None:
        """A small constant's numbers, flat; None for anything else."""
        return None if value == NO_TENSOR else self._numbers(self.tensor(value))

    def _numbers(self, tensor: TfliteTensor) -> npt.NDArray[np.float64] | None:
        dtype = (FLOATS | INTEGERS).get(tensor.dtype)
        if tensor.data is None or dtype is None or tensor.elements > SMALL_ELEMENTS:
            return None
        place = locate(tensor, self._weights, self.where)
        return np.frombuffer(self._source.read(place.offset, place.nbytes), dtype).astype(
            np.float64
        )

    def scalar(self, value: int) -> float | None:
        """The number of a constant that holds one."""
        return None if value == NO_TENSOR else self._number(self.tensor(value))

    def _number(self, tensor: TfliteTensor) -> float | None:
        numbers = self._numbers(tensor) if tensor.elements == 1 else None
        return None if numbers is None else float(numbers[0])

    def _norms(self) -> Iterator[tuple[int, tuple[Node, set[int]]]]:
        """Last operator of a norm -> the node that stands for it, and the operators inside."""
        for operator in self.graph.operators:
            if operator.name == COMPOSITE and operator.composite == NORM_COMPOSITE:
                if len(operator.inputs) == 2 and operator.outputs:
                    inputs = (self.value(operator.inputs[0]), self.value(operator.inputs[1]))
                    number = operator.decomposition
                    if number not in self._epsilons:
                        self._epsilons[number] = self._composite_epsilon(number)
                    epsilon = self._epsilons[number]
                    yield (
                        operator.index,
                        (
                            Node(RMS_NORM, inputs, operator.outputs[0], operator, epsilon),
                            set(),
                        ),
                    )
            elif operator.name == "MUL":
                found = self._decomposed(operator)
                if found is not None:
                    yield operator.index, found

    def _composite_epsilon(self, decomposition: int) -> float | None:
        """The one constant added in the graph that spells the norm out; its weight is an input."""
        if not 0 <= decomposition < len(self.model.graphs):
            return None
        graph = self.model.graphs[decomposition]
        added = [
            self._number(graph.tensors[index])
            for operator in graph.operators
            if operator.name == "ADD"
            for index in operator.inputs
            if index != NO_TENSOR
        ]
        found = [value for value in added if value is not None]
        return found[0] if len(found) == 1 else None

    def _operator_of(self, value: int, *names: str) -> Operator | None:
        maker = self._makers.get(value)
        return maker if maker is not None and maker.name in names else None

    def _decomposed(self, last: Operator) -> tuple[Node, set[int]] | None:
        """The norm that ends in the MUL `last`: x * (mean(x * x) + epsilon) ^ -0.5 * weight."""
        for weight, rest in self._operands(last):
            if not self._is_vector(weight):
                continue
            inner = self._operator_of(rest, "MUL")
            for x, inverse in self._operands(inner):
                root = self._inverse_root(x, inverse)
                if root is not None and inner is not None:
                    epsilon, inside = root
                    node = Node(RMS_NORM, (x, weight), last.outputs[0], last, epsilon)
                    return node, {inner.index, *inside}
        return None

    def _operands(self, operator: Operator | None) -> list[tuple[int, int]]:
        """Both orders of a binary operator's operands."""
        if operator is None or len(operator.inputs) != 2:
            return []
        first, second = (self.value(index) for index in operator.inputs)
        return [(first, second), (second, first)]

    def _is_vector(self, value: int) -> bool:
        """Whether `value` is a constant of one dimension, others being 1."""
        if not self.is_constant(value):
            return False
        shape = self.tensor(value).shape
        return len(shape) > 0 and shape[-1] == self.tensor(value).elements > 1

    def _inverse_root(self, x: int, inverse: int) -> tuple[float, set[int]] | None:
        """Epsilon and the operators of ``inverse = (mean(x * x) + epsilon) ^ -0.5``."""
        power = self._operator_of(inverse, "RSQRT", "POW")
        if power is None:
            return None
        if power.name == "POW" and self.scalar(self.value(power.inputs[1])) != -0.5:
            return None
        added = self._operator_of(self.value(power.inputs[0]), "ADD")
        for mean_value, constant in self._operands(added):
            epsilon = self.scalar(constant)
            mean = self._operator_of(mean_value, "MEAN")
            if added is None or mean is None or epsilon is None:
                continue
            square = self._operator_of(self.value(mean.inputs[0]), "MUL", "SQUARE", "POW")
            if square is not None and self._is_square(square, x):
                return epsilon, {power.index, added.index, mean.index, square.index}
        return None

    def _is_square(self, operator: Operator, x: int) -> bool:
        values = [self.value(index) for index in operator.inputs]
        if operator.name == "SQUARE":
            return values == [x]
        if operator.name == "MUL":
            return values == [x, x]
        return values[:1] == [x] and self.scalar(values[-1]) == 2
