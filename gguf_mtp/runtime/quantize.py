"""libllama's own quantizer, in a process of its own, so that a signal can end it at any moment.

``python -m gguf_mtp.runtime.quantize IN OUT FTYPE THREADS`` is the child; `quantize` runs it.
Source: llama.cpp ``src/llama-quant.cpp``, ``tools/quantize/quantize.cpp``.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.library import load_library

# Rows are quantized in slabs of this size: more would be faster by nothing.
BUFFER_BYTES = 1 << 28
_TENSOR = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")


def quantize(
    source: Path,
    out: Path,
    name: str,
    *,
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make of the GGUF `source` what ``llama-quantize source out NAME`` does, byte for byte.

    `progress` is called with tensors done and in all. Raises RuntimeUnavailable where there is no
    usable library, or with its reason where it fails; `out` is then of no use.
    """
    command = [sys.executable, "-m", __name__, str(source), str(out), name, str(threads)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stdout:
                done, total = line.split()
                progress(int(done), int(total))
            reason = process.stderr.read().strip()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        last = reason.splitlines()[-1] if reason else f"exit code {process.returncode}"
        raise RuntimeUnavailable(f"{source}: quantizing to {name} failed: {last}")


def require_library() -> None:
    """Raise RuntimeUnavailable unless a libllama loads; asked in a process of its own too."""
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RuntimeUnavailable(lines[-1] if lines else f"exit code {done.returncode}")


def _child(arguments: list[str]) -> int:
    try:
        library = load_library()
    except RuntimeUnavailable as error:
        print(error, file=sys.stderr)
        return 2
    if not arguments:
        return 0
    source, out, name, threads = arguments
    api = library.api

    def show(level: int, text: bytes | None, _user_data: object) -> None:
        line = (text or b"").decode("utf-8", "replace")
        library.log.write(level, line)
        found = _TENSOR.match(line)
        if found:
            print(*found.groups(), flush=True)

    callback = api.llama_log_callback(show)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    params = api.llama_model_quantize_default_params()
    params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{name.upper()}")
    params.nthread = int(threads)
    params.max_buf_size = BUFFER_BYTES
    if api.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)):
        print(library.log.reason() or "llama.cpp gives no reason", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
