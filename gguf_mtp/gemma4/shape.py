"""A Gemma 4 model's shape as its GGUF keys state it, whatever file the keys come from."""

from dataclasses import dataclass
from typing import Any

from gguf_mtp.errors import FormatError
from gguf_mtp.gemma4.config import FULL, MAX_LAYERS, SLIDING
from gguf_mtp.keyvalue import KeyValue, ValueType
from gguf_mtp.model import Half

INTEGERS = (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64)


@dataclass(frozen=True)
class ModelShape:
    """Sizes in elements; tuples have one entry per layer. `output_size` is a drafter's
    ``embedding_length_out``, the hidden size of its target, else None."""

    vocab_size: int
    hidden_size: int
    output_size: int | None
    layer_types: tuple[str, ...]
    heads: int
    kv_heads: tuple[int, ...]
    head_dims: tuple[int, ...]
    feed_forward: tuple[int, ...]
    shared_kv_layers: int
    rope_bases: dict[str, float]

    @property
    def n_layers(self) -> int:
        return len(self.layer_types)


def read_shape(half: Half, arch: str) -> ModelShape:
    """The shape of `half`, a model of architecture `arch`. Raises FormatError, naming the key."""
    keys = Keys(half, arch)
    found = half.value("general.architecture")
    if found != arch:
        raise FormatError(f"{half.origin}: general.architecture is {found!a}, expected {arch!a}")
    n_layers = keys.size("block_count", MAX_LAYERS)
    pattern = keys.per_layer("attention.sliding_window_pattern", n_layers, (ValueType.BOOL,))
    layer_types = tuple(SLIDING if sliding else FULL for sliding in pattern)
    widths = {
        FULL: keys.size("attention.key_length"),
        SLIDING: keys.size("attention.key_length_swa"),
    }
    embedding = half.tensor_by_name.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        found = "none" if embedding is None else f"shape {list(embedding.shape)}"
        raise FormatError(f"{half.origin}: token_embd.weight: found {found}, expected a matrix")
    hidden_size = keys.size("embedding_length")
    if embedding.shape[1] != hidden_size:
        raise FormatError(
            f"{half.origin}: token_embd.weight has rows of {embedding.shape[1]}, "
            f"expected {arch}.embedding_length = {hidden_size}"
        )
    tokens = half.by_name.get("tokenizer.ggml.tokens")
    if tokens is not None and tokens.count != embedding.shape[0]:
        raise FormatError(
            f"{half.origin}: tokenizer.ggml.tokens has {tokens.count} entries, "
            f"expected {embedding.shape[0]}, the rows of token_embd.weight"
        )
    out = f"{arch}.embedding_length_out"
    shape = ModelShape(
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        output_size=keys.size("embedding_length_out") if out in half.by_name else None,
        layer_types=layer_types,
        heads=keys.size("attention.head_count"),
        kv_heads=keys.per_layer("attention.head_count_kv", n_layers, INTEGERS),
        head_dims=tuple(widths[kind] for kind in layer_types),
        feed_forward=keys.per_layer("feed_forward_length", n_layers, INTEGERS),
        # As in llama.cpp, none where the key is missing.
        shared_kv_layers=keys.size("attention.shared_kv_layers", n_layers, low=0)
        if f"{arch}.attention.shared_kv_layers" in half.by_name
        else 0,
        rope_bases={
            FULL: keys.number("rope.freq_base"),
            SLIDING: keys.number("rope.freq_base_swa"),
        },
    )
    if 0 in shape.kv_heads:
        raise FormatError(f"{half.origin}: {arch}.attention.head_count_kv holds a 0")
    return shape


class Keys:
    """Typed access to the keys of one architecture."""

    def __init__(self, half: Half, arch: str) -> None:
        self.half = half
        self.arch = arch

    def _get(self, name: str) -> KeyValue:
        key = self.half.by_name.get(f"{self.arch}.{name}")
        if key is None:
            raise FormatError(f"{self.half.origin}: key {self.arch}.{name} is missing")
        return key

    def _error(self, key: KeyValue, expected: str) -> FormatError:
        found = f"{key.type.name} {str(key.head(8))[:60]}"
        return FormatError(f"{self.half.origin}: {key.name} is {found}, expected {expected}")

    def size(self, name: str, high: int = 1 << 31, low: int = 1) -> int:
        key = self._get(name)
        if key.type not in INTEGERS or not low <= key.value <= high:
            raise self._error(key, f"an integer from {low} to {high}")
        return int(key.value)

    def number(self, name: str) -> float:
        key = self._get(name)
        if key.type is not ValueType.FLOAT32:
            raise self._error(key, "a FLOAT32")
        return float(key.value)

    def per_layer(self, name: str, n_layers: int, kinds: tuple[ValueType, ...]) -> tuple[Any, ...]:
        """A value for each layer; a plain one, where it is an integer, holds for all."""
        key = self._get(name)
        if key.type in kinds and key.type is not ValueType.BOOL:
            return (self.size(name, low=0),) * n_layers
        if key.type is not ValueType.ARRAY or key.item_type not in kinds or key.count != n_layers:
            raise self._error(key, f"{n_layers} values of type {kinds[0].name}")
        values = tuple(key.value)
        if any(value < 0 for value in values):
            raise self._error(key, "no negative values")
        return values
