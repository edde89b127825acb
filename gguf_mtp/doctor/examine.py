"""All checks of a machine, in the order in which they are shown."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf_mtp import system
from gguf_mtp.doctor.checks import MISSING, OK, PROGRAMS, WARN, Check, package, program, versions
from gguf_mtp.doctor.fits import CONTEXT, best_that_fits, needed
from gguf_mtp.doctor.memory import Place, system_memory
from gguf_mtp.doctor.weights import NUMBER_TYPES, target_bytes
from gguf_mtp.gemma4.released import RELEASED

SCHEMA = "gguf-mtp.doctor/1"
PROBE_SECONDS = 120
GIB = 1 << 30
_TARGET = "python tools/patch_llamacpp.py" if system.WINDOWS else "make patch-llamacpp"
_CUDA = "--backend cuda" if system.WINDOWS else "BACKEND=cuda"
BUILD = f"{_TARGET} (in a clone of gguf-mtp)"
BUILD_CUDA = f"{_TARGET} {_CUDA} (in a clone of gguf-mtp)"


@dataclass(frozen=True)
class Examination:
    """What was found. `places` are the memories that models may lie in, the fastest first."""

    checks: tuple[Check, ...]
    places: tuple[Place, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing that running a merged file takes."""
        return all(check.state != MISSING for check in self.checks)

    def next_steps(self) -> list[str]:
        """What to do, in order, each once; what is missing before what would be nice."""
        ranked = sorted(self.checks, key=lambda check: check.state != MISSING)
        return list(dict.fromkeys(check.next for check in ranked if check.next))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "complete": self.complete,
            "checks": [asdict(check) for check in self.checks],
            "places": [asdict(place) for place in self.places],
            "fits": [
                {
                    "size": size,
                    "place": place.name,
                    "outtype": best_that_fits(size, place.usable),
                }
                for size in RELEASED
                for place in self.places
            ],
            "next": self.next_steps(),
        }


def examine() -> Examination:
    """Look at this machine. Loads the llama.cpp library in a process of its own."""
    probed = _probe()
    devices = [entry for entry in probed.get("devices", []) if isinstance(entry, dict)]
    asked = [_place(device) for device in devices if not device.get("cpu")]
    places = [place for place in asked if place is not None] or _nvidia()
    memory = system_memory() or _memory_of_cpu(devices)
    if memory is not None:
        places.append(Place("memory", "main memory", memory))
    found = tuple(places)
    built = (
        package("llama-cpp-python", "bindings", "runtime", "validate needs it", required=True),
        _library(probed),
        _backends(devices, found),
    )
    # What builds a library is needed only where there is none.
    has_library = built[1].state == OK
    tools = [program(row) for row in PROGRAMS]
    if has_library:
        tools = [_not_needed(check) for check in tools]
    return Examination(
        (
            versions(),
            *tools,
            *built,
            package("huggingface_hub", "hub", "hub", "only for names of the hub", required=False),
            _disk(),
            _memory(memory),
            *(_fit(size, found) for size in RELEASED),
        ),
        found,
    )


def _probe() -> dict[str, Any]:
    """What the library says of itself; ``error`` where it cannot be used."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gguf_mtp.doctor.probe"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        found = json.loads(done.stdout.splitlines()[-1]) if done.stdout else None
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"error": f"cannot be asked: {error}"}
    if not isinstance(found, dict):
        return {"error": f"ends the process that loads it (exit code {done.returncode})"}
    return found


def _library(probed: dict[str, Any]) -> Check:
    if "error" in probed:
        return Check("llama.cpp", MISSING, str(probed["error"]), BUILD)
    where = f"{probed['version']} in {_home(str(probed['directory']))}"
    if not probed.get("patched"):
        return Check("llama.cpp", WARN, f"stock, no MTP from one file: {where}", BUILD)
    commit = f" @ {probed['commit']}" if probed.get("commit") else ""
    return Check("llama.cpp", OK, f"patched{commit}, {where}")


def _home(path: str) -> str:
    home = os.path.expanduser("~")
    return f"~{path[len(home) :]}" if path.startswith(home + os.sep) else path


def _backends(devices: list[dict[str, Any]], places: tuple[Place, ...]) -> Check:
    """What computes; a GPU that the library does not use is worth a word."""
    names = [f"{d.get('name')} ({d.get('description')})" for d in devices]
    unused = [p for p in places if p.name != "memory"] and all(d.get("cpu") for d in devices)
    if not names:
        return Check("devices", WARN, "unknown, as there is no library to ask")
    text = ", ".join(names)
    if unused:
        return Check("devices", WARN, f"{text}; the GPU is not used", BUILD_CUDA)
    return Check("devices", OK, text)


def _place(device: dict[str, Any]) -> Place | None:
    total, free = device.get("total"), device.get("free")
    if not isinstance(total, int) or total <= 0:
        return None
    return Place(str(device.get("name")), str(device.get("description")), total, free or None)


def _memory_of_cpu(devices: list[dict[str, Any]]) -> int | None:
    """What the library says of main memory, for systems that Python cannot ask (Windows)."""
    totals = (device.get("total") for device in devices if device.get("cpu"))
    return next((total for total in totals if isinstance(total, int) and total > 0), None)


def _nvidia() -> list[Place]:
    """GPUs that the driver knows, also where no library uses them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([tool, *query], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 2) for line in done.stdout.splitlines()]
    return [
        Place(f"GPU{at}", row[0].strip(), int(row[1]) << 20, int(row[2]) << 20)
        for at, row in enumerate(rows)
        if len(row) == 3 and row[1].strip().isdigit() and row[2].strip().isdigit()
    ]


def _not_needed(check: Check) -> Check:
    if check.state != MISSING:
        return check
    return Check(check.name, WARN, f"{check.text}; only for building llama.cpp anew", check.next)


def _disk() -> Check:
    place = next(p for p in (Path.cwd(), *Path.cwd().parents) if p.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / GIB:.0f} GiB free here"
    smallest = target_bytes(RELEASED["E2B"], "bf16")
    if free < 2 * smallest:
        size = f"{smallest / GIB:.0f} GiB"
        return Check(
            "disk", WARN, f"{text}; E2B in 16 bits takes {size} to fetch and to merge, each"
        )
    return Check("disk", OK, text)


def _memory(memory: int | None) -> Check:
    cpus = f"{os.cpu_count() or 1} CPUs"
    if memory is None:
        return Check("memory", WARN, f"{cpus}, memory unknown on this system")
    return Check("memory", OK, f"{memory / GIB:.1f} GiB, {cpus}")


def _fit(size: str, places: tuple[Place, ...]) -> Check:
    """The widest number type in each place, and what it takes there."""
    shown = []
    for place in places:
        outtype = best_that_fits(size, place.usable)
        if outtype is not None:
            takes = needed(size, outtype) / GIB
            shown.append(f"{outtype} in {place.name} ({takes:.1f} of {place.usable / GIB:.1f} GiB)")
    if shown:
        return Check(size, OK, f"fits as {'; '.join(shown)}")
    smallest = NUMBER_TYPES[-1]
    least = needed(size, smallest) / GIB
    return Check(size, WARN, f"does not fit: {least:.1f} GiB as {smallest}, {CONTEXT} tokens")
