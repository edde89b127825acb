"""AMX weights times a few rows: each row must come out as it does alone, bit for bit.

Otherwise a token's logits would hang on how many drafts are verified with it.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gguf_mtp.ggml import TYPES
from llama_programs import programs

WIDTHS = range(2, 14)
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
CPU = 0  # enum ggml_backend_dev_type

Rows = npt.NDArray[np.float32]


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (c_void_p, [_InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_backend_dev_by_type": (c_void_p, [c_int]),
    "ggml_backend_dev_init": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_dev_backend_reg": (c_void_p, [c_void_p]),
    "ggml_backend_dev_buffer_type": (c_void_p, [c_void_p]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_buft_name": (c_char_p, [c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
}


class Ggml:
    """libggml's functions used here (without their prefix, in `call`) and its CPU backend."""

    def __init__(self, directory: Path) -> None:
        suffix = ".dylib" if platform.system() == "Darwin" else ".so"
        libraries = [
            ctypes.CDLL(str(directory / f"lib{name}{suffix}")) for name in ("ggml-base", "ggml")
        ]
        self.call: Any = type("Functions", (), {})()
        for name, (result, arguments) in SIGNATURES.items():
            function = next(getattr(lib, name) for lib in libraries if hasattr(lib, name))
            function.restype, function.argtypes = result, arguments
            setattr(self.call, name.removeprefix("ggml_"), function)
        self.device = self.call.backend_dev_by_type(CPU)
        self.backend = self.call.backend_dev_init(self.device, None)

    def amx_buffers(self) -> Any:
        """The AMX buffer type, None where this machine or build has none."""
        registry = self.call.backend_dev_backend_reg(self.device)
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.call.backend_reg_get_proc_address(registry, name)
        if not address:
            return None
        found = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self.device)
        index = 0
        while found and found[index]:
            if self.call.backend_buft_name(found[index]) == b"AMX":
                return found[index]
            index += 1
        return None

    @contextmanager
    def context(self) -> Iterator[Any]:
        made = self.call.init(_InitParams(1 << 20, None, True))
        try:
            yield made
        finally:
            self.call.free(made)

    def set(self, tensor: Any, values: npt.NDArray[Any]) -> None:
        self.call.backend_tensor_set(tensor, values.ctypes.data, 0, values.nbytes)

    def product(self, weights: Any, n: int, rows: Rows) -> Rows:
        """`rows` [m, k] times `weights` [n, k]: [m, n]."""
        with self.context() as context:
            m, k = rows.shape
            x = self.call.new_tensor_2d(context, TYPES["F32"].id, k, m)
            y = self.call.mul_mat(context, weights, x)
            graph = self.call.new_graph(context)
            self.call.build_forward_expand(graph, y)
            kind = self.call.backend_dev_buffer_type(self.device)
            buffer = self.call.backend_alloc_ctx_tensors_from_buft(context, kind)
            self.set(x, np.ascontiguousarray(rows))
            assert self.call.backend_graph_compute(self.backend, graph) == 0
            out = np.empty((m, n), np.float32)
            self.call.backend_tensor_get(y, out.ctypes.data, 0, out.nbytes)
            self.call.backend_buffer_free(buffer)
            return out


@pytest.fixture(scope="module")
def ggml() -> Ggml:
    # The build that other tests load: one process holds one ggml.
    library = Ggml(programs("exact"))
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
