"""Load the llama.cpp that gguf-mtp would use and print what it is, as JSON.

Run in a process of its own (``python -m gguf_mtp.doctor.probe``): a library that does not fit the
bindings may end the process.
"""

import ctypes
import json
from typing import Any

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.library import Library, load_library


def main() -> None:
    try:
        print(json.dumps(describe(load_library())))
    except RuntimeUnavailable as error:
        print(json.dumps({"error": str(error)}))


def describe(library: Library) -> dict[str, Any]:
    """Version, directory, whether patched, and devices with their memory in bytes."""
    record = library.choice.record
    return {
        "directory": str(library.directory),
        "origin": library.choice.origin,
        "version": library.version,
        "commit": record.pin if record else None,
        "backend": record.backend if record else None,
        "patched": library.is_patched,
        "devices": [
            {
                "name": device.name,
                "description": device.description,
                "cpu": device.is_cpu,
                **_memory(library, device.handle),
            }
            for device in library.devices()
        ],
    }


def _memory(library: Library, handle: int) -> dict[str, int]:
    """Source: ggml-backend.h, ``ggml_backend_dev_memory``."""
    try:
        ask = library.api._lib.ggml_backend_dev_memory
    except AttributeError:
        return {}
    ask.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    ask.restype = None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ask(handle, ctypes.byref(free), ctypes.byref(total))
    return {"free": free.value, "total": total.value}


if __name__ == "__main__":
    main()
