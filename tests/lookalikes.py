"""Small GGUFs that look like published Gemma 4 files: made from ``released/*.json`` and a size's
layers.

Keys (names, types, order, the values that do not depend on width), tensor names, their number and
the special tokens are those of the published file. Widths and the vocabulary are small, weights are
random. What nobody printed is as llama.cpp's converter and quantizer write it. The same bytes on
every machine, and no torch.
"""

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import tiny
from gguf_mtp.drafters.assistant import drafter_tensors
from gguf_mtp.gemma4.config import TextConfig
from gguf_mtp.gemma4.keys import hyperparameters, rope_freqs
from gguf_mtp.gemma4.released import RELEASED
from gguf_mtp.gemma4.tensors import target_tensors
from gguf_mtp.ggml import F32, I32, Q8_0, TYPES, GgmlType
from gguf_mtp.keyvalue import KeyValue, ValueType, array, scalar, string, strings, u32
from gguf_mtp.model import Half, Tensor
from gguf_mtp.plan import plan
from gguf_mtp.writer import write_gguf
from released_facts import ITEMS, VALUE_TYPES, Facts, Key, read_facts

UPSTREAM_HEADS = "gemma4-assistant"
CENTROIDS, ORDERING = "masked_embd_centroids.weight", "masked_embd_ordering"

# ----------------------------------------------------------------------------------- the vocabulary

# The special tokens at the ids of Gemma 4's vocabulary. Low ids are kept. Those from 255999 on are
# the last tokens of the small vocabulary.
LOW_SPECIALS = {
    **dict(enumerate(tiny.CORE_TOKENS)),
    46: "<|tool>",
    47: "<tool|>",
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    98: "<|think|>",
    100: "<|channel>",
    101: "<channel|>",
    105: "<|turn>",
    106: "<turn|>",
    212: "</s>",
}
VIDEO = "<|video|>"
HIGH_SPECIALS = ("<|image>", "<|audio>", "<|image|>", "<|audio|>", "<image|>", "<audio|>", VIDEO)
# Special tokens that a converter gives another type than control, so that a chat parser sees them.
USER_DEFINED = (
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", '<|"|>'),
)
NORMAL, CONTROL, USER, BYTE = 1, 3, 4, 6
FIRST_LETTER, FIRST_BYTE = 107, 238
GEMMA_TOKENS, HIGH_IDS = 262_144, (255_999, 256_000, *range(258_880, 258_885))
# The template's first words are printed in load logs; the rest here is any template.
TEMPLATE_REST = "%}{%- endmacro -%}{{ bos_token }}{{ messages }}"


