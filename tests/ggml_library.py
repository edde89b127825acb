"""ggml's CPU backend through ctypes: one operation at a time, for tests of kernels.

One process holds one ggml: builds other than that of `load_ggml` run in processes of their own.
"""

import ctypes
import itertools
import multiprocessing
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gguf_mtp.ggml import TYPES
from llama_programs import programs

CPU = 0  # enum ggml_backend_dev_type
X86 = platform.machine().lower() in ("x86_64", "amd64")

Rows = npt.NDArray[np.float32]


class _Feature(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("value", c_char_p))


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (c_void_p, [_InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_tanh": (c_void_p, [c_void_p, c_void_p]),
    "ggml_geglu_split": (c_void_p, [c_void_p, c_void_p, c_void_p]),
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

    def __init__(self, directory: Path | str) -> None:
        suffix = ".dylib" if platform.system() == "Darwin" else ".so"
        libraries = [
            ctypes.CDLL(str(Path(directory, f"lib{name}{suffix}")))
            for name in ("ggml-base", "ggml")
        ]
        self.call: Any = type("Functions", (), {})()
        for name, (result, arguments) in SIGNATURES.items():
            function = next(getattr(lib, name) for lib in libraries if hasattr(lib, name))
            function.restype, function.argtypes = result, arguments
            setattr(self.call, name.removeprefix("ggml_"), function)
        self.device = self.call.backend_dev_by_type(CPU)
        self.backend = self.call.backend_dev_init(self.device, None)

    def buffers(self, name: str) -> Any:
        """The CPU's buffer type of that name, None where this machine or build has none."""
        own = self.call.backend_dev_buffer_type(self.device)
        registry = self.call.backend_dev_backend_reg(self.device)
        wanted = b"ggml_backend_dev_get_extra_bufts"
        address = self.call.backend_reg_get_proc_address(registry, wanted)
        kinds = [own]
        if address:
            found = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self.device)
            kinds += itertools.takewhile(bool, map(found.__getitem__, itertools.count()))
        named = (kind for kind in kinds if self.call.backend_buft_name(kind) == name.encode())
        return next(named, None)

    def features(self) -> dict[str, str]:
        """What the CPU backend was compiled with, such as ``AVX2``: ``1``."""
        registry = self.call.backend_dev_backend_reg(self.device)
        address = self.call.backend_reg_get_proc_address(registry, b"ggml_backend_get_features")
        found = ctypes.CFUNCTYPE(POINTER(_Feature), c_void_p)(address)(registry)
        named = itertools.takewhile(lambda f: f.name, map(found.__getitem__, itertools.count()))
        return {feature.name.decode(): feature.value.decode() for feature in named}

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
        return self._compute(n, lambda context, x: self.call.mul_mat(context, weights, x), rows)

    def tanh(self, rows: Rows) -> Rows:
        """Of each value of `rows` [m, k]."""
        return self._compute(rows.shape[1], self.call.tanh, rows)

    def geglu(self, rows: Rows, gates: Rows) -> Rows:
        """GELU of each value of `rows` [m, k] times that of `gates`."""
        return self._compute(rows.shape[1], self.call.geglu_split, rows, gates)

    def _compute(self, n: int, operation: Callable[..., Any], *sources: Rows) -> Rows:
        with self.context() as context:
            m = len(sources[0])
            f32 = TYPES["F32"].id
            inputs = [self.call.new_tensor_2d(context, f32, x.shape[1], m) for x in sources]
            y = operation(context, *inputs)
            graph = self.call.new_graph(context)
            self.call.build_forward_expand(graph, y)
            kind = self.call.backend_dev_buffer_type(self.device)
            buffer = self.call.backend_alloc_ctx_tensors_from_buft(context, kind)
            for tensor, values in zip(inputs, sources, strict=True):
                self.set(tensor, np.ascontiguousarray(values))
            assert self.call.backend_graph_compute(self.backend, graph) == 0
            out = np.empty((m, n), np.float32)
            self.call.backend_tensor_get(y, out.ctypes.data, 0, out.nbytes)
            self.call.backend_buffer_free(buffer)
            return out


def load_ggml() -> Ggml:
    """Of the build that other tests load: one process holds one ggml. Skips without it."""
    return Ggml(programs("exact"))


_loaded: list[Ggml] = []


def _in_worker(directory: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if not _loaded:
        _loaded.append(Ggml(directory))
    return function(_loaded[0], *arguments)


@contextmanager
def builds() -> Iterator[Callable[..., Any]]:
    """A function that calls another, of a module, with a build's `Ggml` and further arguments:
    ``run("stock", function, *arguments)``. Skips `avx2` where the builds under test are for CPUs
    without it: they round otherwise, and the CPU may not have it."""
    with ExitStack() as stack:
        workers: dict[str, ProcessPoolExecutor] = {}

        def call(variant: str, function: Callable[..., Any], *arguments: Any) -> Any:
            directory = str(programs(variant))
            if variant not in workers:
                pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
                workers[variant] = stack.enter_context(pool)
            return workers[variant].submit(_in_worker, directory, function, arguments).result()

        def run(variant: str, function: Callable[..., Any], *arguments: Any) -> Any:
            if variant == "avx2" and call("stock", Ggml.features).get("AVX2") != "1":
                pytest.skip("the builds under test are without AVX2")
            return call(variant, function, *arguments)

        yield run
