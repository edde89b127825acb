"""Gemma 4's hyper-parameters as GGUF keys, in the order llama.cpp's converter writes them.

Source: llama.cpp ``conversion/gemma.py`` and ``conversion/base.py``, ``set_gguf_parameters``.
"""

import struct
from collections.abc import Iterator

from gguf_mtp.gemma4.config import SLIDING, TextConfig
from gguf_mtp.ggml import BF16, F16, F32, Q4_0, Q8_0, QUANTIZATION_VERSION, GgmlType
from gguf_mtp.keyvalue import KeyValue, ValueType, array, f32, u32
from gguf_mtp.model import Tensor

ROPE_FREQS = "rope_freqs.weight"
# llama.h's ``llama_ftype``.
FILE_TYPES = {F32: 0, F16: 1, BF16: 32, Q8_0: 7, Q4_0: 2}


def hyperparameters(config: TextConfig, arch: str, outtype: GgmlType) -> Iterator[KeyValue]:
    """The keys of one text stack under the architecture name `arch`."""
    yield u32(f"{arch}.block_count", config.n_layers)
    yield u32(f"{arch}.context_length", config.context_length)
    yield u32(f"{arch}.embedding_length", config.hidden_size)
    feed_forward = f"{arch}.feed_forward_length"
    if config.double_wide_mlp:
        widths = [config.feed_forward(layer) for layer in range(config.n_layers)]
        yield array(feed_forward, ValueType.INT32, widths)
    else:
        yield u32(feed_forward, config.intermediate_size)
    yield u32(f"{arch}.attention.head_count", config.heads)
    kv_heads = f"{arch}.attention.head_count_kv"
    if config.full_kv_heads is None:
        yield u32(kv_heads, config.kv_heads)
    else:
        counts = [config.layer_kv_heads(layer) for layer in range(config.n_layers)]
        yield array(kv_heads, ValueType.INT32, counts)
    yield f32(f"{arch}.rope.freq_base", config.full_rope.theta)
    yield f32(f"{arch}.rope.freq_base_swa", config.sliding_rope.theta)
    yield f32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    if config.experts is not None:
        yield u32(f"{arch}.expert_count", config.experts)
    if config.experts_used is not None:
        yield u32(f"{arch}.expert_used_count", config.experts_used)
    yield u32(f"{arch}.attention.key_length", config.full_head_dim)
    yield u32(f"{arch}.attention.value_length", config.full_head_dim)
    yield u32("general.file_type", FILE_TYPES[outtype])
    if config.final_logit_softcapping is not None:
        yield f32(f"{arch}.final_logit_softcapping", config.final_logit_softcapping)
    yield u32(f"{arch}.attention.sliding_window", config.sliding_window)
    yield u32(f"{arch}.attention.shared_kv_layers", config.kv_shared_layers)
    yield u32(f"{arch}.embedding_length_per_layer_input", config.per_layer_input_size)
    sliding = [kind == SLIDING for kind in config.layer_types]
    yield array(f"{arch}.attention.sliding_window_pattern", ValueType.BOOL, sliding)
    yield u32(f"{arch}.attention.key_length_swa", config.head_dim)
    yield u32(f"{arch}.attention.value_length_swa", config.head_dim)
    if config.expert_intermediate_size is not None:
        yield u32(f"{arch}.expert_feed_forward_length", config.expert_intermediate_size)
    yield u32(f"{arch}.rope.dimension_count", config.full_head_dim)
    yield u32(f"{arch}.rope.dimension_count_swa", config.head_dim)


def quantization_version() -> KeyValue:
    return u32("general.quantization_version", QUANTIZATION_VERSION)


def rope_freqs(config: TextConfig) -> Tensor:
    """Frequency divisors of the full-attention layers, F32 [full_head_dim / 2].

    "Proportional" rotation turns only the first share of each half of a head; ggml rotates all
    of it, so the rest is divided down to a standstill.
    """
    half = config.full_head_dim // 2
    turning = int(config.full_head_dim * config.full_rope.rotated / 2)
    values = [1.0] * turning + [1e30] * (half - turning)
    encoded = struct.pack(f"<{half}f", *values)
    return Tensor(ROPE_FREQS, F32, (half,), encoded, verbatim=True)
