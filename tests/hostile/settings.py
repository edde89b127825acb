"""Hostile settings of checkpoint directories: configuration, model card, tokenizer, templates."""

import json
from collections.abc import Callable
from typing import Any

import tiny
from hostile.case import Case, Maker
from hostile.checkpoints import Object, beside, replaced, unchanged


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


def card_case(name: str, hostile: Maker, *notes: str) -> Case:
    return Case(
        f"model card: {name}",
        hostile,
        card("license: apache-2.0\nname: Tiny"),
        ("base",),
        promise="accepted: converted without the card's keys, with a note",
        notes=("README.md", *notes, "converted without the keys of this model card"),
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
    config("Infinity", lambda raw: b'{"a":Infinity}', "Infinity is not a JSON", raw=True),
    config("text behind the object", lambda raw: raw + b" x", "not JSON: Extra data", raw=True),
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
    card_case("aliases that unfold to 2^26 items", card(BOMB), "alias in line"),
    card_case("nested 5000 deep", card("name: " + "[" * 5000), "nested deeper than 16"),
    card_case(
        "tag of a Python object", card("name: !!python/object/apply:os.system [id]"), "python/obj"
    ),
    card_case("date that is none", card("version: 2024-99-99"), "unusable front matter"),
    card_case("timestamp that is none", card("version: !!timestamp x"), "unusable front matter"),
    card_case("front matter of 70,000 characters", card("# " + "x" * 70_000), "at most 65536"),
    card_case("not UTF-8", beside("README.md", b"---\nname: \xe9\n---\n"), "not UTF-8 at byte 10"),
    card_case("tag that is a long number", card("tags:\n- 20000000000000000"), "32 bits"),
    card_case(
        "1 GiB",
        beside("README.md", b"---\n", size=1 << 30),
        "README.md: 1073741824 bytes, at most 1048576",
    ),
    card_case("a FIFO", beside("README.md", None), "README.md: not a regular file"),
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
        "'\\ud800' is half a character",
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
