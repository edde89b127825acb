"""What a drafter's graph tells beside its weights: sizes, window, rotation, where it reads from.

What it does not tell is left None, and said so where it is used.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguf_mtp.drafters.litert.dataflow import Dataflow, Node
from gguf_mtp.drafters.litert.identify import Found, Layer
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.gemma4.config import FULL, SLIDING, Rope
from gguf_mtp.readers.tflite_model import Signature

CACHE = re.compile(r"kv_cache_([kv])_(0|[1-9][0-9]{0,5})")
INPUTS = ("activations", "input_pos", "mask")
OUTPUTS = ("logits", "projected_activations")
ROPE_TOLERANCE = 1e-4
# "Strictly less" compares one key fewer than "less or equal"; by operator, with the positions of
# the keys on the left and `position - w` on the right.
KEYS_BEYOND = {"GREATER": 0, "GREATER_EQUAL": 1}
MIRRORED = {"LESS": "GREATER", "LESS_EQUAL": "GREATER_EQUAL"}


@dataclass(frozen=True)
class Findings:
    """Sizes in elements; `kv_layers`: layer type -> the target's layer whose cache it reads.

    `window`: the keys that a sliding layer attends to, the current position's among them.
    `ropes`: by layer type, as far as the constants tell. `rope_constants`: values of theirs.
    """

    vocab_size: int
    backbone: int
    hidden_size: int
    feed_forward: int
    heads: int
    layer_types: tuple[str, ...]
    head_dims: dict[str, int]
    kv_heads: dict[str, int]
    kv_layers: dict[str, int]
    context: int
    epsilon: float | None
    window: int | None
    ropes: dict[str, Rope]
    rope_constants: frozenset[int]
    cache_type: str


def is_drafter(signature: Signature) -> bool:
    """Whether `signature` has the inputs and outputs by which LiteRT-LM calls a drafter."""
    return (
        set(INPUTS) <= set(signature.inputs)
        and set(OUTPUTS) <= set(signature.outputs)
        and any(CACHE.fullmatch(name) for name in signature.inputs)
    )


def pick_signature(where: str, signatures: tuple[Signature, ...]) -> Signature:
    """The drafter's entry point, told by the names of its inputs and outputs."""
    matching = [item for item in signatures if is_drafter(item)]
    if len(matching) != 1:
        listed = ", ".join(repr(item.key) for item in signatures) or "none"
        raise FormatError(
            f"{where}: {len(matching)} signatures with inputs {', '.join(INPUTS)}, kv_cache_*, and "
            f"outputs {', '.join(OUTPUTS)}, expected one (signatures: {listed})"
        )
    return matching[0]


