"""Finding a llama.cpp shared library and loading llama-cpp-python's bindings on it."""

from __future__ import annotations

import ctypes
import importlib
import os
import socket
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_mtp.errors import FormatError, RuntimeUnavailable, brief
from gguf_mtp.readers.strict_json import read_object

ENV_LIBRARY = "LLAMA_CPP_LIB_PATH"  # llama-cpp-python's own variable: a directory
BUILD_HINT = "run `make patch-llamacpp`"
EXACT_HINT = "run `python tools/patch_llamacpp.py --variant exact`"
ALL_BACKENDS = "all"
VARIANTS = ("exact", "vulkan")  # those of tools/patch_llamacpp.py that are loaded here
DEVICE_BACKENDS = ("metal", "cuda", "vulkan")  # those that a library is built for

# ggml's names of its backends -> ours. Builds for AMD and Moore Threads are the CUDA backend too.
BACKEND_NAMES = {
    "CPU": "cpu", "MTL": "metal", "Metal": "metal", "Vulkan": "vulkan",
    "CUDA": "cuda", "ROCm": "cuda", "MUSA": "cuda", "RPC": "rpc",
}  # fmt: skip

# enum ggml_log_level (ggml.h)
LOG_LEVEL_DEBUG = 1
LOG_LEVEL_WARN = 3
LOG_LEVEL_ERROR = 4
LOG_LEVEL_CONTINUES = 5


@dataclass(frozen=True)
class LibraryRecord:
    """What ``make patch-llamacpp`` left behind: where the library is and what it was built from.

    `backend` is the one of `lib_dir`; the library of another one is a variant of that name.
    The ``exact`` variant is always for the CPU.
    """

    lib_dir: Path
    pin: str
    patches: str
    backend: str
    variants: Mapping[str, Path]  # name -> directory of its library

    @property
    def exact_lib_dir(self) -> Path | None:
        """The build with batch-invariant kernels, if there is one."""
        return self.variants.get("exact")

    def lib_dir_of(self, backend: str | None) -> tuple[Path, str] | None:
        """The library that serves `backend`, and the backend it was built for.

        None is the recorded default, which serves ``cpu`` too; ``all`` is the one with most
        backends. Returns None where no library recorded here has it.
        """
        own = (self.lib_dir, self.backend)
        if backend in (None, "cpu", self.backend):
            return own
        variant = "vulkan" if backend == ALL_BACKENDS and self.backend == "cpu" else backend
        if variant in DEVICE_BACKENDS and variant in self.variants:
            return self.variants[variant], variant
        return own if backend in (ALL_BACKENDS, "rpc") else None


@dataclass(frozen=True)
class LibraryChoice:
    """A directory to load libllama from, and who chose it."""

    lib_dir: Path | None  # None: the library inside llama-cpp-python itself
    origin: str  # "environment", "record", "exact record" or "bindings"
    record: LibraryRecord | None
    backend: str = ""  # what it was built for, where a record says so


@dataclass(frozen=True)
class Device:
    """One ggml backend device; `handle` is its ``ggml_backend_dev_t``."""

    name: str
    description: str
    is_cpu: bool
    backend: str  # "cpu", "metal", "vulkan", "cuda", "rpc", or ggml's own name of another one
    handle: int


