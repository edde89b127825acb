"""Where llama.cpp put things, read from its log: nothing else tells.

Sources: the lines ``… model buffer size = … MiB`` (llama-model.cpp), ``… KV buffer size``
(llama-kv-cache.cpp) and ``… compute buffer size`` (llama-context.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Buffer name, such as Vulkan0, RPC0, CPU or CPU_Mapped, -> MiB.
Placement = dict[str, float]


def placement(log: Sequence[str], kind: str) -> Placement:
    """Sum a log's ``model``, ``KV`` or ``compute`` buffers by where they lie."""
    found: Placement = {}
    for line in log:
        match = re.search(rf"(\S+) +{kind} buffer size = +([\d.]+) MiB", line)
        if match:
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found
