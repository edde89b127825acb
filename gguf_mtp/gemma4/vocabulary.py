"""Gemma 4's tokenizer as ``tokenizer.*`` keys: what llama.cpp's converter obtains by running
transformers and tokenizers, read from the JSON files alone.

The content of tokenizer.json decides whether a tokenizer is supported, not the class named in
tokenizer_config.json: transformers writes several names for one and the same tokenizer.

Source: llama.cpp ``conversion/gemma.py`` (``set_vocab``), ``gguf-py/gguf/vocab.py``;
transformers 5.22 ``tokenization_utils_base.py`` (which tokens count as special),
``models/auto/tokenization_auto.py`` (which class is loaded) and
``models/gemma/tokenization_gemma.py`` (that class's defaults).
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import hexdigits
from typing import Any

from gguf_mtp.errors import FormatError, UnsupportedError, brief
from gguf_mtp.gemma4.chat_template import chat_template_keys
from gguf_mtp.keyvalue import KeyValue, ValueType, array, boolean, string, strings, u32
from gguf_mtp.readers.checkpoint import Checkpoint
from gguf_mtp.readers.strict_json import MAX_BYTES, parse_object, read_small

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
SCORE = -1000.0
SPACE = "\u0120"
# Of either case.
BYTE_TOKENS = tuple(f"<0x{high}{low}>" for high in hexdigits for low in hexdigits)
# What text falls back to that has no token of its own.
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

# Rendered even though special, so that a chat parser can see them.
VISIBLE = frozenset(
    {
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|tool_response>",
        "<tool_response|>",
        '<|"|>',
    }
)
# transformers loads GemmaTokenizer for these two names.
GEMMA_CLASSES = ("GemmaTokenizer", "GemmaTokenizerFast")
# That class's special tokens where the configuration names none. Any other name, or none at all,
# loads TokenizersBackend, which has no such defaults: a token that is not named is not special.
GEMMA_SPECIALS = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
# Kind -> GGUF key, in the order of the file.
ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
ADD_KEYS = {
    "bos": "tokenizer.ggml.add_bos_token",
    "eos": "tokenizer.ggml.add_eos_token",
    "sep": "tokenizer.ggml.add_sep_token",
}


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    return (checkpoint.path / "tokenizer.json").exists()


def vocabulary(checkpoint: Checkpoint, vocab_size: int) -> list[KeyValue]:
    """The ``tokenizer.*`` keys of a checkpoint whose embedding has `vocab_size` rows.

    Raises FormatError for inconsistent files (a count other than `vocab_size`, gaps, duplicates)
    and UnsupportedError for tokenizers of another kind than Gemma's byte-fallback BPE.
    """
    where = checkpoint.path / "tokenizer.json"
    settings = checkpoint.json("tokenizer_config.json")
    if settings is None or not has_tokenizer(checkpoint):
        missing = "tokenizer_config.json" if has_tokenizer(checkpoint) else "tokenizer.json"
        raise UnsupportedError(f"{checkpoint.path}: no {missing}")
    tokenizer = _read_tokenizer(where, vocab_size)
    specials = _special_texts(checkpoint, settings)
    unknown = sorted(text for text in specials if not tokenizer.ids(text))
    if unknown:
        raise FormatError(f"{where}: special token {unknown[0]!a} is not in the vocabulary")
    plan = _special_plan(checkpoint, tokenizer, settings, vocab_size)
    keys = {
        key.name: key
        for key in (
            string("tokenizer.ggml.model", "gemma4"),
            tokenizer.tokens,
            array("tokenizer.ggml.scores", ValueType.FLOAT32, [SCORE] * vocab_size),
            array("tokenizer.ggml.token_type", ValueType.INT32, _types(tokenizer, specials)),
            tokenizer.merges,
            *(u32(ID_KEYS[kind], number) for kind, number in plan.ids.items()),
            *(boolean(ADD_KEYS[kind], flag) for kind, flag in plan.add.items()),
            *chat_template_keys(checkpoint, settings),
            boolean("tokenizer.ggml.add_space_prefix", False),
        )
    }
    # Always true for Gemma 4; where the tokenizer states it too, it keeps that place.
    keys[ADD_KEYS["bos"]] = boolean(ADD_KEYS["bos"], True)
    return list(keys.values())


@dataclass(frozen=True)
class _Tokenizer:
    """What a tokenizer.json comes to: two keys, the ids of its model's tokens and of those added,
    and what frames a text."""

    tokens: KeyValue
    merges: KeyValue
    vocab: dict[str, int]
    added: dict[str, int]
    post_processor: Any

    def ids(self, text: str) -> set[int]:
        """The places of a token; an added one may have one more."""
        return {ids[text] for ids in (self.vocab, self.added) if text in ids}


# The last tokenizer.json read, by SHA-256 and vocabulary size: a drafter's is its target's.
_last_read: dict[tuple[bytes, int], _Tokenizer] = {}


def _read_tokenizer(where: Path, vocab_size: int) -> _Tokenizer:
    encoded = read_small(where, MAX_BYTES)
    content = hashlib.sha256(encoded).digest(), vocab_size
    if content not in _last_read:
        tokenizer = parse_object(encoded, str(where))
        model = _model(where, tokenizer)
        added = _added_tokens(where, tokenizer)
        tokens = _tokens(where, model["vocab"], added, vocab_size)
        missing_byte = next((text for text in BYTES if text not in model["vocab"]), None)
        if missing_byte is not None:
            raise FormatError(f"{where}: byte token {missing_byte!a} is not in model.vocab")
        read = _Tokenizer(
            strings("tokenizer.ggml.tokens", tokens),
            strings("tokenizer.ggml.merges", _merges(where, model)),
            model["vocab"],
            added,
            tokenizer.get("post_processor"),
        )
        _last_read.clear()
        _last_read[content] = read
    return _last_read[content]


def _model(where: Path, tokenizer: dict[str, Any]) -> dict[str, Any]:
    model, decoder = tokenizer.get("model"), tokenizer.get("decoder")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise FormatError(f"{where}: no model.vocab object")
    if model.get("type") != "BPE" or model.get("byte_fallback") is not True:
        raise UnsupportedError(
            f"{where}: model is {brief(model.get('type'))} with byte_fallback "
            f"{brief(model.get('byte_fallback'))}, expected 'BPE' with True"
        )
    if not isinstance(decoder, dict) or decoder.get("type") != "Sequence":
        raise UnsupportedError(f"{where}: decoder is not a Sequence")
    for step in _normalizers(tokenizer.get("normalizer")):
        if step in ("Lowercase", "StripAccents", "BertNormalizer"):
            raise UnsupportedError(f"{where}: normalizer {step} is not supported")
    return model


def _normalizers(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield str(value.get("type"))
        steps = value.get("normalizers")
        for step in steps if isinstance(steps, list) else []:
            yield from _normalizers(step)


def _added_tokens(where: Path, tokenizer: dict[str, Any]) -> dict[str, int]:
    entries = tokenizer.get("added_tokens", [])
    if not isinstance(entries, list):
        raise FormatError(f"{where}: added_tokens is not a list")
    added: dict[str, int] = {}
    for entry in entries:
        text = entry.get("content") if isinstance(entry, dict) else None
        number = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(text, str) or type(number) is not int:
            raise FormatError(f"{where}: added token without content and id: {brief(entry)}")
        if added.setdefault(text, number) != number:
            raise FormatError(f"{where}: added token {text!a} has ids {added[text]} and {number}")
    return added


def _tokens(
    where: Path, vocab: dict[str, Any], added: dict[str, int], vocab_size: int
) -> list[str]:
    """Token texts by id."""
    tokens: list[str | None] = [None] * vocab_size
    ids = [*vocab.values()]
    if ids == [*range(len(ids))] and {int}.issuperset(map(type, ids)) and len(ids) <= vocab_size:
        # In order, as the tokenizers library writes them: nothing to check one by one.
        tokens[: len(ids)] = vocab
        rest = itertools.chain(added.items())
    else:
        rest = itertools.chain(vocab.items(), added.items())
    for text, number in rest:
        if type(number) is not int or not 0 <= number < vocab_size:
            raise FormatError(
                f"{where}: token {text!a} has id {brief(number)}, expected 0 to {vocab_size - 1} "
                f"(vocab_size in config.json is {vocab_size})"
            )
        if tokens[number] not in (None, text):
            raise FormatError(f"{where}: id {number} is both {tokens[number]!a} and {text!a}")
        tokens[number] = text
    texts = [text for text in tokens if text is not None]
    if len(texts) != vocab_size:
        gap = tokens.index(None)
        raise FormatError(
            f"{where}: {len(texts)} tokens, expected vocab_size = {vocab_size}; id {gap} is missing"
        )
    return texts


def _types(tokenizer: _Tokenizer, specials: set[str]) -> list[int]:
    """Every token's type; what comes later overrides what came before."""
    types = [NORMAL] * tokenizer.tokens.count

    def mark(texts: Iterable[str], kind: int) -> None:
        for text in texts:
            for number in tokenizer.ids(text):
                types[number] = kind

    mark(specials, CONTROL)
    mark(BYTE_TOKENS, BYTE)
    for text, number in tokenizer.added.items():
        if number >= len(tokenizer.vocab) and text not in specials:
            types[number] = USER_DEFINED
    mark(VISIBLE, USER_DEFINED)
    return types


