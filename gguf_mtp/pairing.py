"""Whether a drafter belongs to a base: everything the two must agree on, checked before writing,
and what should be said of a pair that fits.

Source: llama.cpp ``src/models/gemma4-assistant.cpp``, ``src/llama-model.cpp`` (key-value sharing).
"""

import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gguf_mtp.drafters.drafter import Drafter
from gguf_mtp.drafters.fit import check_fit
from gguf_mtp.errors import PairingError, UnsupportedError
from gguf_mtp.gemma4.config import FULL, SLIDING
from gguf_mtp.gemma4.keys import ROPE_FREQS
from gguf_mtp.gemma4.shape import ModelShape
from gguf_mtp.keyvalue import KeyValue
from gguf_mtp.merge.tokenizer import VOCABULARY_KEYS, differences, same_value
from gguf_mtp.model import Half, read_tensor
from gguf_mtp.notes import Note

STANDSTILL = struct.pack("<f", 1e30)
# Where a model says what it was made from.
NAME_KEYS = ("general.name", "general.basename", "general.finetune", "mtp.source.name")
QUANTIZATION_AWARE = re.compile(r"(?<![a-z])qat(?![a-z])")
# Heads taken out of a LiteRT package, which does not tell everything a checkpoint tells.
LITERT_KINDS = ("litertlm", "litert-extraction")
# The hidden size of the drafters (E2B's and E4B's) that Google publishes with an ordered head.
ORDERED_HEAD_WIDTH = 256


def pair_notes(
    base: Half, heads: Half, carried: Iterable[KeyValue], *, ordered: bool
) -> tuple[Note, ...]:
    """What to tell the user about a pair that fits. `carried` is the heads' own provenance."""
    provenance = {key.name: key.value for key in carried}
    return tuple(
        note
        for note in (
            _quantization_aware(base, heads, provenance),
            _litert(heads, provenance),
            _mixture(base),
            _tokenizer(base, heads),
            _ordered(heads, ordered),
        )
        if note is not None
    )


def _quantization_aware(base: Half, heads: Half, provenance: dict[str, Any]) -> Note | None:
    names = [
        [Path(half.origin).name, *(str(half.value(key)) for key in NAME_KEYS)]
        for half in (base, heads)
    ]
    names[1].append(str(provenance.get("mtp.source.name")))
    in_base, in_heads = (
        any(QUANTIZATION_AWARE.search(name.lower()) for name in group) for group in names
    )
    if in_base == in_heads:
        return None
    which = "heads are" if in_heads else "base is"
    other = "base is" if in_heads else "heads are"
    return Note(
        "qat-mismatch",
        f"by their names the {which} of the quantization-aware (QAT) release and the {other} not: "
        f"drafts fit less often than with a matching pair",
    )


def _litert(heads: Half, provenance: dict[str, Any]) -> Note | None:
    if provenance.get("mtp.source.kind", heads.kind) not in LITERT_KINDS:
        return None
    return Note(
        "litert-heads",
        "the heads come from a LiteRT package: without ordered head, and with layer scalars of 1.0 "
        "unless it has them; prefer the drafter checkpoint where there is one",
    )


def _mixture(base: Half) -> Note | None:
    if not base.value("gemma4.expert_count"):
        return None
    return Note(
        "moe-depth",
        "a mixture of experts verifies wide batches slowly: draft 1 or 2 tokens "
        "(--spec-draft-n-max 2), not more",
    )


def _tokenizer(base: Half, heads: Half) -> Note | None:
    found = differences(base.keys, heads.keys)
    if not found:
        return None
    return Note(
        "tokenizer-differs",
        f"the tokens are the same, but the tokenizers differ in {', '.join(found)}; "
        f"the merged file uses the base's values",
    )


def _ordered(heads: Half, ordered: bool) -> Note | None:
    flag = heads.value("gemma4-assistant.use_ordered_embeddings")
    if ordered and flag is False:
        return Note(
            "ordered-head-off",
            "the heads have an ordered head and a key that says not to use it: it is used",
        )
    if not ordered and heads.value("gemma4-assistant.embedding_length") == ORDERED_HEAD_WIDTH:
        return Note(
            "no-ordered-head",
            "the heads come without the ordered head that drafters of this size have: every draft "
            "scores all tokens; the drafter checkpoint has it",
        )
    return None


def check_pair(base: Half, base_shape: ModelShape, drafter: Drafter) -> None:
    """Raise PairingError, naming both files, expected and found, unless the drafter fits.

    UnsupportedError for what llama.cpp cannot run, FormatError for a drafter that is not whole.
    """
    if drafter.shape is None:
        _check_tokenizers(base, drafter.half)
        check_fit(base, base_shape, drafter.half, drafter.family)
    else:
        _check_heads(base, base_shape, drafter.half, drafter.shape)


def _check_heads(base: Half, base_shape: ModelShape, heads: Half, heads_shape: ModelShape) -> None:
    """MTP heads attend to the base's keys and values, so their layers must be alike."""

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
        if ours is None or theirs is None or same_value(ours, theirs):
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
