"""Hostile GGUFs in parts, footers behind a base with heads in a tail, and manifests."""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from gguf_mtp.api import convert
from gguf_mtp.readers.tail import FOOTER_BYTES, Footer, read_footer
from gguf_mtp.verify import manifest_path
from hostile.case import Case, Good, Maker

MAX_PART = 200_000


@cache
def in_parts(good: Good) -> dict[str, bytes]:
    """The merged file in parts, by name."""
    directory = good.merged.parent / "parts"
    directory.mkdir()
    convert(good.target, good.drafter, directory / "m.gguf", split_max_size=MAX_PART)
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


Files = dict[str, bytes]


def parts_case(name: str, change: Callable[[Files, list[str]], object], *says: str) -> Case:
    def make(good: Good, directory: Path, use: str) -> Path:
        files = dict(in_parts(good))
        names = list(files)
        change(files, names)
        for name, data in files.items():
            (directory / name).write_bytes(data)
        return directory / next(iter(files))

    def control(good: Good, directory: Path, use: str) -> Path:
        for name, data in in_parts(good).items():
            (directory / name).write_bytes(data)
        return directory / next(iter(in_parts(good)))

    return Case(f"parts: {name}", make, control, ("split", "run"), says)


def with_key(raw: bytes, old: bytes, new: bytes) -> bytes:
    """A part with the encoding of one key's value exchanged for one of the same length."""
    at = raw.index(old) + len(old) + 4
    return raw[:at] + new + raw[at + len(new) :]


def renumber(files: Files, names: list[str]) -> None:
    files[names[1]] = with_key(files[names[1]], b"split.no", struct.pack("<H", 7))


def other_total(files: Files, names: list[str]) -> None:
    files[names[1]] = with_key(files[names[1]], b"split.tensors.count", struct.pack("<i", 999))


def renamed(files: Files, names: list[str]) -> None:
    data = files.pop(names[0])
    others = dict(files)
    files.clear()
    files["one.gguf"] = data
    files.update(others)


PARTS = (
    parts_case("missing", lambda files, names: files.pop(names[1]), "part 2 of", "is missing"),
    parts_case(
        "one there twice",
        lambda files, names: files.update({names[1]: files[names[2]]}),
        "split.no is 2, expected 1",
    ),
    parts_case("wrong number", renumber, "split.no is 7, expected 1"),
    parts_case("wrong total", other_total, "split.tensors.count is 999, but the parts hold 114"),
    parts_case("other name", renamed, "expected a name that ends in -00001-of-"),
)

FIELDS = struct.Struct("<8sQQQ32sI")


def footer(good: Good) -> Footer:
    found = read_footer(good.tail)
    assert found is not None
    return found


def with_footer(change: Callable[[Footer], Footer]) -> Maker:
    def make(good: Good, directory: Path, use: str) -> Path:
        raw = good.tail.read_bytes()[:-FOOTER_BYTES] + change(footer(good)).encode()
        path = directory / "tail.gguf"
        path.write_bytes(raw)
        return path

    return make


def edited(change: Callable[[bytearray, Footer], object]) -> Maker:
    def make(good: Good, directory: Path, use: str) -> Path:
        raw = bytearray(good.tail.read_bytes())
        change(raw, footer(good))
        path = directory / "tail.gguf"
        path.write_bytes(raw)
        return path

    return make


def set_byte(raw: bytearray, at: int) -> None:
    raw[at] ^= 1


def set_version(raw: bytearray, found: Footer) -> None:
    fields = list(FIELDS.unpack_from(raw, len(raw) - FOOTER_BYTES))
    fields[5] = 9
    packed = FIELDS.pack(*fields)
    raw[-FOOTER_BYTES:] = packed + struct.pack("<I", zlib.crc32(packed))


