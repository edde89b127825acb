"""Merged files that lie, and what the patched llama.cpp has to say about each.

Made from a sound pair; every case changes one thing. The base half of most is sound and loads.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gguf_mtp.ggml import F32, GgmlType, type_by_name
from gguf_mtp.keyvalue import KeyValue, ValueType, array, boolean, f32, scalar, string, strings, u32
from gguf_mtp.model import Tensor, half_from_gguf, read_tensor
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.tail import FOOTER_BYTES, Footer

I32 = type_by_name("I32")
ARCH = "mtp.gemma4-assistant."
HEAD = f"{ARCH}masked_embd."
ORDERING, CENTROIDS = "mtp.masked_embd_ordering", "mtp.masked_embd_centroids.weight"
N_VOCAB, N_CENTROIDS, WIDTH, DRAFTER_WIDTH = 512, 16, 64, 32

Keys = tuple[KeyValue, ...]
Tensors = tuple[Tensor, ...]
Ids = npt.NDArray[np.int32]
Part = TypeVar("Part", KeyValue, Tensor)


@dataclass(frozen=True)
class Case:
    """`data` is the file. What is expected of its `base`, of its `heads`, and of the two together
    (`pair`): "" that it loads, else a part of the error."""

    name: str
    data: bytes
    heads: str = ""
    base: str = ""
    pair: str = ""


@dataclass(frozen=True)
class Sound:
    """The pair that the cases spoil, read into memory."""

    keys: Keys
    tensors: Tensors
    base: bytes
    heads: bytes
    tail: bytes

    def key(self, name: str) -> KeyValue:
        return next(key for key in self.keys if key.name == name)

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def with_keys(self, *changed: KeyValue) -> bytes:
        """The inline file with keys replaced, or added where there was none."""
        names = {key.name: key for key in changed}
        keys = tuple(names.pop(key.name, key) for key in self.keys)
        return encode((*keys, *names.values()), self.tensors)

    def without(self, name: str) -> bytes:
        """The inline file without a key."""
        return encode(tuple(key for key in self.keys if key.name != name), self.tensors)

    def with_tensors(self, *changed: Tensor, keys: Keys = ()) -> bytes:
        """The inline file with tensors replaced or added, and keys replaced."""
        names = {tensor.name: tensor for tensor in changed}
        tensors = tuple(names.pop(tensor.name, tensor) for tensor in self.tensors)
        new = {key.name: key for key in keys}
        return encode(
            tuple(new.get(key.name, key) for key in self.keys), (*tensors, *names.values())
        )

    def without_tensors(self, *names: str) -> bytes:
        return encode(self.keys, tuple(item for item in self.tensors if item.name not in names))

    def with_footer(self, data: bytes, **fields: int | bytes) -> bytes:
        """`data` and a footer with a right checksum; its fields are those of a sound tail."""
        sound = Footer(len(self.base), len(self.heads))
        values = {
            "magic": b"GGUF-MTP",
            "base": len(self.base),
            "offset": sound.heads_offset,
            "heads": len(self.heads),
            "digest": bytes(32),
            "version": 1,
            **fields,
        }
        raw = struct.pack("<8sQQQ32sI", *values.values())
        return data + raw + struct.pack("<I", zlib.crc32(raw))

    def with_heads(self, heads: bytes) -> bytes:
        """A tail file whose footer tells the truth about `heads`."""
        return tail_of(self.base, heads)

    def with_drafter(self, *changed: KeyValue | Tensor) -> bytes:
        """A tail file whose drafter, with a tokenizer of its own, has keys and tensors replaced."""
        keys = {key.name: key for key in self.keys if key.name.startswith("tokenizer.")}
        keys |= {key.name: key for key in map(_of_drafter, self.keys) if key}
        keys |= {part.name: part for part in changed if isinstance(part, KeyValue)}
        tensors = {item.name: item for item in map(_of_drafter, self.tensors) if item}
        tensors |= {part.name: part for part in changed if isinstance(part, Tensor)}
        return self.with_heads(encode(tuple(keys.values()), tuple(tensors.values())))


def _of_drafter(part: Part) -> Part | None:
    """An inline file's key or tensor under the name that it has in the drafter's own file."""
    about_the_file = ("mtp.format.", "mtp.source.", "mtp.target.", "mtp.tokenizer.")
    if not part.name.startswith("mtp.") or part.name.startswith(about_the_file):
        return None
    return replace(part, name=part.name.removeprefix("mtp."))


def tail_of(base: bytes, heads: bytes) -> bytes:
    """The tail file of two GGUFs; its digest is zero, which llama.cpp does not look at."""
    footer = Footer(len(base), len(heads))
    return base.ljust(footer.heads_offset, b"\0") + heads + footer.encode()


def encode(keys: Keys, tensors: Tensors) -> bytes:
    """A GGUF that holds what it is given, sense or not."""
    layout = plan(keys, tensors)
    data = bytearray(layout.header({})) + bytes(layout.total_bytes - layout.data_start)
    for slot in layout.slots:
        stored = read_tensor(slot.tensor)
        data[slot.offset : slot.offset + len(stored)] = stored
    return bytes(data)


def sound(merged: Path, base: Path, tail: Path) -> Sound:
    half = half_from_gguf(read_gguf(merged))
    tensors = tuple(replace(item, source=read_tensor(item)) for item in half.tensors)
    whole = tail.read_bytes()
    begin = Footer(base.stat().st_size, 0).heads_offset
    return Sound(half.keys, tensors, base.read_bytes(), whole[begin:-FOOTER_BYTES], whole)


def zeros(name: str, shape: tuple[int, ...], kind: GgmlType = F32) -> Tensor:
    """`shape` outermost first."""
    return Tensor(name, kind, shape, bytes(kind.nbytes(shape)), verbatim=True)


def vocabulary(count: int) -> Keys:
    """A tokenizer of `count` tokens, where the base has `N_VOCAB`."""
    return (
        strings("tokenizer.ggml.tokens", [f"t{at}" for at in range(count)]),
        array("tokenizer.ggml.scores", ValueType.FLOAT32, [0.0] * count),
        array("tokenizer.ggml.token_type", ValueType.INT32, [1] * count),
    )


def ordering(change: Callable[[Ids], None]) -> Callable[[Sound], bytes]:
    """The inline file with another order of tokens."""

    def build(pair: Sound) -> bytes:
        tensor = pair.tensor(ORDERING)
        ids = np.frombuffer(read_tensor(tensor), "<i4").copy()
        change(ids)
        return pair.with_tensors(replace(tensor, source=ids.tobytes()))

    return build


def _set(index: int, value: int) -> Callable[[Ids], None]:
    def change(ids: Ids) -> None:
        ids[index] = value

    return change


def _key_cases(pair: Sound) -> Iterator[Case]:
    """One key of the drafter other than it should be."""
    other_type = string("", "no number")
    for name, keys, expected in (
        (
            "blocks-0",
            [u32("block_count", 0)],
            "block_count of the MTP heads is 0, expected 1 to 512",
        ),
        ("blocks-1e9", [u32("block_count", 10**9)], "block_count of the MTP heads is 1000000000"),
        (
            "blocks-2^32-1",
            [u32("block_count", 2**32 - 1)],
            "block_count of the MTP heads is 4294967295",
        ),
        (
            "blocks-300",
            [u32("block_count", 300)],
            "layers of the MTP heads is 2, expected 300 to 300",
        ),
        ("blocks-type", [other_type.renamed("block_count")], "block_count has wrong type str"),
        (
            "layers-0",
            [u32("nextn_predict_layers", 0)],
            "layers of the MTP heads is 0, expected 2 to 2",
        ),
        ("layers-1", [u32("nextn_predict_layers", 1)], "layers of the MTP heads is 1,"),
        ("layers-3", [u32("nextn_predict_layers", 3)], "layers of the MTP heads is 3,"),
        (
            "layers-1e9",
            [u32("nextn_predict_layers", 10**9)],
            "layers of the MTP heads is 1000000000",
        ),
        (
            "layers-2^32-1",
            [u32("nextn_predict_layers", 2**32 - 1)],
            "layers of the MTP heads is 4294967295",
        ),
        ("heads-0", [u32("attention.head_count", 0)], "'blk.0.attn_q.weight' has wrong shape"),
        (
            "heads-2^31",
            [u32("attention.head_count", 2**31)],
            "'blk.0.attn_q.weight' has wrong shape",
        ),
        ("heads-3", [u32("attention.head_count", 3)], "'blk.0.attn_q.weight' has wrong shape"),
        ("heads-float", [f32("attention.head_count", 2.0)], "head_count has wrong type f32"),
        (
            "kv-heads-0",
            [u32("attention.head_count_kv", 0)],
            "PAIR:key-value heads of layer 0: expected 1, found 0",
        ),
        (
            "kv-heads-2",
            [u32("attention.head_count_kv", 2)],
            "PAIR:key-value heads of layer 0: expected 1, found 2",
        ),
        (
            "kv-heads-2^32-1",
            [u32("attention.head_count_kv", 2**32 - 1)],
            "PAIR:key-value heads of layer 0",
        ),
        ("width-0", [u32("embedding_length", 0)], "'masked_embd_centroids.weight' has wrong shape"),
        (
            "width-2^32-1",
            [u32("embedding_length", 2**32 - 1)],
            "'masked_embd_centroids.weight' has wrong shape",
        ),
        ("width-out-0", [u32("embedding_length_out", 0)], "requires embedding_length_out"),
        (
            "width-out-128",
            [u32("embedding_length_out", 128)],
            "'nextn.post_projection.weight' has wrong shape",
        ),
        (
            "width-out-own",
            [u32("embedding_length_out", DRAFTER_WIDTH)],
            "requires embedding_length_out",
        ),
        (
            "width-out-2^32-1",
            [u32("embedding_length_out", 2**32 - 1)],
            "'nextn.post_projection.weight' has wrong shape",
        ),
        (
            "feed-forward-0",
            [u32("feed_forward_length", 0)],
            "'blk.0.ffn_gate.weight' has wrong shape",
        ),
        (
            "feed-forward-array",
            [array("feed_forward_length", ValueType.INT32, [64])],
            "has wrong array length",
        ),
        (
            "feed-forward-negative",
            [array("feed_forward_length", ValueType.INT32, [-1, -1])],
            "'blk.0.ffn_gate.weight' has wrong shape",
        ),
        ("key-0", [u32("attention.key_length", 0)], "'blk.1.attn_q.weight' has wrong shape"),
        (
            "key-128",
            [u32("attention.key_length", 128), u32("attention.value_length", 128)],
            "'blk.1.attn_q.weight' has wrong shape",
        ),
        (
            "key-not-value",
            [u32("attention.key_length", 128)],
            "'blk.1.attn_q.weight' has wrong shape",
        ),
        (
            "key-swa-0",
            [u32("attention.key_length_swa", 0)],
            "requires n_embd_head_k == n_embd_head_v",
        ),
        ("window-0", [u32("attention.sliding_window", 0)], ""),
        ("window-2^32-1", [u32("attention.sliding_window", 2**32 - 1)], ""),
        (
            "window-type",
            [other_type.renamed("attention.sliding_window")],
            "sliding_window has wrong type str",
        ),
        (
            "pattern-empty",
            [array("attention.sliding_window_pattern", ValueType.BOOL, [])],
            "'blk.0.attn_q.weight' has wrong shape",
        ),
        ("pattern-short", [array("attention.sliding_window_pattern", ValueType.BOOL, [1])], ""),
        (
            "pattern-long",
            [array("attention.sliding_window_pattern", ValueType.BOOL, [1] * 1000)],
            "pattern exceeds max 512",
        ),
        (
            "pattern-u8",
            [array("attention.sliding_window_pattern", ValueType.UINT8, [1, 0])],
            "pattern is not a",
        ),
        (
            "pattern-strings",
            [strings("attention.sliding_window_pattern", ["a", "b"])],
            "has wrong array element type str",
        ),
        (
            "pattern-none",
            [array("attention.sliding_window_pattern", ValueType.BOOL, [0, 0])],
            "'blk.0.attn_q.weight' has wrong shape",
        ),
        (
            "pattern-all",
            [array("attention.sliding_window_pattern", ValueType.BOOL, [1, 1])],
            "'blk.1.attn_q.weight' has wrong shape",
        ),
        (
            "rope-0",
            [u32("rope.dimension_count", 0)],
            "PAIR:rotated width of layer 1: expected 64, found 0",
        ),
        ("rope-wide", [u32("rope.dimension_count", 10**6)], "PAIR:rotated width of layer 1"),
        ("rope-odd", [u32("rope.dimension_count", 63)], "PAIR:rotated width of layer 1"),
        ("rope-base-nan", [f32("rope.freq_base", float("nan"))], ""),
        ("context-0", [u32("context_length", 0)], ""),
        ("context-2^32-1", [u32("context_length", 2**32 - 1)], ""),
        (
            "eps-nan",
            [f32("attention.layer_norm_rms_epsilon", float("nan"))],
            "epsilon of the MTP heads is nan",
        ),
        (
            "eps-negative",
            [f32("attention.layer_norm_rms_epsilon", -1.0)],
            "epsilon of the MTP heads is -1",
        ),
        ("shared-2^32-1", [u32("attention.shared_kv_layers", 2**32 - 1)], ""),
        (
            "experts",
            [u32("expert_count", 10**6), u32("expert_used_count", 10**6)],
            "expert_count of the MTP heads is 1000000",
        ),
        ("top-k-0", [u32("masked_embd.top_k", 0)], "16 centroids, top_k 0, 512 tokens"),
        (
            "top-k-17",
            [u32("masked_embd.top_k", N_CENTROIDS + 1)],
            "16 centroids, top_k 17, 512 tokens",
        ),
        ("top-k-2^32-1", [u32("masked_embd.top_k", 2**32 - 1)], "ordered head does not fit"),
        (
            "top-k-type",
            [scalar("masked_embd.top_k", ValueType.INT64, 4)],
            "top_k: type is i64, expected u32",
        ),
        (
            "sorted-type",
            [u32("masked_embd.rows_sorted", 1)],
            "rows_sorted: type is u32, expected bool",
        ),
    ):
        changed = [key.renamed(ARCH + key.name) for key in keys]
        alone, together = ("", expected[5:]) if expected.startswith("PAIR:") else (expected, "")
        yield Case(f"key-{name}", pair.with_keys(*changed), alone, pair=together)
    for name, expected in (
        ("block_count", "key not found in model: gemma4-assistant.block_count"),
        ("embedding_length", "key not found in model: gemma4-assistant.embedding_length"),
        ("embedding_length_out", "requires embedding_length_out"),
        ("attention.head_count", "'blk.0.attn_q.weight' has wrong shape"),
        ("attention.key_length", "'blk.1.attn_q.weight' has wrong shape"),
        ("attention.sliding_window_pattern", "array key not found in model"),
        ("attention.layer_norm_rms_epsilon", "key not found in model"),
        ("nextn_predict_layers", "wrong number of tensors"),
        ("masked_embd.top_k", "16 centroids, top_k 32, 512 tokens"),
        ("masked_embd.rows_sorted", ""),
    ):
        yield Case(f"missing-{name}", pair.without(ARCH + name), expected)


def _namespace_cases(pair: Sound) -> Iterator[Case]:
    """What stands under ``mtp.`` and how it says what it is."""
    arch = "mtp.general.architecture"
    yield Case(
        "arch-base's",
        pair.with_keys(string(arch, "gemma4")),
        "gemma4.attention.head_count of the MTP heads is missing",
    )
    yield Case(
        "arch-unknown",
        pair.with_keys(string(arch, "no-such")),
        "have the architecture 'no-such', expected",
    )
    yield Case("arch-empty", pair.with_keys(string(arch, "")), "have the architecture '', expected")
    yield Case("arch-number", pair.with_keys(u32(arch, 1)), "have the architecture '', expected")
    yield Case("arch-missing", pair.without(arch), "have the architecture '', expected")
    yield Case(
        "version-2",
        pair.with_keys(u32("mtp.format.version", 2)),
        "mtp.format.version: expected u32 1",
        "mtp.format.version: expected u32 1",
    )
    yield Case(
        "version-string",
        pair.with_keys(string("mtp.format.version", "1")),
        "mtp.format.version: expected u32 1",
        "mtp.format.version: expected u32 1",
    )
    yield Case(
        "version-missing",
        pair.without("mtp.format.version"),
        "carries no MTP heads",
        "wrong number of tensors",
    )
    yield Case("layout-of-a-tail", pair.with_keys(string("mtp.format.layout", "tail")), "")
    yield Case(
        "key-without-a-name",
        pair.with_keys(u32("mtp.", 1)),
        "key 'mtp.' of the MTP heads has no name",
    )
    yield Case("alignment-3", pair.with_keys(u32("mtp.general.alignment", 3)), "")
    yield Case("alignment-string", pair.with_keys(string("mtp.general.alignment", "x")), "")
    yield Case("split-count", pair.with_keys(u32("mtp.split.count", 3)), "")
    yield Case(
        "shared-type",
        pair.with_keys(u32("mtp.tokenizer.shared", 1)),
        "",
    )
    yield Case(
        "shared-false",
        pair.with_keys(boolean("mtp.tokenizer.shared", False)),
        "",
    )
    yield Case(
        "empty-namespace",
        encode(
            tuple(
                key for key in pair.keys if not key.name.startswith("mtp.") or "format" in key.name
            ),
            tuple(item for item in pair.tensors if not item.name.startswith("mtp.")),
        ),
        "have the architecture '', expected",
    )
    yield Case(
        "no-tensors",
        encode(pair.keys, tuple(item for item in pair.tensors if not item.name.startswith("mtp."))),
        "a part of an ordered head",
    )
    yield Case(
        "no-base",
        encode(pair.keys, tuple(item for item in pair.tensors if item.name.startswith("mtp."))),
        "",
        "'token_embd.weight' not found",
    )
    yield Case(
        "tensor-without-a-name", pair.with_tensors(zeros("mtp.", (4,))), "wrong number of tensors"
    )
    nested = tuple(
        replace(item, name=f"mtp.{item.name}")
        for item in pair.tensors
        if item.name.startswith("mtp.")
    )
    yield Case(
        "nested-tensors", pair.with_tensors(*nested), "'mtp.masked_embd_ordering' of the MTP"
    )
    nested_keys = tuple(
        key.renamed(f"mtp.{key.name}") for key in pair.keys if key.name.startswith("mtp.")
    )
    yield Case(
        "nested-all",
        encode((*pair.keys, *nested_keys), (*pair.tensors, *nested)),
        "'mtp.masked_embd_ordering' of the MTP",
    )
    yield Case("nested-keys", pair.with_keys(*nested_keys), "")
    same = pair.tensor("mtp.blk.0.attn_q.weight")
    yield Case(
        "tensor-twice",
        encode(pair.keys, (*pair.tensors, same)),
        "duplicate tensor name",
        "duplicate tensor name",
    )
    yield Case(
        "key-twice",
        encode((*pair.keys, pair.key(arch)), pair.tensors),
        "duplicate key",
        "duplicate key",
    )
    yield Case(
        "base-key-of-a-drafter",
        pair.with_keys(u32("gemma4.nextn_predict_layers", 2)),
        "",
        "'per_layer_token_embd.weight' has wrong shape",
    )


def _tensor_cases(pair: Sound) -> Iterator[Case]:
    """Drafter tensors that are missing, more, or of other shapes and types."""
    for name in (
        "token_embd.weight",
        "output_norm.weight",
        "blk.0.attn_q.weight",
        "blk.1.ffn_down.weight",
        "nextn.pre_projection.weight",
        "nextn.post_projection.weight",
        "rope_freqs.weight",
        "masked_embd_ordering",
        "masked_embd_centroids.weight",
    ):
        missing = "a part of" if "centroids" in name else f"'{name}' not found"
        yield Case(f"without-{name}", pair.without_tensors(f"mtp.{name}"), missing)
    yield Case(
        "one-more", pair.with_tensors(zeros("mtp.surprise.weight", (4, 4))), "wrong number of"
    )
    for name, expected, tensor in (
        (
            "embedding-short",
            "'token_embd.weight' has wrong shape",
            zeros("mtp.token_embd.weight", (N_VOCAB // 2, DRAFTER_WIDTH)),
        ),
        (
            "embedding-wide",
            "'token_embd.weight' has wrong shape",
            zeros("mtp.token_embd.weight", (N_VOCAB, 2 * DRAFTER_WIDTH)),
        ),
        (
            "embedding-i32",
            "'token_embd.weight' of the MTP heads: type is i32",
            zeros("mtp.token_embd.weight", (N_VOCAB, DRAFTER_WIDTH), I32),
        ),
        (
            "query-wide",
            "'blk.0.attn_q.weight' has wrong shape",
            zeros("mtp.blk.0.attn_q.weight", (1024, DRAFTER_WIDTH)),
        ),
        (
            "query-3d",
            "'blk.0.attn_q.weight' has wrong shape",
            zeros("mtp.blk.0.attn_q.weight", (2, 32, DRAFTER_WIDTH)),
        ),
        (
            "query-i32",
            "of the MTP heads: type is i32",
            zeros("mtp.blk.0.attn_q.weight", (64, DRAFTER_WIDTH), I32),
        ),
        (
            "norm-f16",
            "of the MTP heads: type is f16, expected f32",
            zeros("mtp.output_norm.weight", (DRAFTER_WIDTH,), type_by_name("F16")),
        ),
        ("rope-short", "'rope_freqs.weight' has wrong shape", zeros("mtp.rope_freqs.weight", (8,))),
        (
            "centroids-wide",
            "'masked_embd_centroids.weight' has wrong shape",
            zeros(CENTROIDS, (N_CENTROIDS, 2 * DRAFTER_WIDTH)),
        ),
        (
            "centroids-many",
            "1024 centroids, top_k 4, 512 tokens",
            zeros(CENTROIDS, (N_VOCAB * 2, DRAFTER_WIDTH)),
        ),
        (
            "centroids-uneven",
            "15 centroids, top_k 4, 512 tokens",
            zeros(CENTROIDS, (15, DRAFTER_WIDTH)),
        ),
        (
            "centroids-i32",
            "type is i32, expected floats or a quantized",
            zeros(CENTROIDS, (N_CENTROIDS, DRAFTER_WIDTH), I32),
        ),
        ("centroids-1d", "1 centroids, top_k 4", zeros(CENTROIDS, (DRAFTER_WIDTH,))),
        (
            "ordering-short",
            "'masked_embd_ordering' has wrong shape",
            zeros(ORDERING, (N_VOCAB - 1,), I32),
        ),
        (
            "ordering-long",
            "'masked_embd_ordering' has wrong shape",
            zeros(ORDERING, (N_VOCAB + 1,), I32),
        ),
        (
            "ordering-2d",
            "'masked_embd_ordering' has wrong shape",
            zeros(ORDERING, (N_CENTROIDS, N_VOCAB // N_CENTROIDS), I32),
        ),
        (
            "ordering-f32",
            "masked_embd_ordering: type is f32, expected i32",
            zeros(ORDERING, (N_VOCAB,)),
        ),
        (
            "ordering-i64",
            "masked_embd_ordering: type is i64, expected i32",
            zeros(ORDERING, (N_VOCAB,), type_by_name("I64")),
        ),
    ):
        yield Case(f"tensor-{name}", pair.with_tensors(tensor), expected)
    for name, change in (
        ("too-large", _set(7, N_VOCAB)),
        ("largest", _set(7, 2**31 - 1)),
        ("negative", _set(0, -1)),
        ("most-negative", _set(N_VOCAB - 1, -(2**31))),
        ("twice", lambda ids: _set(0, int(ids[1]))(ids)),
        ("all-zero", lambda ids: ids.fill(0)),
    ):
        yield Case(f"ordering-{name}", ordering(change)(pair), "masked_embd_ordering: entry")


def _pair_cases(pair: Sound) -> Iterator[Case]:
    """Drafters that are sound by themselves, but of another target."""
    wide = 2 * WIDTH
    yield Case(
        "of-another-width",
        pair.with_tensors(
            zeros("mtp.nextn.pre_projection.weight", (DRAFTER_WIDTH, 2 * wide)),
            zeros("mtp.nextn.post_projection.weight", (wide, DRAFTER_WIDTH)),
            keys=(u32(f"{ARCH}embedding_length_out", wide),),
        ),
        pair="hidden size: expected 64, found 128",
    )
    for name, count in (("smaller", N_VOCAB // 2), ("larger", 2 * N_VOCAB)):
        embedding = zeros("token_embd.weight", (count, DRAFTER_WIDTH))
        rows = np.arange(count, dtype="<i4").tobytes()
        order = Tensor("masked_embd_ordering", I32, (count,), rows, verbatim=True)
        yield Case(
            f"of-a-{name}-vocabulary",
            pair.with_drafter(*vocabulary(count), embedding, order),
            pair="vocabulary size: expected 512",
        )
        inline = (replace(item, name=f"mtp.{item.name}") for item in (embedding, order))
        yield Case(f"inline-of-a-{name}-vocabulary", pair.with_tensors(*inline), "has wrong shape")
    tokens, *_ = vocabulary(2 * N_VOCAB)
    yield Case(
        "tokens-beyond-scores", pair.with_drafter(tokens), "Index out of array bounds for scores"
    )
    yield Case(
        "of-other-kv-heads",
        pair.with_keys(u32(f"{ARCH}attention.head_count_kv", 2)),
        pair="key-value heads of layer 0",
    )
    yield Case(
        "of-other-windows",
        pair.with_tensors(
            zeros("mtp.blk.0.attn_q.weight", (128, DRAFTER_WIDTH)),
            zeros("mtp.blk.0.attn_output.weight", (DRAFTER_WIDTH, 128)),
            zeros("mtp.blk.0.attn_q_norm.weight", (64,)),
            keys=(array(f"{ARCH}attention.sliding_window_pattern", ValueType.BOOL, [0, 0]),),
        ),
        pair="none with a sliding window",
    )
    shorter = [u32(f"{ARCH}attention.{key}", 16) for key in ("key_length_swa", "value_length_swa")]
    yield Case(
        "of-other-key-widths",
        pair.with_tensors(
            zeros("mtp.blk.0.attn_q.weight", (32, DRAFTER_WIDTH)),
            zeros("mtp.blk.0.attn_output.weight", (DRAFTER_WIDTH, 32)),
            zeros("mtp.blk.0.attn_q_norm.weight", (16,)),
            keys=(*shorter, u32(f"{ARCH}rope.dimension_count_swa", 16)),
        ),
        pair="key width of layer 0: expected 32, found 16",
    )


def _tail_cases(pair: Sound) -> Iterator[Case]:
    """Footers that lie, and heads that are not what the footer says."""
    body, footer = pair.tail[:-FOOTER_BYTES], Footer(len(pair.base), len(pair.heads))
    huge = 2**64 - 4096
    for name, expected, fields in (
        ("version-2", "another version", {"version": 2}),
        (
            "heads-past-the-end",
            "the heads do not end where it begins",
            {"heads": len(pair.heads) + 4096},
        ),
        ("heads-huge", "the heads do not end where it begins", {"heads": 2**64 - 1}),
        ("heads-short", "the heads do not end where it begins", {"heads": len(pair.heads) - 32}),
        ("heads-0", "the heads do not end where it begins", {"heads": 0}),
        # The base drafts for itself: a draft model like another.
        ("offset-0", "", {"offset": 0, "base": 0, "heads": len(body)}),
        ("offset-past-the-end", "the heads do not end where it begins", {"offset": huge}),
        (
            "offset-unaligned",
            "the heads do not begin at the page",
            {"offset": footer.heads_offset + 8, "heads": len(pair.heads) - 8},
        ),
        (
            "offset-wraps",
            "the heads do not end where it begins",
            {"offset": huge, "heads": (len(body) - huge) % 2**64},
        ),
        (
            "overlaps",
            "the heads do not begin at the page",
            {"offset": footer.heads_offset - 4096, "heads": len(pair.heads) + 4096},
        ),
        ("base-huge", "the heads do not begin at the page", {"base": 2**64 - 1}),
        ("base-short", "the heads do not begin at the page", {"base": len(pair.base) - 8192}),
        ("base-0", "the heads do not begin at the page", {"base": 0}),
    ):
        yield Case(f"footer-{name}", pair.with_footer(body, **fields), expected)
    flipped = bytearray(pair.tail)
    flipped[-60] ^= 1
    yield Case("footer-checksum", bytes(flipped), "wrong checksum")
    yield Case(
        "footer-magic", body + b"gguf-mtp" + pair.tail[8 - FOOTER_BYTES :], "carries no MTP heads"
    )
    yield Case("footer-cut", pair.tail[:-1], "carries no MTP heads")
    yield Case("footer-twice", pair.tail + pair.tail[-FOOTER_BYTES:], "the heads do not end")
    pending = Footer(len(pair.base), len(pair.heads), pending=True)
    hole = bytes(pending.pending_offset - len(pair.base))
    yield Case("pending", pair.base + hole + pending.encode(), "carries no MTP heads")
    yield Case(
        "pending-and-heads",
        pair.tail.ljust(pending.pending_offset, b"\0") + pending.encode(),
        "carries no MTP heads",
    )
    dirty = bytearray(pair.with_footer(body, base=len(pair.base) - 8))
    dirty[len(pair.base) - 4] |= 1
    yield Case("padding-dirty", bytes(dirty), "the padding before the heads is not zero")
    yield Case("heads-empty", pair.with_heads(b""), "cannot be read")
    yield Case("heads-noise", pair.with_heads(bytes(range(256)) * 16), "cannot be read")
    for name, expected, cut in (
        ("magic", "cannot be read", 4),
        ("counts", "cannot be read", 20),
        ("keys", "cannot be read", 1000),
        ("tensors", "data is not within the file", len(pair.heads) // 2),
        ("last-tensor", "of the MTP heads ends behind them", len(pair.heads) - 64),
    ):
        yield Case(f"heads-cut-in-{name}", pair.with_heads(pair.heads[:cut]), expected)
    yield Case("heads-a-base", pair.with_heads(pair.base))
    yield Case(
        "heads-a-merged-file",
        pair.with_heads(encode(pair.keys, pair.tensors)),
        "'mtp.masked_embd_ordering' of the MTP heads: type is i32",
    )
    yield Case("heads-a-tail-file", pair.with_heads(pair.tail))
    begin = -(-len(pair.tail) // 4096) * 4096
    yield Case(
        "tail-behind-a-tail",
        pair.with_footer(
            pair.tail.ljust(begin, b"\0") + pair.heads, base=len(pair.tail), offset=begin
        ),
        "",
    )
    yield Case("digest", bytes(pair.with_footer(body)), "")


def cases(pair: Sound) -> list[Case]:
    """All of them, with the sound files as controls."""
    controls = [
        Case("sound-inline", encode(pair.keys, pair.tensors)),
        Case("sound-tail", pair.tail),
    ]
    made = (_namespace_cases, _key_cases, _tensor_cases, _pair_cases, _tail_cases)
    return [*controls, *(case for each in made for case in each(pair))]
