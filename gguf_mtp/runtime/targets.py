"""Which backend and which of its devices a model is to run on, out of what a library has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import CPU, ModelOptions
from gguf_mtp.runtime.library import ALL_BACKENDS, Device, Library, build_hint

RPC = "rpc"
BACKENDS = (CPU, "metal", "vulkan", "cuda", RPC)  # in the order they run in

# What may help where a backend is there and finds no device.
DEVICE_HINTS = {
    "vulkan": "; GGML_VK_VISIBLE_DEVICES=0 lets it take a software driver",
    RPC: "; name a server with --rpc HOST:PORT",
}


@dataclass(frozen=True)
class Target:
    """A backend to run on and its devices' names; the CPU has none."""

    backend: str
    devices: tuple[str, ...] = ()

    def model_options(self, like: ModelOptions) -> ModelOptions:
        """Options as `like`'s that load a model on exactly these devices."""
        return replace(like, device=",".join(self.devices) or CPU)


def choose_targets(library: Library, backend: str | None, device: str | None) -> list[Target]:
    """Resolve a backend's name and device names between commas.

    Neither means each backend that has a device, ``all`` each that was compiled in. Raises
    RuntimeUnavailable where a backend asked for was not compiled in or finds no device here,
    or where the devices named are not all of one backend.
    """
    devices = library.devices()
    if device is not None:
        return [_named(devices, backend, [name.strip().lower() for name in device.split(",")])]
    if backend not in (None, ALL_BACKENDS):
        return [_whole(library, devices, str(backend))]
    wanted = {CPU, *(d.backend for d in devices)}
    if backend == ALL_BACKENDS:
        # RPC is compiled in everywhere and is nothing without a server.
        wanted |= {name for name in library.backends() if name != RPC}
    return [_whole(library, devices, name) for name in BACKENDS if name in wanted]


def left_out(library: Library, targets: Sequence[Target]) -> dict[str, str]:
    """Return the backends that are not among `targets`, each with why nothing runs on it."""
    built, found = library.backends(), {d.backend for d in library.devices()}
    chosen = {target.backend for target in targets}

    def reason(backend: str) -> str:
        if backend not in built:
            return "not in this llama.cpp"
        if backend not in found:
            return "no server named" if backend == RPC else "no device here"
        return "not asked for"

    return {backend: reason(backend) for backend in BACKENDS if backend not in chosen}


def _named(devices: Sequence[Device], backend: str | None, names: Sequence[str]) -> Target:
    if list(names) == [CPU] and backend in (None, CPU, ALL_BACKENDS):
        return Target(CPU)
    chosen = [d for name in names for d in devices if d.name.lower() == name and not d.is_cpu]
    owners = {d.backend for d in chosen}
    asked = backend in (None, ALL_BACKENDS) or owners == {backend}
    if len(chosen) != len(names) or len(owners) != 1 or not asked:
        have = ", ".join(f"{d.name} ({d.backend})" for d in devices) or "none"
        of = f" of {backend}" if backend else ""
        raise RuntimeUnavailable(f"no device {','.join(names)!r}{of}; the library has: {have}")
    return Target(chosen[0].backend, tuple(d.name for d in chosen))


def _whole(library: Library, devices: Sequence[Device], backend: str) -> Target:
    if backend == CPU:
        return Target(CPU)
    if backend not in library.backends():
        raise RuntimeUnavailable(
            f"{library.directory} was built without {backend}; {build_hint(backend)}"
        )
    names = tuple(d.name for d in devices if d.backend == backend)
    if not names:
        hint = DEVICE_HINTS.get(backend, "")
        raise RuntimeUnavailable(f"the {backend} backend finds no device on this machine{hint}")
    return Target(backend, names)
