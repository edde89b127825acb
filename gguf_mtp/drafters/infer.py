"""What a drafter's file does not say: from its tensors' shapes, and from the base it is meant for.

Attention reads the base's keys and values, so rotation, window and key-value heads have to be the
base's anyhow. The rest follows from shapes; defaults are Google's own drafters'.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from gguf_mtp.drafters.dialects import BACKBONE, COUNT, DEPTH, POST, TOP_K
from gguf_mtp.drafters.drafter import ARCH
from gguf_mtp.drafters.ordered_head import CENTROIDS
from gguf_mtp.errors import FormatError
from gguf_mtp.gemma4.config import FULL, SLIDING
from gguf_mtp.gemma4.keys import ROPE_FREQS
from gguf_mtp.gemma4.shape import ModelShape, read_shape
from gguf_mtp.gemma4.target import ARCH as BASE_ARCH
from gguf_mtp.ggml import F32
from gguf_mtp.keyvalue import KeyValue, ValueType, array, f32, u32
from gguf_mtp.model import Half, Tensor, read_tensor
from gguf_mtp.pairing import kv_owners

LAYER = re.compile(r"blk\.(\d+)\.")
Q_NORM = "blk.{}.attn_q_norm.weight"
EPSILON = 1e-6
CENTROIDS_SCORED = 32
ROTATED_SHARE = 0.25
STANDSTILL = 1e30
MAX_SIZE = 1 << 24
SCALE = "layer_output_scale.weight"


def complete(half: Half, base: Half) -> tuple[Half, tuple[str, ...]]:
    """`half`, a drafter under upstream's names, with what it lacks; and the names of that.

    Raises FormatError where the shapes that something has to come from are missing or odd.
    """
    facts = _Facts(half, base)
    keys = [
        key
        for name, make in KEYS.items()
        if f"{ARCH}.{name}" not in half.by_name
        for key in make(facts, f"{ARCH}.{name}")
    ]
    tensors = [tensor for tensor in _tensors(facts) if tensor.name not in half.tensor_by_name]
    found = replace(half, keys=(*half.keys, *keys), tensors=(*half.tensors, *tensors))
    return found, (*(key.name for key in keys), *(tensor.name for tensor in tensors))


@dataclass(frozen=True)
class _Facts:
    """A drafter's sizes by its tensors and its base. Cached: several keys need each."""

    half: Half
    base: Half

    def size(self, name: str, axis: int, n_dims: int = 2) -> int:
        tensor = self.half.tensor_by_name.get(name)
        if tensor is None or len(tensor.shape) != n_dims:
            found = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
            raise FormatError(f"{self.half.origin}: tensor {name} is {found}")
        # The bytes of a tensor of unknown type say nothing about its shape.
        if tensor.shape[axis] > MAX_SIZE:
            raise FormatError(
                f"{self.half.origin}: tensor {name} has shape {list(tensor.shape)}, "
                f"expected sizes up to {MAX_SIZE}"
            )
        return tensor.shape[axis]

    @cached_property
    def base_shape(self) -> ModelShape:
        return read_shape(self.base, BASE_ARCH)

    @cached_property
    def n_layers(self) -> int:
        names = self.half.tensor_by_name
        layers = sorted({int(match[1]) for match in map(LAYER.match, names) if match})
        if not layers or layers != list(range(len(layers))):
            raise FormatError(
                f"{self.half.origin}: has tensors blk.N of the layers {str(layers)[:60]}, "
                "expected 0, 1, 2 and so on"
            )
        bare = [layer for layer in layers if Q_NORM.format(layer) not in names]
        if bare:
            raise FormatError(
                f"{self.half.origin}: no query norm ({Q_NORM.format('N')}) for the layers "
                f"{str(bare)[:60]}; extractions from LiteRT often lack it: give --heads the "
                ".tflite or .litertlm package"
            )
        return len(layers)

    @cached_property
    def layer_types(self) -> tuple[str, ...]:
        """As stated; else by the width of the heads; else all sliding but the last."""
        stated = self.half.by_name.get(f"{ARCH}.attention.sliding_window_pattern")
        if stated is not None and stated.count == self.n_layers:
            return tuple(SLIDING if item else FULL for item in stated.value)
        widths = [self.head_dim(layer) for layer in range(self.n_layers)]
        shape = self.base_shape
        by_width = dict(zip(shape.head_dims, shape.layer_types, strict=True))
        if len(by_width) == 2 and set(widths) <= set(by_width):
            return tuple(by_width[width] for width in widths)
        return (SLIDING,) * (self.n_layers - 1) + (FULL,)

    def head_dim(self, layer: int) -> int:
        return self.size(Q_NORM.format(layer), 0, 1)

    def head_dim_of(self, kind: str) -> int:
        """The head width of one kind of layers; the base's where the drafter has none."""
        if kind in self.layer_types:
            return self.head_dim(self.layer_types.index(kind))
        return self.base_shape.head_dims[kv_owners(self.base, self.base_shape)[kind]]

    @property
    def heads(self) -> int:
        return self.size("blk.0.attn_q.weight", 0) // self.head_dim(0)

    @property
    def feed_forward(self) -> list[int]:
        return [self.size(f"blk.{layer}.ffn_gate.weight", 0) for layer in range(self.n_layers)]

    @property
    def kv_heads(self) -> list[int]:
        owners = kv_owners(self.base, self.base_shape)
        return [self.base_shape.kv_heads[owners[kind]] for kind in self.layer_types]