@dataclass(frozen=True)
class Vocabulary:
    """Token texts by id, with their types in a base, and merges."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]


def vocabulary(ordinary: Iterable[str], n_tokens: int, merges: Sequence[str]) -> Vocabulary:
    """`n_tokens` tokens with Gemma 4's special tokens and bytes in their places; the other places
    are filled with the texts `ordinary`."""
    first_high = n_tokens - len(HIGH_SPECIALS) if n_tokens < GEMMA_TOKENS else None
    high = HIGH_IDS if first_high is None else range(first_high, n_tokens)
    tokens = LOW_SPECIALS | dict(zip(high, HIGH_SPECIALS, strict=True))
    tokens |= {FIRST_BYTE + byte: f"<0x{byte:02X}>" for byte in range(256)}
    texts = iter(ordinary)
    by_id = tuple(tokens[id_] if id_ in tokens else next(texts) for id_ in range(n_tokens))
    specials = {*LOW_SPECIALS.values(), *HIGH_SPECIALS} - {"</s>"}
    types = tuple(_token_type(text, specials) for text in by_id)
    return Vocabulary(by_id, types, tuple(merges))


def _token_type(text: str, specials: set[str]) -> int:
    if text in USER_DEFINED:
        return USER
    if text in specials:
        return CONTROL
    return BYTE if text.startswith("<0x") else NORMAL


@cache
def small_vocabulary() -> Vocabulary:
    """512 tokens: specials, unused, newlines, letters, bytes, and words of two letters."""
    unused = [f"<unused{id_}>" for id_ in range(FIRST_LETTER) if id_ not in LOW_SPECIALS]
    letters = ["▁", *map(chr, range(33, 127))]
    pairs = [("\n" * n, "\n") for n in (1, 2, 3)]
    pairs += [(a, b) for a in "▁eta" for b in letters if b.islower() or b == "▁"]
    room = tiny.VOCAB_SIZE - len(LOW_SPECIALS) - len(HIGH_SPECIALS) - 256
    pairs = pairs[: room - len(unused) - 1 - len(letters)]
    words = ["".join(pair) for pair in pairs]
    merges = [" ".join(pair) for pair in pairs]
    return vocabulary([*unused, "\n", *letters, *words], tiny.VOCAB_SIZE, merges)


# ------------------------------------------------------------------------------------- small models

# Hidden size, chosen so that rows are whole blocks of 32 values, and a drafter's differs.
HIDDEN = {"E2B": 64, "E4B": 96, "12B": 64, "26B-A4B": 64, "31B": 32}
DRAFTER_HIDDEN = {size: 64 if width == 32 else 32 for size, width in HIDDEN.items()}
WIDE, HEAD_DIM, PER_LAYER, EXPERTS, EXPERTS_USED = 64, 16, 32, 8, 2


def small_config(size: str, role: str) -> TextConfig:
    """A size's text configuration with its layers, heads and windows, and small widths."""
    released = RELEASED[size]
    full = released.target if role == "base" else released.drafter
    return replace(
        full,
        vocab_size=tiny.VOCAB_SIZE,
        hidden_size=HIDDEN[size] if role == "base" else DRAFTER_HIDDEN[size],
        intermediate_size=WIDE,
        head_dim=HEAD_DIM,
        full_head_dim=2 * HEAD_DIM,
        per_layer_input_size=PER_LAYER if full.per_layer_input_size else 0,
        per_layer_vocab_size=tiny.VOCAB_SIZE if full.per_layer_vocab_size else 0,
        experts=EXPERTS if full.experts else None,
        experts_used=EXPERTS_USED if full.experts else None,
        expert_intermediate_size=WIDE if full.experts else None,
    )


@dataclass(frozen=True)
class Scale:
    """How large look-alikes are: configurations by size and role, the vocabulary, the ordered head,
    the types that stand for those of super-blocks, and what tensors hold."""

    config: Callable[[str, str], TextConfig]
    words: Vocabulary
    centroids: int
    top_k: int
    stand_ins: Mapping[str, str]
    fill: Callable[[str, GgmlType, tuple[int, ...]], Tensor]


def model(facts: Facts, scale: Scale) -> Half:
    """A model with the layers of the facts' size, under upstream's names."""
    assert facts.size is not None
    config = scale.config(facts.size, facts.role)
    if facts.role == "base":
        arch, more, shapes = "gemma4", [], _base_shapes(facts, config)
    else:
        backbone = scale.config(facts.size, "base").hidden_size
        arch, more, shapes = UPSTREAM_HEADS, *_heads(facts, config, backbone, scale)
    types = _types(facts, shapes, scale.stand_ins)
    tensors = [rope_freqs(config), *(scale.fill(name, types[name], shapes[name]) for name in types)]
    if ORDERING in shapes:
        tokens = np.frombuffer(tiny.ordering(config.vocab_size), "<i8").astype("<i4").tobytes()
        tensors.append(Tensor(ORDERING, I32, shapes[ORDERING], tokens, verbatim=True))
    keys = [
        *_general(arch, facts),
        *hyperparameters(config, arch, Q8_0),
        *more,
        *_tokenizer(facts, scale.words),
    ]
    return Half(facts.name, "gguf", tuple(keys), tuple(tensors), ())


Shapes = dict[str, tuple[int, ...]]


def _base_shapes(facts: Facts, config: TextConfig) -> Shapes:
    shares = facts.shared_kv_tensors is not False
    shapes = {
        item.name: item.shape
        for item in target_tensors(config)
        if item.required or (shares and item.name.startswith("blk."))
    }
    if facts.scales:
        shapes = dict(_with_scales(shapes))
    return shapes | (_encoder_shapes() if facts.encoders else {})


SCALED = re.compile(r"blk\.\d+\.ffn_(gate|up|down|gate_exps|up_exps)\.weight")


