"""Gemma 4's text configuration, read strictly and with transformers' defaults.

Source: transformers 5.22 ``models/gemma4/configuration_gemma4.py`` and its unified sibling,
``modeling_rope_utils.py`` (which settings of the rotation have an effect). Both spellings of the
global head width are read: Google's ``global_head_dim`` and transformers' ``per_layer_config``.
"""

import re
from dataclasses import dataclass
from typing import Any

from gguf_mtp.errors import FormatError, UnsupportedError, brief
from gguf_mtp.gemma4.family import TEXT_DEFAULTS, check_settings

SLIDING = "sliding_attention"
FULL = "full_attention"
MAX_LAYERS = 1024
MAX_SIZE = 1 << 31
MAX_NUMBER = 1e30
LAYER_NUMBER = re.compile("[0-9]{1,9}")
# Each attention kind's rotation: the one `rope_type` that is converted, and the defaults.
ROPE_TYPES = {SLIDING: "default", FULL: "proportional"}
# What one kind's rotation may state. `type` is the older name of `rope_type`; the last one has an
# effect only in rotations of other types.
ROPE_KEYS = (
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
# Scales, of which only 1 leaves the rotation as it is.
ROPE_SCALES = ("factor", "attention_factor")


@dataclass(frozen=True)
class Rope:
    """Rotation of one attention kind: base frequency and the rotated share of a head."""

    theta: float
    rotated: float


@dataclass(frozen=True)
class TextConfig:
    """The hyper-parameters of one Gemma 4 text stack. Sizes are in elements.

    `full_kv_heads` is None unless the configuration gives full-attention layers their own count.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layer_types: tuple[str, ...]
    heads: int
    kv_heads: int
    full_kv_heads: int | None
    head_dim: int
    full_head_dim: int
    context_length: int
    sliding_window: int
    rms_norm_eps: float
    final_logit_softcapping: float | None
    per_layer_input_size: int
    per_layer_vocab_size: int
    kv_shared_layers: int
    double_wide_mlp: bool
    k_eq_v: bool
    experts: int | None
    experts_used: int | None
    expert_intermediate_size: int | None
    sliding_rope: Rope
    full_rope: Rope

    @property
    def n_layers(self) -> int:
        return len(self.layer_types)

    @property
    def first_shared_layer(self) -> int:
        """The first layer that reuses the keys and values of an earlier one."""
        return self.n_layers - self.kv_shared_layers

    def feed_forward(self, layer: int) -> int:
        wide = self.double_wide_mlp and layer >= self.first_shared_layer
        return self.intermediate_size * (2 if wide else 1)

    def layer_head_dim(self, layer: int) -> int:
        return self.head_dim if self.layer_types[layer] == SLIDING else self.full_head_dim

    def layer_kv_heads(self, layer: int) -> int:
        if self.layer_types[layer] == SLIDING or self.full_kv_heads is None:
            return self.kv_heads
        return self.full_kv_heads


class _Fields:
    """Typed access to a JSON object, naming file, field, found and expected in every refusal."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def error(self, name: str, expected: str) -> FormatError:
        found = brief(self.values.get(name))
        return FormatError(f"{self.where}: {name} is {found}, expected {expected}")

    def size(self, name: str, default: int, low: int = 1, high: int = MAX_SIZE) -> int:
        value = self.values.get(name, default)
        if type(value) is not int or not low <= value < high:
            raise self.error(name, f"an integer from {low} to {high - 1}")
        return value

    def optional_size(self, name: str) -> int | None:
        return None if self.values.get(name) is None else self.size(name, 0)

    def number(self, name: str, default: float) -> float:
        value = self.values.get(name, default)
        if type(value) not in (int, float) or not 0 < value < MAX_NUMBER:
            raise self.error(name, f"a number above 0 and below {MAX_NUMBER:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.values.get(name, False)
        if value is None:
            return False
        if type(value) is not bool:
            raise self.error(name, "true or false")
        return value


def read_text_config(values: dict[str, Any], where: str, text_type: str) -> TextConfig:
    """Read a configuration object of ``model_type`` `text_type`; `where` names it in messages.

    Raises FormatError for missing, mistyped or out-of-range fields and UnsupportedError for
    well-formed ones that this version does not convert.
    """
    fields = _Fields(values, where)
    defaults = TEXT_DEFAULTS[text_type]
    model_type = values.get("model_type", text_type)
    if model_type != text_type:
        raise UnsupportedError(
            f"{where}: model_type is {brief(model_type)}, expected {text_type!r}"
        )
    check_settings(values, where)
    check_rotation(values, where)
    if values.get("use_bidirectional_attention") == "all":
        raise UnsupportedError(f"{where}: use_bidirectional_attention 'all' is not supported")
    if fields.flag("attention_bias"):
        raise UnsupportedError(f"{where}: attention_bias is not supported")

    n_layers = fields.size("num_hidden_layers", 30, high=MAX_LAYERS + 1)
    layer_types = _layer_types(fields, n_layers)
    k_eq_v = fields.flag("attention_k_eq_v")
    full_head_dim, full_kv_heads = _full_attention(fields, layer_types, k_eq_v)
    moe = fields.flag("enable_moe_block")
    config = TextConfig(
        vocab_size=fields.size("vocab_size", 262_144),
        hidden_size=fields.size("hidden_size", 2304),
        intermediate_size=fields.size("intermediate_size", 9216),
        layer_types=layer_types,
        heads=fields.size("num_attention_heads", 8),
        kv_heads=fields.size("num_key_value_heads", 4),
        full_kv_heads=full_kv_heads,
        head_dim=fields.size("head_dim", 256),
        full_head_dim=full_head_dim,
        context_length=fields.size("max_position_embeddings", defaults.context_length),
        sliding_window=fields.size("sliding_window", defaults.sliding_window),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        final_logit_softcapping=(
            fields.number("final_logit_softcapping", 0)
            if values.get("final_logit_softcapping")
            else None
        ),
        per_layer_input_size=fields.size(
            "hidden_size_per_layer_input", defaults.per_layer_input_size, low=0
        )
        if values.get("hidden_size_per_layer_input", 0) is not None
        else 0,
        per_layer_vocab_size=fields.size(
            "vocab_size_per_layer_input", defaults.per_layer_vocab_size, low=0
        ),
        kv_shared_layers=fields.size("num_kv_shared_layers", 0, low=0, high=n_layers + 1),
        double_wide_mlp=fields.flag("use_double_wide_mlp"),
        k_eq_v=k_eq_v,
        experts=fields.optional_size("num_experts"),
        experts_used=fields.optional_size("top_k_experts"),
        expert_intermediate_size=fields.optional_size("moe_intermediate_size"),
        sliding_rope=_rope(fields, SLIDING, 10_000.0, 1.0),
        full_rope=_rope(fields, FULL, 1_000_000.0, 0.25),
    )
    if moe != (config.experts is not None):
        raise FormatError(f"{where}: enable_moe_block is {moe} but num_experts is {config.experts}")
    if moe and None in (config.experts_used, config.expert_intermediate_size):
        raise FormatError(f"{where}: enable_moe_block needs top_k_experts, moe_intermediate_size")
    for layer in range(n_layers):
        kv_heads = config.layer_kv_heads(layer)
        if config.heads % kv_heads:
            raise FormatError(
                f"{where}: num_attention_heads {config.heads} is no multiple of the "
                f"{kv_heads} key-value heads of layer {layer}"
            )
    return config


def _layer_types(fields: _Fields, n_layers: int) -> tuple[str, ...]:
    value = fields.values.get("layer_types")
    if value is None:
        # transformers' default pattern: every sixth layer is full, and so is the last.
        pattern = [SLIDING if (layer + 1) % 6 else FULL for layer in range(n_layers)]
        return (*pattern[:-1], FULL)
    if not isinstance(value, list) or any(item not in (SLIDING, FULL) for item in value):
        raise fields.error("layer_types", f"a list of {SLIDING!r} and {FULL!r}")
    if len(value) != n_layers:
        raise fields.error("layer_types", f"num_hidden_layers = {n_layers} entries")
    if value[-1] != FULL:
        raise fields.error("layer_types", f"a last layer of {FULL!r}")
    return tuple(value)


def _full_attention(
    fields: _Fields, layer_types: tuple[str, ...], k_eq_v: bool
) -> tuple[int, int | None]:
    """Head width and key-value head count of the full-attention layers."""
    overrides = fields.values.get("per_layer_config")
    if overrides is None:
        # As in transformers, the separate count is in force only where keys serve as values.
        kv_heads = fields.optional_size("num_global_key_value_heads") if k_eq_v else None
        return fields.size("global_head_dim", 512), kv_heads
    if not isinstance(overrides, dict):
        raise fields.error("per_layer_config", "an object")
    expected = [layer for layer, kind in enumerate(layer_types) if kind == FULL]
    # transformers pads the layer numbers with zeros to the width of the last.
    found = [int(name) if LAYER_NUMBER.fullmatch(name) else -1 for name in overrides]
    if sorted(found) != expected:
        raise fields.error("per_layer_config", f"entries for the full layers {expected}")
    entries = list(overrides.values())
    first = entries[0]
    if not isinstance(first, dict) or not set(first) <= {"head_dim", "num_key_value_heads"}:
        raise fields.error("per_layer_config", "head_dim and num_key_value_heads only")
    if any(entry != first for entry in entries):
        raise UnsupportedError(f"{fields.where}: full-attention layers of different widths")
    own = _Fields(first, f"{fields.where}: per_layer_config")
    if "head_dim" not in first:
        raise own.error("head_dim", "an integer")
    return own.size("head_dim", 0), own.optional_size("num_key_value_heads")


def check_rotation(values: dict[str, Any], where: str) -> None:
    """Raise UnsupportedError where ``rope_parameters`` in the configuration `values` asks for a
    rotation of another type, for a scaled one, or for something unknown.

    The structure is not checked here.
    """
    everything = values.get("rope_parameters")
    for kind, stated in everything.items() if isinstance(everything, dict) else ():
        if kind not in ROPE_TYPES and stated is not None:
            raise UnsupportedError(
                f"{where}: rope_parameters.{kind} is {brief(stated)}: unknown name, expected "
                f"{SLIDING!r} or {FULL!r}"
            )
        for name, value in stated.items() if isinstance(stated, dict) else ():
            expected = _expected_of_rope(kind, name, value)
            if expected is not None:
                raise UnsupportedError(
                    f"{where}: rope_parameters.{kind}: {name} is {brief(value)}, "
                    f"expected {expected}"
                )


def _expected_of_rope(kind: str, name: str, value: Any) -> str | None:
    """What was expected in place of a setting of one attention kind's rotation; None for one that
    is as expected."""
    if name in ("rope_type", "type"):
        return None if value == ROPE_TYPES[kind] else repr(ROPE_TYPES[kind])
    if name in ROPE_KEYS or value is None:
        return None
    if name in ROPE_SCALES:
        is_one = type(value) in (int, float) and value == 1
        return None if is_one else "1: scaled rotation is not supported"
    return f"no setting of this name (known: {', '.join((*ROPE_KEYS, *ROPE_SCALES))})"


def _rope(fields: _Fields, kind: str, theta: float, rotated: float) -> Rope:
    """The rotation of attention `kind`, already checked by `check_rotation`."""
    everything = fields.values.get("rope_parameters")
    if everything is None:
        return Rope(theta, rotated)
    if not isinstance(everything, dict) or not isinstance(everything.get(kind), dict):
        raise fields.error("rope_parameters", f"an object with {kind!r}")
    own = _Fields(everything[kind], f"{fields.where}: rope_parameters.{kind}")
    share = own.number("partial_rotary_factor", rotated)
    if share > 1:
        raise own.error("partial_rotary_factor", "a number up to 1")
    if kind == SLIDING and share != 1:
        raise UnsupportedError(f"{own.where}: partial_rotary_factor {share} is not supported")
    return Rope(own.number("rope_theta", theta), share)
