#!/usr/bin/env python3
"""Get the pinned llama.cpp, apply `patches/`, build it, and say where the programs are.

    python tools/patch_llamacpp.py                      # what `make patch-llamacpp` runs
    python tools/patch_llamacpp.py --tree ~/llama.cpp   # a checkout of your own

Exit codes: 0 built, 2 could not.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llamacpp import build, series, source
from llamacpp.pin import (
    COMMIT,
    PACKAGE,
    PACKAGE_VERSION,
    PATCHES,
    REPO,
    SetupError,
    cache_dir,
    read_record,
    record_path,
)

# Which patches a tree gets: both series, one of `series.FOLDERS`, none, or what its compiler needs
# to build a program that does not crash (gcc 12 with AMX).
SERIES, NONE, COMPILER_FIXES = "both", "stock", "amx-tile-config-barrier"
SANITIZE = REPO / "tools" / "llamacpp" / "sanitize.cmake"


@dataclass(frozen=True)
class Variant:
    """One build: which patches its tree has, CMake flags, programs (None: those asked for).

    `cpu` is the kind of CPU that it is always built for, None for the one that was chosen.
    """

    patches: str = SERIES
    flags: tuple[str, ...] = ()
    targets: tuple[str, ...] | None = None
    backend: str | None = "cpu"  # None: built for the backend that was chosen
    cpu: str | None = None


# `exact` has CPU kernels whose F32 result does not depend on the batch width; `stock` is the
# unpatched library, which tests compare with; `baseline` is what benchmarks compare with; `vulkan`
# runs on any Vulkan device, a software driver among them, which ``--backend auto`` never chooses;
# `avx2` is ggml for processors without AVX-512 and AMX, whose kernels are others; `every-cpu` has a
# library for each kind of x86 CPU and chooses when it starts, as distributions build it; the two
# `only-` have one series without the other; `sanitize` is `exact` with the code that reads files
# under AddressSanitizer and UBSan.
VARIANTS = {
    "default": Variant(backend=None),
    "exact": Variant(flags=("-DGGML_LLAMAFILE=OFF",)),
    "stock": Variant(NONE, ("-DGGML_LLAMAFILE=OFF",), ("llama-speculative-simple",)),
    "baseline": Variant(
        COMPILER_FIXES, targets=("llama-speculative-simple", "llama-server"), backend=None
    ),
    "vulkan": Variant(targets=("llama-speculative-simple",), backend="vulkan"),
    "avx2": Variant(cpu="x86-64-v3", targets=("ggml",)),
    "every-cpu": Variant(
        flags=(
            "-DGGML_BACKEND_DL=ON",
            "-DGGML_CPU_ALL_VARIANTS=ON",
            "-DGGML_NATIVE=OFF",
            "-DGGML_LLAMAFILE=OFF",
        ),
        targets=("llama-speculative-simple",),
    ),
    **{
        f"only-{name}": Variant(name, ("-DGGML_LLAMAFILE=OFF",), ("llama-speculative-simple",))
        for name in series.FOLDERS
    },
    "sanitize": Variant(
        flags=("-DGGML_LLAMAFILE=OFF", f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={SANITIZE}"),
        targets=("llama",),
    ),
}
KEPT_TREES = 4


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        record = run(options)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        print(f"patched llama.cpp {record['pin']}, {record['backend']} backend")
        print(f"  programs   {record['bin_dir']}")
        print(f"  libraries  {record['lib_dir']}")
        print(f"  try        {record['bin_dir']}/llama-server -m MERGED.gguf")
    return 0


def run(options: argparse.Namespace) -> dict[str, object]:
    """Do what the options ask; returns the record that is also written to `record_path()`."""
    backend = build.choose_backend(options.backend)
    targets = tuple(options.target or build.TARGETS)
    digest = series.digest()

    dirs: dict[str, Path] = {}
    trees: dict[str, Path] = {}  # by its patches: variants share a tree
    for name in ["default", *(options.variant or [])]:
        variant = VARIANTS[name]
        if variant.patches not in trees:
            trees[variant.patches] = source_tree(options.tree, digest, variant.patches)
        tree = trees[variant.patches]
        chosen = build.choose_backend(variant.backend) if variant.backend else backend
        # The folder of a variant that is always for the same CPU does not depend on the choice.
        asked = (
            *build.cpu_flags(build.NATIVE if variant.cpu else options.cpu),
            *options.cmake_flag,
        )
        out = build.directory(tree, chosen, name, asked)
        _say(f"{name}: {tree} ({chosen.name})")
        own = (*build.cpu_flags(variant.cpu or build.NATIVE), *variant.flags)
        build.configure(tree, out, chosen, (*own, *asked))
        build.compile_targets(out, variant.targets or targets, options.jobs, f"build {name}")
        dirs[name] = out / "bin"

    record: dict[str, object] = {
        "pin": COMMIT,
        "source": f"{PACKAGE} {PACKAGE_VERSION}" if options.tree is None else str(options.tree),
        "patches": digest,
        "backend": backend.name,
        "cpu": options.cpu,
        **_dirs(dirs["default"]),
        **_earlier_variants(digest, options.cpu),
        **{name: _dirs(path) for name, path in dirs.items() if name != "default"},
    }
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(scratch, path)
    _link(REPO / "build" / "llama.cpp", dirs["default"].parent)
    return record


def _earlier_variants(digest: str, cpu: str) -> dict[str, object]:
    """Variants that an earlier run built of the same series for the same kind of CPU: they stay."""
    try:
        record = read_record()
    except SetupError:
        return {}
    if (record.get("patches"), record.get("cpu", build.NATIVE)) != (digest, cpu):
        return {}
    return {name: record[name] for name in VARIANTS if name in record}


def _dirs(bin_dir: Path) -> dict[str, str]:
    return {"lib_dir": str(bin_dir), "bin_dir": str(bin_dir)}


def source_tree(own: Path | None, digest: str, patches: str) -> Path:
    """The source tree with those `patches`: the user's `own`, or one in the cache."""
    folder = PATCHES / patches if patches in series.FOLDERS else PATCHES
    if own is not None:
        if patches != SERIES:
            raise SetupError("a variant with other patches is of the pinned source, not --tree")
        tree = own.expanduser().resolve()
        _say(f"{tree}: patches {series.apply(tree)}")
        return tree
    # The trees of all keys lie equally deep: that is what lets ccache share their objects.
    if patches in (SERIES, *series.FOLDERS):
        key = (digest if patches == SERIES else series.digest(folder))[:16]
    else:
        key = f"{patches}-{COMMIT}"
    home = cache_dir() / "llama.cpp" / key
    tree = home / "src"
    if not tree.exists():
        _say(f"unpacking llama.cpp {COMMIT}")
        source.unpack_tree(source.fetch_sdist(), tree)
        _prune(home.parent, keep=home)
    if patches in (SERIES, *series.FOLDERS):
        _say(f"{tree}: patches {series.apply(tree, folder)}")
    elif patches != NONE:
        with tempfile.TemporaryDirectory() as scratch:
            _say(f"{tree}: {patches} {series.apply(tree, series.subset(patches, Path(scratch)))}")
    home.touch()
    return tree


