"""How many bytes the weights of a released size take in each number type.

Source of the mixed types: llama.cpp ``src/llama-quant.cpp`` (``llama_tensor_get_type_impl``,
``tensor_allows_quantization``, ``tensor_type_fallback``), for tied embeddings and without an
importance matrix.
"""

import re
from collections.abc import Iterable

from gguf_mtp.drafters.assistant import drafter_tensors
from gguf_mtp.gemma4.outtype import stored_type
from gguf_mtp.gemma4.released import Released
from gguf_mtp.gemma4.tensors import Expected, target_tensors
from gguf_mtp.ggml import BF16, F32, I32, Q8_0, TYPES, GgmlType

PLAIN = {"bf16": BF16, "q8_0": Q8_0}
# A mixed type by its name -> the type of most matrices. Best first, as everywhere here.
MIXED = {"q6_k": TYPES["Q6_K"], "q5_k_m": TYPES["Q5_K"], "q4_k_m": TYPES["Q4_K"]}
NUMBER_TYPES = (*PLAIN, *MIXED)
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
KEPT = "per_layer_model_proj.weight"
# What rows get that are no whole number of blocks.
INSTEAD = {
    name: TYPES[other] for name, other in (("Q4_K", "Q5_0"), ("Q5_K", "Q5_1"), ("Q6_K", "Q8_0"))
}
_LAYER = re.compile(r"blk\.(\d+)\.")


def target_bytes(released: Released, name: str) -> int:
    """The weights of a target that was converted with ``--outtype NAME``."""
    tensors = [item for item in target_tensors(released.target) if item.required]
    if name in PLAIN:
        return sum(_nbytes(item, PLAIN[name]) for item in tensors)
    return sum(kind.nbytes(item.shape) for item, kind in mixed(tensors, MIXED[name]))


def heads_bytes(released: Released) -> int:
    """The drafter's weights in Q8_0, what convert gives heads by default."""
    config = released.drafter
    tensors = drafter_tensors(config, released.target.hidden_size)
    ordered = 0
    if released.centroids:
        ordered = F32.nbytes((released.centroids, config.hidden_size))
        ordered += I32.nbytes((config.vocab_size,))
    return sum(_nbytes(item, Q8_0) for item in tensors) + ordered


def _nbytes(item: Expected, outtype: GgmlType) -> int:
    return stored_type(item.name, item.shape, outtype).nbytes(item.shape)


def mixed(tensors: Iterable[Expected], usual: GgmlType) -> list[tuple[Expected, GgmlType]]:
    """Each of a target's `tensors` and the type that libllama's quantizer gives it in the mixture
    whose `usual` type is given."""
    items = list(tensors)
    n_layers = 1 + max(int(match[1]) for item in items if (match := _LAYER.match(item.name)))
    values = [item.name for item in items if item.name.endswith("attn_v.weight")]
    more = TYPES["Q6_K"]

    def kind(item: Expected) -> GgmlType:
        before = stored_type(item.name, item.shape, BF16)
        if before == F32 or item.name == KEPT:
            return before
        found = usual
        if item.name in EMBEDDINGS or (
            item.name in values and _gets_more(values.index(item.name), len(values))
        ):
            found = more
        match = _LAYER.match(item.name)
        if match and "ffn_down" in item.name and _gets_more(int(match[1]), n_layers):
            found = more
        return found if found.fits(item.shape) else INSTEAD[found.name]

    return [(item, kind(item)) for item in items]


def _gets_more(at: int, count: int) -> bool:
    """Whether the `at`-th of `count` layers is among those with more bits: at both ends, and every
    third between."""
    return at < count // 8 or at >= 7 * count // 8 or (at - count // 8) % 3 == 2
