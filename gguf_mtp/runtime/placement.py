"""Where llama.cpp put things, read from its log: nothing else tells.

Sources: the lines ``… model buffer size = … MiB`` (llama-model.cpp), ``… KV buffer size``
(llama-kv-cache.cpp) and ``… compute buffer size`` (llama-context.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gguf_mtp.errors import RuntimeUnavailable

# Buffer name, such as Vulkan0, RPC0, CPU or CPU_Mapped, -> MiB.
Placement = dict[str, float]

KV_CACHE = "KV cache"


def placement(log: Sequence[str], kind: str) -> Placement:
    """Sum a log's ``model``, ``KV`` or ``compute`` buffers by where they lie."""
    found: Placement = {}
    for line in log:
        match = re.search(rf"(\S+) +{kind} buffer size = +([\d.]+) MiB", line)
        if match:
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


def require_on_devices(names: str, parts: Mapping[str, Placement]) -> None:
    """Raise RuntimeUnavailable where a part has nothing on the devices, `names` between commas.

    Weights and compute buffers of the CPU beside the device's are usual (token embeddings stay
    with it); a KV cache there is not. llama.cpp reports none of this as an error.
    """
    devices = tuple(name.strip().lower() for name in names.split(","))

    for what, place in parts.items():
        strayed = {n: size for n, size in place.items() if not n.lower().startswith(devices)}
        if sum(place.values()) <= sum(strayed.values()):
            raise RuntimeUnavailable(f"the {what} did not go to {names} but to: {listed(place)}")
        if what == KV_CACHE and strayed:
            raise RuntimeUnavailable(f"part of the {what} is not on {names}: {listed(strayed)}")


def listed(place: Placement) -> str:
    """Buffers for a message."""
    return ", ".join(f"{name} ({size:.2f} MiB)" for name, size in place.items()) or "nowhere"