def _prune(root: Path, keep: Path) -> None:
    """Drop the trees of older patch series: each is a few hundred MB with its builds."""
    homes = [p for p in root.iterdir() if p != keep and "-" not in p.name]
    for old in sorted(homes, key=lambda p: p.stat().st_mtime, reverse=True)[KEPT_TREES - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        link.symlink_to(target)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line; its defaults are those of `run`."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = made.add_argument
    add(
        "--tree",
        type=Path,
        help="use this llama.cpp checkout, not the pinned tree",
    )
    add("--backend", default="auto", help="auto (default), cpu, cuda, metal or vulkan")
    add(
        "--variant",
        action="append",
        choices=[name for name in VARIANTS if name != "default"],
        help="also build this variant (may be repeated)",
    )
    add(
        "--target",
        action="append",
        help=f"build only this (default: {' '.join(build.TARGETS)})",
    )
    add(
        "--cpu",
        default=build.NATIVE,
        choices=[build.NATIVE, *build.CPUS],
        help="kind of x86 CPU to build for (default: this machine's)",
    )
    add("--cmake-flag", action="append", default=[], help="passed to CMake as it is")
    add("--jobs", type=int, default=os.cpu_count() or 1)
    add("--json", action="store_true", help="print the result as JSON")
    return made


if __name__ == "__main__":
    sys.exit(main())
