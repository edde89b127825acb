"""Hostile checkpoint directories: safetensors, index, configuration, tokenizer and what else lies
there."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from hostile.case import Case, Good, Maker, linked

WEIGHTS = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# A tensor of this name is none of the text stack's, and passed over.
EXTRA = "model.vision_tower.extra"
Header = dict[str, Any]
Object = dict[str, Any]


def directory_of(good: Good, use: str) -> Path:
    return good.target if use == "base" else good.drafter


def replaced(
    name: str, change: Callable[[bytes], bytes], source: Callable[[Good, str], Path] = directory_of
) -> Maker:
    """The checkpoint of a use with one file changed."""

    def make(good: Good, directory: Path, use: str) -> Path:
        origin = source(good, use)
        path = linked(origin, directory / origin.name, name)
        (path / name).write_bytes(change((origin / name).read_bytes()))
        return path

    return make


def beside(name: str, data: bytes | None, *without: str, size: int = 0) -> Maker:
    """The checkpoint of a use with a file more (of `size` bytes, if given), and `without` others;
    a FIFO where there is no `data`."""

    def make(good: Good, directory: Path, use: str) -> Path:
        origin = directory_of(good, use)
        path = linked(origin, directory / origin.name, name, *without)
        if data is None:
            os.mkfifo(path / name)
        else:
            (path / name).write_bytes(data)
            if size:
                os.truncate(path / name, size)
        return path

    return make


def unchanged(good: Good, directory: Path, use: str) -> Path:
    return directory_of(good, use)


def safetensors_bytes(header: Header | bytes, data: bytes, length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


HeaderChange = Callable[[Header, bytes], bytes]
READERS = ("base", "heads", "audited")


def with_header(change: HeaderChange) -> Maker:
    def on_bytes(raw: bytes) -> bytes:
        end = 8 + int.from_bytes(raw[:8], "little")
        return change(json.loads(raw[8:end]), raw[end:])

    return replaced(WEIGHTS, on_bytes)


def safetensors(
    name: str,
    hostile: HeaderChange | Maker,
    *says: str,
    control: HeaderChange | None = None,
    uses: tuple[str, ...] = READERS,
    controlled_by: tuple[str, ...] | None = None,
    promise: str = "refused",
    whole: bool = False,
) -> Case:
    made: Any = hostile if whole else with_header(hostile)  # type: ignore[arg-type]
    checked = unchanged if control is None else with_header(control)
    by = controlled_by or (uses if control is None else ("base",))
    return Case(f"safetensors: {name}", made, checked, uses, says, promise, by)


def with_extra(
    dtype: Any = "U8", shape: Any = (4,), span: tuple[int, int] = (0, 4), grow: int = 4
) -> HeaderChange:
    """A tensor more, `span` counted from the end of the data, which grows by `grow` bytes."""

    def change(header: Header, data: bytes) -> bytes:
        offsets = [len(data) + at for at in span]
        header[EXTRA] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        return safetensors_bytes(header, data + bytes(grow))

    return change


def first_entry(change: Callable[[Object], object]) -> HeaderChange:
    def on_header(header: Header, data: bytes) -> bytes:
        change(next(value for name, value in header.items() if name != "__metadata__"))
        return safetensors_bytes(header, data)

    return on_header


def empties(count: int) -> HeaderChange:
    def change(header: Header, data: bytes) -> bytes:
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
        header |= {f"model.vision_tower.{number}": entry for number in range(count)}
        return safetensors_bytes(header, data)

    return change


def inside(text: bytes) -> HeaderChange:
    """`text` behind the header's opening brace."""
    return lambda header, data: safetensors_bytes(
        b"{" + text + json.dumps(header)[1:].encode(), data
    )


