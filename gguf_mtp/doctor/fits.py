"""Which of Gemma 4's sizes fit into a given memory, and in which number type.

Estimates: the file, the key-value cache of `CONTEXT` tokens in F16 and `WORK` bytes for computing.
Source: parameters as the model cards round them; layers, heads and windows of the published
configurations; bits a weight as llama.cpp's ``tools/quantize`` lists them.
"""

from dataclasses import dataclass

CONTEXT = 8192
WORK = 1 << 30
HEAD_DIM, FULL_HEAD_DIM = 256, 512
F16_BYTES, KEY_AND_VALUE = 2, 2
HEADS_BITS = 8.5  # q8_0, what convert gives heads by default
# Best first.
BITS = {"bf16": 16.0, "q8_0": 8.5, "q6_k": 6.57, "q5_k_m": 5.7, "q4_k_m": 4.89}


@dataclass(frozen=True)
class Size:
    """A model and its drafter. Parameters in billions; `full` and `sliding` count the layers with
    a key-value cache of their own."""

    name: str
    parameters: float
    drafter: float
    sliding: int
    full: int
    kv_heads: int
    full_kv_heads: int
    window: int

    def cache_bytes(self, context: int = CONTEXT) -> int:
        """The key-value cache: all of the context in full layers, the window in sliding ones."""
        wide = self.full * self.full_kv_heads * FULL_HEAD_DIM * context
        narrow = self.sliding * self.kv_heads * HEAD_DIM * min(context, self.window)
        return (wide + narrow) * F16_BYTES * KEY_AND_VALUE

    def needed(self, outtype: str) -> int:
        """Bytes of memory to run it with its heads."""
        bits = self.parameters * BITS[outtype] + self.drafter * HEADS_BITS
        return int(bits * 1e9 / 8) + self.cache_bytes() + WORK


SIZES = (
    Size("E2B", 5.1, 0.08, 12, 3, 1, 1, 512),
    Size("E4B", 8.0, 0.08, 20, 4, 2, 2, 512),
    Size("12B", 12.0, 0.42, 40, 8, 8, 1, 1024),
    Size("26B-A4B", 25.2, 0.42, 25, 5, 8, 2, 1024),
    Size("31B", 30.7, 0.47, 50, 10, 16, 4, 1024),
)


def best_that_fits(size: Size, memory: int) -> str | None:
    """The widest number type of `size` that runs in `memory` bytes, None where none does."""
    return next((name for name in BITS if size.needed(name) <= memory), None)
