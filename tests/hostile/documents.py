"""Hostile JSON that is no part of a model: saved reports, prompts, the build record, overrides."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from _report_documents import validation
from gguf_mtp.runtime.library import record_path
from gguf_mtp.verify import manifest_path
from hostile.case import Case, Good, Maker
from hostile.settings import Change, on_json

# Uses -> the name that a document has there; `record` lies in a cache directory.
NAMES = {"prompts": "p.jsonl", "record": "gguf-mtp/llamacpp.json"}
READERS = ("report", "card report", "prompts", "record", "metadata", "verify")


def sound_bytes(good: Good, use: str) -> bytes:
    """A document that the use accepts; for `record` one of this machine's, where there is one."""
    if use == "verify":
        return manifest_path(good.merged).read_bytes()
    if use == "record" and record_path().is_file():
        return record_path().read_bytes()
    if use == "card report":
        sha256 = hashlib.sha256(good.merged.read_bytes()).hexdigest()
        file = {"role": "merged", "name": "m.gguf", "size": 1, "sha256": sha256}
        return json.dumps(validation(files=[file])).encode()
    documents = {
        "report": validation(),
        "prompts": {"id": "a", "text": "b"},
        "record": {"lib_dir": "/none", "pin": "p", "patches": "q", "backend": "cpu"},
        "metadata": {"general.name": "Other"},
    }
    return json.dumps(documents[use]).encode()


def made(change: Callable[[bytes], bytes]) -> Maker:
    def make(good: Good, directory: Path, use: str) -> Path:
        path = directory / NAMES.get(use, "d.json")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(change(sound_bytes(good, use)))
        return path

    return make


sound = made(lambda raw: raw)


def case(name: str, hostile: Maker, *says: str, uses: tuple[str, ...] = READERS) -> Case:
    return Case(name, hostile, sound, uses, says)


def with_value(name: str, encoded: bytes, *says: str) -> Case:
    """A field that nothing reads has a value as no JSON should."""
    return case(f"JSON: {name}", made(lambda raw: b'{"zz": ' + encoded + b", " + raw[1:]), *says)


JSON = (
    case("JSON: empty", made(lambda raw: b" "), ": "),
    case("JSON: cut", made(lambda raw: raw[:-2]), "not JSON"),
    case("JSON: an array", made(lambda raw: b"[" + raw.strip() + b"]"), "JSON object, found list"),
    case("JSON: byte order mark", made(lambda raw: b"\xef\xbb\xbf" + raw), "not JSON"),
    with_value("not UTF-8", b'"\xff"', "not UTF-8 at byte 8"),
    with_value("nested 100,000 deep", b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    with_value("five million arrays", b"[" + b"[]," * 5_000_000 + b"1]", "brackets and braces"),
    with_value("integer of 5000 digits", b"9" * 5000, "a number has 5000 digits"),
    with_value("float of 5000 digits", b"0." + b"1" * 4998, "a number has 5000 digits"),
    with_value("1e400", b"1e400", "number 1e400 is out of range"),
    with_value("NaN", b"NaN", "NaN is not a JSON number"),
    with_value("-Infinity", b"-Infinity", "-Infinity is not a JSON number"),
    with_value("duplicate key", b'1, "zz": 1', "key 'zz' occurs twice"),
    with_value("duplicate key, deep", b'[{"y": {"x": 1, "x": 1}}]', "key 'x' occurs twice"),
    with_value("half a character", b'"\\ud800"', "'\\ud800' is half a character"),
    with_value("halves in the wrong order", b'"\\udc00\\ud800"', "'\\udc00' is half a character"),
)


def typed(use: str, name: str, change: Change, *says: str) -> Case:
    what = {"report": "saved report", "card report": "report for a card"}.get(use, use)
    return case(f"{what}: {name}", made(on_json(change)), *says, uses=(use,))


SEVERAL = "gguf-mtp.validate-backends/1"

TYPED = (
    typed("report", "of no schema", lambda d: d.pop("schema"), ".schema: missing"),
    typed("report", "of another schema", lambda d: d.update(schema="x"), ".schema: found 'x'"),
    typed("report", "schema that is an object", lambda d: d.update(schema={}), "expected text"),
    typed("report", "tiers that are text", lambda d: d.update(tiers="L0"), ".tiers: found 'L0'"),
    typed(
        "report", "tier that is a number", lambda d: d["tiers"].insert(0, 7), ".tiers[0]: found 7"
    ),
    typed(
        "report",
        "tokens per pass that are text",
        lambda d: d["acceptance"].update(tokens_per_pass="1"),
        ".tokens_per_pass: found '1', expected a number",
    ),
    typed("report", "size that is true", lambda d: d["files"][0].update(size=True), "found True"),
    typed(
        "report",
        "backends within backends",
        lambda d: d.update(schema=SEVERAL, backends=[{"schema": SEVERAL, "backends": []}]),
        f".backends[0].schema: found '{SEVERAL}'",
    ),
    typed(
        "card report",
        "of another file",
        lambda d: d["files"][0].update(sha256="0" * 64),
        "is of a file with sha256 '0000",
    ),
    typed(
        "card report", "of no file", lambda d: d.update(files=[]), "no merged file was validated"
    ),
    typed("prompts", "id that is a number", lambda d: d.update(id=7), 'needs strings "id"'),
    typed("prompts", "no text", lambda d: d.update(text=""), 'needs strings "id"'),
    typed("prompts", "chat that is 1", lambda d: d.update(chat=1), '"chat" is true or false'),
    typed("prompts", "windows beyond 64", lambda d: d.update(windows=65), '"windows" is a number'),
    typed("record", "directory that is a number", lambda d: d.update(lib_dir=7), "lib_dir is 7"),
    typed(
        "record", "directory with NUL", lambda d: d.update(lib_dir="a\0b"), "lib_dir is 'a\\x00b'"
    ),
    typed("record", "backend that is a list", lambda d: d.update(backend=[1]), "backend is [1]"),
    typed("record", "variant that is text", lambda d: d.update(exact="x"), "exact.lib_dir is None"),
    typed(
        "metadata",
        "name that is an object",
        lambda d: d.update({"general.name": {}}),
        "general.name is {}, expected text or numbers",
    ),
    typed(
        "metadata",
        "key of the tokenizer",
        lambda d: d.update({"tokenizer.ggml.model": "x"}),
        "'tokenizer.ggml.model' is no general.* key",
    ),
)

DOCUMENTS = (*JSON, *TYPED)
