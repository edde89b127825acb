"""Whether heads whose tokenizer is not a GGUF's count tokens as their base does.

LiteRT packages have a section with it, extractions and checkpoints a file next to them. Token texts
are compared in the order of their ids. Placeholders may be named differently: a release gives
reserved ids a meaning (`<unused5>` becomes `<|turn>`), and no draft depends on the name.

Source: LiteRT-LM ``schema/core/litertlm_header_schema.fbs`` (sections); litert-lm-builder (names of
unpacked files); sentencepiece ``src/sentencepiece_model.proto`` (types of pieces).
"""

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress
from operator import ne
from pathlib import Path
from typing import Any

from gguf_mtp.errors import FormatError, PairingError, brief
from gguf_mtp.keyvalue import ValueType, strings
from gguf_mtp.model import Half
from gguf_mtp.notes import Note
from gguf_mtp.readers.litertlm import HF_TOKENIZER, SP_TOKENIZER, read_package
from gguf_mtp.readers.sentencepiece_model import CONTROL, UNUSED, USER_DEFINED, read_pieces
from gguf_mtp.readers.source import SourceFile, Window
from gguf_mtp.readers.strict_json import parse_object

TOKENS = "tokenizer.ggml.tokens"
# Of one tokenizer, compressed or not. Gemma's tokenizer.json has 32 MB.
MAX_BYTES = 1 << 27
SIZE_BYTES = 8
RESERVED = re.compile(r"<unused\d+>")
# How placeholders are written: <pad>, <|turn>, [multimodal]. Byte pieces, <0x0A>, are not any.
MARKUP = re.compile(r"<(?!0x[0-9A-Fa-f]{2}>).+>|\[.+\]", re.DOTALL)
RENAMED_TYPES = (CONTROL, USER_DEFINED, UNUSED)


@dataclass(frozen=True)
class Vocabulary:
    """Token `texts` by id, from the file or section `where`. `is_placeholder` says of an id whether
    the tokenizer marks it as something other than text."""

    where: str
    texts: list[str]
    is_placeholder: Callable[[int], bool]


def check_package(heads: Path, base: Half) -> tuple[Note, ...]:
    """Compare the tokenizer in the package `heads` with that of `base`; for a bare `.tflite` as
    `check_neighbour`. Returns what to tell the user.

    Raises PairingError, naming both files, the first id that differs and both texts, and
    FormatError for a tokenizer that cannot be read.
    """
    package = read_package(heads)
    if package.version is None:
        return check_neighbour(heads, base)
    for section in package.sections:
        if section.kind in SECTIONS:
            where = f"{heads}: section {section.index} ({section.kind})"
            data = _content(heads, (section.begin, section.end), where)
            return _compare(SECTIONS[section.kind](data, where), base)
    return _unchecked(heads, "the package has no tokenizer section")


def check_neighbour(heads: Path, base: Half) -> tuple[Note, ...]:
    """Compare the tokenizer file in the directory `heads`, or next to the file `heads`, with that
    of `base`. Returns and raises as `check_package`."""
    directory = heads if heads.is_dir() else heads.parent
    for pattern, read in FILES.items():
        for path in sorted(directory.glob(pattern))[:1]:
            return _compare(read(_content(path, None, str(path)), str(path)), base)
    return _unchecked(heads, f"there is no {' or '.join(FILES)} next to them")


def _unchecked(heads: Path, why: str) -> tuple[Note, ...]:
    message = f"{heads}: token ids were not compared with the base's: {why}"
    return (Note("vocabulary-unchecked", message),)


def _content(path: Path, window: Window | None, where: str) -> bytes:
    with SourceFile(path, window) as source:
        if source.size > MAX_BYTES:
            raise FormatError(f"{where}: {source.size} bytes, a tokenizer has up to {MAX_BYTES}")
        return source.read(0, source.size)


