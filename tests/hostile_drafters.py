"""Merged files whose drafter is no MTP heads, and lies: what the patched llama.cpp says of each.

An expectation that begins with ``PAIR:`` is met when the drafter's context is made, as is one with
``TAIL:``, whose file has the tail layout.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

import drafter_files as made
from drafter_files import HEAD_DIM, Drafter, d2t
from gguf_mtp.ggml import type_by_name
from gguf_mtp.keyvalue import ValueType, array, boolean, f32, string, strings, u32
from gguf_mtp.model import Half, Tensor, read_tensor
from hostile_merged import I32, N_VOCAB, WIDTH, Case, encode, tail_of, vocabulary, zeros

LAYERS = 5  # of the base
OWN = 32  # the width of drafters with embeddings of their own


def embed(base: Half, drafter: Drafter) -> bytes:
    """The inline file, whatever the drafter."""
    shared = {(key.name, key.raw) for key in base.keys if key.name.startswith("tokenizer.")}
    own = [key for key in drafter.keys.values() if (key.name, key.raw) not in shared]
    keys = (
        *base.keys,
        u32("mtp.format.version", 1),
        string("mtp.format.layout", "inline"),
        *(key.renamed(f"mtp.{key.name}") for key in own),
        boolean("mtp.tokenizer.shared", True),
    )
    tensors = (replace(item, name=f"mtp.{item.name}") for item in drafter.tensors.values())
    return encode(keys, (*base.tensors, *tensors))


def behind(base: Half, drafter: Drafter) -> bytes:
    """The tail file, whose drafter has a tokenizer of its own."""
    heads = encode(tuple(drafter.keys.values()), tuple(drafter.tensors.values()))
    return tail_of(encode(base.keys, base.tensors), heads)


def in_memory(base: Half) -> Half:
    """`base` without its file, so that many copies are quick to make."""
    return replace(
        base, tensors=tuple(replace(item, source=read_tensor(item)) for item in base.tensors)
    )


def _spoilt(
    base: Half, drafter: Drafter, name: str, parts: Iterable[object], expected: str
) -> Case:
    spoilt = drafter.having(*parts)
    layout, colon, reason = expected.partition(":")
    if colon and layout == "TAIL":
        return Case(name, behind(base, spoilt), pair=reason)
    if colon and layout == "PAIR":
        return Case(name, embed(base, spoilt), pair=reason)
    return Case(name, embed(base, spoilt), expected)


def _common(base: Half, arch: str, drafter: Drafter) -> Iterator[Case]:
    """What every family is asked for."""
    name = f"{arch}."
    for case, parts, expected in (
        ("blocks-0", [u32(f"{name}block_count", 0)], "block_count of the MTP heads is 0"),
        ("blocks-1e9", [u32(f"{name}block_count", 10**9)], "block_count of the MTP heads is 1000"),
        (
            "nextn",
            [u32(f"{name}nextn_predict_layers", 1)],
            "nextn_predict_layers of the MTP heads is 1, expected 0 to 0",
        ),
        (
            "used-experts-of-none",
            [u32(f"{name}expert_used_count", 2)],
            "expert_used_count of the MTP heads is 2, expected 0 to 0",
        ),
        (
            "used-experts-array",
            [array(f"{name}expert_used_count", ValueType.INT32, [1])],
            "expert_used_count of the MTP heads is an array",
        ),
        (
            "expert-groups",
            [u32(f"{name}expert_group_count", 3)],
            "expert_group_count of the MTP heads is 3",
        ),
        (
            "epsilon-nan",
            [f32(f"{name}attention.layer_norm_rms_epsilon", float("nan"))],
            "epsilon of the MTP heads is nan",
        ),
        (
            "heads-0",
            [u32(f"{name}attention.head_count", 0)],
            "head_count of the MTP heads is 0, expected 1 to",
        ),
        (
            "heads-0-in-a-layer",
            [array(f"{name}attention.head_count", ValueType.INT32, [0])],
            "head_count of the MTP heads is 0 or less in a layer",
        ),
        (
            "scaling",
            [string(f"{name}rope.scaling.type", "x\n")],
            "rope.scaling.type of the MTP heads is 'x",
        ),
        ("width-0", [u32(f"{name}embedding_length", 0)], "embedding_length of the MTP heads is 0"),
        (
            "width-out",
            [u32(f"{name}embedding_length_out", 7)],
            "embedding_length_out of the MTP heads is there, expected none",
        ),
        (
            "pooling",
            [u32(f"{name}pooling_type", 4)],
            "pooling_type of the MTP heads is there",
        ),
        ("context-0", [u32(f"{name}context_length", 0)], "context_length of the MTP heads is 0"),
        (
            "context-2^32-1",
            [u32(f"{name}context_length", 2**32 - 1)],
            "context_length of the MTP heads is 4294967295",
        ),
        (
            "window-2^32-1",
            [u32(f"{name}attention.sliding_window", 2**32 - 1)],
            "sliding_window of the MTP heads is 4294967295",
        ),
        (
            "norm-f16",
            [zeros("output_norm.weight", (drafter.tensors["output_norm.weight"].shape[0],), F16)],
            "'output_norm.weight' of the MTP heads: type is f16",
        ),
        (
            "query-i32",
            [zeros("blk.0.attn_q.weight", drafter.tensors["blk.0.attn_q.weight"].shape, I32)],
            "'blk.0.attn_q.weight' of the MTP heads: type is i32",
        ),
        (
            "query-for-activations",
            [_for_activations(drafter.tensors["blk.0.attn_q.weight"])],
            "'blk.0.attn_q.weight' of the MTP heads: type is q8_1",
        ),
        ("one-more", [zeros("surprise.weight", (4, 4))], "wrong number of tensors"),
        (
            "nested",
            [zeros("mtp.format", (4,)), u32("mtp.format.version", 1)],
            "wrong number of tensors",
        ),
        (
            "tokens",
            vocabulary(N_VOCAB)[:1],
            "TAIL:token 0 differs",
        ),
    ):
        yield _spoilt(base, drafter, f"{arch}-{case}", parts, expected)
    for key in ("attention.head_count", "block_count", "attention.layer_norm_rms_epsilon"):
        said = "head_count of the MTP heads is missing" if "head" in key else "key not found in mod"
        yield Case(f"{arch}-missing-{key}", embed(base, drafter.without(f"{name}{key}")), said)
    yield Case(
        f"{arch}-missing-norm", embed(base, drafter.without("output_norm.weight")), "not found"
    )


F16, Q8_1, I64 = (type_by_name(name) for name in ("F16", "Q8_1", "I64"))


def _for_activations(tensor: Tensor) -> Tensor:
    """`tensor` in a type that kernels make for themselves: no weights have it."""
    data = bytes(prod(tensor.shape) // 32 * 36)
    return replace(tensor, type=Q8_1, source=data, verbatim=True)


def _eagle3(base: Half) -> Iterator[Case]:
    drafter, own = made.eagle3(base), made.eagle3_own(base)
    taps = "eagle3.target_layers"
    for case, whose, parts, expected in (
        ("blocks-2", drafter, [u32("eagle3.block_count", 2)], "is 2, expected 1 to 1"),
        ("experts", drafter, [u32("eagle3.expert_count", 8)], "expert_count of the MTP heads is 8"),
        (
            "not-causal",
            drafter,
            [boolean("eagle3.attention.causal", False)],
            "attention.causal of the MTP heads is there",
        ),
        ("taps-2", drafter, [array(taps, ValueType.INT32, [1, 2])], "exactly 3 entries"),
        ("taps-0", drafter, [array(taps, ValueType.INT32, [])], "exactly 3 entries"),
        ("taps-strings", drafter, [strings(taps, ["1", "2", "3"])], "wrong array element type str"),
        ("taps-floats", drafter, [array(taps, ValueType.FLOAT32, [1, 2, 3])], "element type f32"),
        ("taps-number", drafter, [u32(taps, 3)], "requires 'extract_layers'"),
        (
            "tap-negative",
            drafter,
            [array(taps, ValueType.INT32, [-1, 2, 3])],
            f"PAIR:a target layer is -1, expected 0 to {LAYERS}",
        ),
        (
            "tap-behind",
            drafter,
            [array(taps, ValueType.INT32, [1, 2, LAYERS + 1])],
            f"PAIR:a target layer is {LAYERS + 1}, expected 0 to {LAYERS}",
        ),
        (
            "tap-2^31",
            drafter,
            [array(taps, ValueType.UINT32, [1, 2, 2**31])],
            "PAIR:a target layer is -2147483648",
        ),
        (
            "target-width",
            drafter,
            [u32("eagle3.target_hidden_size", 128)],
            "'fc.weight' has wrong shape",
        ),
        (
            "of-another-width",
            drafter,
            [u32("eagle3.target_hidden_size", 128), zeros("fc.weight", (WIDTH, 3 * 128))],
            "PAIR:hidden size of all target layers: expected 192, found 384",
        ),
        (
            "value-width",
            drafter,
            [u32("eagle3.attention.value_length", 8), zeros("blk.0.attn_v.weight", (8, 2 * WIDTH))],
            "PAIR:value width of layer 0 is 8, expected 16 to 16",
        ),
        (
            "kv-heads-uneven",
            drafter,
            [
                u32("eagle3.attention.head_count", 3),
                u32("eagle3.attention.head_count_kv", 2),
                zeros("blk.0.attn_q.weight", (3 * HEAD_DIM, 2 * WIDTH)),
                zeros("blk.0.attn_k.weight", (2 * HEAD_DIM, 2 * WIDTH)),
                zeros("blk.0.attn_v.weight", (2 * HEAD_DIM, 2 * WIDTH)),
                zeros("blk.0.attn_output.weight", (WIDTH, 3 * HEAD_DIM)),
            ],
            "PAIR:query heads left over of layer 0 is 1",
        ),
        (
            "rope-0",
            drafter,
            [u32("eagle3.rope.dimension_count", 0)],
            "PAIR:rotated width of layer 0 is 0",
        ),
        (
            "rope-odd",
            drafter,
            [u32("eagle3.rope.dimension_count", 15)],
            "PAIR:rotated width left over of layer 0 is 1",
        ),
        (
            "rope-wide",
            drafter,
            [u32("eagle3.rope.dimension_count", 32)],
            "PAIR:rotated width of layer 0 is 32, expected 2 to 16",
        ),
        ("window", drafter, [u32("eagle3.attention.sliding_window", 8)], ""),
        ("fewer-tokens", drafter, vocabulary(N_VOCAB // 2), "TAIL:vocabulary size: expected"),
        (
            "d2t-for-a-borrowed-output",
            drafter,
            [d2t(range(N_VOCAB // 2))],
            "PAIR:drafted tokens: expected 512, found 256",
        ),
        (
            "embedding-short",
            own,
            [zeros("token_embd.weight", (N_VOCAB // 2, OWN))],
            "PAIR:token embeddings: expected 512, found 256",
        ),
        (
            "embedding-long",
            own,
            [zeros("token_embd.weight", (2 * N_VOCAB, OWN))],
            "PAIR:token embeddings: expected 512, found 1024",
        ),
        (
            "d2t-too-large",
            own,
            [d2t([*range(255), N_VOCAB])],
            "entry 255 is 512, expected 0 to 511",
        ),
        ("d2t-2^63-1", own, [d2t([2**63 - 1, *range(255)])], "entry 0 is 9223372036854775807"),
        ("d2t-negative", own, [d2t([*range(255), -1])], "entry 255 is -1"),
        ("d2t-same", own, [d2t([7] * 256)], ""),
        ("d2t-short", own, [d2t(range(255))], "'output.weight' has wrong shape"),
        ("d2t-long", own, [d2t([1] * 600)], "'d2t' of the MTP heads has 600 entries"),
        ("d2t-i32", own, [zeros("d2t", (256,), I32)], "type is i32, expected i64"),
        ("d2t-2d", own, [zeros("d2t", (2, 128), I64)], "expected i64 in one dimension"),
    ):
        yield _spoilt(base, whose, f"eagle3-{case}", parts, expected)
    for name in (taps, "eagle3.target_hidden_size"):
        said = "requires 'extract_layers'" if name == taps else "key not found in model"
        yield Case(f"eagle3-missing-{name}", embed(base, drafter.without(name)), said)
    for name in ("token_embd.weight", "output.weight"):
        yield Case(
            f"eagle3-own-without-{name}",
            embed(base, own.without(name)),
            pair="hidden size: expected 64, found 32",
        )


def _dflash(base: Half) -> Iterator[Case]:
    drafter, dspark = made.dflash(base), made.dspark(base)
    taps, mask = "dflash.target_layers", "tokenizer.ggml.mask_token_id"
    for case, whose, parts, expected in (
        (
            "deepseek",
            drafter,
            [u32("dflash.hyper_connection.count", 4)],
            "hyper_connection.count of the MTP heads is 4",
        ),
        ("act", drafter, [string("dflash.hidden_activation", "no")], "unsupported DFlash hidden"),
        ("taps-0", drafter, [array(taps, ValueType.INT32, [])], "'fc.weight' has wrong shape"),
        ("taps-3", drafter, [array(taps, ValueType.INT32, [1, 2, 3])], "'fc.weight' has wrong sh"),
        (
            "tap-behind",
            drafter,
            [array(taps, ValueType.INT32, [1, LAYERS])],
            f"PAIR:a target layer is {LAYERS}, expected 0 to {LAYERS - 1}",
        ),
        ("tap-negative", drafter, [array(taps, ValueType.INT32, [1, -1])], "PAIR:a target layer"),
        ("width", drafter, [u32("dflash.embedding_length", 32)], "has wrong shape"),
        ("mask-none", drafter, [u32(mask, 2**32 - 1)], "PAIR:the mask token is -1"),
        ("mask-behind", drafter, [u32(mask, N_VOCAB)], "PAIR:the mask token is -1"),
        ("block-0", drafter, [u32("dflash.block_size", 0)], "PAIR:the block size is 0"),
        ("block-1", drafter, [u32("dflash.block_size", 1)], "PAIR:the block size is 1"),
        ("block-1e6", drafter, [u32("dflash.block_size", 10**6)], "PAIR:the block size is 1000000"),
        ("block-text", drafter, [string("dflash.block_size", "9" * 99)], "block_size has wrong"),
        (
            "selector-without-tensors",
            drafter,
            [u32("dflash.selector_top_k", 4)],
            "PAIR:the selector's candidates is 4, expected 0 to 0",
        ),
        (
            "selector-rank-without-tensors",
            drafter,
            [u32("dflash.selector_rank", 4)],
            "PAIR:the selector's rank is 4, expected 0 to 0",
        ),
        (
            "selector-without-keys",
            drafter,
            [zeros("selector_hidden.weight", (8, WIDTH))],
            "missing conv/selector metadata",
        ),
        (
            "axes",
            drafter,
            [array("dflash.rope.dimension_sections", ValueType.INT32, [8, 0, 0, 0])],
            "PAIR:it rotates for several axes",
        ),
        (
            "window-without-pattern",
            drafter,
            [u32("dflash.attention.sliding_window", 8)],
            "array key not found",
        ),
        (
            "window-in-no-layer",
            drafter,
            [
                u32("dflash.attention.sliding_window", 8),
                array("dflash.attention.sliding_window_pattern", ValueType.BOOL, [0, 0]),
            ],
            "PAIR:layers with a sliding window is 0, expected 1 to 1",
        ),
        (
            "kv-heads-by-layer",
            drafter,
            [array("dflash.attention.head_count_kv", ValueType.INT32, [1, 2])],
            "PAIR:key-value heads of layer 1 is 2, expected 1 to 1",
        ),
        (
            "key-norm-short",
            drafter,
            [zeros("blk.1.attn_k_norm.weight", (8,))],
            "'blk.1.attn_k_norm.weight' has wrong shape",
        ),
        ("causal", drafter, [boolean("dflash.attention.causal", True)], ""),
        (
            "markov-rows",
            dspark,
            [zeros("markov_w1.weight", (N_VOCAB // 2, 8))],
            "'markov_w1.weight' has wrong shape",
        ),
        ("markov-block-0", dspark, [u32("dflash.block_size", 0)], "PAIR:the block size is 0"),
    ):
        yield _spoilt(base, whose, f"dflash-{case}", parts, expected)
    yield Case("dflash-missing-taps", embed(base, drafter.without(taps)), "'target_layers'")
    yield Case("dflash-borrows-the-mask", embed(base, drafter.without(mask)))
    yield Case(
        "dspark-no-block-size",
        embed(base, dspark.without("dflash.block_size")),
        pair="the block size is 0",
    )


def _plain(base: Half, gemma4: Drafter) -> Iterator[Case]:
    llama, gemma3 = made.llama(base), made.gemma3(base)
    for case, whose, parts, expected in (
        (
            "llama-experts-none-used",
            llama,
            [u32("llama.expert_count", 2)],
            "expert_used_count of the MTP heads is missing",
        ),
        (
            "llama-experts-2-of-1",
            llama,
            [u32("llama.expert_count", 1), u32("llama.expert_used_count", 2)],
            "expert_used_count of the MTP heads is 2, expected 1 to 1",
        ),
        (
            "llama-experts-1e6",
            llama,
            [u32("llama.expert_count", 10**6)],
            "expert_count of the MTP heads is 1000000",
        ),
        ("llama-rope", llama, [u32("llama.rope.dimension_count", 8)], "invalid n_rot"),
        (
            "llama-eos",
            llama,
            [boolean("tokenizer.ggml.add_eos_token", True)],
            "",
        ),
        (
            "llama-kv-heads",
            llama,
            [
                u32("llama.attention.head_count_kv", 3),
                zeros("blk.0.attn_k.weight", (3 * HEAD_DIM, OWN)),
                zeros("blk.0.attn_v.weight", (3 * HEAD_DIM, OWN)),
            ],
            "PAIR:key-value heads of layer 0 is 3, expected 1 to 2",
        ),
        (
            "gemma3-62-layers",
            gemma3,
            [u32("gemma3.block_count", 62)],
            "not found",
        ),
        (
            "gemma3-window-in-no-layer",
            gemma3,
            [u32("gemma3.attention.sliding_window_pattern", 1)],
            "PAIR:layers with a sliding window is 0, expected 1 to 1",
        ),
        (
            "gemma3-window-by-layer",
            gemma3,
            [array("gemma3.attention.sliding_window_pattern", ValueType.BOOL, [0, 0])],
            "PAIR:layers with a sliding window is 0, expected 1 to 1",
        ),
        ("gemma3-window-0", gemma3, [u32("gemma3.attention.sliding_window", 0)], ""),
        (
            "gemma4-shares-all-but-1",
            gemma4,
            [u32("gemma4.attention.shared_kv_layers", 3)],
            "PAIR:layers with keys and values is 1, expected 2 to 4",
        ),
        (
            "gemma4-shares-2^32-1",
            gemma4,
            [u32("gemma4.attention.shared_kv_layers", 2**32 - 1)],
            "'blk.2.attn_k.weight' not found",
        ),
        (
            "gemma4-shares-1e9",
            gemma4,
            [u32("gemma4.attention.shared_kv_layers", 10**9)],
            "'blk.2.attn_k.weight' not found",
        ),
        (
            "gemma4-window-0",
            gemma4,
            [u32("gemma4.attention.sliding_window", 0)],
            "PAIR:the sliding window is 0",
        ),
    ):
        yield _spoilt(base, whose, f"plain-{case}", parts, expected)


def cases(base: Half, small: Path) -> list[Case]:
    """All of them; the sound drafters as controls. `small` is a directory to make."""
    base, gemma4 = in_memory(base), made.gemma4(base, small)
    drafters = {name: make(base) for name, (make, _) in made.MADE.items()} | {"gemma4": gemma4}
    controls = [Case(f"sound-{name}", embed(base, item)) for name, item in drafters.items()]
    common = [
        case
        for name in ("eagle3", "dflash", "llama")
        for case in _common(base, name, drafters[name])
    ]
    return [*controls, *common, *_eagle3(base), *_dflash(base), *_plain(base, gemma4)]
