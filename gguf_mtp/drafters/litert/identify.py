"""Which constant is which weight, told by the dataflow alone.

The walk starts at the signature's inputs and outputs, the one thing that the runtime's contract
fixes, and follows the residual from layer to layer. Anything it does not expect is an error.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from gguf_mtp.drafters.litert.dataflow import RMS_NORM, Dataflow, Node
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.readers.tflite_model import COMPOSITE, NO_TENSOR, Signature

LINEAR = "FULLY_CONNECTED"
MAX_LAYERS = 256
ORDERED_OPERATORS = frozenset(("TOPK_V2", "GATHER", "GATHER_ND", "SCATTER_ND", "EMBEDDING_LOOKUP"))
# What may stand between the queries and the output projection.
ATTENTION_OPERATORS = frozenset(
    "ADD BATCH_MATMUL BROADCAST_ARGS BROADCAST_TO CONCATENATION COS DIV EQUAL EXP FILL "  # noqa: SIM905
    "FULLY_CONNECTED GREATER GREATER_EQUAL LESS LESS_EQUAL LOGICAL_AND LOGICAL_NOT LOGICAL_OR "
    "MAXIMUM MINIMUM MUL NEG NOT_EQUAL PACK PAD RANGE REDUCE_MAX SELECT SELECT_V2 SHAPE SIN SLICE "
    "SOFTMAX SPLIT SPLIT_V STRIDED_SLICE SUB SUM TILE UNPACK".split()
)
GELU_OPERATORS = frozenset(("ADD", "GELU", "MUL", "POW", "TANH"))
GELU_COMPOSITES = ("odml.gelu", "aten.gelu.default")


@dataclass(frozen=True)
class Role:
    """A weight's place: its Hugging Face name without ``.weight``, and the constant."""

    name: str
    value: int
    node: Node


@dataclass
class Layer:
    """What is found of one layer. `reads` are the values that its attention takes in; `core` the
    steps between its queries and its output projection."""

    reads: set[int] = field(default_factory=set)
    core: list[Node] = field(default_factory=list)
    scalar: float | None = None


@dataclass
class Found:
    """A drafter's graph, understood. `softcap` is c of ``c * tanh(logits / c)``; `folded` says that
    the division is in the head's weights already."""

    roles: dict[str, Role] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    zero_biases: set[int] = field(default_factory=set)
    epsilons: set[float] = field(default_factory=set)
    softcap: float | None = None
    folded: bool = False


def identify(flow: Dataflow, signature: Signature) -> Found:
    """Find every weight of the drafter whose entry point is `signature`.

    Raises FormatError, naming layer and role, expected and found, where the graph is not that of a
    Gemma 4 drafter; UnsupportedError for custom operators and ordered heads.
    """
    return _Walk(flow, signature).run()


