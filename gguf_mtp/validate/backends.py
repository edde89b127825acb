"""Validation on one backend after another, each with its own tiers and compared with the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import ModelOptions
from gguf_mtp.runtime.library import ALL_BACKENDS, Device, Library, build_hint
from gguf_mtp.runtime.pair import Pair, open_pair
from gguf_mtp.runtime.placement import Placement
from gguf_mtp.validate.cross import (
    CROSS,
    DECODED,
    Comparison,
    CpuLogits,
    Passage,
    tolerance,
)
from gguf_mtp.validate.exact import open_exact
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.prompts import Prompt, encode
from gguf_mtp.validate.report import Report
from gguf_mtp.validate.sizes import context_options_for
from gguf_mtp.validate.suite import Progress, validate

SCHEMA = "gguf-mtp.validate-backends/1"
CPU = "cpu"
BACKENDS = (CPU, "metal", "vulkan", "cuda", "rpc")  # in the order they run in

# What may help where a backend is there and finds no device.
DEVICE_HINTS = {
    "vulkan": "; GGML_VK_VISIBLE_DEVICES=0 lets it take a software driver",
    "rpc": "; name a server with --rpc HOST:PORT",
}


@dataclass(frozen=True)
class Target:
    """A backend to validate and its devices' names; the CPU has none."""

    backend: str
    devices: tuple[str, ...] = ()

    def model_options(self, like: ModelOptions) -> ModelOptions:
        """Options as `like`'s that load a model on exactly these devices."""
        return replace(like, device=",".join(self.devices) or CPU)


@dataclass(frozen=True)
class BackendReport:
    """A backend's own report; `cross` is its comparison, where it is not the CPU."""

    target: Target
    report: Report
    cross: Comparison | None

    def to_json(self) -> dict[str, Any]:
        """The report's JSON with the backend's name and the comparison."""
        cross = None if self.cross is None else asdict(self.cross) | {"holds": self.cross.holds}
        own = {"backend": self.target.backend, "devices": self.target.devices}
        return self.report.to_json() | own | {"cross_backend": cross}

    def print(self, console: Console) -> None:
        """Write the report for a person, and where things lay."""
        names = f" ({', '.join(self.target.devices)})" if self.target.devices else ""
        console.rule(f"{self.target.backend}{names}")
        self.report.print(console)
        if self.cross is not None:
            c = self.cross
            console.print(
                f"beside the CPU: logits differ by up to {c.largest_difference:.2g}, the same best "
                f"token in {c.same_best.hits} of {c.same_best.total} rows, the same first draft in "
                f"{c.same_drafts.hits} of {c.same_drafts.total}\n"
                f"weights {listed(c.weights)}; heads {listed(c.heads_weights)}; "
                f"KV cache {listed(c.kv_cache)}",
                highlight=False,
            )


def to_json(reports: Sequence[BackendReport], facts: dict[str, Any]) -> dict[str, Any]:
    """Reports as one JSON-ready object, each with `facts` added; a single one as it is."""
    documents = [r.to_json() | facts for r in reports]
    if len(documents) == 1:
        return documents[0]
    holds = all(document["holds"] for document in documents)
    return {"schema": SCHEMA, "holds": holds, "backends": documents} | facts


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
        wanted |= {name for name in library.backends() if name != "rpc"}
    return [_whole(library, devices, name) for name in BACKENDS if name in wanted]


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


def validate_backends(
    library: Library,
    files: dict[str, Path],
    targets: Sequence[Target],
    prompts: Sequence[Prompt],
    options: Options,
    model_options: ModelOptions,
    against: Path | None = None,
    progress: Progress = lambda _what, _done, _total: None,
    reference: Path | None = None,
) -> list[BackendReport]:
    """Run every tier on each target, and compare those that are not the CPU with the CPU.

    `files` are `open_pair`'s: ``merged``, or ``base`` and ``heads``. Raises RuntimeUnavailable
    where a device cannot run the models, or where weights or KV cache turn out to lie elsewhere.
    """
    reports = []
    with tempfile.TemporaryFile() as store:
        on_cpu: CpuLogits | None = None
        for target in targets:

            def say(what: str, done: int, total: int, on: str = target.backend) -> None:
                progress(f"{on}: {what}", done, total)

            if target.backend != CPU and on_cpu is None:
                cpu = Target(CPU).model_options(model_options)
                with open_pair(library=library, options=cpu, **files) as pair:
                    on_cpu = _record(pair, prompts, options, store, say)
            on_target = target.model_options(model_options)
            with ExitStack() as stack:
                if options.exact and target.backend == CPU:
                    opened = open_exact(library, files, on_target, prompts, options, say)
                    pair, chosen = stack.enter_context(opened)
                else:
                    plainly = open_pair(library=library, options=on_target, **files)
                    # Exact mode is the CPU's: elsewhere nothing was looked for, nor is it claimed.
                    pair, chosen = stack.enter_context(plainly), replace(options, exact=False)
                cross = None
                if target.backend != CPU and on_cpu is not None:
                    cross = _compare(on_cpu, pair, target, options, say)
                report = validate(pair, prompts, chosen, against, say, reference=reference)
            if cross is not None:
                claimed = options.claims is None or CROSS in options.claims
                verdicts = (*report.verdicts, cross.verdict(claimed))
                report = replace(report, verdicts=verdicts)
            reports.append(BackendReport(target, report, cross))
    return reports


def _record(
    pair: Pair, prompts: Sequence[Prompt], options: Options, store: IO[bytes], say: Progress
) -> CpuLogits:
    tokens = [encode(prompt, pair.base, options.chat) for prompt in prompts]
    extra = replace(options, n_predict=DECODED, n_max=1)
    sizes = context_options_for(pair.base, max(map(len, tokens)), extra)
    room = sizes.n_ctx - DECODED - 1
    passages = [Passage(p.id, t[:room]) for p, t in zip(prompts, tokens, strict=True)]
    return CpuLogits.record(
        pair, passages, sizes, store, lambda done, n: say("reading the CPU's logits", done, n)
    )


def _compare(
    on_cpu: CpuLogits, pair: Pair, target: Target, options: Options, say: Progress
) -> Comparison:
    limit = tolerance(pair.base.ftype, options.kv_type)
    cross = on_cpu.compare(
        pair, limit, lambda done, n: say("comparing logits with the CPU's", done, n)
    )
    if pair.base.options.gpu_layers < 0:
        require_placement(target, cross)
    return cross


def require_placement(target: Target, found: Comparison) -> None:
    """Raise RuntimeUnavailable where what was to run on `target` lies elsewhere.

    Weights and compute buffers of the CPU beside the device's are usual (token embeddings stay
    with it); a KV cache there is not. llama.cpp reports none of this as an error.
    """

    def on_device(place: Placement) -> float:
        return sum(size for name, size in place.items() if name.startswith(target.devices))

    parts = {
        "base's weights": found.weights,
        "heads' weights": found.heads_weights,
        "KV cache": found.kv_cache,
        "compute buffers": found.compute,
    }
    names = ", ".join(target.devices)
    for what, place in parts.items():
        if not on_device(place):
            raise RuntimeUnavailable(f"the {what} did not go to {names} but to: {listed(place)}")
    elsewhere = {n: s for n, s in found.kv_cache.items() if not n.startswith(target.devices)}
    if elsewhere:
        raise RuntimeUnavailable(f"part of the KV cache is not on {names}: {listed(elsewhere)}")


def listed(place: Placement) -> str:
    """Buffers for a message."""
    return ", ".join(f"{name} ({size:.2f} MiB)" for name, size in place.items()) or "nowhere"
