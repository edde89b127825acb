"""Whether a drafter that is no MTP heads is whole and fits a base, as its row of `families` says.

Source: llama.cpp ``src/models/eagle3.cpp``, ``src/models/dflash.cpp``, ``common/speculative.cpp``.
What is refused here would end the process there, or draft nonsense.
"""

from math import prod
from typing import Any

import numpy as np

from gguf_mtp.drafters.families import Family, Shape
from gguf_mtp.drafters.ordered_head import check_tokens
from gguf_mtp.errors import FormatError, PairingError, UnsupportedError, brief
from gguf_mtp.gemma4.config import MAX_LAYERS
from gguf_mtp.gemma4.shape import INTEGERS, Keys, ModelShape, read_shape
from gguf_mtp.gemma4.target import ARCH as GEMMA4
from gguf_mtp.gemma4.target import require_tensors
from gguf_mtp.gemma4.whole import check_whole
from gguf_mtp.keyvalue import KeyValue
from gguf_mtp.model import Half, read_tensor

TAPS = "target_layers"
MASK = "tokenizer.ggml.mask_token_id"
TOKENS = "tokenizer.ggml.tokens"
D2T = "d2t"
# Names that only MTP heads have.
HEADS_MARKS = ("assistant.", "nextn.", "mtp")


def check_fit(base: Half, base_shape: ModelShape, heads: Half, family: Family) -> None:
    """Raise FormatError where `heads` is not a whole drafter of `family`, UnsupportedError where
    llama.cpp could not run it on Gemma 4, PairingError where it is for another base."""
    arch = str(heads.value("general.architecture"))
    if family.alone:
        _check_no_heads(heads, arch)
    keys = Keys(heads, arch)
    blocks = keys.size("block_count", family.blocks or MAX_LAYERS, family.blocks or 1)
    for name in family.positive:
        keys.size(name)
    for name in family.refused:
        _check_refused(heads, heads.by_name.get(f"{arch}.{name}"))
    if family.target_width is not None:
        found = keys.size(family.target_width)
        _agree(base, heads, "target hidden size", base_shape.hidden_size, found)
    _agree(base, heads, "vocabulary size", base_shape.vocab_size, _tokens(base_shape, heads))
    taps = 0 if family.taps is None else _check_taps(base, base_shape, heads, family)
    if family.masked:
        _check_mask(base, base_shape, heads)
    _check_tensors(heads, family, blocks, _sizes(base_shape, heads, keys, blocks, taps))
    if family.borrows:
        _check_borrowed(base, base_shape, heads, keys.size("embedding_length"))
    if family.alone:
        _check_smaller(base, heads)
        if arch == GEMMA4:
            check_whole(heads, read_shape(heads, arch), arch)


def _check_no_heads(heads: Half, arch: str) -> None:
    """Some forks give MTP heads the architecture of a model of its own."""
    for name in (*heads.tensor_by_name, *heads.by_name):
        if name.removeprefix(f"{arch}.").startswith(HEADS_MARKS):
            raise UnsupportedError(
                f"{heads.origin}: general.architecture is {arch!a}, a draft model, but {name} "
                f"belongs to MTP heads; files of this fork are not read: use heads that "
                f"llama.cpp's converter made ('gemma4-assistant')"
            )


def _agree(base: Half, heads: Half, what: str, expected: Any, found: Any) -> None:
    if expected != found:
        raise PairingError(
            f"{what}: expected {expected!a} (base {base.origin}), found {found!a} "
            f"(heads {heads.origin})"
        )


def _check_refused(heads: Half, key: KeyValue | None) -> None:
    value = 0 if key is None else key.head(MAX_LAYERS)
    if any(value) if isinstance(value, list) else value:
        name = "" if key is None else key.name
        raise UnsupportedError(f"{heads.origin}: {name} is {brief(value)}, expected none or 0")


def _tokens(base_shape: ModelShape, heads: Half) -> int:
    """The size of the vocabulary; a drafter without a tokenizer has the base's."""
    tokens = heads.by_name.get(TOKENS)
    return base_shape.vocab_size if tokens is None else tokens.count


def _check_taps(base: Half, base_shape: ModelShape, heads: Half, family: Family) -> int:
    """How many of the target's layers are read."""
    taps = family.taps
    assert taps is not None
    name = f"{family.architectures[0]}.{TAPS}"
    key = heads.by_name.get(name)
    if key is None or key.item_type not in INTEGERS:
        raise FormatError(f"{heads.origin}: {name} is missing or no array of integers")
    if key.count == 0 or key.count > MAX_LAYERS or taps.count not in (None, key.count):
        expected = taps.count or f"1 to {MAX_LAYERS}"
        raise FormatError(f"{heads.origin}: {name} has {key.count} entries, expected {expected}")
    last = base_shape.n_layers - (0 if taps.behind_last else 1)
    for layer in key.value:
        if not 0 <= layer <= last:
            raise PairingError(
                f"{name}: expected layers from 0 to {last} (base {base.origin}), found {layer} "
                f"(heads {heads.origin})"
            )
    return key.count


