"""A Hugging Face assistant checkpoint as a `gemma4-assistant` drafter.

Source: llama.cpp ``conversion/gemma.py`` (`Gemma4AssistantModel`).
"""

from collections.abc import Iterator
from dataclasses import replace

from gguf_mtp.drafters.drafter import ARCH, Drafter, check_tensors
from gguf_mtp.drafters.ordered_head import (
    CENTROIDS,
    COUNT_KEY,
    TOP_K_KEY,
    OrderedHead,
    check_ordered_head,
    ordering_tensor,
    read_int64,
)
from gguf_mtp.errors import FormatError, UnsupportedError, brief
from gguf_mtp.gemma4.config import TextConfig, read_text_config
from gguf_mtp.gemma4.family import DRAFTER, architecture
from gguf_mtp.gemma4.keys import (
    hyperparameters,
    quantization_version,
    rope_freqs,
)
from gguf_mtp.gemma4.outtype import check_float, heads_outtype
from gguf_mtp.gemma4.shape import read_shape
from gguf_mtp.gemma4.target import converted, match_tensors
from gguf_mtp.gemma4.tensors import Expected, block_shapes, named
from gguf_mtp.gemma4.vocabulary import has_tokenizer, vocabulary
from gguf_mtp.ggml import F32, GgmlType
from gguf_mtp.keyvalue import KeyValue, u32
from gguf_mtp.model import Half, Tensor
from gguf_mtp.readers.checkpoint import Checkpoint
from gguf_mtp.readers.source import TensorRef

CENTROIDS_SUFFIX = "masked_embedding.centroids.weight"
ORDERING_SUFFIX = "masked_embedding.token_ordering"


def assistant_from_checkpoint(
    checkpoint: Checkpoint, heads_type: str, tokenizer: list[KeyValue]
) -> Drafter:
    """The drafter of a Hugging Face assistant checkpoint, in number type `heads_type`.

    A checkpoint without tokenizer files gets the keys `tokenizer`, its target's.
    Raises FormatError and UnsupportedError, naming file and field.
    """
    # Imported here for gguf-py, which only checkpoints need.
    from gguf_mtp.gemma4.general import general_keys

    where = checkpoint.path / "config.json"
    family = architecture(checkpoint, DRAFTER)
    values = checkpoint.config.get("text_config")
    if not isinstance(values, dict):
        raise FormatError(f"{where}: text_config is {brief(values)}, expected an object")
    config = read_text_config(values, f"{where}: text_config", family.text_type)
    config = _with_shared_layers(config, str(where))
    backbone = _integer(checkpoint, "backbone_hidden_size", family.backbone)
    number = heads_outtype(heads_type)

    named_refs = {ref.name: ref for ref in checkpoint.tensors}
    head_refs = [named_refs.pop(name, None) for name in (CENTROIDS_SUFFIX, ORDERING_SUFFIX)]
    pairs = match_tensors(checkpoint, named_refs, drafter_tensors(config, backbone))
    tensors = [rope_freqs(config), *(converted(item, ref, number) for item, ref in pairs)]
    # llama.cpp's converter counts parameters without the ordered head.
    general = general_keys(checkpoint, ARCH, tensors)
    keys = [
        *general.keys,
        *hyperparameters(config, ARCH, number),
        u32(f"{ARCH}.embedding_length_out", backbone),
        u32(f"{ARCH}.nextn_predict_layers", config.n_layers),
        quantization_version(),
        *(vocabulary(checkpoint, config.vocab_size) if has_tokenizer(checkpoint) else tokenizer),
    ]
    ordered = None
    if checkpoint.config.get("use_ordered_embeddings", False) or any(head_refs):
        ordered, centroids = _ordered_head(checkpoint, config, head_refs, number)
        keys += (u32(COUNT_KEY, ordered.centroid_count), u32(TOP_K_KEY, ordered.top_k))
        tensors += (centroids, ordering_tensor(ordered))
    half = Half(
        str(checkpoint.path),
        "huggingface",
        tuple(keys),
        tuple(tensors),
        tuple(file.path for file in checkpoint.files),
        general.license,
        general.notes,
    )
    shape = read_shape(half, ARCH)
    check_tensors(half, shape)
    return Drafter(half, shape, ordered)


def _with_shared_layers(config: TextConfig, where: str) -> TextConfig:
    """All of a drafter's layers share the target's keys and values; 0 stands for that."""
    shared = config.kv_shared_layers or config.n_layers
    for name, found, expected in (
        ("num_kv_shared_layers", shared, config.n_layers),
        ("hidden_size_per_layer_input", config.per_layer_input_size, 0),
        ("use_double_wide_mlp", config.double_wide_mlp, False),
        ("num_experts", config.experts, None),
    ):
        if found != expected:
            raise UnsupportedError(
                f"{where}: text_config.{name} is {found} in a drafter, expected {expected}"
            )
    return replace(config, kv_shared_layers=shared)


def _integer(checkpoint: Checkpoint, name: str, default: int) -> int:
    value = checkpoint.config.get(name, default)
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise FormatError(
            f"{checkpoint.path / 'config.json'}: {name} is {brief(value)}, "
            "expected a positive integer"
        )
    return value


def drafter_tensors(config: TextConfig, backbone: int) -> Iterator[Expected]:
    """Every tensor of a drafter but its ordered head; `backbone` is its target's hidden size."""
    width = config.hidden_size
    rows = (config.vocab_size, width)
    yield Expected("model.embed_tokens.weight", "token_embd.weight", rows)
    yield Expected("model.norm.weight", "output_norm.weight", (width,))
    yield Expected("pre_projection.weight", "nextn.pre_projection.weight", (width, 2 * backbone))
    yield Expected("post_projection.weight", "nextn.post_projection.weight", (backbone, width))
    for layer in range(config.n_layers):
        head_dim = config.layer_head_dim(layer)
        query = config.heads * head_dim
        shapes = block_shapes(width, query, head_dim, config.intermediate_size)
        yield from named(layer, shapes)


def _ordered_head(
    checkpoint: Checkpoint, config: TextConfig, refs: list[TensorRef | None], number: GgmlType
) -> tuple[OrderedHead, Tensor]:
    centroids, ordering = refs
    if centroids is None or ordering is None:
        name = CENTROIDS_SUFFIX if centroids is None else ORDERING_SUFFIX
        raise FormatError(f"{checkpoint.path}: tensor {name} is missing")
    check_float(centroids)
    count = _integer(checkpoint, "num_centroids", 2048)
    if centroids.shape != (count, config.hidden_size):
        raise FormatError(
            f"{centroids.file}: tensor {centroids.name} has shape {list(centroids.shape)}, "
            f"expected {[count, config.hidden_size]} from config.json"
        )
    top_k = _integer(checkpoint, "centroid_intermediate_top_k", 32)
    where = str(checkpoint.path)
    ordered = check_ordered_head(where, count, top_k, read_int64(ordering), config.vocab_size)
    # Which rows are scored hangs on the centroids, and they are small: never quantized.
    stored = F32 if number.block_values > 1 else number
    return ordered, Tensor(CENTROIDS, stored, centroids.shape, centroids)
