#!/usr/bin/env python3
"""Try `patches/` on another llama.cpp tree: say hunk by hunk what moved, rewrite what only moved.

    python tools/rebase_patches.py ~/llama.cpp              # report; the tree is not changed
    python tools/rebase_patches.py ~/llama.cpp --out NEW/    # and write the series rebased
    python tools/rebase_patches.py                           # on the second version that is tested

Exit codes: 0 the series applies as it is, 1 it has to be rebased, 2 it cannot be.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from llamacpp import rebase, source
from llamacpp.pin import PATCHES, SECOND, SetupError, cache_dir


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        tree = second_tree() if options.tree is None else options.tree.expanduser()
        results = rebase.rebase_series(tree, options.patches)
        if options.out is not None:
            _write(results, options.patches, options.out)
    except (SetupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        for result in results:
            for hunk in result.hunks:
                print(f"{result.name}: {hunk.path}:{hunk.line}: {hunk.state}{hunk.note}")
    states = {hunk.state for result in results for hunk in result.hunks}
    if rebase.FAILS in states:
        return 2
    return 1 if rebase.MOVED in states else 0


def second_tree() -> Path:
    """The tree of the second llama.cpp version, fetched and unpacked once."""
    tree = cache_dir() / "llama.cpp" / f"second-{SECOND.commit}" / "src"
    if not tree.exists():
        source.unpack_tree(source.fetch_sdist(SECOND), tree, SECOND)
    return tree


def _write(results: list[rebase.PatchResult], patches: Path, out: Path) -> None:
    """The rebased series as a patches folder of its own."""
    if out.exists():
        raise SetupError(f"{out}: exists")
    shutil.copytree(patches, out)
    for result in results:
        (out / result.name).write_text(result.text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tree", type=Path, nargs="?", help=f"default: {SECOND.package}'s")
    parser.add_argument("--patches", type=Path, default=PATCHES, help="default: patches/")
    parser.add_argument("--out", type=Path, help="write the rebased series to this new folder")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
