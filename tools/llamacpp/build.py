"""Configure and build a llama.cpp tree for what the machine has."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamacpp.pin import SetupError, cache_dir

TARGETS = (
    "llama-speculative-simple",
    "llama-speculative",
    "llama-cli",
    "llama-server",
    "llama-quantize",
    "llama-tokenize",
    "ggml-rpc-server",
)

_COMMON_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    # Both fetch things from the network.
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    # Devices of other machines: one more small file, nothing of it runs unless a server is named.
    "-DGGML_RPC=ON",
)

# Instruction sets of x86 CPUs by kind, ggml's names: the levels that compilers know. Nothing newer
# than the level is used, so level 4 has no VNNI and no AMX.
_V2 = ("SSE42",)
_V3 = (*_V2, "AVX", "AVX2", "BMI2", "F16C", "FMA")
_V4 = (*_V3, "AVX512")
NATIVE = "native"  # what this machine has
CPUS = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}

# See the header in there.
VULKAN_HEADERS = Path(__file__).parent / "vulkan-headers"


@dataclass(frozen=True)
class Backend:
    """A ggml backend: how to see that the machine has it, and the CMake flags that choose it."""

    name: str
    present: Callable[[], bool]
    flags: tuple[str, ...]


def _succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def _has_vulkan_device() -> bool:
    if shutil.which("glslc") is None or shutil.which("vulkaninfo") is None:
        return False
    result = subprocess.run(["vulkaninfo", "--summary"], capture_output=True, text=True, timeout=60)
    # A software driver is slower than the CPU backend: only a real device counts.
    return bool(re.search(r"deviceType\s*=\s*PHYSICAL_DEVICE_TYPE_\w*GPU", result.stdout))


# In order of preference; the first one present is the default.
BACKENDS = (
    Backend("metal", lambda: platform.system() == "Darwin", ("-DGGML_METAL=ON",)),
    Backend(
        "cuda",
        lambda: shutil.which("nvcc") is not None and _succeeds("nvidia-smi", "-L"),
        ("-DGGML_CUDA=ON",),
    ),
    Backend("vulkan", _has_vulkan_device, ("-DGGML_VULKAN=ON",)),
    Backend("cpu", lambda: True, ("-DGGML_METAL=OFF",)),
)


def choose_backend(name: str) -> Backend:
    """The backend called `name`, or the first one that this machine has for ``auto``."""
    for backend in BACKENDS:
        if name == backend.name or (name == "auto" and backend.present()):
            return backend
    names = ", ".join(b.name for b in BACKENDS)
    raise SetupError(f"unknown backend {name!r}; expected auto or one of {names}")


def cpu_flags(name: str) -> tuple[str, ...]:
    """CMake flags for a kind of CPU: one of `CPUS`, or `NATIVE` for this machine's."""
    if name == NATIVE:
        return ()
    # ggml turns some of them on by itself where it builds for another machine.
    wanted = ((each, "ON" if each in CPUS[name] else "OFF") for each in _V4)
    return ("-DGGML_NATIVE=OFF", *(f"-DGGML_{each}={state}" for each, state in wanted))


def directory(tree: Path, backend: Backend, name: str, flags: Sequence[str]) -> Path:
    """The build folder for `name`; one of its own for flags, which CMake would remember."""
    digest = hashlib.sha256("\0".join(flags).encode()).hexdigest()[:8] if flags else ""
    # llama.cpp's .gitignore covers names like this.
    return tree / "-".join(filter(None, ("build-mtp", backend.name, name, digest)))


def configure(tree: Path, build: Path, backend: Backend, extra: tuple[str, ...]) -> None:
    """Run CMake for `tree` into `build`; ccache and Ninja are used where they are installed."""
    build.mkdir(parents=True, exist_ok=True)
    flags = [*_COMMON_FLAGS, *backend.flags, *extra]
    if backend.name == "vulkan" and vulkan_headers_are_old():
        # A copy: under the cache, ccache sees the same path from every clone.
        shutil.copytree(VULKAN_HEADERS, build / "vulkan-headers", dirs_exist_ok=True)
        flags += [f"-DVulkan_INCLUDE_DIR={build / 'vulkan-headers'}"]
    if shutil.which("ninja"):
        flags += ["-G", "Ninja"]
    if shutil.which("ccache"):
        flags += [f"-DCMAKE_{lang}_COMPILER_LAUNCHER=ccache" for lang in ("C", "CXX")]
        if backend.name == "cuda":
            flags += ["-DCMAKE_CUDA_COMPILER_LAUNCHER=ccache"]
    _run(["cmake", "-S", str(tree), "-B", str(build), *flags], build / "configure.log", "configure")


def vulkan_headers_are_old() -> bool:
    """Whether the compiler's own Vulkan headers are there but lack what ggml-vulkan names."""
    if "VULKAN_SDK" in os.environ:  # CMake takes the headers from there
        return False
    result = subprocess.run(
        [os.environ.get("CXX") or "c++", "-x", "c++", "-E", "-dM", "-"],
        input="#include <vulkan/vulkan_core.h>\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.returncode == 0 and "VK_EXT_layer_settings" not in result.stdout


def compile_targets(build: Path, targets: tuple[str, ...], jobs: int, label: str) -> None:
    """Build `targets`; raises SetupError with the compiler's first error when one fails."""
    command = ["cmake", "--build", str(build), "--parallel", str(jobs), "--target", *targets]
    _run(command, build / "build.log", label)


def _run(command: list[str], log: Path, label: str) -> None:
    if shutil.which(command[0]) is None:
        raise SetupError(f"{command[0]} is not installed")
    environment = {
        **os.environ,
        # Trees with the same relative layout share objects, whichever clone or variant built them.
        "CCACHE_BASEDIR": str(cache_dir()),
        "CCACHE_NOHASHDIR": "1",
    }
    recent: deque[str] = deque(maxlen=200)
    meter = _Meter(label)
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            recent.append(line)
            meter.see(line)
        code = process.wait()
    meter.close()
    if code != 0:
        errors = [line.strip() for line in recent if re.search(r"\berror\b", line, re.IGNORECASE)]
        reason = errors[0] if errors else (recent[-1].strip() if recent else f"exit {code}")
        raise SetupError(f"{label} failed: {reason} (log: {log})")


class _Meter:
    """Shows build progress from Ninja's ``[3/40]`` and Make's ``[ 7%]`` prefixes."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.live = sys.stderr.isatty()
        self.shown = -1
        self.total = 0

    def see(self, line: str) -> None:
        match = re.match(r"\[\s*(\d+)(?:/(\d+)|%)\]", line)
        if match is None:
            return
        done, total = int(match.group(1)), int(match.group(2) or 100)
        # The shader generator's build runs inside and counts for itself: the larger one is ours.
        if total > self.total:
            self.total, self.shown = total, -1
        if total < self.total:
            return
        percent = 100 * done // total
        # A log gets a line for every tenth, a terminal one line that changes.
        step = percent if self.live else percent // 10 * 10
        if step > self.shown:
            self.shown = step
            end = "\r" if self.live else "\n"
            print(f"  {self.label}: {step:3d} %", end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live and self.shown >= 0:
            print(file=sys.stderr)