class _Walk:
    def __init__(self, flow: Dataflow, signature: Signature) -> None:
        self.flow = flow
        self.inputs = {name: flow.value(index) for name, index in signature.inputs.items()}
        self.outputs = {name: flow.value(index) for name, index in signature.outputs.items()}
        self.found = Found()

    def error(self, where: str, expected: str, found: object) -> FormatError:
        return FormatError(f"{self.flow.where}: {where}: expected {expected}, found {found}")

    def run(self) -> Found:
        for node in self.flow.nodes:
            if node.operator.custom:
                raise UnsupportedError(
                    f"{self.flow.where}: custom operation {node.name!a} "
                    f"(operator {node.operator.index}): compiled for one device"
                    if node.name == "DISPATCH_OP"
                    else f"{self.flow.where}: unknown custom operation {node.name!a} "
                    f"(operator {node.operator.index})"
                )
        pre = self._only(self._users(self.inputs["activations"]), "pre_projection", LINEAR)
        residual = self._linear(pre, "pre_projection", self.inputs["activations"])
        norm_out = self._outputs()
        final = self._made(norm_out, "final norm", RMS_NORM)
        for index in range(MAX_LAYERS):
            if residual == final.inputs[0]:
                break
            residual = self._layer(index, residual)
        else:
            raise self.error("layers", f"at most {MAX_LAYERS}", "more")
        self._only(self._users(residual), "final norm", RMS_NORM)
        self._norm(final, "model.norm")
        if not self.found.layers:
            raise self.error("layers", "at least one", "none")
        return self.found

    # Small steps. Each takes a role's name for its message and returns values.

    def _users(self, value: int) -> list[Node]:
        return self.flow.users.get(value, [])

    def _only(self, nodes: Iterable[Node], role: str, name: str) -> Node:
        nodes = list(nodes)
        if len(nodes) != 1 or nodes[0].name != name:
            raise self.error(role, f"one {name}", _listed(nodes))
        return nodes[0]

    def _made(self, value: int, role: str, name: str) -> Node:
        maker = self.flow.maker(value)
        if maker is None or maker.name != name:
            raise self.error(role, name, maker or f"tensor {value}, an input or constant")
        return maker

    def _claim(self, name: str, value: int, node: Node) -> None:
        self.found.roles[name] = Role(name, value, node)

    def _linear(self, node: Node, name: str, source: int) -> int:
        """Claim the weight of `node` as `name`; its input must be `source`."""
        if node.inputs[0] != source or len(node.inputs) < 2:
            raise self.error(name, f"tensor {source} as input", node)
        weight = node.inputs[1]
        if not self.flow.is_constant(weight) or len(self.flow.tensor(weight).shape) != 2:
            raise self.error(name, "a constant matrix", f"tensor {weight} in {node}")
        between = list(self.flow.steps_to(node.operator.inputs[1]))
        if set(between) - {"DEQUANTIZE"}:
            raise self.error(name, "a weight used as stored or dequantized", ", ".join(between))
        if node.operator.option:
            raise self.error(
                name, "no fused activation", f"number {node.operator.option} in {node}"
            )
        for bias in node.inputs[2:]:
            self._zero_bias(name, bias)
        self._claim(name, weight, node)
        return node.output

    def _zero_bias(self, name: str, bias: int) -> None:
        if bias == NO_TENSOR:
            return
        if not self.flow.is_constant(bias):
            raise self.error(name, "no bias", f"tensor {bias}, which is computed")
        if any(self.flow.read(bias)):
            raise self.error(name, "no bias", f"tensor {bias}, a non-zero bias")
        self.found.zero_biases.add(bias)

    def _norm(self, node: Node, name: str) -> int:
        weight = node.inputs[1]
        if not self.flow.is_constant(weight):
            raise self.error(name, "a constant weight", f"tensor {weight} in {node}")
        if node.epsilon is not None:
            self.found.epsilons.add(self._positive(f"{name}: epsilon", node.epsilon))
        self._claim(name, weight, node)
        return node.output

    def _positive(self, what: str, number: float) -> float:
        if not 0 < number < math.inf:
            raise self.error(what, "a number above 0", number)
        return number

    # The two ends.

    def _outputs(self) -> int:
        """Claim head and post projection; returns the normed hidden state that both read."""
        post = self._made(self.outputs["projected_activations"], "post_projection", LINEAR)
        head = self._head(self.outputs["logits"])
        if head.inputs[0] != post.inputs[0]:
            raise self.error(
                "head", f"the input of post_projection, tensor {post.inputs[0]}", head.inputs[0]
            )
        self._linear(post, "post_projection", post.inputs[0])
        self._linear(head, "model.embed_tokens", head.inputs[0])
        return post.inputs[0]

    def _head(self, logits: int) -> Node:
        maker = self.flow.maker(logits)
        if maker is not None and maker.name == "MUL":
            for value, factor in _orders(maker):
                cap = self.flow.scalar(factor)
                tanh = self.flow.maker(value)
                if cap is not None and tanh is not None and tanh.name == "TANH":
                    return self._capped(tanh.inputs[0], cap)
        if maker is None or maker.name != LINEAR:
            self._refuse_ordered(logits)
            raise self.error("head", LINEAR, maker)
        return maker

    def _capped(self, value: int, cap: float) -> Node:
        """The head below ``cap * tanh(value)``, where `value` may or may not show 1 / cap."""
        self.found.softcap = self._positive("softcap", cap)
        maker = self.flow.maker(value)
        if maker is not None and maker.name in ("MUL", "DIV"):
            for operand, factor in _orders(maker):
                number = self.flow.scalar(factor)
                if number is None:
                    continue
                scale = number if maker.name == "MUL" else 1 / number if number else 0
                if abs(scale * cap - 1) > 1e-3:
                    raise self.error("head", f"a softcap of 1 / {cap:g}", f"{scale:g} in {maker}")
                return self._made(operand, "head", LINEAR)
        self.found.folded = True
        return self._made(value, "head", LINEAR)

    def _refuse_ordered(self, logits: int) -> None:
        seen, _ = self._slice(logits, stop=set(self.inputs.values()))
        for node in seen:
            if node.name in ORDERED_OPERATORS:
                raise UnsupportedError(
                    f"{self.flow.where}: {node} makes the logits: "
                    "ordered-embedding head not supported in .litertlm"
                )

    # One layer.

    def _layer(self, index: int, residual: int) -> int:
        layer = Layer()
        name = f"model.layers.{index}"
        before, after, total = self._branch(residual, f"layer {index}: attention")
        normed = self._norm(before, f"{name}.input_layernorm")
        self._attention(index, layer, normed, after.inputs[0])
        self._norm(after, f"{name}.post_attention_layernorm")

        before, after, total = self._branch(total, f"layer {index}: feed forward")
        normed = self._norm(before, f"{name}.pre_feedforward_layernorm")
        self._feed_forward(index, normed, after.inputs[0])
        self._norm(after, f"{name}.post_feedforward_layernorm")

        users = self._users(total)
        if len(users) == 1 and users[0].name == "MUL":
            scalars = [self.flow.scalar(factor) for _, factor in _orders(users[0])]
            layer.scalar = next((number for number in scalars if number is not None), None)
            if layer.scalar is None:
                raise self.error(f"layer {index}: layer_scalar", "a constant", users[0])
            if not math.isfinite(layer.scalar):
                raise self.error(f"layer {index}: layer_scalar", "a number", layer.scalar)
            total = users[0].output
        self.found.layers.append(layer)
        return total

    def _branch(self, residual: int, where: str) -> tuple[Node, Node, int]:
        """The norm that begins a branch off `residual`, the one that ends it, and the sum."""
        users = self._users(residual)
        norms = [node for node in users if node.name == RMS_NORM]
        sums = [node for node in users if node.name == "ADD"]
        if len(users) != 2 or len(norms) != 1 or len(sums) != 1:
            raise self.error(f"{where}: residual", f"one {RMS_NORM} and one ADD", _listed(users))
        total = sums[0]
        if total.operator.option:
            raise self.error(where, "no fused activation", f"{total.operator.option} in {total}")
        others = [value for value in total.inputs if value != residual]
        if len(others) != 1:
            raise self.error(f"{where}: residual", "a sum with one other value", total)
        return norms[0], self._made(others[0], f"{where}: last norm", RMS_NORM), total.output

    def _attention(self, index: int, layer: Layer, normed: int, projected: int) -> None:
        where, name = f"layer {index}", f"model.layers.{index}.self_attn"
        query = self._only(self._users(normed), f"{where}: q_proj", LINEAR)
        queries = self._linear(query, f"{name}.q_proj", normed)
        norm = self._only(self._users(queries), f"{where}: q_norm", RMS_NORM)
        normed_queries = self._norm(norm, f"{name}.q_norm")
        out = self._made(projected, f"{where}: o_proj", LINEAR)
        self._linear(out, f"{name}.o_proj", out.inputs[0])
        stop = {normed_queries, *self.inputs.values()}
        layer.core, layer.reads = self._slice(out.inputs[0], stop)
        if normed_queries not in layer.reads:
            raise self.error(f"{where}: o_proj", "the queries among what it depends on", out)
        for node in layer.core:
            if node.name not in ATTENTION_OPERATORS and node.name != COMPOSITE:
                raise self.error(f"{where}: attention", "operations of attention", node)

    def _slice(self, value: int, stop: set[int]) -> tuple[list[Node], set[int]]:
        """The nodes `value` depends on, back to values in `stop`, and those of them it reads."""
        nodes: dict[int, Node] = {}
        reads: set[int] = set()
        todo = [value]
        while todo:
            at = todo.pop()
            if at in stop:
                reads.add(at)
                continue
            maker = self.flow.maker(at)
            if maker is not None and at not in nodes:
                nodes[at] = maker
                todo += [item for item in maker.inputs if item != NO_TENSOR]
        return list(nodes.values()), reads

    def _feed_forward(self, index: int, normed: int, projected: int) -> None:
        where, name = f"layer {index}", f"model.layers.{index}.mlp"
        down = self._made(projected, f"{where}: down_proj", LINEAR)
        product = self._made(down.inputs[0], f"{where}: down_proj input", "MUL")
        users = self._users(normed)
        if len(users) != 2 or any(node.name != LINEAR for node in users):
            raise self.error(f"{where}: gate_proj and up_proj", f"two {LINEAR}", _listed(users))
        outputs = {node.output: node for node in users}
        # The gate is the one whose output goes through GELU before the product.
        plain = [value for value in product.inputs if value in outputs]
        curved = [value for value in product.inputs if value not in outputs]
        if len(plain) != 1 or len(curved) != 1:
            raise self.error(f"{where}: gate_proj", "one of the two through GELU", product)
        up = outputs.pop(plain[0])
        gate = next(iter(outputs.values()))
        steps, reads = self._slice(curved[0], {gate.output, up.output})
        shaped = [
            node
            for node in steps
            if node.operator.composite in GELU_COMPOSITES or node.name == "GELU"
        ] or [node for node in steps if node.name == "TANH"]
        foreign = [
            node
            for node in steps
            if node.name not in GELU_OPERATORS and node.operator.composite not in GELU_COMPOSITES
        ]
        if reads != {gate.output} or len(shaped) != 1 or foreign:
            raise self.error(f"{where}: gate_proj", "GELU of it alone", _listed(foreign or steps))
        if shaped[0].name == "GELU" and not shaped[0].operator.option:
            raise self.error(f"{where}: gate_proj", "GELU's tanh approximation", shaped[0])
        self._linear(gate, f"{name}.gate_proj", normed)
        self._linear(up, f"{name}.up_proj", normed)
        self._linear(down, f"{name}.down_proj", product.output)


def _orders(node: Node) -> list[tuple[int, int]]:
    """The operands of a binary node as (value, other); a quotient only as it stands."""
    if len(node.inputs) != 2:
        return []
    first, second = node.inputs
    return [(first, second)] if node.name == "DIV" else [(first, second), (second, first)]


def _listed(nodes: Iterable[Node]) -> str:
    return ", ".join(str(node) for node in nodes) or "nothing"