def _special_texts(checkpoint: Checkpoint, settings: dict[str, Any]) -> set[str]:
    """The tokens transformers counts as special: named ones, model-specific ones, extra ones."""
    where = checkpoint.path / "tokenizer_config.json"
    kind = settings.get("tokenizer_class")
    kind = checkpoint.config.get("tokenizer_class") if kind is None else kind
    values = (GEMMA_SPECIALS if kind in GEMMA_CLASSES else {}) | settings
    if "added_tokens_decoder" not in settings:
        values |= checkpoint.json("special_tokens_map.json") or {}
    texts = {
        _content(value)
        for name, value in values.items()
        if name.endswith("_token") and not name.startswith("add_")
    }
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    specific = values.get("model_specific_special_tokens") or {}
    for group in (extra, specific):
        if not isinstance(group, list | dict):
            raise FormatError(f"{where}: special tokens are {brief(group)}, expected a list")
        texts |= {_content(v) for v in (group.values() if isinstance(group, dict) else group)}
    return {text for text in texts if text is not None}


def _content(value: Any) -> str | None:
    """The text of a token given as a string or as a serialized AddedToken."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


@dataclass
class _SpecialPlan:
    """Ids of special tokens and whether they are added, in the order they become keys."""

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)


def _special_plan(
    checkpoint: Checkpoint,
    tokenizer: _Tokenizer,
    settings: dict[str, Any],
    n_tokens: int,
) -> _SpecialPlan:
    plan = _SpecialPlan()
    names = {f"{kind}_token": settings.get(f"{kind}_token") for kind in (*ID_KEYS, "cls")}
    template = _template(tokenizer.post_processor)
    if template is not None:
        _apply_template(checkpoint.path / "tokenizer.json", template, names, plan.add)
    for kind in ID_KEYS:
        flag = settings.get(f"add_{kind}_token")
        if isinstance(flag, bool) and kind in ADD_KEYS:
            plan.add.setdefault(kind, flag)
        number = tokenizer.added.get(_content(names[f"{kind}_token"]) or "")
        if number is not None:
            plan.ids[kind] = number
    text_config = checkpoint.config.get("text_config")
    for kind in ID_KEYS:
        number = checkpoint.config.get(f"{kind}_token_id")
        if number is None and isinstance(text_config, dict):
            number = text_config.get(f"{kind}_token_id")
        if type(number) is int:
            plan.ids.setdefault(kind, number)
    for kind, number in plan.ids.items():
        if not 0 <= number < n_tokens:
            raise FormatError(
                f"{checkpoint.path}: {kind}_token_id is {number}, expected 0 to {n_tokens - 1}"
            )
    return plan


def _template(post_processor: Any) -> dict[str, Any] | None:
    """The TemplateProcessing step of a post-processor, if there is one."""
    if not isinstance(post_processor, dict):
        return None
    steps = post_processor.get("processors", [post_processor])
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
            return step
    return None


def _apply_template(
    where: Path, template: dict[str, Any], names: dict[str, Any], add: dict[str, bool]
) -> None:
    """Read from a template which special tokens frame a text. Gemma's is ``<bos> A`` for one
    text and ``<bos> A <bos> B`` for two; templates that end in a special token are refused."""
    single, pair = _parts(where, template, "single"), _parts(where, template, "pair")
    first = single[0] if len(single) > 1 else None
    if len(single) > 1 and single[-1] is not None:
        raise UnsupportedError(f"{where}: post_processor that ends in {single[-1]!a}")
    if first is not None:
        # As upstream: a leading token nobody names becomes the one that is missing.
        names["bos_token"] = names["bos_token"] or first
        if first != names["bos_token"]:
            names["cls_token"] = names["cls_token"] or first
        add["bos"] = first in (names["bos_token"], names["cls_token"])
    inner = pair[1:] if first is not None and pair and pair[0] == first else pair
    if len(inner) > 2 and inner[0] is None and inner[-1] is None:
        middle = inner[1:-1] if len(inner) == 4 else inner[1:2]
        joints = (names["sep_token"], names["eos_token"])
        add["sep"] = any(text is not None and text in joints for text in middle)


def _parts(where: Path, template: dict[str, Any], name: str) -> list[str | None]:
    """A template's parts: a special token's text, or None for a text of the user."""
    parts = template.get(name, [])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise FormatError(f"{where}: post_processor.{name} is not a list of objects")
    texts = [part.get("SpecialToken") for part in parts]
    return [text.get("id") if isinstance(text, dict) else None for text in texts]


def _merges(where: Path, model: dict[str, Any]) -> list[str]:
    """Each merge's two parts joined by a space; a space within one is written as U+0120."""
    merges = model.get("merges")
    if not isinstance(merges, list) or not merges:
        raise FormatError(f"{where}: model.merges is not a filled list")
    kinds = set(map(type, merges))
    if kinds == {str}:
        lines = merges
    elif kinds == {list} and set(map(len, merges)) == {2}:
        try:
            lines = [*map(" ".join, merges)]
        except TypeError:
            raise FormatError(f"{where}: model.merges holds more than pairs of strings") from None
        if "".join(lines).count(" ") > len(lines):
            lines = [" ".join(part.replace(" ", SPACE) for part in merge) for merge in merges]
    else:
        raise FormatError(f"{where}: model.merges holds more than pairs of strings")
    return lines


def suppressed_tokens(checkpoint: Checkpoint, n_tokens: int) -> list[KeyValue]:
    """generation_config.json's ``suppress_tokens``, which are never to be sampled."""
    value = (checkpoint.json("generation_config.json") or {}).get("suppress_tokens")
    if value is None or value == []:
        return []
    if not isinstance(value, list) or any(
        type(number) is not int or not 0 <= number < n_tokens for number in value
    ):
        raise FormatError(
            f"{checkpoint.path / 'generation_config.json'}: suppress_tokens is {brief(value)}, "
            f"expected token ids from 0 to {n_tokens - 1}"
        )
    return [array("tokenizer.ggml.suppress_tokens", ValueType.INT32, value)]