def whole_again(raw: bytearray, found: Footer) -> None:
    """The heads are the base with heads in a tail once more."""
    inner = bytes(raw)
    raw[found.heads_offset :] = inner
    digest = hashlib.sha256(inner).digest()
    raw += replace(found, heads_bytes=len(inner), sha256=digest).encode()


TAIL_READERS = ("inspect", "split", "card", "run", "detach", "base", "attach in place")


def pending_again(raw: bytearray, found: Footer) -> None:
    raw += bytes(found.pending_offset - len(raw)) + replace(found, pending=True).encode()


sound_tail = edited(lambda raw, found: None)


def tail(name: str, hostile: Maker, *says: str, uses: tuple[str, ...] = TAIL_READERS) -> Case:
    # A sound tail is refused by `base` and `attach`: it has heads already.
    by = tuple(use for use in uses if use not in ("base", "attach in place"))
    return Case(f"tail: {name}", hostile, sound_tail, uses, says, "refused", by)


TAIL = (
    tail("checksum", edited(lambda raw, found: set_byte(raw, -30)), "checksum is", "damaged"),
    tail("version 9", edited(set_version), "version 9, expected 1"),
    tail(
        "base longer than the file",
        with_footer(lambda found: replace(found, base_bytes=1 << 60)),
        "footer at offset",
        "end at",
    ),
    tail(
        "heads of 2^63 bytes",
        with_footer(lambda found: replace(found, heads_bytes=1 << 63)),
        "heads of 9223372036854775808 bytes end at",
    ),
    tail(
        "padding that is not zero",
        edited(lambda raw, found: set_byte(raw, found.base_bytes)),
        "the padding before the heads is not zero",
    ),
    tail(
        "base of no bytes",
        edited(
            lambda raw, found: raw.__setitem__(
                slice(0, None),
                bytes(raw[found.heads_offset : -FOOTER_BYTES])
                + replace(found, base_bytes=0).encode(),
            )
        ),
        "magic at offset 0 needs 4 bytes, 0 remain",
        uses=("inspect", "split"),
    ),
    tail(
        "heads that are a whole tail file",
        edited(whole_again),
        "bytes follow the last tensor",
        uses=("inspect", "split"),
    ),
    tail(
        "interrupted attach",
        edited(pending_again),
        "attaching heads was interrupted",
        uses=("inspect", "split"),
    ),
    tail(
        "damaged heads",
        edited(lambda raw, found: set_byte(raw, -FOOTER_BYTES - 100)),
        "SHA-256 of the heads is",
        uses=("split",),
    ),
    tail(
        "cut by a byte",
        edited(lambda raw, found: raw.pop()),
        "bytes follow the last tensor",
        uses=("inspect", "base", "attach in place"),
    ),
)


def manifest_with(change: Callable[[dict[str, Any]], object]) -> Maker:
    def make(good: Good, directory: Path, use: str) -> Path:
        stated = json.loads(manifest_path(good.merged).read_text())
        change(stated)
        path = directory / "m.manifest.json"
        path.write_text(json.dumps(stated))
        return path

    return make


sound_manifest = manifest_with(lambda stated: None)


def manifest(name: str, change: Callable[[dict[str, Any]], object], *says: str) -> Case:
    return Case(f"manifest: {name}", manifest_with(change), sound_manifest, ("verify",), says)


MANIFEST = (
    manifest("other schema", lambda stated: stated.update(schema=[[[7]]]), "schema is [[[7]]]"),
    manifest("tensors no list", lambda stated: stated.update(tensors={}), "schema is"),
    manifest("an entry that is text", lambda stated: stated["tensors"].append("x"), "has no name"),
    manifest(
        "negative offset",
        lambda stated: stated["tensors"][0].update(offset=-1),
        "has no usable offset and bytes",
    ),
    manifest(
        "a thousand entries of the whole file",
        lambda stated: stated.update(
            tensors=[{"name": "x", "offset": 0, "bytes": stated["bytes"]}] * 1000
        ),
        "tensors of 671",
        "in a file of 671",
    ),
)
