"""How much memory there is: the machine's (or the container's), and that of each device."""

import os
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Place:
    """Somewhere a model can lie. Bytes; `free` is None where only the whole is known."""

    name: str
    description: str
    total: int
    free: int | None = None

    @property
    def usable(self) -> int:
        return self.total if self.free is None else min(self.free, self.total)


def system_memory() -> int | None:
    """Bytes of memory that this process may use; None where the system does not say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = CGROUP.read_text("ascii").strip()
    except (OSError, ValueError):
        return total
    return min(total, int(limit)) if limit.isdigit() else total
