"""A drafter as this project handles it. MTP heads are a `gemma4-assistant` model, checked.

Source: llama.cpp ``src/models/gemma4-assistant.cpp`` (tensors and shapes).
"""

from dataclasses import dataclass, replace

from gguf_mtp.drafters.dialects import DEPTH
from gguf_mtp.drafters.families import MTP, Family, family_of
from gguf_mtp.drafters.ordered_head import NAMES, OrderedHead, stored_ordered_head
from gguf_mtp.errors import FormatError, UnsupportedError, brief
from gguf_mtp.gemma4.config import FULL
from gguf_mtp.gemma4.keys import ROPE_FREQS
from gguf_mtp.gemma4.shape import ModelShape, read_shape
from gguf_mtp.gemma4.target import require_tensors
from gguf_mtp.gemma4.tensors import block_shapes, named
from gguf_mtp.model import Half

ARCH = "gemma4-assistant"


@dataclass(frozen=True)
class Drafter:
    """A drafter with its rows in canonical (token id) order. `shape`, and `ordered` if there is an
    ordered head, are those of MTP heads; its tensors come last in `half`."""

    half: Half
    shape: ModelShape | None = None
    ordered: OrderedHead | None = None
    family: Family = MTP


def drafter_from_half(half: Half) -> Drafter:
    """A drafter that is a GGUF model under upstream's names; MTP heads are checked.

    Raises FormatError when their keys or tensors are missing or inconsistent.
    """
    family = family_of(half)
    if family is not None and family is not MTP:
        return Drafter(half, family=family)
    shape = read_shape(half, ARCH)
    check_tensors(half, shape)
    ordered = stored_ordered_head(half, shape.vocab_size)
    last = [half.tensor_by_name[name] for name in NAMES if name in half.tensor_by_name]
    rest = [tensor for tensor in half.tensors if tensor.name not in NAMES]
    return Drafter(replace(half, tensors=(*rest, *last)), shape, ordered)


def check_tensors(half: Half, shape: ModelShape) -> None:
    width, backbone = shape.hidden_size, shape.output_size
    if backbone is None:
        raise FormatError(f"{half.origin}: key {ARCH}.embedding_length_out is missing")
    depth = half.value(f"{ARCH}.{DEPTH}")
    if depth != shape.n_layers:
        # llama.cpp would stop the process where there are more of them than layers.
        raise FormatError(
            f"{half.origin}: {ARCH}.{DEPTH} is {brief(depth)}, expected {shape.n_layers}, "
            f"as {ARCH}.block_count"
        )
    if backbone == width:
        # llama.cpp takes equal sizes for a file without embedding_length_out.
        raise UnsupportedError(
            f"{half.origin}: the drafter's hidden size is its target's, {width}; they must differ"
        )
    expected: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.vocab_size, width),
        "output_norm.weight": (width,),
        "nextn.pre_projection.weight": (width, 2 * backbone),
        "nextn.post_projection.weight": (backbone, width),
    }
    if FULL in shape.layer_types:
        full_head_dim = shape.head_dims[shape.layer_types.index(FULL)]
        expected[ROPE_FREQS] = (full_head_dim // 2,)
    for layer, head_dim in enumerate(shape.head_dims):
        query = shape.heads * head_dim
        shapes = block_shapes(width, query, head_dim, shape.feed_forward[layer])
        expected |= {item.name: item.shape for item in named(layer, shapes)}
    found = half.tensor_by_name
    require_tensors(half.origin, list(expected), found)
    for name, dims in expected.items():
        if found[name].shape != dims:
            raise FormatError(
                f"{half.origin}: tensor {name} has shape {list(found[name].shape)}, "
                f"expected {list(dims)}"
            )
    unknown = set(found) - set(expected) - {ROPE_FREQS, *NAMES}
    if unknown:
        raise UnsupportedError(
            f"{half.origin}: tensor {min(unknown)!a} is not part of a {ARCH} model"
        )
