"""Weights times a few rows: each row must come out as it does alone, and as upstream has it.

Otherwise a token's logits would hang on how many drafts are verified with it.
"""

import multiprocessing
import platform
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool

import numpy as np
import pytest

from ggml_library import Ggml, Rows
from gguf_mtp.ggml import TYPES
from llama_programs import programs

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
    "CPU": {"Q5_K": 16, "Q6_K": 16},
}
# Columns x values: one superblock of 256 values and several; a whole AMX block of 64 columns and a
# half one, which AMX wants, and an odd number of eights.
SHAPES = ((128, 512), (96, 256), (32, 1536), (40, 1536))
X86 = ("x86_64", "amd64")
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


_loaded: list[Ggml] = []


def _in_worker(directory: str, *case: object) -> Products | None:
    if not _loaded:
        _loaded.append(Ggml(directory))
    return products(_loaded[0], *case)  # type: ignore[arg-type]


Build = Callable[..., Products]


@pytest.fixture(scope="module")
def build() -> Iterator[Callable[[str], Build]]:
    """By its name, a build's `products`: in a process of its own, since one holds one ggml."""
    workers: dict[str, Pool] = {}

    def of(variant: str) -> Build:
        directory = str(programs(variant))
        worker = workers.setdefault(variant, multiprocessing.get_context("spawn").Pool(1))

        def run(*case: object) -> Products:
            result: Products | None = worker.apply(_in_worker, (directory, *case))
            if result is None:
                pytest.skip("the build or the machine has no such kernel")
            return result

        return run

    yield of
    for worker in workers.values():
        worker.terminate()


@pytest.mark.parametrize(("variant", "buffers", "name", "shape"), CASES, ids=str)
def test_a_row_does_not_depend_on_the_others(
    build: Callable[[str], Build], variant: str, buffers: str, name: str, shape: Shape
) -> None:
    if variant == "avx2" and platform.machine().lower() not in X86:
        pytest.skip("AVX2 is of x86")
    alone, differ = build(variant)(WIDTHS, buffers, name, shape)
    assert np.isfinite(alone).all()
    assert alone.std() > 0.01
    assert not differ
    upstream, _ = build("stock")((), buffers, name, shape)
    assert alone.tobytes() == upstream.tobytes()
