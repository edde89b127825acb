"""The library and the devices that a verb's options ask for."""

from __future__ import annotations

from collections.abc import Sequence

import click

from gguf_mtp.runtime.bindings import CPU, ModelOptions
from gguf_mtp.runtime.library import ALL_BACKENDS, Library, load_library
from gguf_mtp.runtime.targets import choose_targets


def open_library(
    *, exact: bool, backend: str | None, device: str | None, servers: Sequence[str], verbose: bool
) -> Library:
    """Load the recorded library that has what is asked for, and make `servers`' devices its own.

    Raises UsageError where `exact` is asked of a device, RuntimeUnavailable where there is no such
    library or a server does not answer.
    """
    elsewhere = device is not None and device.lower() != CPU
    if exact and (elsewhere or servers or backend not in (None, CPU)):
        raise click.UsageError("--exact is the CPU's: it does not go with another device")
    # A device that is not the CPU is in the library with most backends.
    library = load_library(exact, backend or (ALL_BACKENDS if elsewhere else None))
    library.log.echo = verbose
    for server in servers:
        library.add_rpc_server(server)
    return library


def model_options(
    library: Library, backend: str | None, device: str | None, gpu_layers: int
) -> ModelOptions:
    """Options that load a model on one backend's devices; without a choice on all there are.

    Raises RuntimeUnavailable where the library does not have them.
    """
    options = ModelOptions(gpu_layers=gpu_layers)
    if backend is None and device is None:
        return options
    (target,) = choose_targets(library, backend, device)
    return target.model_options(options)
