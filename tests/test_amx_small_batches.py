"""AMX weights times a few rows: each row must come out as it does alone, bit for bit.

Otherwise a token's logits would hang on how many drafts are verified with it.
"""

import numpy as np
import pytest

from ggml_library import Ggml, load_ggml
from gguf_mtp.ggml import TYPES

# Rows that go through the registers together, groups of them, and (from 65 on) upstream's tiles.
WIDTHS = (*range(2, 18), 24, 33, 64, 65, 80)
# Type -> offsets of the F16 scales within a block.
KINDS = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_XS": (0,),
}
# Rows x values: whole blocks of 64 rows and a half one; several superblocks of 256 values.
SHAPES = ((128, 512), (96, 256), (32, 1536))


@pytest.fixture(scope="module")
def ggml() -> Ggml:
    library = load_ggml()
    if library.amx_buffers() is None:
        pytest.skip("no AMX on this machine")
    return library


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_a_row_does_not_depend_on_the_others(ggml: Ggml, name: str, shape: tuple[int, int]) -> None:
    kind, (n, k) = TYPES[name], shape
    generator = np.random.Generator(np.random.SFC64(n + k))
    blocks = np.frombuffer(generator.bytes(kind.nbytes(shape)), np.uint8).copy()
    blocks = blocks.reshape(-1, kind.block_bytes)
    for offset in KINDS[name]:
        scales = generator.uniform(0.001, 0.01, len(blocks)).astype("<f2")
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    rows = generator.standard_normal((max(WIDTHS), k), np.float32)
    with ggml.context() as context:
        weights = ggml.call.new_tensor_2d(context, kind.id, k, n)
        buffer = ggml.call.backend_alloc_ctx_tensors_from_buft(context, ggml.amx_buffers())
        ggml.set(weights, blocks)
        alone = np.concatenate([ggml.product(weights, n, row[None]) for row in rows])
        assert np.isfinite(alone).all()
        assert alone.std() > 0.01
        for width in WIDTHS:
            together = ggml.product(weights, n, rows[:width])
            assert together.tobytes() == alone[:width].tobytes(), f"width {width}"
        ggml.call.backend_buffer_free(buffer)
