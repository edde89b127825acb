"""The kinds of drafter that llama.cpp runs beside a target, as data: one `Family` each.

Source: llama.cpp ``common/speculative.cpp`` (which loop runs which), ``src/models/eagle3.cpp`` and
``src/models/dflash.cpp`` (keys, tensors, and what they read of the target).
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

from gguf_mtp.model import Half

# A shape as names of sizes (see `fit.sizes`), outermost dimension first.
Shape = tuple[str, ...]


@dataclass(frozen=True)
class Taps:
    """The target's layers that a drafter reads, which its key ``target_layers`` lists: how many
    there are, where that is fixed, and whether it may read behind the last layer too."""

    count: int | None = None
    behind_last: bool = False


@dataclass(frozen=True)
class Family:
    """A kind of drafter: how it is told, what runs it, and what it has to have.

    It is told by ``general.architecture`` and, where there is a `mark`, by a tensor. `spec_type` is
    llama.cpp's ``--spec-type``. Keys are named after ``<arch>.``: `blocks` is what ``block_count``
    must be, `target_width` states the target's hidden size, `positive` must be there and above 0,
    `refused` must be absent or 0. The shapes are of tensors, ``*`` standing for each block. What
    `borrows` takes embeddings and output from the target where it has none; `masked` drafts from
    mask tokens. A drafter that runs `alone` is a model of its own.
    """

    name: str
    what: str
    architectures: tuple[str, ...]
    spec_type: str
    mark: str | None = None
    taps: Taps | None = None
    blocks: int | None = None
    target_width: str | None = None
    positive: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    tensors: Mapping[str, Shape] = field(default_factory=dict)
    optional: Mapping[str, Shape] = field(default_factory=dict)
    borrows: bool = False
    masked: bool = False
    alone: bool = False


# Keys, tensors and pairing of these are in `drafter`, `dialects` and `pairing`.
MTP = Family("mtp", "MTP heads", ("gemma4-assistant",), "draft-mtp")

_BLOCK: dict[str, Shape] = {
    "blk.*.attn_norm.weight": ("width",),
    "blk.*.attn_output.weight": ("width", "queries"),
    "blk.*.ffn_norm.weight": ("width",),
    "blk.*.ffn_gate.weight": ("forward", "width"),
    "blk.*.ffn_up.weight": ("forward", "width"),
    "blk.*.ffn_down.weight": ("width", "forward"),
}
_HEAD: dict[str, Shape] = {
    "token_embd.weight": ("vocabulary", "width"),
    "output.weight": ("drafted", "width"),
    "d2t": ("drafted",),
}
_EAGLE3 = Family(
    "eagle3",
    "EAGLE-3 drafter",
    ("eagle3",),
    "draft-eagle3",
    taps=Taps(count=3, behind_last=True),
    blocks=1,
    target_width="target_hidden_size",
    tensors={
        **_BLOCK,
        "fc.weight": ("width", "features"),
        "output_norm.weight": ("width",),
        "blk.*.attn_norm_2.weight": ("width",),
        "blk.*.attn_q.weight": ("queries", "two widths"),
        "blk.*.attn_k.weight": ("keys", "two widths"),
        "blk.*.attn_v.weight": ("values", "two widths"),
    },
    optional={**_HEAD, "enc.output_norm.weight": ("features",)},
    borrows=True,
)
_SELECTOR = ("selector_rank", "selector_top_k")
_DFLASH = Family(
    "dflash",
    "DFlash drafter",
    ("dflash",),
    "draft-dflash",
    taps=Taps(),
    target_width="embedding_length",
    # DeepSeek's blocks, rotation for several axes, and what only the marked kinds have.
    refused=("hyper_connection.count", "rope.dimension_sections", *_SELECTOR),
    tensors={
        **_BLOCK,
        "fc.weight": ("width", "features"),
        "enc.output_norm.weight": ("width",),
        "output_norm.weight": ("width",),
        "blk.*.attn_q.weight": ("queries", "width"),
        "blk.*.attn_k.weight": ("keys", "width"),
        "blk.*.attn_q_norm.weight": ("head",),
        "blk.*.attn_k_norm.weight": ("head",),
    },
    optional={**_HEAD, "blk.*.attn_v.weight": ("values", "width")},
    borrows=True,
    masked=True,
)
# The first row that fits: marked kinds before the others of their architecture.
FAMILIES = (
    MTP,
    _EAGLE3,
    replace(
        _DFLASH,
        name="dspark",
        what="DSpark drafter",
        spec_type="draft-dspark",
        mark="markov_w1.weight",
        positive=("block_size",),
    ),
    replace(
        _DFLASH,
        name="dflash2",
        what="DFlash 2 drafter",
        mark="selector_hidden.weight",
        positive=("block_size", "conv_kernel_size", "conv_group_size", *_SELECTOR),
        refused=("hyper_connection.count", "rope.dimension_sections"),
    ),
    _DFLASH,
    Family(
        "plain",
        "draft model",
        ("gemma4", "gemma3", "llama"),
        "draft-simple",
        refused=("nextn_predict_layers",),
        tensors={"token_embd.weight": ("vocabulary", "width"), "output_norm.weight": ("width",)},
        optional={"output.weight": ("vocabulary", "width")},
        alone=True,
    ),
)


def find_family(architecture: object, tensors: Container[str]) -> Family | None:
    """The family of a drafter by its architecture and the names of its tensors; None for none."""
    for family in FAMILIES:
        if architecture in family.architectures and (family.mark is None or family.mark in tensors):
            return family
    return None


def family_of(half: Half) -> Family | None:
    """The family of the drafter `half`, which is under upstream's names."""
    return find_family(half.value("general.architecture"), half.tensor_by_name)