def padded(header: Header, data: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return safetensors_bytes(encoded + b" " * (1 + len(encoded) % 2), data)


def many_then_twice(header: Header, data: bytes) -> bytes:
    names = ",".join(f'"t{number}":0' for number in range(200_000))
    return safetensors_bytes(f'{{{names},"t0":0}}'.encode(), data)


def reversed_offsets(entry: Object) -> None:
    entry["data_offsets"] = entry["data_offsets"][::-1]


SAFETENSORS = (
    safetensors("7 bytes", lambda header, data: bytes(7), "7 bytes, a safetensors header needs 8"),
    safetensors(
        "header over 100 MB",
        beside(WEIGHTS, struct.pack("<Q", 100_000_001), size=100_000_100),
        "header length is 100000001",
        "limit 100000000",
        whole=True,
    ),
    safetensors(
        "header past the end",
        lambda header, data: safetensors_bytes(header, data, 1 << 40),
        "header length is 1099511627776, but",
    ),
    safetensors("header not UTF-8", inside(b'"\xff":0,'), "not UTF-8 at byte 2"),
    safetensors(
        "header an array", lambda header, data: safetensors_bytes(b"[]", data), "found list"
    ),
    safetensors(
        "header nested 100,000 deep", inside(b'"a":' + b"[" * 100_000), "nested too deeply"
    ),
    safetensors(
        "header of five million arrays",
        inside(b'"a":[' + b"[]," * 5_000_000 + b"[]],"),
        "brackets and braces open, at most 4194304",
    ),
    safetensors("duplicate key", inside(b'"a":0,"a":0,'), "key 'a' occurs twice"),
    safetensors("200,000 keys, the last a duplicate", many_then_twice, "key 't0' occurs twice"),
    safetensors("NaN", inside(b'"a":NaN,'), "NaN is not a JSON number"),
    safetensors("number of 5000 digits", inside(b'"a":' + b"9" * 5000 + b","), "5000 digits"),
    safetensors(
        "overlap", with_extra(span=(-4, 0)), "overlaps another tensor", control=with_extra()
    ),
    safetensors("hole", with_extra(span=(4, 8), grow=8), "leaves a hole", control=with_extra()),
    safetensors("reversed", first_entry(reversed_offsets), "data_offsets is [", "[begin, end]"),
    safetensors(
        "trailing bytes",
        lambda header, data: safetensors_bytes(header, data + b"\0"),
        "tensors end at",
        "trailing bytes",
    ),
    safetensors(
        "truncated", lambda header, data: safetensors_bytes(header, data[:-1]), "truncated"
    ),
    safetensors("shape/size mismatch", with_extra("F32", [2]), "span 4 bytes, F32 [2] needs 8"),
    safetensors(
        "shape whose bytes wrap", with_extra("F32", [1 << 62, 4]), "span 4 bytes", "needs 7378697"
    ),
    safetensors(
        "negative dimension", with_extra(shape=[-4]), "shape is [-4], expected up to 8 sizes"
    ),
    safetensors("float dimension", with_extra(shape=[4.0]), "shape is [4.0], expected"),
    safetensors("nine dimensions", with_extra(shape=[1] * 8 + [4]), "expected up to 8 sizes"),
    safetensors("unknown dtype", with_extra("Q9"), "unknown dtype 'Q9'", control=with_extra("I8")),
    safetensors(
        "metadata of numbers",
        lambda header, data: safetensors_bytes(header | {"__metadata__": {"a": 1}}, data),
        "__metadata__ is not an object of strings",
    ),
    safetensors(
        "100,000 empty tensors",
        empties(100_000),
        uses=("base",),
        promise="accepted: valid, and read in bounded time",
    ),
    safetensors("unaligned data", padded, promise="accepted: valid"),
    safetensors(
        "only pickled weights",
        beside("pytorch_model.bin", b"\x80\x04cos\nsystem\n", WEIGHTS),
        "no model*.safetensors (pickled weights are not read)",
        whole=True,
    ),
    safetensors(
        "pickled weights beside safetensors",
        beside("pytorch_model.bin", b"\x80\x04cos\nsystem\n"),
        whole=True,
        promise="accepted: not opened",
    ),
)


def sharded(good: Good, use: str) -> Path:
    path = good.target.with_name("sharded")
    return path if path.exists() else tiny.write_target(path, shards=2)


def sound_shards(good: Good, directory: Path, use: str) -> Path:
    return sharded(good, use)


IndexChange = Callable[[Object, list[str]], object]


def index(name: str, change: IndexChange | bytes, *says: str, promise: str = "refused") -> Case:
    """`change` gets the weight map and the names of both shards."""

    def on_bytes(raw: bytes) -> bytes:
        if isinstance(change, bytes):
            return change
        weights = json.loads(raw)["weight_map"]
        change(weights, sorted(set(weights.values())))
        return json.dumps({"weight_map": weights}).encode()

    return Case(
        f"index: {name}",
        replaced(INDEX_NAME, on_bytes, sharded),
        sound_shards,
        READERS,
        says,
        promise,
        ("base",),
    )


def linked_shard(to: str) -> Maker:
    """The first shard a symbolic link to `to`, or to a copy of its bytes elsewhere."""

    def make(good: Good, directory: Path, use: str) -> Path:
        origin = sharded(good, use)
        name = "model-00001-of-00002.safetensors"
        path = linked(origin, directory / origin.name, name)
        (directory / "blob").write_bytes((origin / name).read_bytes())
        (path / name).symlink_to(to or directory / "blob")
        return path

    return make


def first_to(value: Any) -> IndexChange:
    return lambda weights, shards: weights.update({next(iter(weights)): value})


def tensor_in_two(good: Good, directory: Path, use: str) -> Path:
    origin = sharded(good, use)
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    path = linked(origin, directory / origin.name, names[1])
    (path / names[1]).symlink_to(origin / names[0])
    return path


INDEX = (
    index("absolute path", first_to("/etc/passwd"), "'/etc/passwd' is not a plain file name"),
    index("path with ../", first_to("../m.safetensors"), "is not a plain file name"),
    index("path with a backslash", first_to("..\\m.safetensors"), "is not a plain file name"),
    index("name with NUL", first_to("a\0b"), "bad shard for"),
    index("name of half a character", first_to("\ud800.safetensors"), "no file can have this name"),
    index("name of 5000 letters", first_to("a" * 5000), "cannot open: File name too long"),
    index("number for a name", first_to(7), "bad shard for", ": 7"),
    index("missing shard", first_to("none.safetensors"), "none.safetensors: cannot open"),
    Case(
        "index: shard that links to a device",
        linked_shard("/dev/zero"),
        linked_shard(""),
        READERS,
        ("model-00001-of-00002.safetensors: not a regular file",),
        "refused; links to regular files are followed, as in Hugging Face's cache",
        ("base",),
    ),
    index(
        "tensor in another shard",
        lambda weights, shards: weights.update(dict.fromkeys(weights, shards[0])),
        "is mapped to model-00001-of-00002.safetensors, but is in",
        promise="refused",
    ),
    index(
        "tensor in no shard",
        lambda weights, shards: weights.update({"absent": shards[0]}),
        "tensor 'absent' is mapped to model-00001-of-00002.safetensors, but is in no shard",
    ),
    index(
        "tensor that is not listed",
        lambda weights, shards: weights.pop(next(iter(weights))),
        "is not in model.safetensors.index.json",
    ),
    Case(
        "index: tensor in two shards",
        tensor_in_two,
        sound_shards,
        READERS,
        ("is also in model-00001-of-00002.safetensors",),
        controlled_by=("base",),
    ),
    index("weight_map an array", b'{"weight_map": []}', "weight_map is not a filled object"),
    index("weight_map missing", b"{}", "weight_map is not a filled object"),
    index("duplicate key", b'{"weight_map": {"a": "b", "a": "c"}}', "key 'a' occurs twice"),
)


def text_of(config: Object) -> Object:
    text: Object = config["text_config"]
    return text


Change = Callable[[Object], object]


def on_json(change: Change) -> Callable[[bytes], bytes]:
    def on_bytes(raw: bytes) -> bytes:
        value = json.loads(raw)
        change(value)
        return json.dumps(value).encode()

    return on_bytes


def config(
    name: str,
    change: Change | Callable[[bytes], bytes],
    *says: str,
    raw: bool = False,
    uses: tuple[str, ...] = ("base", "heads"),
    promise: str = "refused",
) -> Case:
    made: Any = change if raw else on_json(change)  # type: ignore[arg-type]
    return Case(f"config: {name}", replaced("config.json", made), unchanged, uses, says, promise)


def deep(raw: bytes) -> bytes:
    levels = 900
    return raw.replace(
        b'"hidden_size":', b'"hidden_size":' + b"[" * levels + b"]" * levels + b',"x":', 1
    )


def fewer_layers(found: Object) -> None:
    text = text_of(found)
    text |= {"num_hidden_layers": 1, "layer_types": [tiny.FULL], "num_kv_shared_layers": 1}


def card(front: str) -> Maker:
    return beside("README.md", f"---\n{front}\n---\n".encode())


BOMB = (
    "a: &a [x, x]\n"
    + "".join(
        f"{name}: &{name} [*{before}, *{before}, *{before}, *{before}]\n"
        for before, name in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
    )
    + "name: *n"
)


def card_case(name: str, front: str, *says: str) -> Case:
    return Case(
        f"model card: {name}",
        card(front),
        card("license: apache-2.0\nname: Tiny"),
        ("base",),
        ("README.md", *says),
    )


CONFIG = (
    config("empty", lambda raw: b"", "not JSON", raw=True),
    config("duplicate key", lambda raw: b'{"a":1,"a":2}', "key 'a' occurs twice", raw=True),
    config("NaN", lambda raw: raw.replace(b"1e-06", b"NaN"), "NaN is not a JSON number", raw=True),
    config(
        "number of 5000 digits",
        lambda raw: b'{"a":' + b"9" * 5000 + b"}",
        "a number has 5000 digits",
        raw=True,
    ),
    config("number 1e999", lambda raw: b'{"a":1e999}', "number 1e999 is out of range", raw=True),
    config("byte order mark", lambda raw: b"\xef\xbb\xbf" + raw, "not JSON", raw=True),
    config("an array", lambda raw: b"[" + raw + b"]", "expected a JSON object", raw=True),
    config("value nested 900 deep", deep, "hidden_size is", raw=True),
    config("text_config an array", lambda found: found.update(text_config=[]), "text_config is []"),
    *(
        config(
            f"{name} {value!r}",
            lambda found, name=name, value=value: text_of(found).update({name: value}),
            f"{name} is",
            "expected",
        )
        for name, value in (
            ("num_attention_heads", 0),
            ("num_attention_heads", -1),
            ("num_attention_heads", "2"),
            ("num_attention_heads", 2.5),
            ("num_hidden_layers", 0),
            ("num_hidden_layers", 10**9),
            ("vocab_size", 1 << 70),
            ("hidden_size", None),
            ("head_dim", True),
        )
    ),
    config(
        "layer count other than the tensors'",
        fewer_layers,
        "has shape",
        "from config.json",
    ),
    config(
        "drafter without a layer count",
        lambda found: text_of(found).pop("num_hidden_layers"),
        "layer_types is",
        "expected num_hidden_layers = 30 entries",
        uses=("heads",),
    ),
    config(
        "name of a million parts",
        lambda found: found.update(_name_or_path="a-" * 1_000_000),
        "_name_or_path is",
        "expected a name",
    ),
    config(
        "auto_map with code of its own",
        lambda found: found.update(auto_map={"AutoConfig": "evil.Config"}),
        promise="accepted: not looked at, nothing is imported",
    ),
    config("quantized", lambda found: found.update(quantization_config={"bits": 4}), "quantized"),
    Case(
        "config: a FIFO",
        beside("config.json", None),
        unchanged,
        ("base", "audited"),
        ("config.json: not a regular file",),
    ),
    card_case("aliases that unfold to 2^26 items", BOMB, "alias in line"),
    card_case("nested 5000 deep", "name: " + "[" * 5000, "nested deeper than 16"),
    card_case("tag of a Python object", "name: !!python/object/apply:os.system [id]", "python/obj"),
    card_case("date that is none", "version: 2024-99-99", "unusable front matter"),
    card_case("front matter of 70,000 characters", "# " + "x" * 70_000, "at most 65536"),
    Case(
        "model card: 1 GiB",
        beside("README.md", b"---\n", size=1 << 30),
        card("license: apache-2.0"),
        ("base",),
        ("README.md: 1073741824 bytes, at most 1048576",),
    ),
)


def tokenizer(
    name: str,
    change: Change,
    *says: str,
    file: str = "tokenizer.json",
    uses: tuple[str, ...] = ("base", "heads"),
    promise: str = "refused",
) -> Case:
    return Case(
        f"tokenizer: {name}", replaced(file, on_json(change)), unchanged, uses, says, promise
    )


def vocab(change: Change) -> Change:
    return lambda found: change(found["model"]["vocab"])


def take_id(found: Object) -> None:
    found["e"] = found["t"]


def bad_byte(found: Object) -> None:
    found["<0xZZ>"] = found.pop("<0x0A>")


EVIL = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**9) %}{% endfor %}"
    "{{ cycler.__init__.__globals__.os.system('false') }}"
)

