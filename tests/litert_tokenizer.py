"""Tokenizers as LiteRT packages and extractions have them: SentencePiece models by hand."""

import struct
from pathlib import Path

from gguf_mtp.readers.litertlm import read_litertlm
from litert_bytes import BLOCK, item, package, section
from litert_fixtures import fixture

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
TFLITE, SENTENCEPIECE, ZLIB = 3, 4, 6
Pieces = list[tuple[str, int]]


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(text: str, kind: int) -> bytes:
    body = field(1, text.encode()) + b"\x15" + struct.pack("<f", -1.0)
    return field(1, body if kind == NORMAL else body + b"\x18" + varint(kind))


def model(pieces: Pieces) -> bytes:
    """As trainers write it: pieces, then settings of trainer and normalizer."""
    listed = b"".join(piece(text, kind) for text, kind in pieces)
    return listed + field(2, b"\x18\x02") + field(3, field(1, b"identity"))


def typed(tokens: list[str], types: list[int]) -> Pieces:
    """A GGUF's tokens as pieces; the types of both have the same numbers."""
    return [
        (text, UNKNOWN if text == "<unk>" else kind)
        for text, kind in zip(tokens, types, strict=True)
    ]


def bare(name: str, model_type: str = "tf_lite_mtp_drafter") -> bytes:
    """The model of the fixture `name` that an unpacker writes to a `.tflite`."""
    path = fixture(name)
    found = next(
        item
        for item in read_litertlm(path).sections
        if (item.kind, item.model_type) == ("TFLiteModel", model_type)
    )
    return path.read_bytes()[found.begin : found.end]


def with_tokenizer(path: Path, kind: int, data: bytes) -> Path:
    """The trained drafter in a package at `path`, before a section `kind` of `data`."""
    drafter = bare("trained")
    begin = BLOCK + len(drafter) + -len(drafter) % BLOCK
    body = drafter + bytes(-len(drafter) % BLOCK) + data
    drafter_item = item("model_type", "tf_lite_mtp_drafter")
    sections = [
        section(BLOCK, BLOCK + len(drafter), TFLITE, drafter_item),
        section(begin, begin + len(data), kind),
    ]
    path.write_bytes(package(sections, body))
    return path