def record_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where ``make patch-llamacpp`` records its build."""
    cache = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "gguf-mtp" / "llamacpp.json"


def read_record(path: Path) -> LibraryRecord | None:
    """Read the build record, or None where there is none.

    Raises RuntimeUnavailable for a record that cannot be understood.
    """
    if not os.path.lexists(path):
        return None
    try:
        fields = read_object(path)
        variants = {name: _lib_dir(path, fields[name], name) for name in VARIANTS if name in fields}
        texts = {name: fields.get(name, "") for name in ("pin", "patches", "backend")}
        for name, text in texts.items():
            if not isinstance(text, str):
                raise FormatError(f"{path}: {name} is {brief(text)}, expected text")
        return LibraryRecord(
            lib_dir=_lib_dir(path, fields, ""),
            pin=texts["pin"],
            patches=texts["patches"],
            backend=texts["backend"] or "cpu",
            variants=variants,
        )
    except FormatError as error:
        raise RuntimeUnavailable(f"{error}: not a llama.cpp record; {BUILD_HINT} again") from None


def _lib_dir(path: Path, fields: Any, name: str) -> Path:
    """The directory of a library, which may not be there any more, in the object `name`."""
    found = fields.get("lib_dir") if isinstance(fields, dict) else None
    if not isinstance(found, str) or not found or "\0" in found:
        where = f"{name}.lib_dir" if name else "lib_dir"
        raise FormatError(f"{path}: {where} is {brief(found)}, expected a directory")
    return Path(found)


def build_hint(backend: str) -> str:
    """How to build a library that has `backend`."""
    if backend == "vulkan":
        return "run `python tools/patch_llamacpp.py --variant vulkan`"
    return f"run `make patch-llamacpp BACKEND={backend}`" if backend != "rpc" else BUILD_HINT


def choose_library(
    exact: bool = False,
    environ: Mapping[str, str] = os.environ,
    backend: str | None = None,
) -> LibraryChoice:
    """Decide which library to load: the environment's, the record's, or the bindings' own.

    `exact` asks for the recorded build with batch-invariant kernels, `backend` for one that has
    that backend (``all``: as many as there are); a directory named by the environment is taken
    as it is. Raises RuntimeUnavailable where `exact` or `backend` cannot be met.
    """
    if exact and backend not in (None, "cpu"):
        raise RuntimeUnavailable(f"batch-invariant kernels are the CPU's, not those of {backend}")
    named = environ.get(ENV_LIBRARY)
    if named:
        return LibraryChoice(Path(named), "environment", None)
    path = record_path(environ)
    record = read_record(path)
    if record is None:
        if exact:
            raise RuntimeUnavailable(f"no llama.cpp is recorded in {path}; {EXACT_HINT}")
        return LibraryChoice(None, "bindings", None)
    if exact:
        if record.exact_lib_dir is None:
            raise RuntimeUnavailable(f"{path} records no batch-invariant build; {EXACT_HINT}")
        return LibraryChoice(record.exact_lib_dir, "exact record", record, "cpu")
    found = record.lib_dir_of(backend)
    if found is None:
        raise RuntimeUnavailable(
            f"{path} records no llama.cpp with the {backend} backend; {build_hint(str(backend))}"
        )
    return LibraryChoice(found[0], "record", record, found[1])


class LogTail:
    """Takes llama.cpp's log, keeps the last lines, and prints none unless `echo` is set.

    Lines for debugging are not kept: of a graph there are hundreds, and behind them the lines that
    say where things lie would be lost.
    """

    def __init__(self, keep: int = 200) -> None:
        self.echo = False
        self._lines: deque[tuple[int, str]] = deque(maxlen=keep)
        self._partial = ""
        self._level = 0

    def write(self, level: int, text: str) -> None:
        """Take one piece of log; a line may come in several."""
        if self.echo:
            print(text, end="", file=sys.stderr)
        if level != LOG_LEVEL_CONTINUES:
            self._level = level
        self._partial += text
        *lines, self._partial = self._partial.split("\n")
        if self._level != LOG_LEVEL_DEBUG:
            self._lines.extend((self._level, line.strip()) for line in lines if line.strip())

    def clear(self) -> None:
        """Forget everything seen so far."""
        self._lines.clear()
        self._partial = ""

    def lines(self) -> list[str]:
        """Return the lines kept, oldest first."""
        return [line for _, line in self._lines]

    def reason(self, n: int = 2) -> str:
        """Return the first `n` error lines (or warnings, failing those) since the last `clear`.

        The first ones say what is wrong; those after it only that something was.
        """
        for wanted in (LOG_LEVEL_ERROR, LOG_LEVEL_WARN):
            lines = [line for level, line in self._lines if level == wanted]
            if lines:
                return "; ".join(lines[:n])
        return ""


class Library:
    """A loaded libllama: the bindings' modules, its log, and what the patches add.

    `api` is ``llama_cpp.llama_cpp`` and `ext` is ``llama_cpp.llama_cpp_ext``.
    """

    def __init__(self, api: Any, ext: Any, bindings_version: str, choice: LibraryChoice) -> None:
        self.api = api
        self.ext = ext
        self.bindings_version = bindings_version
        self.choice = choice
        self.directory = Path(str(api._base_path))
        self.log = LogTail()
        # ctypes keeps no reference to a callback that C holds.
        self._log_callback = api.llama_log_callback(self._on_log)
        api.llama_log_set(self._log_callback, ctypes.c_void_p(0))
        api.llama_backend_init()
        self._registry = _registry(api._lib)
        self._load_heads = self._patched_function(
            "llama_model_load_mtp_from_file",
            [ctypes.c_char_p, api.llama_model_params],
            ctypes.c_void_p,
        )
        self._has_heads = self._patched_function(
            "llama_mtp_file_has_heads", [ctypes.c_char_p], ctypes.c_bool
        )

    def _on_log(self, level: int, text: bytes | None, _user_data: object) -> None:
        self.log.write(level, (text or b"").decode("utf-8", "replace"))

    def _patched_function(self, name: str, argtypes: list[Any], restype: Any) -> Any:
        try:
            function = getattr(self.api._lib, name)
        except AttributeError:
            return None
        function.argtypes = argtypes
        function.restype = restype
        return function

    @property
    def is_patched(self) -> bool:
        """Whether the library can load heads out of a merged file."""
        return self._load_heads is not None and self._has_heads is not None

    def _require_patches(self) -> None:
        if not self.is_patched:
            raise RuntimeUnavailable(f"{self.directory} is not a patched llama.cpp; {BUILD_HINT}")

    def has_heads(self, path: Path) -> bool:
        """Whether the GGUF at `path` carries MTP heads. Raises RuntimeUnavailable if unpatched."""
        self._require_patches()
        return bool(self._has_heads(os.fsencode(path)))

    def load_heads(self, path: Path, params: Any) -> int | None:
        """Load the heads inside a merged file as a model of their own (its address, or None)."""
        self._require_patches()
        address: int | None = self._load_heads(os.fsencode(path), params)
        return address

    @property
    def version(self) -> str:
        """The library's own version string."""
        return str(self.api.llama_version().decode("utf-8", "replace"))

    @property
    def features(self) -> str:
        """The backends and instruction sets compiled in, as llama.cpp prints them."""
        text = self.api.llama_print_system_info().decode("utf-8", "replace")
        return " ".join(text.replace("|", " ").split())

    def devices(self) -> list[Device]:
        """List the ggml backend devices; empty where the registry cannot be reached."""
        registry = self._registry
        if registry is None:
            return []
        found = []
        for index in range(registry.ggml_backend_dev_count()):
            handle = registry.ggml_backend_dev_get(index)
            owner = registry.ggml_backend_dev_backend_reg(handle)
            found.append(
                Device(
                    name=_text(registry.ggml_backend_dev_name(handle)),
                    description=_text(registry.ggml_backend_dev_description(handle)),
                    is_cpu=registry.ggml_backend_dev_type(handle) == 0,  # ..._DEVICE_TYPE_CPU
                    backend=_backend_name(registry.ggml_backend_reg_name(owner)),
                    handle=handle,
                )
            )
        return found

    def backends(self) -> list[str]:
        """Name the backends that were compiled in, whether or not they found a device."""
        registry = self._registry
        if registry is None:
            return []
        handles = map(registry.ggml_backend_reg_get, range(registry.ggml_backend_reg_count()))
        return [_backend_name(registry.ggml_backend_reg_name(handle)) for handle in handles]

    def add_rpc_server(self, endpoint: str) -> list[Device]:
        """Make the devices of a ggml-rpc-server at ``host:port`` this library's own.

        Returns them. Raises RuntimeUnavailable where the library has no RPC or nobody answers.
        """
        registry = self._registry
        if registry is None or "rpc" not in self.backends():
            raise RuntimeUnavailable(f"{self.directory} was built without RPC; {BUILD_HINT}")
        _require_listener(endpoint)
        rpc = registry.ggml_backend_reg_by_name(b"RPC")
        pointer = registry.ggml_backend_reg_get_proc_address(rpc, b"ggml_backend_rpc_add_server")
        add = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(pointer)
        before = {device.handle for device in self.devices()}
        self.log.clear()
        added = add(endpoint.encode())
        if not added:
            raise self.failure(f"no RPC server answers at {endpoint}")
        registry.ggml_backend_register(added)
        return [device for device in self.devices() if device.handle not in before]

    def failure(self, message: str) -> RuntimeUnavailable:
        """Make an error of `message` and the reason that the log gives."""
        details = self.log.reason()
        return RuntimeUnavailable(f"{message}: {details}" if details else message)


