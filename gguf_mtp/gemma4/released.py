"""The sizes in which Gemma 4 was released: text configurations of targets and drafters, as data.

Source: transformers' ``convert_gemma4_weights.py`` and ``convert_gemma4_unified_weights.py``, which
made the published checkpoints; drafters also by the figures of their own configurations.
"""

from dataclasses import dataclass, replace

from gguf_mtp.gemma4.config import FULL, SLIDING, Rope, TextConfig

VOCABULARY = 262_144


@dataclass(frozen=True)
class Released:
    """A target, its drafter, and the drafter's ordered head: no `centroids` where it has none."""

    name: str
    target: TextConfig
    drafter: TextConfig
    centroids: int = 0
    top_k: int = 0


def _layers(n_layers: int, period: int) -> tuple[str, ...]:
    """Every `period`-th layer attends to everything."""
    return tuple(FULL if (layer + 1) % period == 0 else SLIDING for layer in range(n_layers))


_ON_DEVICE = TextConfig(
    vocab_size=VOCABULARY,
    hidden_size=1536,
    intermediate_size=6144,
    layer_types=_layers(35, 5),
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
    kv_shared_layers=20,
    double_wide_mlp=True,
    k_eq_v=False,
    experts=None,
    experts_used=None,
    expert_intermediate_size=None,
    sliding_rope=Rope(10_000.0, 1.0),
    full_rope=Rope(1_000_000.0, 0.25),
)
_LARGE = replace(
    _ON_DEVICE,
    heads=16,
    kv_heads=8,
    context_length=262_144,
    sliding_window=1024,
    per_layer_input_size=0,
    per_layer_vocab_size=0,
    kv_shared_layers=0,
    double_wide_mlp=False,
    k_eq_v=True,
)


def _drafter(target: TextConfig, width: int, feed_forward: int, heads: int) -> TextConfig:
    """Four layers that have their target's keys and values, so also its head widths."""
    return replace(
        target,
        hidden_size=width,
        intermediate_size=feed_forward,
        heads=heads,
        layer_types=_layers(4, 4),
        final_logit_softcapping=None,
        per_layer_input_size=0,
        per_layer_vocab_size=0,
        kv_shared_layers=4,
        double_wide_mlp=False,
        experts=None,
        experts_used=None,
        expert_intermediate_size=None,
    )


def _on_device(name: str, target: TextConfig) -> Released:
    return Released(name, target, _drafter(target, 256, 2048, 4), centroids=2048, top_k=32)


def _large(name: str, target: TextConfig) -> Released:
    return Released(name, target, _drafter(target, 1024, 8192, target.heads))


RELEASED = {
    pair.name: pair
    for pair in (
        _on_device("E2B", _ON_DEVICE),
        _on_device(
            "E4B",
            replace(
                _ON_DEVICE,
                hidden_size=2560,
                intermediate_size=10_240,
                layer_types=_layers(42, 6),
                kv_heads=2,
                kv_shared_layers=18,
                double_wide_mlp=False,
            ),
        ),
        _large(
            "12B",
            replace(
                _LARGE,
                hidden_size=3840,
                intermediate_size=15_360,
                layer_types=_layers(48, 6),
                full_kv_heads=1,
            ),
        ),
        _large(
            "26B-A4B",
            replace(
                _LARGE,
                hidden_size=2816,
                intermediate_size=2112,
                layer_types=_layers(30, 6),
                full_kv_heads=2,
                experts=128,
                experts_used=8,
                expert_intermediate_size=704,
            ),
        ),
        _large(
            "31B",
            replace(
                _LARGE,
                hidden_size=5376,
                intermediate_size=21_504,
                layer_types=_layers(60, 6),
                heads=32,
                kv_heads=16,
                full_kv_heads=4,
            ),
        ),
    )
}
