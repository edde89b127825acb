"""The real shapes of Gemma 4's small pairs, as data.

Source: llama.cpp ``src/models/gemma4.cpp`` and ``gemma4-assistant.cpp`` (what a shape consists of),
transformers 5.22 ``configuration_gemma4.py`` (defaults). The numbers that belong to one size are
those of its published configuration.
"""

from dataclasses import dataclass, replace

from gguf_mtp.gemma4.config import FULL, SLIDING, Rope, TextConfig

VOCABULARY = 262_144


@dataclass(frozen=True)
class PairShape:
    """A target, its drafter, and the drafter's ordered head."""

    name: str
    target: TextConfig
    drafter: TextConfig
    centroids: int = 2048
    top_k: int = 32


def _layers(n_layers: int, period: int) -> tuple[str, ...]:
    """Every `period`-th layer attends to everything."""
    return tuple(FULL if (layer + 1) % period == 0 else SLIDING for layer in range(n_layers))


_TARGET = TextConfig(
    vocab_size=VOCABULARY,
    hidden_size=0,
    intermediate_size=0,
    layer_types=(),
    heads=8,
    kv_heads=1,
    full_kv_heads=None,
    head_dim=256,
    full_head_dim=512,
    context_length=131_072,
    sliding_window=512,
    rms_norm_eps=1e-6,
    final_logit_softcapping=30.0,
    per_layer_input_size=256,
    per_layer_vocab_size=VOCABULARY,
    kv_shared_layers=0,
    double_wide_mlp=False,
    k_eq_v=False,
    experts=None,
    experts_used=None,
    expert_intermediate_size=None,
    sliding_rope=Rope(10_000.0, 1.0),
    full_rope=Rope(1_000_000.0, 0.25),
)
_DRAFTER = replace(
    _TARGET,
    hidden_size=256,
    intermediate_size=2048,
    layer_types=_layers(4, 4),
    heads=4,
    final_logit_softcapping=None,
    per_layer_input_size=0,
    kv_shared_layers=4,
)

PAIRS = {
    pair.name: pair
    for pair in (
        PairShape(
            "e2b",
            replace(
                _TARGET,
                hidden_size=1536,
                intermediate_size=6144,
                layer_types=_layers(35, 5),
                kv_shared_layers=20,
                double_wide_mlp=True,
            ),
            _DRAFTER,
        ),
        PairShape(
            "e4b",
            replace(
                _TARGET,
                hidden_size=2560,
                intermediate_size=10_240,
                layer_types=_layers(42, 6),
                kv_heads=2,
                kv_shared_layers=18,
            ),
            replace(_DRAFTER, kv_heads=2),
        ),
    )
}