def read_findings(flow: Dataflow, signature: Signature, found: Found) -> Findings:
    """Sizes and settings of the drafter `found` in `flow`.

    Raises FormatError, naming layer and role, where sizes contradict each other.
    """
    where = flow.where

    def shape(name: str) -> tuple[int, ...]:
        return flow.tensor(found.roles[name].value).shape

    def agree(what: str, expected: object, actual: object) -> None:
        if expected != actual:
            raise FormatError(f"{where}: {what}: expected {expected}, found {actual}")

    hidden, twice = shape("pre_projection")
    vocab = shape("model.embed_tokens")[0]
    backbone = shape("post_projection")[0]
    agree("pre_projection's inputs, twice the target's hidden size", 2 * backbone, twice)
    agree("head's inputs", hidden, shape("model.embed_tokens")[1])
    agree("post_projection's inputs", hidden, shape("post_projection")[1])
    agree("width of activations", 2 * backbone, _width(flow, signature.inputs["activations"]))
    for name, width in (("logits", vocab), ("projected_activations", backbone)):
        agree(f"width of {name}", width, _width(flow, signature.outputs[name]))

    caches = {flow.value(index): name for name, index in signature.inputs.items()}
    sources = [_cache_layer(where, i, layer, caches) for i, layer in enumerate(found.layers)]
    layer_types = tuple(FULL if source == sources[-1] else SLIDING for source in sources)
    kv_layers = dict(zip(layer_types, sources, strict=True))
    if len(set(sources)) > 2:
        raise UnsupportedError(
            f"{where}: layers read the caches of the target's layers {sorted(set(sources))}, "
            "expected one for sliding and one for full attention"
        )
    head_dims: dict[str, int] = {}
    kv_heads: dict[str, int] = {}
    for kind, source in kv_layers.items():
        keys = flow.tensor(signature.inputs[f"kv_cache_k_{source}"]).shape
        agree(f"dimensions of kv_cache_k_{source}", 4, len(keys))
        if min(keys) < 1:
            raise FormatError(f"{where}: kv_cache_k_{source} has shape {list(keys)}")
        kv_heads[kind], head_dims[kind] = keys[1], keys[3]
    feed_forward = shape("model.layers.0.mlp.gate_proj")[0]
    heads = shape("model.layers.0.self_attn.q_proj")[0] // head_dims[layer_types[0]]
    for index, kind in enumerate(layer_types):
        name, head_dim = f"model.layers.{index}", head_dims[kind]
        expected = {
            "self_attn.q_proj": (heads * head_dim, hidden),
            "self_attn.o_proj": (hidden, heads * head_dim),
            "mlp.gate_proj": (feed_forward, hidden),
            "mlp.up_proj": (feed_forward, hidden),
            "mlp.down_proj": (hidden, feed_forward),
        }
        for suffix, dims in expected.items():
            agree(f"shape of layer {index}: {suffix}", dims, shape(f"{name}.{suffix}"))
        norm = f"{name}.self_attn.q_norm"
        agree(
            f"size of layer {index}: q_norm",
            head_dim,
            flow.tensor(found.roles[norm].value).elements,
        )
    for name, role in found.roles.items():
        if name.endswith("layernorm") or name == "model.norm":
            agree(f"size of {name}", hidden, flow.tensor(role.value).elements)
    if len(found.epsilons) > 1:
        raise FormatError(f"{where}: norms of different epsilons {sorted(found.epsilons)}")

    ropes, constants = _ropes(flow, found, layer_types, head_dims)
    position = flow.value(signature.inputs["input_pos"])
    cache = flow.tensor(signature.inputs[f"kv_cache_k_{sources[-1]}"])
    return Findings(
        vocab_size=vocab,
        backbone=backbone,
        hidden_size=hidden,
        feed_forward=feed_forward,
        heads=heads,
        layer_types=layer_types,
        head_dims=head_dims,
        kv_heads=kv_heads,
        kv_layers=kv_layers,
        context=_width(flow, signature.inputs["mask"]),
        epsilon=_tidy(next(iter(found.epsilons))) if found.epsilons else None,
        window=_window(flow, found, layer_types, position),
        ropes=ropes,
        rope_constants=constants,
        cache_type=cache.dtype,
    )


def _width(flow: Dataflow, index: int) -> int:
    """The last dimension of a tensor; 0 of a scalar."""
    return (0, *flow.tensor(index).shape)[-1]


def _tidy(value: float) -> float:
    """The short decimal that the float32 `value` was rounded from."""
    return float(str(np.float32(value)))


def _cache_layer(where: str, index: int, layer: Layer, caches: dict[int, str]) -> int:
    """The target's layer whose keys and values `layer` reads."""
    matches = [CACHE.fullmatch(caches[value]) for value in sorted(layer.reads) if value in caches]
    parts = sorted((match[1], int(match[2])) for match in matches if match)
    if [kind for kind, _ in parts] != ["k", "v"] or parts[0][1] != parts[1][1]:
        listed = ", ".join(f"kv_cache_{kind}_{number}" for kind, number in parts) or "none"
        raise FormatError(
            f"{where}: layer {index}: attention: expected the keys and values of one layer of the "
            f"target, found {listed}"
        )
    return parts[0][1]


