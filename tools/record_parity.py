"""Record what llama.cpp's own converter makes of the test checkpoints, as hashes.

The test suite compares this project's output with the record, so that it needs neither torch nor
llama.cpp. Run it again when the pinned llama.cpp or the checkpoints change:

    python tools/record_parity.py --llama-cpp DIR --python PYTHON_WITH_TORCH
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from parity_cases import Case, cases, prepare  # noqa: E402

RECORD = ROOT / "tests" / "parity.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="a llama.cpp source tree")
    parser.add_argument("--python", required=True, help="a python with torch and transformers")
    parser.add_argument("--only", default="", help="record only cases whose name contains this")
    arguments = parser.parse_args()
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    chosen = [case for case in cases() if arguments.only in case.name]
    with tempfile.TemporaryDirectory() as scratch:
        for case in chosen:
            checkpoint = prepare(case, Path(scratch) / case.name)
            out = Path(scratch) / "upstream.gguf"
            run_upstream(arguments.python, arguments.llama_cpp, case, checkpoint, out)
            record[case.name] = describe(out)
            print(case.name, len(record[case.name]["tensors"]), "tensors", flush=True)
    names = {case.name for case in cases()}
    kept = {name: record[name] for name in sorted(record) if name in names}
    RECORD.write_text(dump(kept))


def run_upstream(python: str, tree: Path, case: Case, checkpoint: Path, out: Path) -> None:
    script = tree / "convert_hf_to_gguf.py"
    command = [python, str(script), str(checkpoint)]
    command += ["--outfile", str(out), "--outtype", case.outtype]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{case.name}: upstream failed:\n{result.stderr[-2000:]}")


def describe(path: Path) -> dict[str, Any]:
    """Names, types and hashes, in order, read with gguf-py and not with the code under test."""
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
    return {"file": digest(path.read_bytes()), "keys": keys, "tensors": tensors}


def digest(*parts: bytes) -> str:
    return sha256(b"".join(parts)).hexdigest()[:32]


def dump(record: dict[str, Any]) -> str:
    """JSON with one key or tensor a line."""

    def lines() -> Iterator[str]:
        for index, (name, entry) in enumerate(record.items()):
            yield f"{',' if index else ''}{json.dumps(name)}: {{"
            yield f'"file": {json.dumps(entry["file"])},'
            for last, field in ((False, "keys"), (True, "tensors")):
                rows = ",\n".join(json.dumps(row) for row in entry[field])
                yield f'"{field}": [\n{rows}\n]{"" if last else ","}'
            yield "}"

    return "{\n" + "\n".join(lines()) + "\n}\n"


if __name__ == "__main__":
    main()
