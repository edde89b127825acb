"""Memory stays flat: it is set by the chunks, not by the model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from gguf_mtp.api import split
from gguf_mtp.ggml import F32
from gguf_mtp.model import Tensor, half_from_gguf, read_tensor
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf

MEASURE = """
import re, sys
from pathlib import Path
from gguf_mtp.api import convert
base, heads, out, outtype = sys.argv[1:]
convert(Path(base), Path(heads), Path(out), outtype=outtype)
# ru_maxrss would count the process that started this one, until exec.
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1] + "000")
"""


def sparse_target(directory: Path, wide: int) -> Path:
    """A checkpoint whose feed-forward matrices are `wide`; all zero and of no size on disk."""
    tiny.write_target(directory, tiny.E2B)
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["intermediate_size"] = wide
    tiny.write_json(directory / "config.json", config)
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in sorted(tiny.target_shapes(tiny.E2B).items()):
        dims = [dim * wide // tiny.WIDE if dim % tiny.WIDE == 0 else dim for dim in shape]
        nbytes = 2
        for dim in dims:
            nbytes *= dim
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    encoded = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + offset)
    return directory


def test_offsets_beyond_4_gib(tmp_path: Path, tiny_merged: Path) -> None:
    """A merged file with six sparse GiB between base and heads: the heads come out the same."""
    whole = half_from_gguf(read_gguf(tiny_merged))
    first = next(i for i, item in enumerate(whole.tensors) if item.name.startswith("mtp."))
    huge = Tensor("huge.weight", F32, (6 << 18, 1 << 10), b"")
    tensors = (*whole.tensors[:first], huge, *whole.tensors[first:])
    layout = plan(whole.keys, tensors)
    path = tmp_path / "huge.gguf"
    with path.open("wb") as file:
        file.write(layout.header({}))
        for slot in layout.slots:
            if slot.tensor is not huge:
                file.seek(slot.offset)
                file.write(read_tensor(slot.tensor))
        file.truncate(layout.total_bytes)
    assert layout.slots[first + 1].offset > 6 << 30
    split(path, None, tmp_path / "h.gguf")
    split(tiny_merged, None, tmp_path / "h2.gguf")
    assert (tmp_path / "h.gguf").read_bytes() == (tmp_path / "h2.gguf").read_bytes()


def peak(base: Path, heads: Path, out: Path, outtype: str) -> int:
    command = [sys.executable, "-c", MEASURE, str(base), str(heads), str(out), outtype]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.parametrize("outtype", ["q8_0", "f16"])
def test_peak_does_not_grow_with_the_model(
    tmp_path: Path, tiny_drafter: Path, outtype: str
) -> None:
    peaks, sizes = [], []
    for name, wide in (("small", tiny.WIDE), ("large", 1024 * tiny.WIDE)):
        base = sparse_target(tmp_path / name, wide)
        out = tmp_path / f"{name}.gguf"
        peaks.append(peak(base, tiny_drafter, out, outtype))
        sizes.append(os.stat(base / "model.safetensors").st_size)
        out.unlink()
    assert sizes[1] > 250_000_000
    assert peaks[1] - peaks[0] < 32 << 20
    assert peaks[1] < 256 << 20