def _with_scales(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Gate and up experts apart, and a scale for each matrix of the feed-forward networks."""
    for whole, shape in shapes.items():
        apart = [whole]
        if "ffn_gate_up_exps" in whole:
            apart = [whole.replace("gate_up", part) for part in ("gate", "up")]
            shape = (shape[0], shape[1] // 2, shape[2])
        for name in apart:
            yield name, shape
            if SCALED.fullmatch(name):
                yield name.replace("weight", "scale"), (shape[0] if len(shape) == 3 else 1,)


# Encoders as Ollama packs them. Their number was printed, the names were not.
VISION_LAYERS, AUDIO_LAYERS = 16, 12
CLIPS = tuple(f"{side}_{end}" for side in ("input", "output") for end in ("min", "max"))
VISION_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_gate", "ffn_up", "ffn_down")
AUDIO_MATRICES = (
    *("attn_q", "attn_k", "attn_v", "attn_out", "attn_rel", "conv_pw1", "conv_pw2"),
    *("ffn_up", "ffn_down", "ffn_up_1", "ffn_down_1"),
)
OTHER_MATRICES = (
    *("v.patch_embd", "v.position_embd", "a.input_projection"),
    *("mm.input_projection", "mm.a.input_projection"),
)
OTHER_VECTORS = (
    *("v.std_bias", "v.std_scale", "mm.soft_emb_norm", "mm.a.soft_emb_norm"),
    *("a.conv_norm.0", "a.conv_norm.1"),
)


def _encoder_shapes() -> Shapes:
    """1411 tensors: 41 a vision layer, 62 an audio layer, and 11 more."""
    shapes: Shapes = {}
    for at, layers, matrices, norms in (
        ("v", VISION_LAYERS, VISION_MATRICES, 6),
        ("a", AUDIO_LAYERS, AUDIO_MATRICES, 7),
    ):
        for layer in range(layers):
            block = f"{at}.blk.{layer}"
            for name in matrices:
                shapes[f"{block}.{name}.weight"] = (8, 32)
                shapes |= {f"{block}.{name}.{clip}": (1,) for clip in CLIPS}
            shapes |= {f"{block}.ln{norm}.weight": (8,) for norm in range(norms)}
    shapes |= {f"{name}.weight": (8, 32) for name in OTHER_MATRICES}
    return shapes | {f"{name}.weight": (8,) for name in OTHER_VECTORS}


def _heads(
    facts: Facts, config: TextConfig, backbone: int, scale: Scale
) -> tuple[list[KeyValue], dict[str, tuple[int, ...]]]:
    keys = [
        u32(f"{UPSTREAM_HEADS}.embedding_length_out", backbone),
        u32(f"{UPSTREAM_HEADS}.nextn_predict_layers", config.n_layers),
    ]
    shapes = {item.name: item.shape for item in drafter_tensors(config, backbone)}
    if facts.ordered_head:
        keys += [
            u32(f"{UPSTREAM_HEADS}.masked_embd.centroid_count", scale.centroids),
            u32(f"{UPSTREAM_HEADS}.masked_embd.top_k", scale.top_k),
        ]
        shapes[CENTROIDS] = (scale.centroids, config.hidden_size)
        shapes[ORDERING] = (config.vocab_size,)
    return keys, shapes


# ------------------------------------------------------------------------------------- tensor types

# A row of the real widths is whole super-blocks of 256 values; a small one has blocks of 32.
STAND_INS = {"Q4_K": "Q4_0", "Q5_K": "Q5_0", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
# Of a file whose types were not counted: by its name, experts first.
BY_NAME = (
    ("NVFP4", "NVFP4", "F16"),
    ("MXFP4", "MXFP4", "F16"),
    ("IQ4", "IQ4_NL", "IQ4_NL"),
    ("Q8", "Q8_0", "Q8_0"),
    ("F16", "F16", "F16"),
    ("", "Q4_0", "Q4_0"),
)
# The first bytes of a block, its scale, where values are random: about 0.01 to 0.05.
SCALES = {
    "IQ4_NL": struct.pack("<e", 0.0005),
    "MXFP4": bytes([120]),
    "NVFP4": bytes([0x18] * 4),
}


def _types(facts: Facts, shapes: Shapes, stand_ins: Mapping[str, str]) -> dict[str, GgmlType]:
    """The type of each tensor, the ordering left out; counts are those of the facts."""
    matrices = [name for name, shape in shapes.items() if _is_matrix(facts, name, shape)]
    chosen = dict.fromkeys((name for name in shapes if name != ORDERING), F32)
    if facts.tensor_types is not None:
        counted = {name: n for name, n in facts.tensor_types.items() if name not in ("F32", "I32")}
        order = [stand_ins.get(name, name) for name, n in counted.items() for _ in range(n)]
        # llama-quantize keeps one matrix in BF16; encoders, which come last, are never quantized.
        matrices.sort(key=lambda name: name == "per_layer_model_proj.weight")
        order.sort(key=lambda name: (name == "BF16", name == "F16"))
        assert len(order) == len(matrices), (facts.name, len(order), len(matrices))
        chosen |= {name: TYPES[kind] for name, kind in zip(matrices, order, strict=True)}
    else:
        _, experts, others = next(row for row in BY_NAME if row[0] in facts.file.upper())
        for name in matrices:
            kind = experts if "_exps" in name or SCALED.fullmatch(name) else others
            chosen[name] = TYPES[kind]
    return chosen


def _is_matrix(facts: Facts, name: str, shape: tuple[int, ...]) -> bool:
    small = len(shape) < 2 or name.endswith(".ffn_gate_inp.weight")
    return not small and name.split(".")[-2] not in facts.f32_matrices


def random_tensor(name: str, number: GgmlType, shape: tuple[int, ...]) -> Tensor:
    """Random values, the same for a name and a shape wherever it is made."""
    if number.name in SCALES:
        head = SCALES[number.name]
        rest = number.block_bytes - len(head)
        n_blocks = number.nbytes(shape) // number.block_bytes
        raw = np.frombuffer(tiny.noise(name, (n_blocks * rest // 4 + 1,), "F32"), np.uint8)
        codes = raw[: n_blocks * rest].reshape(n_blocks, rest)
        heads = np.broadcast_to(np.frombuffer(head, np.uint8), (n_blocks, len(head)))
        data = np.concatenate([heads, codes], axis=1).tobytes()
    else:
        values = np.frombuffer(tiny.noise(name, shape, "F32"), np.float32).reshape(shape)
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType(number.id)).tobytes()
    return Tensor(name, number, shape, data, verbatim=True)


# ---------------------------------------------------------------------------------------- the keys


def _general(arch: str, facts: Facts) -> list[KeyValue]:
    """What llama.cpp's converter writes of a model of Google's."""
    assistant = " Assistant" if facts.role == "drafter" else ""
    return [
        string("general.architecture", arch),
        string("general.type", "model"),
        scalar("general.sampling.top_k", ValueType.INT32, 64),
        scalar("general.sampling.top_p", ValueType.FLOAT32, 0.95),
        scalar("general.sampling.temp", ValueType.FLOAT32, 1.0),
        string("general.name", f"Gemma 4 {facts.size} It{assistant}"),
        string("general.size_label", str(facts.size)),
        string("general.license", "apache-2.0"),
        string("general.license.link", "https://ai.google.dev/gemma/docs/gemma_4_license"),
        strings("general.tags", ["any-to-any"]),
    ]


def _tokenizer(facts: Facts, words: Vocabulary) -> list[KeyValue]:
    """What llama.cpp's converter writes of Google's tokenizers: a drafter's names no extra special
    token and has no chat template."""
    drafter = facts.role == "drafter"
    types = list(words.types)
    if drafter:
        types[words.tokens.index(VIDEO)] = NORMAL
    ids = ("bos", 2), ("eos", 1), ("unknown", 3), ("padding", 0), ("mask", 4)
    template = [string("tokenizer.chat_template", "{%- macro format_parameters(properties) -")]
    return [
        u32("general.quantization_version", 2),
        string("tokenizer.ggml.model", "gemma4"),
        strings("tokenizer.ggml.tokens", words.tokens),
        array("tokenizer.ggml.scores", ValueType.FLOAT32, [-1000.0] * len(words.tokens)),
        array("tokenizer.ggml.token_type", ValueType.INT32, types),
        strings("tokenizer.ggml.merges", words.merges),
        *(u32(f"tokenizer.ggml.{name}_token_id", id_) for name, id_ in ids),
        *([] if drafter else template),
        scalar("tokenizer.ggml.add_space_prefix", ValueType.BOOL, False),
        scalar("tokenizer.ggml.add_bos_token", ValueType.BOOL, True),
    ]


LAST_OF_QUANTIZED = ("general.quantization_version", "general.file_type")
# Keys of upstream's under the names that dialects give them, after ``<arch>.``.
MEANS = {
    "n_embd_backbone": "embedding_length_out",
    "backbone_embedding_length": "embedding_length_out",
    "n_centroids": "masked_embd.centroid_count",
    "centroid_count": "masked_embd.centroid_count",
    "centroid_top_k": "masked_embd.top_k",
}
# Of Ollama's file with encoders in it; their names were not printed.
ENCODER_KEYS = (
    *("vision.block_count", "vision.embedding_length", "vision.attention.head_count"),
    *("vision.patch_size", "vision.projector.scale_factor"),
    *("audio.block_count", "audio.embedding_length", "audio.attention.head_count"),
    "audio.conv_kernel_size",
)


def _listed(facts: Facts, source: Half) -> list[Key]:
    """The keys of the file in its order; those it was not printed with are as in the file that it
    is `like`, or as upstream writes them."""
    if facts.all_keys:
        return list(facts.keys)
    if facts.like is not None:
        keys = _in_this_size(facts, _listed(read_facts(facts.like), source), source)
    else:
        keys = [_under(facts.architecture, _as_printed(key)) for key in source.keys]
    keys = _with_printed(keys, facts.keys)
    if facts.encoders:
        keys += [Key(f"gemma4.{name}", "u32", 16) for name in ENCODER_KEYS]
    keys = [key for key in keys if key.name not in facts.without]
    return KEY_ORDERS[facts.key_order](keys)


def _as_printed(key: KeyValue) -> Key:
    kinds = {number: kind for kind, number in VALUE_TYPES.items()}
    if key.item_type is not None:
        return Key(key.name, f"arr[{kinds[key.item_type]}]")
    return Key(key.name, kinds[key.type])


def _under(architecture: str, key: Key) -> Key:
    """`key` of upstream's under another architecture's name."""
    head, dot, rest = key.name.partition(".")
    return replace(key, name=architecture + dot + rest) if head.startswith("gemma4") else key


def _in_this_size(facts: Facts, keys: Iterable[Key], source: Half) -> list[Key]:
    """Whether a hyper-parameter is one number or one a layer depends on the size."""
    found = [_under(facts.architecture, _as_printed(key)) for key in source.keys]
    own = {key.name: key for key in found if key.name.startswith("gemma4")}
    return [own.get(key.name, key) for key in keys]


def _with_printed(keys: list[Key], printed: Iterable[Key]) -> list[Key]:
    """`keys` with those `printed` in their places; a further one follows the printed one before."""
    keys, after = list(keys), 0
    for key in printed:
        names = [other.name for other in keys]
        if key.name in names:
            after = names.index(key.name)
            keys[after] = key
        else:
            after += 1
            keys.insert(after, key)
    return keys


def _quantized(keys: list[Key]) -> list[Key]:
    """llama-quantize sets these two anew, and whatever it adds follows them."""
    added = [key for key in keys if key.name.startswith("quantize.")]
    last = [key for name in LAST_OF_QUANTIZED for key in keys if key.name == name]
    return [key for key in keys if key not in added and key not in last] + last + added


def _template_last(keys: list[Key]) -> list[Key]:
    return sorted(keys, key=lambda key: key.name == "tokenizer.chat_template")


KEY_ORDERS: dict[str | None, Callable[[list[Key]], list[Key]]] = {
    None: lambda keys: keys,
    "converter": lambda keys: keys,
    "llama-quantize": _quantized,
    "alphabetical": lambda keys: sorted(keys, key=lambda key: key.name),
    "template-last": _template_last,
}


@dataclass(frozen=True)
class _Dresser:
    """Gives a model's own values to the keys of a published file.

    `stands_for` maps a special token's text to one of a vocabulary that does not have it.
    """

    facts: Facts
    source: Half
    stands_for: Mapping[str, str] = field(default_factory=dict)

    def keys(self) -> list[KeyValue]:
        return [self._key(key) for key in _listed(self.facts, self.source)]

    def _key(self, key: Key) -> KeyValue:
        value = self._value(key)
        assert value is not None, f"{self.facts.name}: no value for {key.name}"
        items = ITEMS.fullmatch(key.kind)
        if items is None:
            kind = VALUE_TYPES[key.kind]
            return string(key.name, value) if key.kind == "str" else scalar(key.name, kind, value)
        if items[1] == "str":
            return strings(key.name, value)
        return array(key.name, VALUE_TYPES[items[1]], value)

    def _value(self, key: Key) -> Any:
        own = self._own(key.name)
        special = SPECIAL_VALUES.get(key.name)
        if special is not None:
            return special(self, key, own)
        if not key.name.startswith("gemma4"):
            return own if key.value is None else key.value
        if own is None:
            return key.value
        if key.kind.startswith("arr[") and not isinstance(own, list):
            return [own] * int(self._own(f"{self.facts.architecture}.block_count"))
        return own

    def _own(self, name: str) -> Any:
        """The model's value of a key, by the name it has in the published file."""
        rest = name.removeprefix(f"{self.facts.architecture}.")
        if rest != name:
            arch = str(self.source.by_name["general.architecture"].value)
            name = f"{arch}.{MEANS.get(rest, rest)}"
        key = self.source.by_name.get(name)
        return None if key is None else key.value

    def id_of(self, real: int) -> int:
        """This vocabulary's id of the special token that has id `real` in Gemma 4's."""
        return self._tokens.index(LOW_SPECIALS[real])

    @cached_property
    def _tokens(self) -> list[str]:
        tokens: list[str] = self.source.by_name["tokenizer.ggml.tokens"].value
        return tokens

    def token_types(self, types: list[int]) -> list[int]:
        types = list(types)
        for text, kind in self.facts.token_types.items():
            if kind is not None:
                types[self._tokens.index(self.stands_for.get(text, text))] = kind
        return types


def _scores(dresser: _Dresser, key: Key, own: Any) -> Any:
    """Where the model is ``llama`` they count up."""
    model = next((k.value for k in dresser.facts.keys if k.name == "tokenizer.ggml.model"), None)
    return [float(score) for score in range(len(own))] if model == "llama" else own


def _id(dresser: _Dresser, key: Key, own: Any) -> Any:
    if isinstance(key.value, list):
        return [dresser.id_of(real) for real in key.value]
    return own if key.value is None else dresser.id_of(key.value)


def _template(dresser: _Dresser, key: Key, own: Any) -> Any:
    printed = key.value or own
    name = printed.removeprefix("{%- macro ").partition("(")[0]
    return f"{{%- macro {name}(properties) -{TEMPLATE_REST}"


SPECIAL_VALUES: dict[str, Callable[[_Dresser, Key, Any], Any]] = {
    "general.architecture": lambda dresser, key, own: dresser.facts.architecture,
    "tokenizer.chat_template": _template,
    "tokenizer.ggml.scores": _scores,
    "tokenizer.ggml.token_type": lambda dresser, key, own: dresser.token_types(own),
    "tokenizer.ggml.eos_token_ids": _id,
    **{
        f"tokenizer.ggml.{name}_token_id": _id
        for name in ("bos", "eos", "unknown", "padding", "mask")
    },
}

# ------------------------------------------------------------------------------- as it is published


def dressed(facts: Facts, source: Half, stands_for: Mapping[str, str] | None = None) -> Half:
    """The model `source`, which is under upstream's names, as `facts` say its publisher stores it.

    `stands_for`: see `_Dresser`.
    """
    keys = _Dresser(facts, source, stands_for or {}).keys()
    names = facts.tensor_names
    tensors = [
        replace(_in_form(facts, source, tensor), name=names.get(tensor.name, tensor.name))
        for tensor in source.tensors
        if tensor.name not in facts.lacks_tensors
    ]
    return Half(facts.name, "gguf", tuple(keys), tuple(tensors), source.weights)


def _in_form(facts: Facts, source: Half, tensor: Tensor) -> Tensor:
    """ik_llama.cpp stores the centroid of each token instead of the tokens in order."""
    if facts.dialect != "ik" or tensor.name != ORDERING:
        return tensor
    assert isinstance(tensor.source, bytes)
    n_centroids = source.tensor_by_name[CENTROIDS].shape[0]
    order = np.frombuffer(tensor.source, "<i4")
    centroids = np.empty_like(order)
    centroids[order] = np.arange(len(order)) // (len(order) // n_centroids)
    return replace(tensor, source=centroids.astype("<i4").tobytes())


def small_scale() -> Scale:
    """Files of a few MiB at most."""
    return Scale(
        small_config, small_vocabulary(), tiny.CENTROIDS, tiny.TOP_K, STAND_INS, random_tensor
    )


def lookalike(name: str, scale: Scale | None = None) -> Half:
    """The look-alike of the published file whose facts are in ``released/<name>.json``."""
    facts = read_facts(name)
    return dressed(facts, model(facts, scale or small_scale()))


def write_half(half: Half, path: Path) -> Path:
    write_gguf(plan(half.keys, half.tensors), path)
    return path