Maker = Callable[[_Facts, str], list[KeyValue]]


def _number(value: Callable[[_Facts], int]) -> Maker:
    return lambda facts, name: [u32(name, value(facts))]


def _per_layer(values: Callable[[_Facts], list[int]]) -> Maker:
    def make(facts: _Facts, name: str) -> list[KeyValue]:
        found = values(facts)
        if len(set(found)) == 1:
            return [u32(name, found[0])]
        return [array(name, ValueType.INT32, found)]

    return make


def _base_key(name: str) -> Maker:
    """The base's own, where it has it."""

    def make(facts: _Facts, full_name: str) -> list[KeyValue]:
        key = facts.base.by_name.get(f"{BASE_ARCH}.{name}")
        return [] if key is None else [key.renamed(full_name)]

    return make


def _epsilon(facts: _Facts, name: str) -> list[KeyValue]:
    return _base_key("attention.layer_norm_rms_epsilon")(facts, name) or [f32(name, EPSILON)]


def _pattern(facts: _Facts, name: str) -> list[KeyValue]:
    return [array(name, ValueType.BOOL, [kind == SLIDING for kind in facts.layer_types])]


def _ordered(value: Callable[[_Facts], int]) -> Maker:
    """A key of the ordered head, where there is one."""

    def make(facts: _Facts, name: str) -> list[KeyValue]:
        return [u32(name, value(facts))] if CENTROIDS in facts.half.tensor_by_name else []

    return make


# In the order of llama.cpp's converter.
KEYS: dict[str, Maker] = {
    "block_count": _number(lambda facts: facts.n_layers),
    "context_length": _base_key("context_length"),
    "embedding_length": _number(lambda facts: facts.size("token_embd.weight", 1)),
    "feed_forward_length": _per_layer(lambda facts: facts.feed_forward),
    "attention.head_count": _number(lambda facts: facts.heads),
    "attention.head_count_kv": _per_layer(lambda facts: facts.kv_heads),
    "rope.freq_base": _base_key("rope.freq_base"),
    "rope.freq_base_swa": _base_key("rope.freq_base_swa"),
    "attention.layer_norm_rms_epsilon": _epsilon,
    "attention.key_length": _number(lambda facts: facts.head_dim_of(FULL)),
    "attention.value_length": _number(lambda facts: facts.head_dim_of(FULL)),
    "attention.sliding_window": _base_key("attention.sliding_window"),
    "attention.shared_kv_layers": _number(lambda facts: facts.n_layers),
    "embedding_length_per_layer_input": lambda facts, name: [u32(name, 0)],
    "attention.sliding_window_pattern": _pattern,
    "attention.key_length_swa": _number(lambda facts: facts.head_dim_of(SLIDING)),
    "attention.value_length_swa": _number(lambda facts: facts.head_dim_of(SLIDING)),
    "rope.dimension_count": _number(lambda facts: facts.head_dim_of(FULL)),
    "rope.dimension_count_swa": _number(lambda facts: facts.head_dim_of(SLIDING)),
    BACKBONE: _number(lambda facts: facts.size(POST, 0)),
    DEPTH: _number(lambda facts: facts.n_layers),
    COUNT: _ordered(lambda facts: facts.size(CENTROIDS, 0)),
    TOP_K: _ordered(lambda facts: min(CENTROIDS_SCORED, facts.size(CENTROIDS, 0))),
}


def _tensors(facts: _Facts) -> list[Tensor]:
    found = [
        Tensor(f"blk.{layer}.{SCALE}", F32, (1,), struct.pack("<f", 1.0), verbatim=True)
        for layer in range(facts.n_layers)
    ]
    if FULL in facts.layer_types:
        found.append(_rope_freqs(facts))
    return found


def _rope_freqs(facts: _Facts) -> Tensor:
    """Frequency divisors of the full layers: the base's, as queries meet the keys it has turned."""
    half = facts.head_dim_of(FULL) // 2
    theirs = facts.base.tensor_by_name.get(ROPE_FREQS)
    if theirs is not None and theirs.type is F32 and theirs.shape == (half,):
        return replace(theirs, source=read_tensor(theirs))
    turning = int(half * ROTATED_SHARE)
    values = [1.0] * turning + [STANDSTILL] * (half - turning)
    return Tensor(ROPE_FREQS, F32, (half,), struct.pack(f"<{half}f", *values), verbatim=True)
