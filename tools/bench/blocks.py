"""Random weights, written straight in a number type's blocks: nothing is quantized.

Source: ggml ``ggml-common.h`` (``block_q4_0``, ``block_q8_0``, ``block_q6_K``).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gguf_mtp.ggml import GgmlType

Bytes = npt.NDArray[np.uint8]

CHUNK_BYTES = 8 << 20
# Standard deviation of a weight: with normalized inputs, logits come out around 1.
SPREAD = 0.03
# Quantized type -> offset of the F16 scale in a block, and the standard deviation of what it
# multiplies: uniform 4 bits; uniform 8 bits; uniform 6 bits times the uniform 8-bit scale.
SCALES = {"Q4_0": (0, 4.61), "Q8_0": (0, 73.9), "Q6_K": (208, 18.5 * 73.9)}


def random_chunks(kind: GgmlType, nbytes: int, seed: int) -> Iterator[Bytes]:
    """`nbytes` of random weights in chunks of whole blocks. Raises KeyError for another type."""
    generator = np.random.Generator(np.random.SFC64(seed))
    largest = CHUNK_BYTES // kind.block_bytes * kind.block_bytes
    fill = {"F32": _f32, "F16": _f16, "BF16": _bf16}.get(kind.name)
    for start in range(0, nbytes, largest):
        size = min(largest, nbytes - start)
        yield _quantized(generator, kind, size) if fill is None else fill(generator, size)


def _quantized(generator: np.random.Generator, kind: GgmlType, size: int) -> Bytes:
    offset, spread = SCALES[kind.name]
    chunk = np.frombuffer(bytearray(generator.bytes(size)), np.uint8).reshape(-1, kind.block_bytes)
    chunk[:, offset : offset + 2] = np.array([SPREAD / spread], "<f2").view(np.uint8)
    return chunk.reshape(-1)


def _f32(generator: np.random.Generator, size: int) -> Bytes:
    return (generator.standard_normal(size // 4, np.float32) * SPREAD).view(np.uint8)


def _f16(generator: np.random.Generator, size: int) -> Bytes:
    values = generator.standard_normal(size // 2, np.float32) * SPREAD
    return values.astype("<f2").view(np.uint8)


def _bf16(generator: np.random.Generator, size: int) -> Bytes:
    values = generator.standard_normal(size // 2, np.float32) * SPREAD
    return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
