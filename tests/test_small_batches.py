"""Weights times a few rows: each row must come out as it does alone, and as upstream has it.

Otherwise a token's logits would hang on how many drafts are verified with it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ggml_library import X86, Ggml, Rows, builds
from gguf_mtp.ggml import TYPES

pytestmark = pytest.mark.skipif(not X86, reason="kernels of x86")

# Rows that go through the registers together, groups of them, and upstream's kernels for many.
WIDTHS = (*range(2, 18), 24, 33, 64, 65, 80)
# Type -> offsets of the F16 scales within a block.
SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_XS": (0,),
}
# Where weights stand -> types with a kernel there -> the most rows that come out alike.
KERNELS = {
    "AMX": dict.fromkeys(SCALES, 80),
    "CPU_REPACK": {"Q4_0": 80, "Q4_K": 16},
    "CPU": {"Q5_K": 12, "Q6_K": 12},
}
# Columns x values: one superblock of 256 values and several; a whole AMX block of 64 columns and a
# half one, which AMX wants, and an odd number of eights.
SHAPES = ((128, 512), (96, 256), (32, 1536), (40, 1536))
Shape = tuple[int, int]
CASES = [
    (variant, buffers, name, shape)
    for variant in ("exact", "avx2")
    for buffers, kinds in KERNELS.items()
    for name in kinds
    for shape in SHAPES
    if buffers != "AMX" or (variant == "exact" and shape[0] % 32 == 0)
]
# The product of each row alone, and the widths at which a row came out otherwise.
Products = tuple[Rows, list[int]]


def products(
    ggml: Ggml, widths: tuple[int, ...], buffers: str, name: str, shape: Shape
) -> Products | None:
    """None where the build or the machine has no such buffers."""
    kind, (n, k) = TYPES[name], shape
    generator = np.random.Generator(np.random.SFC64(n + k))
    blocks = np.frombuffer(generator.bytes(kind.nbytes(shape)), np.uint8).copy()
    blocks = blocks.reshape(-1, kind.block_bytes)
    for offset in SCALES[name]:
        scales = generator.uniform(0.001, 0.01, len(blocks)).astype("<f2")
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    rows = generator.standard_normal((max(WIDTHS), k), np.float32)
    where = ggml.buffers(buffers)
    if where is None:
        return None
    with ggml.context() as context:
        weights = ggml.call.new_tensor_2d(context, kind.id, k, n)
        buffer = ggml.call.backend_alloc_ctx_tensors_from_buft(context, where)
        ggml.set(weights, blocks)
        alone = np.concatenate([ggml.product(weights, n, row[None]) for row in rows])
        differ = [
            width
            for width in widths
            if width <= KERNELS[buffers][name]
            and ggml.product(weights, n, rows[:width]).tobytes() != alone[:width].tobytes()
        ]
        ggml.call.backend_buffer_free(buffer)
    return alone, differ


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., Any]]:
    with builds() as found:
        yield found


@pytest.mark.parametrize(("variant", "buffers", "name", "shape"), CASES, ids=str)
def test_a_row_does_not_depend_on_the_others(
    run: Callable[..., Any], variant: str, buffers: str, name: str, shape: Shape
) -> None:
    if run(variant, Ggml.features).get("AVX2") != "1":
        pytest.skip("the kernels are for CPUs with AVX2, and this build is without")
    found = run(variant, products, WIDTHS, buffers, name, shape)
    if found is None:
        pytest.skip(f"no {buffers} here")
    alone, differ = found
    assert np.isfinite(alone).all()
    assert alone.std() > 0.01
    assert not differ
    upstream, _ = run("stock", products, (), buffers, name, shape)
    assert alone.tobytes() == upstream.tobytes()
