"""The weights and inputs that the fixtures were made from, out of a hash: the same for ever.

Matrices lie on an integer grid, so that the official quantizer gives exactly these codes and scales
back, and what is extracted can be compared with what went in bit by bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SLIDING = "sliding_attention"
FULL = "full_attention"
LARGEST = {8: 127, 4: 7, 2: 1}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """Sizes in elements. `kv_layers`: layer type -> the target's layer whose cache is read;
    `rope`: layer type -> base and rotated share; `window` in keys."""

    vocab: int
    backbone: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dims: dict[str, int]
    layer_types: tuple[str, ...]
    kv_layers: dict[str, int]
    window: int
    context: int
    rope: dict[str, tuple[float, float]]


ROPE = {SLIDING: (1e4, 1.0), FULL: (1e6, 0.25)}
SMALL = Shape(
    vocab=128,
    backbone=64,
    hidden=32,
    feed_forward=64,
    heads=2,
    kv_heads=1,
    head_dims={SLIDING: 32, FULL: 64},
    layer_types=(SLIDING, SLIDING, FULL),
    kv_layers={SLIDING: 13, FULL: 14},
    window=8,
    context=24,
    rope=ROPE,
)
# The drafter that is trained for the embedded target.
TRAINED = Shape(
    vocab=2048,
    backbone=256,
    hidden=128,
    feed_forward=256,
    heads=2,
    kv_heads=1,
    head_dims={SLIDING: 64, FULL: 128},
    layer_types=(SLIDING, SLIDING, FULL),
    kv_layers={SLIDING: 1, FULL: 2},
    window=64,
    context=96,
    rope=ROPE,
)


@dataclass(frozen=True)
class Matrix:
    """int8 `codes` [rows, columns] and float32 `scales` [rows, columns / block]."""

    codes: npt.NDArray[np.int8]
    scales: Floats

    @property
    def values(self) -> Floats:
        rows, blocks = self.scales.shape
        product = self.codes.reshape(rows, blocks, -1).astype(np.float32) * self.scales[:, :, None]
        return product.reshape(rows, -1)


def uniform(name: str, count: int) -> Floats:
    """`count` numbers from -1 up to 1, those of `name`."""
    raw = hashlib.shake_256(name.encode()).digest(4 * count)
    return (np.frombuffer(raw, "<i4") / 2.0**31).astype(np.float32)


def matrix(name: str, rows: int, columns: int, bits: int, block: int | None = None) -> Matrix:
    """The matrix `name` on a grid of `bits`, with a scale for each row or each `block` of one."""
    block = block or columns
    largest = LARGEST[bits]
    codes = np.rint(uniform(name, rows * columns) * largest).astype(np.int8)
    codes = codes.reshape(rows, -1, block)
    # Each scale's range is used in full, or the quantizer would choose a smaller one.
    codes[:, :, 0] = np.where(codes[:, :, 0] < 0, -largest, largest)
    steps = np.floor(8 * (uniform(f"{name}: scales", codes[:, :, 0].size) + 1))
    # About 1 / sqrt(columns) in size, and few enough digits to be exact in float16.
    scales = (1 + steps / 16) * 2.0 ** np.rint(np.log2(1.2 / largest / columns**0.5))
    return Matrix(codes.reshape(rows, columns), scales.reshape(rows, -1).astype(np.float32))


def vector(name: str, count: int) -> Floats:
    return (1 + np.rint(uniform(name, count) * 24) / 64).astype(np.float32)


@dataclass(frozen=True)
class Grid:
    """Bits of the matrices of projections and attention, and of feed forward and head."""

    bits: int
    few_bits: int
    block: int | None = None


# By fixture, as its quantizer is set up. Floats are no less exact on a grid.
GRIDS = {
    "mixed": Grid(8, 4),
    "static-w4a8": Grid(4, 4),
    "weight-only-int4": Grid(4, 4),
    "blockwise-32": Grid(4, 4, 32),
    "float": Grid(8, 8),
}
SCALARS = (0.75, 1.25, 0.875)


def grid_matrices(fixture: str, shape: Shape = SMALL) -> dict[str, Matrix]:
    """The matrices of a fixture by name without ``.weight``."""
    grid = GRIDS[fixture]
    found = {}
    for name, (rows, columns) in matrices(shape).items():
        few = ".mlp." in name or name == "model.embed_tokens"
        bits = grid.few_bits if few else grid.bits
        found[name] = matrix(name, rows, columns, bits, grid.block)
    return found


def weights(fixture: str, *, scalars: bool = False, shape: Shape = SMALL) -> dict[str, Floats]:
    """All of a fixture's weights in float32, by their Hugging Face names."""
    found = {name: item.values for name, item in grid_matrices(fixture, shape).items()}
    found |= vectors(shape)
    named = {f"{name}.weight": value for name, value in found.items()}
    if scalars:
        for layer, scalar in enumerate(SCALARS):
            named[f"model.layers.{layer}.layer_scalar"] = np.array([scalar], np.float32)
    return named


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """Name without ``.weight`` -> rows and columns."""
    hidden = shape.hidden
    sizes = {
        "pre_projection": (hidden, 2 * shape.backbone),
        "post_projection": (shape.backbone, hidden),
        "model.embed_tokens": (shape.vocab, hidden),
    }
    for layer, kind in enumerate(shape.layer_types):
        name, query = f"model.layers.{layer}", shape.heads * shape.head_dims[kind]
        sizes[f"{name}.self_attn.q_proj"] = (query, hidden)
        sizes[f"{name}.self_attn.o_proj"] = (hidden, query)
        sizes[f"{name}.mlp.gate_proj"] = (shape.feed_forward, hidden)
        sizes[f"{name}.mlp.up_proj"] = (shape.feed_forward, hidden)
        sizes[f"{name}.mlp.down_proj"] = (hidden, shape.feed_forward)
    return sizes