def _check_mask(base: Half, base_shape: ModelShape, heads: Half) -> None:
    key = heads.by_name.get(MASK) or base.by_name.get(MASK)
    found = None if key is None else key.value
    if type(found) is not int or not 0 <= found < base_shape.vocab_size:
        raise FormatError(
            f"{heads.origin}: {MASK} is {brief(found)}, "
            f"expected a token from 0 to {base_shape.vocab_size - 1}"
        )


def _sizes(
    base_shape: ModelShape, heads: Half, keys: Keys, blocks: int, taps: int
) -> dict[str, int]:
    """The sizes that shapes are made of."""
    width = keys.size("embedding_length")
    queries = keys.per_layer("attention.head_count", blocks, INTEGERS)[0]
    if queries == 0:
        raise FormatError(f"{heads.origin}: {keys.arch}.attention.head_count is 0")
    stated = f"{keys.arch}.attention.head_count_kv" in heads.by_name
    kv = keys.per_layer("attention.head_count_kv", blocks, INTEGERS)[0] if stated else queries
    head, value = (
        keys.size(name) if f"{keys.arch}.{name}" in heads.by_name else width // queries
        for name in ("attention.key_length", "attention.value_length")
    )
    if taps and (value != head or kv == 0 or queries % kv):
        raise FormatError(
            f"{heads.origin}: heads of {head} and {value}, {queries} of them for {kv}: expected "
            f"equal widths and a multiple"
        )
    d2t = heads.tensor_by_name.get(D2T)
    return {
        "width": width,
        "two widths": 2 * width,
        "features": taps * base_shape.hidden_size,
        "vocabulary": base_shape.vocab_size,
        "drafted": base_shape.vocab_size if d2t is None else d2t.shape[0],
        "forward": keys.per_layer("feed_forward_length", blocks, INTEGERS)[0],
        "head": head,
        "queries": queries * head,
        "keys": kv * head,
        "values": kv * value,
    }


def _check_tensors(heads: Half, family: Family, blocks: int, sizes: dict[str, int]) -> None:
    found = heads.tensor_by_name

    def spelt(table: dict[str, Shape]) -> dict[str, tuple[int, ...]]:
        return {
            name.replace("*", str(block)): tuple(sizes[size] for size in shape)
            for name, shape in table.items()
            for block in range(blocks if "*" in name else 1)
        }

    needed, optional = spelt(dict(family.tensors)), spelt(dict(family.optional))
    require_tensors(heads.origin, list(needed), found)
    for name, dims in (needed | optional).items():
        if name in found and found[name].shape != dims:
            raise FormatError(
                f"{heads.origin}: tensor {name} has shape {list(found[name].shape)}, "
                f"expected {list(dims)}"
            )
    if D2T in optional and D2T in found:
        _check_d2t(heads, sizes["vocabulary"])


def _check_d2t(heads: Half, n_vocab: int) -> None:
    """The target's token for each one that is drafted: an index into its logits."""
    tensor = heads.tensor_by_name[D2T]
    if tensor.type.name != "I64" or tensor.shape[0] > n_vocab:
        raise FormatError(
            f"{heads.origin}: tensor {D2T} is {tensor.type.name} {list(tensor.shape)}, "
            f"expected I64 with up to {n_vocab} entries"
        )
    tokens = np.frombuffer(read_tensor(tensor), "<i8")
    check_tokens(f"{heads.origin}: tensor {D2T}:", tokens, n_vocab)


def _check_borrowed(base: Half, base_shape: ModelShape, heads: Half, width: int) -> None:
    """The target's embeddings and output have its own width and vocabulary."""
    found = heads.tensor_by_name
    for name in ("token_embd.weight", "output.weight"):
        if name not in found:
            _agree(base, heads, f"width for the target's {name}", base_shape.hidden_size, width)
    if "output.weight" not in found and D2T in found:
        _agree(
            base,
            heads,
            f"entries of {D2T} for the target's output",
            base_shape.vocab_size,
            found[D2T].shape[0],
        )


def _check_smaller(base: Half, heads: Half) -> None:
    sizes = [sum(prod(item.shape) for item in half.tensors) for half in (base, heads)]
    if sizes[1] >= sizes[0]:
        raise PairingError(
            f"draft model: expected fewer parameters than {sizes[0]} (base {base.origin}), "
            f"found {sizes[1]} (heads {heads.origin})"
        )
