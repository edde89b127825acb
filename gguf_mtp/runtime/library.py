"""Finding a llama.cpp shared library and loading llama-cpp-python's bindings on it."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_mtp.errors import RuntimeUnavailable

ENV_LIBRARY = "LLAMA_CPP_LIB_PATH"  # llama-cpp-python's own variable: a directory
BUILD_HINT = "run `make patch-llamacpp`"
EXACT_HINT = "run `python tools/patch_llamacpp.py --variant exact`"

# enum ggml_log_level (ggml.h)
LOG_LEVEL_WARN = 3
LOG_LEVEL_ERROR = 4
LOG_LEVEL_CONTINUES = 5


@dataclass(frozen=True)
class LibraryRecord:
    """What ``make patch-llamacpp`` left behind: where the library is and what it was built from."""

    lib_dir: Path
    pin: str
    patches: str
    backend: str  # of `lib_dir`; an exact build is always for the CPU
    exact_lib_dir: Path | None


@dataclass(frozen=True)
class LibraryChoice:
    """A directory to load libllama from, and who chose it."""

    lib_dir: Path | None  # None: the library inside llama-cpp-python itself
    origin: str  # "environment", "record", "exact record" or "bindings"
    record: LibraryRecord | None


@dataclass(frozen=True)
class Device:
    """One ggml backend device; `handle` is its ``ggml_backend_dev_t``."""

    name: str
    description: str
    is_cpu: bool
    handle: int


def record_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where ``make patch-llamacpp`` records its build."""
    cache = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "gguf-mtp" / "llamacpp.json"


def read_record(path: Path) -> LibraryRecord | None:
    """Read the build record, or None where there is none.

    Raises RuntimeUnavailable for a record that cannot be understood.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeUnavailable(f"{path}: cannot read the llama.cpp record ({error})") from None
    try:
        fields = json.loads(text)
        exact = fields.get("exact")
        return LibraryRecord(
            lib_dir=Path(fields["lib_dir"]),
            pin=str(fields.get("pin", "")),
            patches=str(fields.get("patches", "")),
            backend=str(fields.get("backend", "cpu")),
            exact_lib_dir=Path(exact["lib_dir"]) if exact else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RuntimeUnavailable(
            f"{path}: not a llama.cpp record ({type(error).__name__}: {error}); {BUILD_HINT} again"
        ) from None


def choose_library(exact: bool = False, environ: Mapping[str, str] = os.environ) -> LibraryChoice:
    """Decide which library to load: the environment's, the record's, or the bindings' own.

    `exact` asks for the recorded build with batch-invariant kernels; a directory named by
    the environment is taken as it is. Raises RuntimeUnavailable where `exact` cannot be met.
    """
    named = environ.get(ENV_LIBRARY)
    if named:
        return LibraryChoice(Path(named), "environment", None)
    path = record_path(environ)
    record = read_record(path)
    if record is None:
        if exact:
            raise RuntimeUnavailable(f"no llama.cpp is recorded in {path}; {EXACT_HINT}")
        return LibraryChoice(None, "bindings", None)
    if not exact:
        return LibraryChoice(record.lib_dir, "record", record)
    if record.exact_lib_dir is None:
        raise RuntimeUnavailable(f"{path} records no batch-invariant build; {EXACT_HINT}")
    return LibraryChoice(record.exact_lib_dir, "exact record", record)


class LogTail:
    """Takes llama.cpp's log, keeps the last lines, and prints none unless `echo` is set."""

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
        """List the ggml backend devices; empty where the registry cannot be reached.

        ``ggml_backend_dev_*`` live in libggml, which the loader finds through libllama on
        Linux and macOS.
        """
        lib = self.api._lib
        try:
            count, get = lib.ggml_backend_dev_count, lib.ggml_backend_dev_get
            name, describe = lib.ggml_backend_dev_name, lib.ggml_backend_dev_description
            kind = lib.ggml_backend_dev_type
        except AttributeError:
            return []
        count.argtypes, count.restype = [], ctypes.c_size_t
        get.argtypes, get.restype = [ctypes.c_size_t], ctypes.c_void_p
        for text_function in (name, describe):
            text_function.argtypes, text_function.restype = [ctypes.c_void_p], ctypes.c_char_p
        kind.argtypes, kind.restype = [ctypes.c_void_p], ctypes.c_int
        found = []
        for index in range(count()):
            handle = get(index)
            found.append(
                Device(
                    name=name(handle).decode("utf-8", "replace"),
                    description=describe(handle).decode("utf-8", "replace").strip(),
                    is_cpu=kind(handle) == 0,  # GGML_BACKEND_DEVICE_TYPE_CPU
                    handle=handle,
                )
            )
        return found

    def failure(self, message: str) -> RuntimeUnavailable:
        """Make an error of `message` and the reason that the log gives."""
        details = self.log.reason()
        return RuntimeUnavailable(f"{message}: {details}" if details else message)


_loaded: Library | None = None


def load_library(exact: bool = False) -> Library:
    """Load libllama through llama-cpp-python, once per process.

    llama-cpp-python binds its library when it is imported, so a process has one library for
    good. Raises RuntimeUnavailable when there is none, it does not load, or another one is
    already in place.
    """
    global _loaded
    choice = choose_library(exact)
    if _loaded is not None:
        if choice.lib_dir is not None and not _same_directory(choice.lib_dir, _loaded.directory):
            raise RuntimeUnavailable(
                f"llama.cpp is already loaded from {_loaded.directory}; "
                f"use a new process for {choice.lib_dir}"
            )
        return _loaded
    if choice.lib_dir is not None:
        if not choice.lib_dir.is_dir():
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