def _window(
    flow: Dataflow, found: Found, layer_types: tuple[str, ...], position: int
) -> int | None:
    """The sliding layers' window in keys, where all of them tell the same."""
    windows = {
        window
        for layer, kind in zip(found.layers, layer_types, strict=True)
        if kind == SLIDING
        for window in _layer_windows(flow, layer, position)
    }
    return windows.pop() if len(windows) == 1 else None


def _layer_windows(flow: Dataflow, layer: Layer, position: int) -> list[int]:
    """w of every comparison ``key > position - w`` among the steps of `layer`."""
    windows = []
    for node in layer.core:
        left, right, name = (*node.inputs[:2], node.name) if len(node.inputs) == 2 else (0, 0, "")
        if name in MIRRORED:
            left, right, name = right, left, MIRRORED[name]
        if name not in KEYS_BEYOND or flow.numbers(left) is None:
            continue
        start = flow.maker(right)
        if start is not None and start.name == "SUB" and start.inputs[0] == position:
            offset = flow.scalar(start.inputs[1])
            if offset is not None and offset > 0 and offset.is_integer():
                windows.append(int(offset) + KEYS_BEYOND[name])
    return windows


def _ropes(
    flow: Dataflow, found: Found, layer_types: tuple[str, ...], head_dims: dict[str, int]
) -> tuple[dict[str, Rope], frozenset[int]]:
    """Rotation by layer type, and the constants that hold it."""
    ropes: dict[str, Rope] = {}
    constants: set[int] = set()
    for index, (layer, kind) in enumerate(zip(found.layers, layer_types, strict=True)):
        turns = (flow.maker(node.inputs[0]) for node in layer.core if node.name in ("COS", "SIN"))
        for value, numbers in _frequencies(flow, turns):
            rope = _rope(numbers, head_dims[kind])
            if rope is None or ropes.setdefault(kind, rope) != rope:
                raise FormatError(
                    f"{flow.where}: layer {index}: rotation: tensor {value} holds no frequencies "
                    f"known for {head_dims[kind]} dimensions, or others than a layer before"
                )
            constants.add(value)
    return ropes, frozenset(constants)


def _frequencies(
    flow: Dataflow, angles: Iterable[Node | None]
) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """The constants that make `angles` of a position, as radians per position: each is multiplied
    by, or divided by wavelengths, infinite ones for what does not turn."""
    for node in angles:
        if node is None or node.name not in ("MUL", "DIV"):
            continue
        for value in node.inputs:
            numbers = flow.numbers(value)
            if numbers is not None and len(numbers) > 1:
                with np.errstate(divide="ignore"):
                    yield value, numbers if node.name == "MUL" else 1 / numbers


def _rope(numbers: npt.NDArray[np.float64], head_dim: int) -> Rope | None:
    """The rotation of frequencies ``theta ** (-2 i / head_dim)``, the last ones perhaps 0."""
    half = head_dim // 2
    if len(numbers) == head_dim == 2 * half and (numbers[:half] == numbers[half:]).all():
        numbers = numbers[:half]
    turning = int(np.count_nonzero(numbers))
    if len(numbers) != half or turning < 2 or numbers[turning:].any():
        return None
    if not (np.isfinite(numbers) & (numbers >= 0)).all():
        return None
    with np.errstate(over="ignore"):
        theta = float(np.power(numbers[turning - 1], -head_dim / (2 * (turning - 1))))
    if not math.isfinite(theta) or theta <= 1:
        return None
    theta = float(f"{theta:.4g}")
    expected = theta ** (-2 * np.arange(turning) / head_dim)
    if np.abs(numbers[:turning] / expected - 1).max() > ROPE_TOLERANCE:
        return None
    return Rope(theta, turning / half)
