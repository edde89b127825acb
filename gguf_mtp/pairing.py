"""Whether a drafter belongs to a base: everything the two must agree on, checked before writing.

Source: llama.cpp ``src/models/gemma4-assistant.cpp``, ``src/llama-model.cpp`` (key-value sharing).
"""

import struct
import zlib
from typing import Any

from gguf_mtp.errors import PairingError, UnsupportedError
from gguf_mtp.gemma4.config import FULL, SLIDING
from gguf_mtp.gemma4.keys import ROPE_FREQS
from gguf_mtp.gemma4.shape import ModelShape
from gguf_mtp.keyvalue import KeyValue
from gguf_mtp.model import Half, read_tensor

STANDSTILL = struct.pack("<f", 1e30)
# Keys on which the two tokenizers must agree where both have them. Others (a chat template, say)
# may differ without changing what a token id means.
VOCABULARY_KEYS = tuple(
    f"tokenizer.ggml.{name}"
    for name in ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id")
)


def check_pair(base: Half, base_shape: ModelShape, heads: Half, heads_shape: ModelShape) -> None:
    """Raise PairingError, naming both files, expected and found, unless the drafter fits.

    UnsupportedError when the base's layers are arranged in a way llama.cpp cannot share.
    """

    def agree(what: str, expected: Any, found: Any) -> None:
        if expected != found:
            raise PairingError(
                f"{what}: expected {expected!a} (base {base.origin}), "
                f"found {found!a} (heads {heads.origin})"
            )

    agree("target hidden size", base_shape.hidden_size, heads_shape.output_size)
    agree("vocabulary size", base_shape.vocab_size, heads_shape.vocab_size)
    _check_tokenizers(base, heads)
    owners = kv_owners(base, base_shape)
    for kind in sorted(set(heads_shape.layer_types)):
        layer = owners[kind]
        for other in range(heads_shape.n_layers):
            if heads_shape.layer_types[other] != kind:
                continue
            where = f"{kind} (heads layer {other}, base layer {layer})"
            agree(
                f"key width of {where}", base_shape.head_dims[layer], heads_shape.head_dims[other]
            )
            agree(
                f"key-value heads of {where}",
                base_shape.kv_heads[layer],
                heads_shape.kv_heads[other],
            )
            if heads_shape.heads % base_shape.kv_heads[layer]:
                raise PairingError(
                    f"query heads of {where}: expected a multiple of "
                    f"{base_shape.kv_heads[layer]} (base {base.origin}), "
                    f"found {heads_shape.heads} (heads {heads.origin})"
                )
        # Queries meet keys that the base has rotated.
        agree(f"rope base of {kind}", base_shape.rope_bases[kind], heads_shape.rope_bases[kind])
    if FULL in heads_shape.layer_types:
        agree(ROPE_FREQS, *(_turning(half) for half in (base, heads)))


def _turning(half: Half) -> str:
    """How many of the rotation frequencies of full attention are in use, and which."""
    tensor = half.tensor_by_name.get(ROPE_FREQS)
    if tensor is None:
        return "none"
    encoded = read_tensor(tensor)
    still = encoded.count(STANDSTILL)
    return f"{tensor.shape[0] - still} of {tensor.shape[0]} turning ({zlib.crc32(encoded):08x})"


def _check_tokenizers(base: Half, heads: Half) -> None:
    for name in VOCABULARY_KEYS:
        ours, theirs = base.by_name.get(name), heads.by_name.get(name)
        if ours is None or theirs is None or (ours.type, ours.raw) == (theirs.type, theirs.raw):
            continue
        raise PairingError(
            f"tokenizer differs: {name}: expected {_difference(ours, theirs)} "
            f"(base {base.origin}), found {_difference(theirs, ours)} (heads {heads.origin})"
        )


def _difference(key: KeyValue, other: KeyValue) -> str:
    """What `key` holds where it first differs from `other`."""
    if key.item_type is None or key.count != other.count or key.item_type != other.item_type:
        return f"{key.count} entries" if key.item_type is not None else f"{key.value!a}"[:80]
    values, others = key.value, other.value
    at = next((i for i, pair in enumerate(zip(values, others, strict=True)) if len(set(pair)) > 1))
    return f"{values[at]!a} at {at}"[:80]


def kv_owners(base: Half, shape: ModelShape) -> dict[str, int]:
    """The layer of each kind whose keys and values a drafter reads: the last that owns any.

    llama.cpp finds them by position, so the last owners must be a sliding and a full layer.
    """
    own = shape.layer_types[: shape.n_layers - shape.shared_kv_layers]
    if own[-2:] != (SLIDING, FULL):
        raise UnsupportedError(
            f"{base.origin}: the last layers that own keys and values are {list(own[-2:])}, "
            f"expected {[SLIDING, FULL]}"
        )
    return {SLIDING: len(own) - 2, FULL: len(own) - 1}
