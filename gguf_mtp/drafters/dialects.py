"""The GGUF dialects of Gemma 4 drafters, as data: one `Dialect` each, read and written alike.

All are told in terms of upstream's (llama.cpp ``src/models/gemma4-assistant.cpp``), which is the
one this project works in. What each row was checked against: docs/dialects.md, which also says how
to add one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gguf_mtp.drafters.ordered_head import CENTROIDS, ORDERING, Ordering
from gguf_mtp.errors import FormatError
from gguf_mtp.gemma4.keys import ROPE_FREQS
from gguf_mtp.ggml import F32, I32, GgmlType
from gguf_mtp.keyvalue import KeyValue, ValueType, array, f32

PRE, POST = "nextn.pre_projection.weight", "nextn.post_projection.weight"
COUNT, TOP_K = "masked_embd.centroid_count", "masked_embd.top_k"
BACKBONE, DEPTH = "embedding_length_out", "nextn_predict_layers"
USES_ORDERED, TARGET_ARCH = "use_ordered_embeddings", "requires_target_arch"
SHARED_LAYERS, PER_LAYER_INPUT = "attention.shared_kv_layers", "embedding_length_per_layer_input"


@dataclass(frozen=True)
class Key:
    """A key of a dialect, named after ``<arch>.``: the upstream keys it stands for, and how its
    value becomes theirs where that takes more than renaming."""

    name: str
    means: tuple[str, ...]
    read: Callable[[KeyValue], KeyValue] | None = None


@dataclass(frozen=True)
class Dialect:
    """How one program stores a drafter, told as differences from upstream's files.

    A file is of this dialect when it has `arch` and, where there are any `marks`, one of those (a
    tensor, or a key after ``<arch>.``). `tensors` maps upstream's names to this dialect's, ``*``
    standing for the layer. `lacks` are upstream's keys and tensors that have no place in it;
    `states` are keys its readers look for, under upstream's names or its own, the flags all saying
    whether there is an ordered head. Where programs fail on that head's tensors, it is not among
    what they load. Heads that lie in a base's file have keys under ``<arch>.<embedded_under>`` and
    are only read; what is not listed there is the base's.
    """

    name: str
    whose: str
    arch: str
    marks: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    tensors: Mapping[str, str] = field(default_factory=dict)
    ordering: Ordering = Ordering.TOKENS
    ordering_type: GgmlType = I32
    lacks: tuple[str, ...] = ()
    states: Mapping[str, str | bool] = field(default_factory=dict)
    loads_ordered_head: bool = True
    embedded_under: str = ""


def _times_1000(key: KeyValue) -> KeyValue:
    if not isinstance(key.value, int):
        raise FormatError(f"{key.name} is {key.value!a}, expected an integer")
    return f32(key.name, key.value * 1000.0)


def _sliding(key: KeyValue) -> KeyValue:
    """Layer kinds, 0 for sliding and 1 for full, as the pattern of the sliding ones."""
    values = key.value
    if key.item_type not in (ValueType.INT32, ValueType.UINT32) or not set(values) <= {0, 1}:
        raise FormatError(f"{key.name} is {str(values)[:60]}, expected a list of 0 and 1")
    return array(key.name, ValueType.BOOL, [value == 0 for value in values])


UPSTREAM = Dialect(
    name="upstream",
    whose="llama.cpp",
    arch="gemma4-assistant",
    # It fails on the two tensors: they travel as keys.
    loads_ordered_head=False,
)

DIALECTS = (
    Dialect(
        name="22738",
        whose="llama.cpp's pull request 22738",
        arch="gemma4-assistant",
        marks=("backbone_hidden_size", "assist_pre_proj.weight"),
        keys=(
            Key("backbone_hidden_size", (BACKBONE,)),
            Key("assistant.num_centroids", (COUNT,)),
            Key("assistant.centroid_intermediate_top_k", (TOP_K,)),
            Key("assistant.use_ordered_embeddings", (USES_ORDERED,)),
        ),
        tensors={
            PRE: "assist_pre_proj.weight",
            POST: "assist_post_proj.weight",
            CENTROIDS: "assist_embed_centroids.weight",
            ORDERING: "assist_token_ordering.weight",
        },
        ordering_type=F32,
        lacks=(DEPTH,),
        states={USES_ORDERED: True},
    ),
    Dialect(
        name="ordered",
        whose="forks of llama.cpp that run the ordered head",
        arch="gemma4-assistant",
        marks=("n_centroids",),
        keys=(Key("n_centroids", (COUNT,)), Key("centroid_top_k", (TOP_K,))),
        states={USES_ORDERED: True, TARGET_ARCH: "gemma4"},
    ),
    Dialect(
        name="masked-embedding",
        whose="a fork of llama.cpp that runs the ordered head",
        arch="gemma4-assistant",
        marks=("masked_embedding.centroid_count",),
        keys=(
            Key("masked_embedding.centroid_count", (COUNT,)),
            Key("masked_embedding.top_k", (TOP_K,)),
        ),
    ),
    UPSTREAM,
    Dialect(
        name="atomic",
        whose="AtomicChat's fork of llama.cpp",
        arch="gemma4_assistant",
        keys=(
            Key("n_embd_backbone", (BACKBONE,)),
            Key("n_centroids", (COUNT,)),
            Key("centroid_top_k", (TOP_K,)),
        ),
        tensors={
            PRE: "mtp.pre_projection.weight",
            POST: "mtp.post_projection.weight",
            CENTROIDS: "mtp.centroids.weight",
            ORDERING: "mtp.token_ordering.weight",
        },
        lacks=(DEPTH,),
        states={USES_ORDERED: True, TARGET_ARCH: "gemma4"},
    ),
    Dialect(
        name="ik",
        whose="ik_llama.cpp",
        arch="gemma4_mtp",
        keys=(
            Key("backbone_embedding_length", (BACKBONE,)),
            Key("centroid_count", (COUNT,)),
            Key("centroid_top_k", (TOP_K,)),
        ),
        tensors={
            PRE: "mtp_pre_proj.weight",
            POST: "mtp_post_proj.weight",
            CENTROIDS: "mtp_centroids.weight",
            ORDERING: "mtp_token_ordering.weight",
        },
        ordering=Ordering.CENTROIDS,
        lacks=(DEPTH, SHARED_LAYERS, PER_LAYER_INPUT, ROPE_FREQS),
        states={USES_ORDERED: True},
    ),
    Dialect(
        name="overlay",
        whose="a fork of llama.cpp that embeds heads in a base",
        arch="gemma4",
        marks=("mtp.pre_proj.weight",),
        keys=(
            Key("nextn_predict_layers", ("block_count", DEPTH)),
            Key("mtp.hidden_size", ("embedding_length",)),
            Key("mtp.intermediate_size", ("feed_forward_length",)),
            Key("mtp.attention.head_count", ("attention.head_count",)),
            Key(
                "mtp.attention.head_dim",
                (
                    "attention.key_length_swa",
                    "attention.value_length_swa",
                    "rope.dimension_count_swa",
                ),
            ),
            Key(
                "mtp.attention.global_head_dim",
                ("attention.key_length", "attention.value_length", "rope.dimension_count"),
            ),
            Key("mtp.attention.sliding_window", ("attention.sliding_window",)),
            Key("mtp.attention.layer_norm_rms_epsilon", ("attention.layer_norm_rms_epsilon",)),
            Key("mtp.layer_types", ("attention.sliding_window_pattern",), _sliding),
            Key("mtp.rope.sliding.theta_e3", ("rope.freq_base_swa",), _times_1000),
        ),
        tensors={
            "token_embd.weight": "mtp.embed_tokens.weight",
            "output_norm.weight": "mtp.norm.weight",
            PRE: "mtp.pre_proj.weight",
            POST: "mtp.post_proj.weight",
            CENTROIDS: "mtp.masked_emb_centroids.weight",
            ORDERING: "mtp.masked_emb_token_ordering.weight",
            "blk.*.attn_norm.weight": "mtp.blk.*.attn_norm.weight",
            "blk.*.attn_q.weight": "mtp.blk.*.attn_q.weight",
            "blk.*.attn_q_norm.weight": "mtp.blk.*.attn_q_norm.weight",
            "blk.*.attn_output.weight": "mtp.blk.*.attn_output.weight",
            "blk.*.post_attention_norm.weight": "mtp.blk.*.attn_post_norm.weight",
            "blk.*.ffn_norm.weight": "mtp.blk.*.ffn_pre_norm.weight",
            "blk.*.ffn_gate.weight": "mtp.blk.*.ffn_gate.weight",
            "blk.*.ffn_up.weight": "mtp.blk.*.ffn_up.weight",
            "blk.*.ffn_down.weight": "mtp.blk.*.ffn_down.weight",
            "blk.*.post_ffw_norm.weight": "mtp.blk.*.ffn_post_norm.weight",
            "blk.*.layer_output_scale.weight": "mtp.blk.*.layer_scalar.weight",
        },
        lacks=(ROPE_FREQS,),
        embedded_under="mtp.",
    ),
)
BY_NAME = {dialect.name: dialect for dialect in DIALECTS}
WRITABLE = tuple(dialect.name for dialect in DIALECTS if not dialect.embedded_under)
