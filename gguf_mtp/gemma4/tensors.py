"""Gemma 4's tensors: Hugging Face names, GGUF names and shapes, as one table; and names by which
checkpoints of other layouts are recognized.

Source: llama.cpp ``gguf-py/gguf/tensor_mapping.py`` (names), ``src/models/gemma4.cpp`` (shapes);
for the other layouts PEFT's, bitsandbytes', MLX's, AutoGPTQ's, compressed-tensors' and ModelOpt's
saved checkpoints.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gguf_mtp.errors import UnsupportedError
from gguf_mtp.gemma4.config import FULL, TextConfig
from gguf_mtp.readers.source import TensorRef

# Where the text stack may stand in a checkpoint, the longest prefix first: in a multimodal model
# as transformers saves it now and as it did before, alone, and without its head.
TEXT_PREFIXES = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.": "model.",
    "lm_head.": "lm_head.",
    "": "model.",
}
# Weights whose name may have `.weight` at its end or not.
BARE_NAMES = re.compile(r"(\.experts\.(gate_up|down)_proj|\.layer_scalar)\.weight$")
# Anything with one of these parts belongs to the encoders, which a GGUF keeps in a file of its own.
ENCODER_PARTS = ("vision.", "audio.", "vision_", "audio_")

MERGE_ADAPTER = "merge the adapter into its base first, e.g. with PEFT's merge_and_unload"
UNQUANTIZED = "use the checkpoint before quantization, or a quantized GGUF of it"
# Names in other layouts: a pattern, what the tensor is, and what to do.
OTHER_LAYOUTS = tuple(
    (re.compile(pattern), what, action)
    for pattern, what, action in (
        (
            r"^base_model\.model\.|\.base_layer\.|\.lora_|\.modules_to_save\.",
            "belongs to an adapter that is not merged",
            MERGE_ADAPTER,
        ),
        (
            r"\.experts\.\d+\.",
            "holds one expert, expected all experts of a layer in one tensor "
            "(experts.gate_up_proj, experts.down_proj)",
            "load and save the model with transformers 5, or use a GGUF of it",
        ),
        (
            r"\.(nested_)?(absmax|quant_map)$|\.quant_state\.|\.SCB$",
            "belongs to weights quantized with bitsandbytes",
            UNQUANTIZED,
        ),
        (r"\.(scales|biases)$", "belongs to weights quantized with MLX", UNQUANTIZED),
        (
            r"\.(qweight|qzeros|g_idx)$",
            "belongs to weights quantized with GPTQ or AWQ",
            UNQUANTIZED,
        ),
        (
            r"\.(weight|input|output|[kv])_(global_)?(scale|scale_inv|scale_2|zero_point)$"
            r"|\.weight_(packed|shape|g_idx)$",
            "belongs to quantized weights (compressed-tensors, FP8 or NVFP4)",
            UNQUANTIZED,
        ),
    )
)


@dataclass(frozen=True)
class Expected:
    """A tensor the model should have: `shape` outermost dimension first."""

    hf_name: str
    name: str
    shape: tuple[int, ...]
    required: bool = True


def text_name(hf_name: str) -> str | None:
    """The name within the text stack; None for a tensor of the vision or audio encoders."""
    if any(part in hf_name for part in ENCODER_PARTS):
        return None
    prefix = next(prefix for prefix in TEXT_PREFIXES if hf_name.startswith(prefix))
    return BARE_NAMES.sub(r"\1", TEXT_PREFIXES[prefix] + hf_name.removeprefix(prefix))


def refuse_other_layouts(refs: Iterable[TensorRef]) -> None:
    """Raise UnsupportedError for the first tensor whose name is one of another layout."""
    for ref in refs:
        for pattern, what, action in OTHER_LAYOUTS:
            if pattern.search(ref.name):
                raise UnsupportedError(f"{ref.file}: tensor {ref.name!a} {what}; {action}")


def target_tensors(config: TextConfig) -> Iterator[Expected]:
    """Every tensor of a target (base) model."""
    width, per_layer = config.hidden_size, config.per_layer_input_size
    yield Expected("model.embed_tokens.weight", "token_embd.weight", (config.vocab_size, width))
    yield Expected("lm_head.weight", "output.weight", (config.vocab_size, width), required=False)
    yield Expected("model.norm.weight", "output_norm.weight", (width,))
    if per_layer:
        packed = config.n_layers * per_layer
        rows = config.per_layer_vocab_size
        yield Expected(
            "model.embed_tokens_per_layer.weight", "per_layer_token_embd.weight", (rows, packed)
        )
        yield Expected(
            "model.per_layer_model_projection.weight",
            "per_layer_model_proj.weight",
            (packed, width),
        )
        yield Expected(
            "model.per_layer_projection_norm.weight", "per_layer_proj_norm.weight", (per_layer,)
        )
    for layer in range(config.n_layers):
        head_dim = config.layer_head_dim(layer)
        shapes = block_shapes(width, config.heads * head_dim, head_dim, config.feed_forward(layer))
        yield from named(layer, shapes)
        yield from named(layer, _key_value_shapes(config, layer), _owns_kv(config, layer))
        if _owns_value(config, layer):
            shape = (config.layer_kv_heads(layer) * config.layer_head_dim(layer), width)
            yield from named(layer, {"attn_v.weight": shape}, _owns_kv(config, layer))
        if per_layer:
            yield from named(
                layer,
                {
                    "inp_gate.weight": (per_layer, width),
                    "proj.weight": (width, per_layer),
                    "post_norm.weight": (width,),
                },
            )
        if config.experts is not None and config.expert_intermediate_size is not None:
            yield from named(
                layer, _expert_shapes(config, config.experts, config.expert_intermediate_size)
            )


def _owns_kv(config: TextConfig, layer: int) -> bool:
    return layer < config.first_shared_layer


def _owns_value(config: TextConfig, layer: int) -> bool:
    return not (config.k_eq_v and config.layer_types[layer] == FULL)


def block_shapes(
    width: int, query_width: int, head_dim: int, feed_forward: int
) -> dict[str, tuple[int, ...]]:
    """GGUF suffix -> shape of the tensors that target and drafter layers have in common."""
    return {
        "attn_norm.weight": (width,),
        "attn_q.weight": (query_width, width),
        "attn_q_norm.weight": (head_dim,),
        "attn_output.weight": (width, query_width),
        "post_attention_norm.weight": (width,),
        "ffn_norm.weight": (width,),
        "ffn_gate.weight": (feed_forward, width),
        "ffn_up.weight": (feed_forward, width),
        "ffn_down.weight": (width, feed_forward),
        "post_ffw_norm.weight": (width,),
        "layer_output_scale.weight": (1,),
    }


def _key_value_shapes(config: TextConfig, layer: int) -> dict[str, tuple[int, ...]]:
    head_dim = config.layer_head_dim(layer)
    return {
        "attn_k.weight": (config.layer_kv_heads(layer) * head_dim, config.hidden_size),
        "attn_k_norm.weight": (head_dim,),
    }


def _expert_shapes(config: TextConfig, experts: int, wide: int) -> dict[str, tuple[int, ...]]:
    width = config.hidden_size
    return {
        "ffn_gate_inp.weight": (experts, width),
        "ffn_gate_inp.scale": (width,),
        "ffn_gate_up_exps.weight": (experts, 2 * wide, width),
        "ffn_down_exps.weight": (experts, width, wide),
        "ffn_down_exps.scale": (experts,),
        "pre_ffw_norm_2.weight": (width,),
        "post_ffw_norm_1.weight": (width,),
        "post_ffw_norm_2.weight": (width,),
    }


BLOCK_HF_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "layer_output_scale.weight": "layer_scalar",
    "inp_gate.weight": "per_layer_input_gate.weight",
    "proj.weight": "per_layer_projection.weight",
    "post_norm.weight": "post_per_layer_input_norm.weight",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
}


def named(
    layer: int, shapes: dict[str, tuple[int, ...]], required: bool = True
) -> Iterator[Expected]:
    """The tensors of block `layer`, given by suffix."""
    for suffix, shape in shapes.items():
        hf_name = f"model.layers.{layer}.{BLOCK_HF_NAMES[suffix]}"
        yield Expected(hf_name, f"blk.{layer}.{suffix}", shape, required)