def _registry(lib: Any) -> Any:
    """libggml's functions over backends and devices, or None where they cannot be reached.

    They live in libggml, which the loader finds through libllama on Linux and macOS.
    """
    size, pointer, text, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    functions: dict[str, tuple[list[Any], Any]] = {
        "dev_count": ([], size),
        "dev_get": ([size], pointer),
        "dev_name": ([pointer], text),
        "dev_description": ([pointer], text),
        "dev_type": ([pointer], number),
        "dev_backend_reg": ([pointer], pointer),
        "reg_count": ([], size),
        "reg_get": ([size], pointer),
        "reg_name": ([pointer], text),
        "reg_by_name": ([text], pointer),
        "reg_get_proc_address": ([pointer, text], pointer),
        "register": ([pointer], None),
    }
    try:
        for name, (arguments, result) in functions.items():
            function = getattr(lib, f"ggml_backend_{name}")
            function.argtypes, function.restype = arguments, result
    except AttributeError:
        return None
    return lib


def _require_listener(endpoint: str) -> None:
    """Refuse an endpoint where nobody listens: ggml would end the process."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal():
        raise RuntimeUnavailable(f"{endpoint!r} is not HOST:PORT of an RPC server")
    try:
        with socket.create_connection((host, int(port)), timeout=10):
            return
    except (OSError, OverflowError) as error:
        raise RuntimeUnavailable(f"no RPC server answers at {endpoint}: {error}") from None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").strip()


def _backend_name(raw: bytes) -> str:
    # A server's registry entry is called RPC[host:port].
    name = _text(raw).partition("[")[0]
    return BACKEND_NAMES.get(name, name)


_loaded: Library | None = None


def load_library(exact: bool = False, backend: str | None = None) -> Library:
    """Load libllama through llama-cpp-python, once per process.

    llama-cpp-python binds its library when it is imported, so a process has one library for
    good. Raises RuntimeUnavailable when there is none, it does not load, or another one is
    already in place.
    """
    global _loaded
    choice = choose_library(exact, backend=backend)
    if _loaded is not None:
        if choice.lib_dir is not None and not _same_directory(choice.lib_dir, _loaded.directory):
            raise RuntimeUnavailable(
                f"llama.cpp is already loaded from {_loaded.directory}; "
                f"use a new process for {choice.lib_dir}"
            )
        return _loaded
    if choice.lib_dir is not None:
        if not os.path.isdir(choice.lib_dir):
            raise RuntimeUnavailable(f"{choice.lib_dir}: no such directory; {BUILD_HINT}")
        os.environ[ENV_LIBRARY] = str(choice.lib_dir)
    try:
        package = importlib.import_module("llama_cpp")
        api = importlib.import_module("llama_cpp.llama_cpp")
        ext = importlib.import_module("llama_cpp.llama_cpp_ext")
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(
            f"llama-cpp-python is not usable ({error}); pip install 'gguf-mtp[runtime]'"
        ) from None
    except FileNotFoundError:
        where = choice.lib_dir or "llama-cpp-python"
        raise RuntimeUnavailable(f"{where} holds no libllama; {BUILD_HINT}") from None
    except (AttributeError, RuntimeError, OSError) as error:
        # A missing symbol: the library is of another version than the bindings.
        where = choice.lib_dir or "llama-cpp-python's own library"
        raise RuntimeUnavailable(f"{where} does not load: {error}") from None
    library = Library(api, ext, str(package.__version__), choice)
    if choice.lib_dir is not None and not _same_directory(choice.lib_dir, library.directory):
        raise RuntimeUnavailable(
            f"llama_cpp was imported before with {library.directory}; "
            f"use a new process for {choice.lib_dir}"
        )
    _loaded = library
    return library


def _same_directory(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)
