"""Number types, bit for bit against gguf-py."""

import numpy as np
import numpy.typing as npt
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gguf_mtp.encode import PASS_VALUES, SOURCE_BYTES, Encoder
from gguf_mtp.ggml import TYPES

ENCODER = Encoder(4 * PASS_VALUES)
TARGETS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


def widened(chunk: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.generic]:
    """As llama.cpp's converter hands a chunk to gguf-py: F16 as it is, BF16 as F32."""
    if dtype == "BF16":
        return (chunk.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return chunk.view(np.float16 if dtype == "F16" else np.float32)


def reference(chunk: npt.NDArray[np.uint8], dtype: str, target: str) -> bytes:
    rows = widened(chunk, dtype).reshape(-1, 32)
    with np.errstate(all="ignore"):
        return bytes(quants.quantize(rows, GGMLQuantizationType[target]).tobytes())


def check(chunk: npt.NDArray[np.uint8], dtype: str) -> None:
    for target in TARGETS:
        found = ENCODER.encode(chunk, dtype, TYPES[target]).tobytes()
        assert found == reference(chunk, dtype, target), target


@given(hnp.arrays(np.uint32, st.integers(1, 6).map(lambda blocks: 32 * blocks)))
@settings(max_examples=200, deadline=None)
def test_any_f32_bits(bits: npt.NDArray[np.uint32]) -> None:
    check(bits.view(np.uint8), "F32")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_all_16_bit_values(dtype: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    check(every.view(np.uint8), dtype)
    shuffled = np.random.default_rng(7).permutation(every)
    check(shuffled.view(np.uint8), dtype)


# Halves survive the division by the scale only where it is a power of two.
MAGNITUDES = st.sampled_from([127.0, 63.5, 0.49609375, 1e-30, 3e38, 1e-38, 8.4e6, 65504.0])


@given(
    MAGNITUDES,
    hnp.arrays(np.int32, 31, elements=st.integers(-254, 254)),
)
@settings(max_examples=200, deadline=None)
def test_ties(largest: float, halves: npt.NDArray[np.int32]) -> None:
    values = np.empty(32, np.float32)
    values[0] = largest
    values[1:] = (halves * (np.float64(largest) / 254)).astype(np.float32)
    check(values.view(np.uint8), "F32")
    rounded = (values.view(np.uint32) >> 16).astype(np.uint16)
    check(rounded.view(np.uint8), "BF16")


def test_q8_0_tie_rounds_away_from_zero() -> None:
    values = np.zeros(32, np.float32)
    values[:5] = (127, 0.5, -0.5, 2.5, np.nextafter(np.float32(0.5), np.float32(0)))
    block = ENCODER.encode(values.view(np.uint8), "F32", TYPES["Q8_0"])
    assert block[2:7].view(np.int8).tolist() == [127, 1, -1, 3, 0]


@pytest.mark.parametrize(
    "value", [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1e-40, 2.9e-39, 3.4e38]
)
def test_special_values_in_a_block(value: float) -> None:
    values = np.linspace(-1, 1, 64, dtype=np.float32)
    values[40] = value
    check(values.view(np.uint8), "F32")
    check(np.full(64, value, np.float32).view(np.uint8), "F32")


@pytest.mark.parametrize("dtype", list(SOURCE_BYTES))
def test_chunks_longer_than_a_pass(dtype: str) -> None:
    rng = np.random.default_rng(1)
    values = (rng.standard_normal(2 * PASS_VALUES + 32) * 0.05).astype(np.float32)
    if dtype == "BF16":
        chunk = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        chunk = values.astype(np.float16 if dtype == "F16" else np.float32).view(np.uint8)
    check(chunk, dtype)


def test_bf16_stays_as_it_is_without_copying() -> None:
    chunk = np.full(64, 0x3F, np.uint8)
    assert ENCODER.encode(chunk, "BF16", TYPES["BF16"]) is chunk


def test_signalling_nan_turns_quiet() -> None:
    chunk = np.array([0x7F81, 0x3F80], np.uint16)
    out = ENCODER.encode(chunk.view(np.uint8), "BF16", TYPES["BF16"])
    assert out.view(np.uint16).tolist() == [0x7FC1, 0x3F80]