def _compare(vocabulary: Vocabulary, base: Half) -> tuple[Note, ...]:
    key, found = base.by_name.get(TOKENS), vocabulary.texts
    if key is None or key.item_type is not ValueType.STRING:
        return _unchecked(Path(vocabulary.where), f"the base has no {TOKENS}")
    if key.count != len(found):
        raise PairingError(
            f"vocabulary size: expected {key.count} (base {base.origin}), "
            f"found {len(found)} (heads {vocabulary.where})"
        )
    if key.raw == strings(TOKENS, found).raw:
        return ()
    encoded = key.encoded_strings(key.count)
    others = list(compress(range(len(found)), map(ne, encoded, map(str.encode, found))))
    expected = {number: encoded[number].decode("utf-8", "replace") for number in others}
    for number, ours in expected.items():
        if not _is_renamed(ours, found[number], vocabulary.is_placeholder, number):
            raise PairingError(
                f"vocabulary: token {number}: expected {brief(ours)} (base {base.origin}), "
                f"found {brief(found[number])} (heads {vocabulary.where})"
            )
    first = others[0]
    message = (
        f"{vocabulary.where}: placeholder tokens are named differently in the base: {len(others)}, "
        f"the first is {first}, {brief(found[first])}, in the base {brief(expected[first])}"
    )
    return (Note("vocabulary-renamed", message),)


def _is_renamed(ours: str, theirs: str, is_placeholder: Callable[[int], bool], number: int) -> bool:
    """Whether two texts of token `number` are two names of one placeholder."""
    if not MARKUP.fullmatch(ours) or not MARKUP.fullmatch(theirs):
        return False
    is_reserved = RESERVED.fullmatch(ours) or RESERVED.fullmatch(theirs)
    return bool(is_reserved) or is_placeholder(number)


def _sentencepiece(data: bytes, where: str) -> Vocabulary:
    pieces = read_pieces(data, where)
    return Vocabulary(where, pieces.texts, lambda number: pieces.type(number) in RENAMED_TYPES)


def _compressed_json(data: bytes, where: str) -> Vocabulary:
    """A tokenizer.json after its size, compressed with zlib."""
    size = int.from_bytes(data[:SIZE_BYTES], "little")
    if len(data) < SIZE_BYTES or size > MAX_BYTES:
        raise FormatError(f"{where}: {size} bytes when unpacked, expected up to {MAX_BYTES}")
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data[SIZE_BYTES:], size + 1)
    except zlib.error as error:
        raise FormatError(f"{where}: not zlib data: {error}") from None
    if len(unpacked) != size:
        much = f"more than {size}" if len(unpacked) > size else str(len(unpacked))
        raise FormatError(f"{where}: unpacks to {much} bytes, expected {size}")
    return _json(unpacked, where)


def _json(data: bytes, where: str) -> Vocabulary:
    tokenizer = parse_object(data, where)
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens", [])
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not isinstance(added, list):
        raise FormatError(f"{where}: no model.vocab object, or added_tokens is not a list")
    texts: dict[int, str] = {}
    for text, number in _pairs(vocab, added):
        if type(number) is not int or not isinstance(text, str):
            raise FormatError(f"{where}: token {brief(text)} has id {brief(number)}")
        if texts.setdefault(number, text) != text:
            raise FormatError(f"{where}: id {number} is both {texts[number]!a} and {text!a}")
    missing = next((number for number in range(len(texts)) if number not in texts), None)
    if missing is not None:
        raise FormatError(f"{where}: {len(texts)} tokens, and id {missing} is missing")
    return Vocabulary(where, [texts[number] for number in range(len(texts))], lambda number: False)


def _pairs(vocab: dict[str, Any], added: list[Any]) -> Iterator[tuple[Any, Any]]:
    yield from vocab.items()
    for entry in added:
        yield (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (entry, None)


Reader = Callable[[bytes, str], Vocabulary]
# How a package's sections of a kind are read.
SECTIONS: dict[str, Reader] = {SP_TOKENIZER: _sentencepiece, HF_TOKENIZER: _compressed_json}
# Files next to heads, by pattern: of several the first counts. The last is what LiteRT-LM's
# unpacker writes.
FILES: dict[str, Reader] = {
    "tokenizer.json": _json,
    "tokenizer.model": _sentencepiece,
    "*SP_Tokenizer.spiece": _sentencepiece,
}
