"""A small pair in every form, made anew each time; and the seeds, which are cut out of it."""

import json
import struct
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gguf_mtp.api import convert, split
from gguf_mtp.keyvalue import string, u32
from gguf_mtp.merge.tokenizer import TOKENS
from gguf_mtp.model import Half, half_from_gguf
from gguf_mtp.namespace import LAYOUT_KEY, TOKENIZER, VERSION, VERSION_KEY
from gguf_mtp.plan import plan
from gguf_mtp.provenance import SOURCE, TARGET
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.litertlm import TFLITE_MODEL, read_litertlm
from gguf_mtp.readers.tail import Footer
from gguf_mtp.tail import TAIL
from gguf_mtp.verify import manifest_path
from gguf_mtp.writer import write_gguf

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import _report_documents as reports  # noqa: E402
import tiny  # noqa: E402

CORPUS = Path(__file__).resolve().parent / "corpus"
LITERT = ROOT / "tests" / "fixtures" / "litert"
# Packages whose models are small, and one with a drafter.
PACKAGES = ("no-drafter", "npu", "mixed")
VOCAB_SIZE = 288
# What is long, and the provenance, which has the tokenizer's hash in it. A base needs its tokens.
LEFT_OUT = (TOKENIZER, SOURCE, TARGET)
KEPT = (TOKENS,)
# As few layers as sharing of keys and values needs: the fewer bytes a seed has, the better.
KIND = replace(tiny.E2B, layers=(tiny.SLIDING, tiny.FULL, tiny.FULL), shared=1)
CRC_BYTES = 4


@dataclass(frozen=True)
class Small:
    """`base` and `heads` and both in one, as GGUFs whose tokenizers are only tokens."""

    target: Path
    drafter: Path
    base: Path
    heads: Path
    merged: Path

    @cached_property
    def half(self) -> Half:
        """The base."""
        return half_from_gguf(read_gguf(self.base))


def make_small(root: Path) -> Small:
    """Write the pair into the empty directory `root`."""
    small = Small(
        target=tiny.write_target(root / "target", KIND),
        drafter=tiny.write_drafter(root / "drafter", KIND),
        base=root / "base.gguf",
        heads=root / "heads.gguf",
        merged=root / "merged.gguf",
    )
    first, base, heads = (root / f"{name}-first.gguf" for name in ("merged", "base", "heads"))
    convert(small.target, small.drafter, first)
    split(first, base, heads)
    for source, path in ((base, small.base), (heads, small.heads)):
        half = half_from_gguf(read_gguf(source))
        keys = tuple(
            key for key in half.keys if key.name in KEPT or not key.name.startswith(LEFT_OUT)
        )
        write_gguf(plan(keys, half.tensors), path)
    convert(small.base, small.heads, small.merged)
    return small


def tail_file() -> bytes:
    """A tail file whose two GGUFs have keys only."""
    base = plan((string("general.architecture", "gemma4"),), ()).header({})
    heads = plan((u32(VERSION_KEY, VERSION), string(LAYOUT_KEY, TAIL)), ()).header({})
    footer = Footer(len(base), len(heads))
    return base.ljust(footer.heads_offset, b"\0") + heads + footer.encode()


def header_of(path: Path) -> bytes:
    """What is before the weights of a GGUF or a safetensors file."""
    data = path.read_bytes()
    if path.suffix == ".gguf":
        return data[: read_gguf(path).data_start]
    return data[: 8 + int.from_bytes(data[:8], "little")]


def weights_of(path: Path) -> bytes:
    return path.read_bytes()[len(header_of(path)) :]


def shards() -> dict[str, bytes]:
    """Two safetensors of one tensor each, and their index."""
    files = {}
    for number in (1, 2):
        entry = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
        header = json.dumps({f"t{number}": entry}).encode()
        files[f"model-{number}.safetensors"] = struct.pack("<Q", len(header)) + header + bytes(4)
    return files


def tokenizer() -> bytes:
    """The tiny tokenizer, cut to the byte tokens and some more."""
    found = tiny.tokenizer_json()
    model = found["model"]
    model["vocab"] = {text: at for text, at in model["vocab"].items() if at < VOCAB_SIZE}
    model["merges"] = [["e", "t"]]
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode()


def manifest(small: Small) -> bytes:
    """Of the merged file, cut to two of its tensors."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / small.merged.name
        convert(small.base, small.heads, copy, verify=True)
        stated = json.loads(manifest_path(copy).read_bytes())
    del stated["converter"]  # seeds outlive versions
    return json.dumps({**stated, "tensors": stated["tensors"][:2]}).encode()


def seeds(small: Small) -> dict[str, dict[str, bytes]]:
    """By target and name. Those of packages are the test suite's fixtures."""
    index = {"weight_map": {f"t{number}": f"model-{number}.safetensors" for number in (1, 2)}}
    models = {}
    for name in PACKAGES[:2]:
        path = LITERT / f"{name}.litertlm"
        for section in read_litertlm(path).sections:
            if section.kind == TFLITE_MODEL:
                data = path.read_bytes()[section.begin : section.end]
                models[f"{name}-{section.index}"] = data
    return {
        "gguf": {"base": header_of(small.base)},
        "merged": {"merged": header_of(small.merged)},
        "heads": {"heads": header_of(small.heads)},
        "safetensors": {"drafter": header_of(small.drafter / "model.safetensors")},
        "index": {"two": json.dumps(index).encode()},
        "config": {"drafter": (small.drafter / "config.json").read_bytes()},
        "tokenizer": {"bytes": tokenizer()},
        "card": {"tiny": (small.target / "README.md").read_bytes()},
        # Without its checksum, which is put behind every input.
        "tail": {"keys": tail_file()[:-CRC_BYTES]},
        "tflite": models,
        "report": {
            "validation": json.dumps(reports.validation(**reports.beside_the_cpu())).encode(),
            "benchmark": json.dumps(reports.benchmark()).encode(),
        },
        "prompts": {"two": b'{"id": "a", "text": "b", "windows": 2}\n{"id": "c", "text": "d"}\n'},
        "manifest": {"merged": manifest(small)},
        "litertlm": {},
    }
