"""Which of Gemma 4's sizes fit into a given memory, and in which number type.

Estimates: all weights, the key-value cache of `CONTEXT` tokens in F16, and `WORK` bytes for
computing.
"""

from functools import cache

from gguf_mtp.doctor.weights import NUMBER_TYPES, heads_bytes, target_bytes
from gguf_mtp.gemma4.config import FULL, TextConfig
from gguf_mtp.gemma4.released import RELEASED

CONTEXT = 8192
WORK = 1 << 30
# Sliding layers keep their window and the batch that is being read, in whole steps
# (llama.cpp ``src/llama-kv-cache-iswa.cpp``; its default batch).
BATCH, STEP = 512, 256
F16_BYTES, KEY_AND_VALUE = 2, 2


def cache_bytes(config: TextConfig, context: int = CONTEXT) -> int:
    """The key-value cache of the layers that have one of their own."""
    window = min(context, -(-(config.sliding_window + BATCH) // STEP) * STEP)
    values = 0
    for layer in range(config.first_shared_layer):
        rows = context if config.layer_types[layer] == FULL else window
        values += rows * config.layer_kv_heads(layer) * config.layer_head_dim(layer)
    return values * F16_BYTES * KEY_AND_VALUE


@cache
def needed(size: str, outtype: str) -> int:
    """Bytes of memory to run `size`, one of `RELEASED`, with its heads."""
    released = RELEASED[size]
    weights = target_bytes(released, outtype) + heads_bytes(released)
    return weights + cache_bytes(released.target) + WORK


def best_that_fits(size: str, memory: int) -> str | None:
    """The widest number type of `size` that runs in `memory` bytes, None where none does."""
    return next((name for name in NUMBER_TYPES if needed(size, name) <= memory), None)