TOKENIZER = (
    tokenizer("a token more than rows", vocab(lambda v: v.update(more=512)), "'more' has id 512"),
    tokenizer("a token fewer", vocab(lambda v: v.popitem()), "511 tokens, expected", "id 511 is"),
    tokenizer("two tokens of one id", vocab(take_id), "is both"),
    tokenizer("negative id", vocab(lambda v: v.update(e=-1)), "'e' has id -1, expected 0 to 511"),
    tokenizer("id of 64 digits", vocab(lambda v: v.update(e=10**63)), "'e' has id 1000"),
    tokenizer("id that is text", vocab(lambda v: v.update(e="1")), "'e' has id '1'"),
    tokenizer("malformed byte token", vocab(bad_byte), "byte token '<0x0A>' is not in model.vocab"),
    tokenizer(
        "half a character",
        lambda found: (
            found["model"]["vocab"].pop("e"),
            vocab(
                lambda v: v.update({"\ud800": next(i for i in range(512) if i not in v.values())})
            )(found),
        ),
        "is not valid Unicode",
    ),
    tokenizer(
        "added token with two ids",
        lambda found: found["added_tokens"].append({"content": "<bos>", "id": 9}),
        "added token '<bos>' has ids 2 and 9",
    ),
    tokenizer("merge of one", lambda found: found["model"].update(merges=[["a"]]), "pairs of str"),
    tokenizer(
        "special token that is none",
        lambda found: found.update(bos_token="<none>"),
        "special token '<none>' is not in the vocabulary",
        file="tokenizer_config.json",
    ),
    Case(
        "tokenizer: truncated",
        replaced("tokenizer.json", lambda raw: raw[:-10]),
        unchanged,
        ("base", "heads"),
        ("tokenizer.json: not JSON",),
    ),
    Case(
        "tokenizer: token twice",
        replaced(
            "tokenizer.json", lambda raw: raw.replace(b'"vocab": {', b'"vocab": {"e": 1, ', 1)
        ),
        unchanged,
        ("base", "heads"),
        ("tokenizer.json: key 'e' occurs twice",),
    ),
    Case(
        "tokenizer: a FIFO",
        beside("tokenizer.json", None),
        unchanged,
        ("base", "heads"),
        ("tokenizer.json: not a regular file",),
    ),
    Case(
        "tokenizer: truncated protobuf alone",
        beside("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f", "tokenizer.json"),
        unchanged,
        ("base",),
        ("no tokenizer.json",),
    ),
    Case(
        "tokenizer: truncated protobuf beside",
        beside("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f"),
        unchanged,
        ("base", "heads"),
        promise="accepted: not opened",
    ),
    Case(
        "chat template: hostile",
        beside("chat_template.jinja", EVIL.encode()),
        unchanged,
        ("base", "heads"),
        promise="accepted: opaque text, never rendered",
    ),
    Case(
        "chat template: not UTF-8",
        beside("chat_template.jinja", b"{{ \xff }}"),
        unchanged,
        ("base", "heads"),
        ("chat_template.jinja: not UTF-8 at byte 3",),
    ),
    Case(
        "chat template: 17 MB",
        beside("chat_template.jinja", b"x", size=17_000_000),
        unchanged,
        ("base", "heads"),
        ("chat_template.jinja: 17000000 bytes, at most 16777216",),
    ),
    tokenizer(
        "chat template that is a number",
        lambda found: found.update(chat_template=7),
        "chat_template is 7, expected text or a list",
        file="tokenizer_config.json",
    ),
)