def vectors(shape: Shape) -> dict[str, Floats]:
    """Norms by name without ``.weight``. Sliding layers share one q_norm, as in Google's files."""
    found = {"model.norm": vector("model.norm", shape.hidden)}
    for layer, kind in enumerate(shape.layer_types):
        name = f"model.layers.{layer}"
        for part in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            full = f"{name}.{part}_layernorm"
            found[full] = vector(full, shape.hidden)
        found[f"{name}.self_attn.q_norm"] = vector(f"q_norm {kind}", shape.head_dims[kind])
    return found


def frequencies(width: int, theta: float, rotated: float) -> Floats:
    """Radians per position for each of the `width` / 2 pairs; 0 for pairs that stand still."""
    turning = int(width * rotated / 2)
    values = np.zeros(width // 2, np.float32)
    values[:turning] = theta ** (-np.arange(turning) * 2 / width)
    return values


def inputs(shape: Shape, position: int) -> dict[str, npt.NDArray[np.generic]]:
    """Inputs of the signature; the keys up to `position` are visible."""

    def normal(name: str, *dims: int) -> Floats:
        # Evenly distributed, of variance 1.
        values: Floats = uniform(f"{name} {position}", int(np.prod(dims))) * np.float32(3**0.5)
        return values.reshape(dims)

    found: dict[str, npt.NDArray[np.generic]] = {
        "activations": normal("activations", 1, 1, 2 * shape.backbone),
        "input_pos": np.array([position], np.int32),
        "mask": (np.arange(shape.context) <= position).reshape(1, 1, 1, -1),
    }
    for kind, layer in shape.kv_layers.items():
        width = shape.head_dims[kind]
        heads, context = shape.kv_heads, shape.context
        found[f"kv_cache_k_{layer}"] = normal(f"k {kind}", 1, heads, context, width)
        found[f"kv_cache_v_{layer}"] = normal(f"v {kind}", 1, heads, width, context)
    return found
