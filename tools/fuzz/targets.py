"""What is fuzzed: one target for each reader, from bytes to the end of what is made of them.

A target may raise this package's own errors and nothing else.
"""

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzz.small import VOCAB_SIZE, Small, shards, weights_of
from gguf_mtp.base import base_from_gguf
from gguf_mtp.cli import inspect_litertlm
from gguf_mtp.cli.inspect import document
from gguf_mtp.drafters.assistant import assistant_from_checkpoint
from gguf_mtp.drafters.extraction import read_extraction
from gguf_mtp.drafters.litert.package import read_drafter
from gguf_mtp.drafters.sources import heads_from_gguf
from gguf_mtp.gemma4.general import general_keys
from gguf_mtp.gemma4.vocabulary import vocabulary
from gguf_mtp.merged import join, separate
from gguf_mtp.plan import plan
from gguf_mtp.readers.checkpoint import Checkpoint, read_checkpoint
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.readers.strict_json import read_object
from gguf_mtp.readers.tail import FOOTER_BYTES
from gguf_mtp.readers.tflite import read_tflite
from gguf_mtp.report import badges, render
from gguf_mtp.report.benchmark import SCHEMA as BENCHMARK
from gguf_mtp.tail import read_tail
from gguf_mtp.validate.prompts import parse_prompts
from gguf_mtp.verify import compare_with_manifest

ALIGNMENT = 32
Files = dict[str, bytes]


def _nothing(small: Small) -> bytes:
    return b""


def _no_files(small: Small) -> Files:
    return {}


@dataclass(frozen=True)
class Target:
    """`read` opens an input as the file `name`, `beside` which there are others. Inputs are what of
    a file says something; `behind` it come weights, or for a tail its checksum. `words` are what
    inputs are likely to need."""

    name: str
    read: Callable[[Small, Path], object]
    words: tuple[str, ...] = ()
    behind: Callable[[Small], bytes] = _nothing
    beside: Callable[[Small], Files] = _no_files
    max_bytes: int = 1 << 15

    def runner(self, small: Small, directory: Path) -> Callable[[bytes], object]:
        """Reads inputs, one after the other, in the empty `directory`."""
        path, weights = directory / self.name, self.behind(small)
        for name, data in self.beside(small).items():
            (directory / name).write_bytes(data)

        def run(data: bytes) -> object:
            if path.suffix == ".gguf" and weights:
                data += bytes(-len(data) % ALIGNMENT)
            path.write_bytes(data + weights)
            return self.read(small, path)

        return run


def _gguf(small: Small, path: Path) -> object:
    """What `inspect` prints of it, and what `convert` checks of a base."""
    file = read_gguf(path)
    return json.dumps(document(file)), base_from_gguf(file)


def _merged(small: Small, path: Path) -> object:
    return [plan(half.keys, half.tensors).header({}) for half in separate(read_gguf(path))]


def _heads(small: Small, path: Path) -> object:
    merged = join(small.half, heads_from_gguf(read_gguf(path), small.half))
    return plan(merged.keys, merged.tensors).header({})


def _index(small: Small, path: Path) -> object:
    return read_checkpoint(path.parent)


def _config(small: Small, path: Path) -> object:
    return assistant_from_checkpoint(read_checkpoint(path.parent), "auto", [])


def _tokenizer(small: Small, path: Path) -> object:
    return vocabulary(Checkpoint(path.parent, {}, ()), VOCAB_SIZE)


def _card(small: Small, path: Path) -> object:
    return general_keys(Checkpoint(path.parent, {}, ()), "gemma4", [])


def _tail(small: Small, path: Path) -> object:
    data = path.read_bytes()
    path.write_bytes(data + struct.pack("<I", zlib.crc32(data[4 - FOOTER_BYTES :])))
    return read_tail(path)


def _tflite(small: Small, path: Path) -> object:
    with SourceFile(path) as source:
        return read_tflite(source, 0, source.size, str(path))


def _litertlm(small: Small, path: Path) -> object:
    json.dumps(inspect_litertlm.document(path))
    return read_drafter(path, ignore_names=True)


def _report(small: Small, path: Path) -> object:
    document = read_object(path)
    page = render([("report", document)])
    return page, badges(document) if document["schema"] != BENCHMARK else None


def _manifest(small: Small, path: Path) -> object:
    return (compare_with_manifest(small.merged, path, lambda nbytes: None),)


def _from_drafter(*names: str) -> Callable[[Small], Files]:
    return lambda small: {name: (small.drafter / name).read_bytes() for name in names}


WEIGHTS = "model.safetensors"
JSON_WORDS = ("null", "true", "false", "-1", "1e999", "NaN", "[[", "{}", "\\ud800", '"a":')
GGUF_WORDS = ("GGUF", "general.architecture", "general.alignment", "gemma4-assistant.", "blk.0.")
TARGETS = {
    "gguf": Target("f.gguf", _gguf, GGUF_WORDS, lambda small: weights_of(small.base)),
    "merged": Target(
        "f.gguf",
        _merged,
        (*GGUF_WORDS, "mtp.", "mtp.format.version", "mtp.blk.0."),
        lambda small: weights_of(small.merged),
    ),
    "heads": Target(
        "f.gguf",
        _heads,
        (*GGUF_WORDS, "mtp.carried.", "masked_embd", "gemma4_mtp", "n_centroids"),
        lambda small: weights_of(small.heads),
    ),
    "safetensors": Target(
        "f.safetensors",
        lambda small, path: read_extraction(path, small.half, None),
        ("dtype", "data_offsets", "shape", "BF16", *JSON_WORDS),
        lambda small: weights_of(small.drafter / WEIGHTS),
    ),
    "index": Target(
        "model.safetensors.index.json",
        _index,
        ("weight_map", "model-1.safetensors", "../", *JSON_WORDS),
        beside=lambda small: {**shards(), "config.json": b"{}"},
    ),
    "config": Target(
        "config.json",
        _config,
        ("text_config", "layer_types", "rope_parameters", "per_layer_config", *JSON_WORDS),
        beside=_from_drafter(WEIGHTS),
    ),
    "tokenizer": Target(
        "tokenizer.json",
        _tokenizer,
        ("added_tokens", "merges", "TemplateProcessing", *JSON_WORDS),
        beside=_from_drafter("tokenizer_config.json", "chat_template.jinja"),
    ),
    "card": Target("README.md", _card, ("---\n", "&a ", "*a", "!!", "<<: ", "- ", "base_model:")),
    "tail": Target("f.tail", _tail, ("GGUF-MTP", "MTP-OPEN", "GGUF")),
    "tflite": Target("f.tflite", _tflite, ("TFL3",)),
    "report": Target("r.json", _report, ("null", "1e308", "5e-324", *JSON_WORDS)),
    "prompts": Target(
        "p.jsonl",
        lambda small, path: parse_prompts(path.read_bytes(), path.name),
        ("windows", "chat", "source", *JSON_WORDS),
    ),
    "manifest": Target("m.json", _manifest, ("tensors", "offset", "bytes", *JSON_WORDS)),
    "litertlm": Target("f.litertlm", _litertlm, ("LITERTLM", "TFL3"), max_bytes=130_000),
}
