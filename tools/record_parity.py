"""Record what llama.cpp's own converter makes of the test checkpoints, as hashes.

The test suite compares this project's output with the record, so that it needs neither torch nor
llama.cpp. Run it again when the pinned llama.cpp or the checkpoints change:

    python tools/record_parity.py --llama-cpp DIR --python PYTHON_WITH_TORCH

With --show CASE nothing is recorded: the converter's keys and tensors are printed, one a line,
to be compared with `gguf-mtp inspect`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from parity_cases import cases, prepare  # noqa: E402

RECORD = ROOT / "tests" / "parity.json"
RUNNER = Path(__file__).with_name("upstream_converter.py")
Rows = list[list[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="a llama.cpp source tree")
    parser.add_argument("--python", required=True, help="a python with torch and transformers")
    parser.add_argument("--only", default="", help="record only cases whose name contains this")
    parser.add_argument("--show", default="", help="print what this case becomes; record nothing")
    arguments = parser.parse_args()
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    converter = Upstream(arguments.python, arguments.llama_cpp)
    for case in cases():
        if arguments.show not in ("", case.name) or arguments.only not in case.name:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "upstream.gguf"
            error = converter.convert(prepare(case, Path(scratch)), out, case.outtype)
            if error is not None and not case.written:
                raise SystemExit(f"{case.name}: upstream failed: {error}")
            keys, tensors = ([], []) if error is not None else describe(out)
            record[case.name] = {"error": error} if error else summary(out, keys, tensors)
        if arguments.show:
            print(*map(json.dumps, [*keys, *tensors]), sep="\n")
        print(case.name, error or f"{len(keys)} keys, {len(tensors)} tensors", flush=True)
    if not arguments.show:
        names = {case.name for case in cases()}
        rows = (f"{json.dumps(n)}: {json.dumps(record[n])}" for n in sorted(record) if n in names)
        RECORD.write_text("{\n" + ",\n".join(rows) + "\n}\n")


class Upstream:
    """llama.cpp's converter, running."""

    def __init__(self, python: str, tree: Path) -> None:
        self.process = subprocess.Popen(
            [python, str(RUNNER), str(tree)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def convert(self, checkpoint: Path, out: Path, outtype: str) -> str | None:
        """Write `out`; the error in words where that fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(checkpoint), str(out), outtype]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the converter's process ended")
        error: str | None = json.loads(answer)
        return error


def describe(path: Path) -> tuple[Rows, Rows]:
    """Keys and tensors, in order, read with gguf-py and not with the code under test."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = [
        [field.name, field.types[0].name, digest(*(part.tobytes() for part in field.parts[3:]))]
        for field in reader.fields.values()
        if not field.name.startswith("GGUF.")
    ]
    tensors = [
        [item.name, item.tensor_type.name, item.shape.tolist(), digest(item.data.tobytes())]
        for item in reader.tensors
    ]
    return keys, tensors


def summary(path: Path, keys: Rows, tensors: Rows) -> dict[str, Any]:
    """Counts and hashes. A drafter's keys may be followed by more, and the order of the tensors
    hangs on how the checkpoint is cut into files."""
    return {
        "file": digest(path.read_bytes()),
        "keys": digest_rows(keys),
        "tensors": digest_rows(tensors),
        "sorted": digest_rows(sorted(tensors))[1],
    }


def digest_rows(rows: Rows) -> list[Any]:
    return [len(rows), digest(json.dumps(rows).encode())]


def digest(*parts: bytes) -> str:
    return sha256(b"".join(parts)).hexdigest()[:32]


if __name__ == "__main__":
    main()
