"""What a report says of the files, the library and the settings of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gguf_mtp.digest import file_sha256
from gguf_mtp.runtime.bindings import ContextOptions, ModelOptions
from gguf_mtp.runtime.library import Library
from gguf_mtp.runtime.pair import Pair
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.report import FileFacts, Settings


def settings_of(
    pair: Pair, options: Options, context_options: ContextOptions, flash_attn_used: str
) -> Settings:
    """Describe everything that the figures depend on beside the files."""
    library: Library = pair.base.library
    record = library.choice.record
    return Settings(
        n_max=options.n_max,
        n_predict=options.n_predict,
        n_ctx=context_options.n_ctx,
        n_threads=options.n_threads,
        kv_type=options.kv_type,
        flash_attn=options.flash_attn,
        flash_attn_used=flash_attn_used,
        exact=options.exact,
        chat=options.chat,
        quantization=pair.base.ftype,
        heads_quantization=pair.heads.ftype,
        device=_device(library, pair.base.options),
        library_version=library.version,
        library_commit=record.pin if record else "",
        library_patches=record.patches if record else "",
        library_backend=library.choice.backend,
        library_features=library.features,
        bindings_version=library.bindings_version,
        repack=pair.base.options.repack,
        temperature=options.temperature,
        draws=options.draws if options.temperature is not None else 0,
        seed=options.seed,
    )


def _device(library: Library, options: ModelOptions) -> str:
    """Describe where layers go: the named device, or all accelerators there are."""
    devices = library.devices()
    wanted = "cpu" if options.gpu_layers == 0 else (options.device or "").lower()
    names = wanted.split(",")
    accelerators = [d for d in devices if not d.is_cpu and (not wanted or d.name.lower() in names)]
    chosen = accelerators or [d for d in devices if d.is_cpu]
    return ", ".join(f"{d.name} ({d.description})" for d in chosen) or "unknown"


def files_of(
    pair: Pair,
    against: Path | None,
    reference: Path | None,
    progress: Callable[[str, int, int], None],
) -> tuple[FileFacts, ...]:
    """Name, measure and hash every file that went in."""
    if pair.base.path == pair.heads.path:
        named = [("merged", pair.base.path)]
    else:
        named = [("base", pair.base.path), ("heads", pair.heads.path)]
    if against is not None:
        named.append(("against", against))
    if reference is not None:
        named.append(("reference", reference))
    facts = []
    for done, (role, path) in enumerate(named):
        progress("hashing files", done, len(named))
        facts.append(FileFacts(role, path.name, path.stat().st_size, file_sha256(path)))
    return tuple(facts)
