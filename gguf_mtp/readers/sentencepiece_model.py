"""The pieces of a SentencePiece model (`tokenizer.model`), in order of their ids.

The outer layer of the file is walked here, with bounds; what it lists as pieces goes to the
sentencepiece library as a model of its own. Nothing else in the file decides what an id means.

Source: sentencepiece ``src/sentencepiece_model.proto``; the Protocol Buffers encoding guide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gguf_mtp.errors import FormatError, brief

# Gemma's model has 4.7 MB and 262144 pieces. The library takes some 100 bytes for each piece.
MAX_BYTES = 1 << 25
MAX_PIECES = 1 << 20
# Fields of the model and of a piece, as tag bytes: number << 3 | wire type.
PIECE_TAG = 0x0A
TYPE_TAG = 0x18
# A piece's type; without the field it is NORMAL.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# The settings of the model that the library gets: BPE, for which it builds no index of all pieces,
# and with byte pieces.
SETTINGS = bytes.fromhex("1205 1802 980201")
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
FIXED_SIZES = {FIXED_64: 8, FIXED_32: 4}
MAX_VARINT_BYTES = 10


@dataclass(frozen=True, eq=False)
class Pieces:
    """`texts` by id, U+2581 for a space, as GGUF has them too."""

    texts: list[str]
    _data: bytes
    _starts: Sequence[int]

    def type(self, number: int) -> int:
        """The type of piece `number`, `NORMAL` to `BYTE`, or what the file has instead."""
        walk = _Walk(self._data, "piece")
        length = walk.varint(self._starts[number] + 1)
        at, end = length.end, length.end + length.value
        kind = NORMAL
        while at < end:
            tag = walk.varint(at)
            if tag.value == TYPE_TAG:
                kind = walk.varint(tag.end).value
            at = walk.skip(tag)
        return kind


def read_pieces(data: bytes, where: str) -> Pieces:
    """The pieces in `data`, which `where` names in messages. Raises FormatError."""
    # Imported here: most conversions have no such file.
    import sentencepiece

    if len(data) > MAX_BYTES:
        raise FormatError(
            f"{where}: {len(data)} bytes, expected a SentencePiece model of up to {MAX_BYTES}"
        )
    kept, starts = _split(data, where)
    if not starts:
        raise FormatError(f"{where}: not a SentencePiece model: it lists no pieces")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=kept + SETTINGS)
        texts = processor.id_to_piece(list(range(len(starts))))
    except (RuntimeError, ValueError, IndexError) as error:
        raise FormatError(f"{where}: not a SentencePiece model: {brief(str(error))}") from None
    return Pieces(texts, data, starts)


def _split(data: bytes, where: str) -> tuple[bytes, list[int]]:
    """The pieces' bytes alone, and where each begins in `data`."""
    walk = _Walk(data, where)
    kept, starts = [], []
    at = first = 0
    size = len(data)
    while at < size:
        # Nearly all of the file is pieces of less than 128 bytes: no calls for those.
        if data[at] == PIECE_TAG and at + 1 < size and data[at + 1] < 0x80:
            starts.append(at)
            at += 2 + data[at + 1]
            continue
        tag = walk.varint(at)
        end = walk.skip(tag)
        if tag.value == PIECE_TAG:
            starts.append(at)
        else:
            kept.append(data[first:at])
            first = end
        at = end
        if len(starts) > MAX_PIECES:
            break
    if at > size:
        raise FormatError(f"{where}: a piece ends at {at}, the model at {size}: truncated")
    if len(starts) > MAX_PIECES:
        raise FormatError(f"{where}: more than {MAX_PIECES} pieces")
    return b"".join((*kept, data[first:])), starts


@dataclass(frozen=True)
class _Varint:
    value: int
    end: int


class _Walk:
    """Steps from field to field of a protobuf message."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where

    def _error(self, at: int, what: str) -> FormatError:
        return FormatError(f"{self.where}: not a SentencePiece model: {what} at byte {at}")

    def varint(self, at: int) -> _Varint:
        value = 0
        for index, byte in enumerate(self.data[at : at + MAX_VARINT_BYTES]):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return _Varint(value, at + index + 1)
        raise self._error(at, "no whole number")

    def skip(self, tag: _Varint) -> int:
        """Where the field ends whose tag is `tag`."""
        kind = tag.value & 7
        if kind == VARINT:
            return self.varint(tag.end).end
        if kind == BYTES:
            length = self.varint(tag.end)
            end = length.end + length.value
        elif kind in FIXED_SIZES:
            end = tag.end + FIXED_SIZES[kind]
        else:
            raise self._error(tag.end, f"wire type {kind}")
        if end > len(self.data):
            raise self._error(tag.end, f"a field up to {end}, past the end, {len(self.data)},")
        return end
