"""A LiteRT drafter's hyper-parameters as a Hugging Face configuration."""

from dataclasses import dataclass
from typing import Any

from gguf_mtp.drafters.litert.package import LitertDrafter
from gguf_mtp.gemma4.config import FULL, SLIDING, Rope

ARCHITECTURE = "Gemma4AssistantForCausalLM"

SLIDING_ROPE = Rope(10_000.0, 1.0)
FULL_ROPE = Rope(1_000_000.0, 0.25)


@dataclass(frozen=True)
class Fallback:
    """What stands in for settings that the package does not tell: Gemma 4's own, or a base's."""

    context_length: int = 131_072
    window: int = 512
    epsilon: float = 1e-6
    sliding_rope: Rope = SLIDING_ROPE
    full_rope: Rope = FULL_ROPE


def configuration(drafter: LitertDrafter, fallback: Fallback | None = None) -> dict[str, Any]:
    """The ``config.json`` of the drafter, with a dense head.

    The length of the package's caches is a limit of its runtime, so the context is `fallback`'s.
    """
    fallback = fallback or Fallback()
    findings = drafter.findings
    ropes = {SLIDING: fallback.sliding_rope, FULL: fallback.full_rope} | findings.ropes
    head_dim = findings.head_dims.get(SLIDING, findings.head_dims[FULL])
    kv_heads = findings.kv_heads.get(SLIDING, findings.kv_heads[FULL])
    text: dict[str, Any] = {
        "model_type": "gemma4_text",
        "attention_bias": False,
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "final_logit_softcapping": None,
        "global_head_dim": findings.head_dims[FULL],
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": findings.hidden_size,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": findings.feed_forward,
        "layer_types": list(findings.layer_types),
        "max_position_embeddings": fallback.context_length,
        "num_attention_heads": findings.heads,
        "num_hidden_layers": len(findings.layer_types),
        "num_key_value_heads": kv_heads,
        "num_kv_shared_layers": len(findings.layer_types),
        "rms_norm_eps": fallback.epsilon if findings.epsilon is None else findings.epsilon,
        "rope_parameters": {
            FULL: _rope(ropes[FULL], "proportional"),
            SLIDING: _rope(ropes[SLIDING], "default"),
        },
        "sliding_window": fallback.window if findings.window is None else findings.window,
        "tie_word_embeddings": True,
        "use_double_wide_mlp": False,
        "vocab_size": findings.vocab_size,
        "vocab_size_per_layer_input": 0,
    }
    if findings.kv_heads[FULL] != kv_heads:
        text["per_layer_config"] = {
            str(index): {
                "head_dim": findings.head_dims[FULL],
                "num_key_value_heads": findings.kv_heads[FULL],
            }
            for index, kind in enumerate(findings.layer_types)
            if kind == FULL
        }
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "gemma4_assistant",
        "backbone_hidden_size": findings.backbone,
        "dtype": "float32",
        "text_config": text,
        "tie_word_embeddings": True,
        "use_ordered_embeddings": False,
    }


def _rope(rope: Rope, rope_type: str) -> dict[str, Any]:
    values: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": rope_type}
    if rope_type != "default":
        values["partial_rotary_factor"] = rope.rotated
    return values
