"""Checkpoints and raw files as people report them: what converts, and what each refusal says."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny
import variants
from gguf_bytes import ARCH, build
from gguf_mtp.api import convert, plan_convert, split
from gguf_mtp.errors import FormatError, GgufMtpError, UnsupportedError
from gguf_mtp.gemma4.config import read_text_config
from gguf_mtp.gemma4.target import target_half
from gguf_mtp.keyvalue import KeyValue
from gguf_mtp.readers.checkpoint import read_checkpoint
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.source import SourceFile

LFS_POINTER = (
    f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 10246621918\n"
)
MERGE = "merge the adapter into its base first, e.g. with PEFT's merge_and_unload"
UNQUANTIZED = "use the checkpoint before quantization, or a quantized GGUF of it"
INDEX = "model.safetensors.index.json"
STRUCTURES = Path(__file__).resolve().parent / "structures"

Object = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A base and its heads as checkpoint directories, to be changed."""

    base: Path
    heads: Path

    def edit(self, role: str, name: str, change: Callable[[Object], Any]) -> None:
        variants.edit_json(getattr(self, role), name, change)

    def refusal(self) -> str:
        """What `convert` says, which must refuse the pair in one line."""
        with pytest.raises(GgufMtpError) as caught:
            plan_convert(self.base, self.heads)
        message = str(caught.value)
        assert message.isprintable()
        return message


def write_pair(directory: Path, kind: tiny.Kind = tiny.E2B) -> Pair:
    return Pair(
        tiny.write_target(directory / "base", kind), tiny.write_drafter(directory / "heads", kind)
    )


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return write_pair(tmp_path)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, tiny_merged: Path) -> tuple[Path, Path]:
    """The tiny pair as two GGUFs. Module-wide: do not write to them."""
    directory = tmp_path_factory.mktemp("halves")
    split(tiny_merged, directory / "b.gguf", directory / "h.gguf")
    return directory / "b.gguf", directory / "h.gguf"


# Classes of tokenizers.

CLASSES = ["TokenizersBackend", "PreTrainedTokenizerFast", "Something", "", 7, None]


def tokenizer_keys(target: Path) -> list[KeyValue]:
    keys = target_half(read_checkpoint(target), "auto").keys
    return [key for key in keys if key.name.startswith("tokenizer.")]


def set_class(directory: Path, value: Any) -> None:
    def change(settings: Object) -> None:
        settings["tokenizer_class"] = value
        if value is None:
            del settings["tokenizer_class"]

    variants.edit_json(directory, "tokenizer_config.json", change)


@pytest.mark.parametrize("value", CLASSES, ids=repr)
def test_the_class_of_a_tokenizer_with_all_names_makes_no_difference(
    pair: Pair, value: Any
) -> None:
    expected = tokenizer_keys(pair.base)
    for directory in (pair.base, pair.heads):
        set_class(directory, value)
    assert tokenizer_keys(pair.base) == expected
    plan_convert(pair.base, pair.heads)


@pytest.mark.parametrize(
    ("value", "in_config", "types"),
    [
        ("GemmaTokenizer", None, [3, 3, 3, 3, 3]),
        ("GemmaTokenizerFast", None, [3, 3, 3, 3, 3]),
        # config.json names the class where the tokenizer's own settings do not.
        (None, "GemmaTokenizer", [3, 3, 3, 3, 3]),
        ("TokenizersBackend", "GemmaTokenizer", [1, 1, 3, 1, 1]),
        ("PreTrainedTokenizerFast", None, [1, 1, 3, 1, 1]),
        (None, None, [1, 1, 3, 1, 1]),
    ],
)
def test_only_gemmas_class_has_special_tokens_that_are_not_named(
    pair: Pair, value: Any, in_config: str | None, types: list[int]
) -> None:
    """The types of <pad>, <eos>, <bos>, <unk> and <mask>, as llama.cpp's converter has them."""
    set_class(pair.base, value)
    pair.edit("base", "config.json", lambda config: config.update(tokenizer_class=in_config))

    def drop_names(settings: Object) -> None:
        for name in ("pad", "eos", "unk", "mask"):
            del settings[f"{name}_token"]

    pair.edit("base", "tokenizer_config.json", drop_names)
    keys = {key.name: key for key in tokenizer_keys(pair.base)}
    assert keys["tokenizer.ggml.token_type"].value[:5] == types


def test_the_content_of_a_tokenizer_decides_whatever_its_class(pair: Pair) -> None:
    set_class(pair.base, "TokenizersBackend")
    pair.edit("base", "tokenizer.json", lambda t: t["model"].update(byte_fallback=False))
    message = pair.refusal()
    assert message.startswith(f"{pair.base / 'tokenizer.json'}: ")
    assert "byte_fallback False" in message


# Scaled rotation.

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def in_rotation(kind: str, **new: Any) -> Callable[[Object], None]:
    return lambda text: text["rope_parameters"][kind].update(new)


ROTATIONS: list[tuple[Callable[[Object], None], tuple[str, ...]]] = [
    (
        in_rotation(tiny.FULL, factor=8.0),
        ("rope_parameters.full_attention: factor is 8.0, expected 1",),
    ),
    (
        in_rotation(tiny.SLIDING, factor=2),
        ("rope_parameters.sliding_attention: factor is 2, expected 1",),
    ),
    (in_rotation(tiny.FULL, factor=True), ("factor is True, expected 1",)),
    (in_rotation(tiny.FULL, attention_factor=1.2), ("attention_factor is 1.2, expected 1",)),
    (
        in_rotation(tiny.FULL, stretch=3),
        ("rope_parameters.full_attention: stretch is 3, expected", "known: rope_type"),
    ),
    (in_rotation(tiny.SLIDING, type="linear"), ("type is 'linear', expected 'default'",)),
    (
        lambda text: text["rope_parameters"].update(factor=8.0),
        ("rope_parameters.factor is 8.0", "expected 'sliding_attention' or 'full_attention'"),
    ),
    (
        lambda text: text.update(rope_scaling=YARN),
        ("rope_scaling is {'rope_type': 'yarn', 'factor': 4.0", "expected null"),
    ),
    (
        lambda text: text.update(rope_scaling={"type": "default", "factor": 2}),
        ("rope_scaling is {'type': 'default', 'factor': 2}, expected null",),
    ),
    (lambda text: text.update(rope_scaling=2.0), ("rope_scaling is 2.0, expected null",)),
]


@pytest.mark.parametrize("role", ["base", "heads"])
@pytest.mark.parametrize(("change", "says"), ROTATIONS, ids=[says[0] for _, says in ROTATIONS])
def test_scaled_rotation_is_refused(
    pair: Pair, role: str, change: Callable[[Object], None], says: tuple[str, ...]
) -> None:
    pair.edit(role, "config.json", lambda config: change(config["text_config"]))
    message = pair.refusal()
    assert message.startswith(f"{getattr(pair, role) / 'config.json'}: ")
    for words in says:
        assert words in message


@pytest.mark.parametrize("role", ["base", "heads"])
def test_scaled_rotation_next_to_the_text_configuration_is_refused(pair: Pair, role: str) -> None:
    pair.edit(role, "config.json", lambda config: config.update(rope_scaling=YARN))
    message = pair.refusal()
    assert message.startswith(f"{getattr(pair, role) / 'config.json'}: rope_scaling is")


def test_scaled_rotation_of_loose_tensors_is_refused(pair: Pair) -> None:
    change = in_rotation(tiny.FULL, factor=8.0)

    def without_class(config: Object) -> None:
        change(config["text_config"])
        del config["architectures"]

    pair.edit("heads", "config.json", without_class)
    assert "full_attention: factor is 8.0, expected 1" in pair.refusal()


HARMLESS: list[Callable[[Object], Any]] = [
    in_rotation(tiny.FULL, factor=1.0, attention_factor=1),
    in_rotation(tiny.FULL, factor=None, stretch=None, type="proportional"),
    in_rotation(tiny.SLIDING, original_max_position_embeddings=1024, partial_rotary_factor=1.0),
    lambda text: text["rope_parameters"].update(chunked_attention=None),
    lambda text: text.update(rope_scaling=None),
    lambda text: text.update(rope_scaling={"rope_type": "default"}),
    lambda text: text.update(rope_scaling={"type": "default", "factor": 1.0}),
]


@pytest.mark.parametrize("at", range(len(HARMLESS)))
def test_settings_that_leave_the_rotation_as_it_is(at: int) -> None:
    values = tiny.text_config(tiny.E2B)
    expected = read_text_config(values, "config", "gemma4_text")
    HARMLESS[at](values)
    assert read_text_config(values, "config", "gemma4_text") == expected


# Google's own, as published: every rotation that a config.json states.
PUBLISHED_ROTATION = {
    "full_attention": {
        "partial_rotary_factor": 0.25,
        "rope_theta": 1000000.0,
        "rope_type": "proportional",
    },
    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
}


def test_published_rotations_are_read() -> None:
    config = read_text_config({"rope_parameters": PUBLISHED_ROTATION}, "config", "gemma4_text")
    assert (config.full_rope.theta, config.full_rope.rotated) == (1e6, 0.25)
    assert (config.sliding_rope.theta, config.sliding_rope.rotated) == (1e4, 1.0)


# Resized embeddings.


def test_resized_embeddings_without_the_per_layer_ones_are_refused(pair: Pair) -> None:
    def grow(tensors: tiny.Tensors) -> tiny.Tensors:
        name = "model.language_model.embed_tokens.weight"
        dtype, (rows, width), data = tensors[name]
        return tensors | {name: (dtype, (rows + 1, width), data + data[: len(data) // rows])}

    variants.edit_tensors(pair.base, grow)
    pair.edit("base", "config.json", lambda c: c["text_config"].update(vocab_size=513))
    message = pair.refusal()
    assert message.startswith(f"{pair.base / 'config.json'}: ")
    for words in (
        "vocab_size_per_layer_input is 512",
        "vocab_size = 513",
        "embed_tokens_per_layer.weight",
    ):
        assert words in message


def test_a_model_without_per_layer_inputs_states_any_vocabulary_for_them(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, tiny.DENSE)
    pair.edit("base", "config.json", lambda config: config.update(vocab_size_per_layer_input=7))
    plan_convert(pair.base, pair.heads)


# Model cards.

ALIAS = "license: &l apache-2.0\nlicense_name: *l\n"
CARDS = {
    "alias": (ALIAS.encode(), "alias in line 3"),
    "long": (b"a: " + b"x" * 70_000, "at most 65536"),
    "broken": (b"license: [unclosed", "unusable front matter"),
    "latin-1": (b"name: \xe9", "not UTF-8 at byte 10"),
    "timestamp": (b"version: !!timestamp soon", "unusable front matter"),
    "number": (b"version: 7", "front matter: value of the wrong type"),
    "object": (b"tags:\n- {a: 1}", "front matter: value of the wrong type"),
}


@pytest.mark.parametrize("role", ["base", "heads"])
@pytest.mark.parametrize("name", CARDS)
def test_a_model_card_that_cannot_be_used_is_left_out(
    pair: Pair, tmp_path: Path, name: str, role: str
) -> None:
    front, says = CARDS[name]
    card = getattr(pair, role) / "README.md"
    card.unlink(missing_ok=True)
    convert(pair.base, pair.heads, tmp_path / "without.gguf")
    card.write_bytes(b"---\n" + front + b"\n---\n# x\n")
    made = convert(pair.base, pair.heads, tmp_path / "with.gguf")
    assert (tmp_path / "with.gguf").read_bytes() == (tmp_path / "without.gguf").read_bytes()
    messages = [note.message for note in made.plan.notes if note.code == "model-card"]
    assert len(messages) == 1
    assert messages[0].startswith(f"{card}: ")
    assert says in messages[0]


def test_the_note_about_a_model_card_is_in_the_tail_layout_too(pair: Pair) -> None:
    (pair.base / "README.md").write_text(f"---\n{ALIAS}---\n")
    notes = plan_convert(pair.base, pair.heads, layout="tail").notes
    assert [note.code for note in notes].count("model-card") == 1


def test_a_bad_generation_config_is_not_blamed_on_the_model_card(pair: Pair) -> None:
    pair.edit("base", "generation_config.json", lambda g: g.update(top_k="many"))
    message = pair.refusal()
    assert message.startswith(f"{pair.base}: generation_config.json: ")
    assert "top_k is 'many'" in message
    assert "README" not in message


# Git LFS pointers.


@pytest.mark.parametrize("role", ["base", "heads"])
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", INDEX]
)
def test_a_git_lfs_pointer_in_a_checkpoint(pair: Pair, role: str, name: str) -> None:
    path = getattr(pair, role) / name
    path.write_text(LFS_POINTER)
    message = pair.refusal()
    assert message.startswith(f"{path}: is a Git LFS pointer")
    assert "git lfs pull" in message


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors", "x.litertlm"])
@pytest.mark.parametrize("role", ["base", "heads"])
def test_a_git_lfs_pointer_in_place_of_a_file(
    tmp_path: Path, halves: tuple[Path, Path], role: str, name: str
) -> None:
    path = tmp_path / name
    path.write_text(LFS_POINTER)
    base, heads = (path, halves[1]) if role == "base" else (halves[0], path)
    with pytest.raises(FormatError) as caught:
        plan_convert(base, heads)
    assert str(caught.value).startswith(f"{path}: is a Git LFS pointer")


def test_what_only_mentions_git_lfs_is_no_pointer(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for text in ("", "version https://git-lfs", LFS_POINTER[1:], LFS_POINTER + " " * 1024):
        path.write_text(text)
        with SourceFile(path) as source:
            assert source.read(0, source.size) == text.encode()


# Adapters.


@pytest.mark.parametrize("role", ["base", "heads"])
@pytest.mark.parametrize(
    ("new", "name"),
    [
        ("base_model.model.{}", "base_model.model."),
        ("{}.base_layer.weight", ".base_layer.weight"),
        ("{}.lora_A.weight", ".lora_A.weight"),
        ("{}.lora_B.default.weight", ".lora_B.default.weight"),
    ],
)
def test_tensors_with_an_adapter(pair: Pair, role: str, new: str, name: str) -> None:
    def change(tensors: tiny.Tensors) -> tiny.Tensors:
        chosen = next(name for name in tensors if name.endswith("q_proj.weight"))
        item = tensors.pop(chosen)
        renamed = new.format(chosen if new.endswith("}") else chosen.removesuffix(".weight"))
        return tensors | {renamed: item}

    variants.edit_tensors(getattr(pair, role), change)
    message = pair.refusal()
    assert message.startswith(f"{getattr(pair, role) / 'model.safetensors'}: tensor ")
    assert name in message
    assert MERGE in message


@pytest.mark.parametrize("with_config", [False, True])
def test_a_folder_with_only_an_adapter(pair: Pair, with_config: bool) -> None:
    (pair.base / "model.safetensors").rename(pair.base / "adapter_model.safetensors")
    if not with_config:
        (pair.base / "config.json").unlink()
        tiny.write_json(pair.base / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(UnsupportedError) as caught:
        read_checkpoint(pair.base)
    first = "adapter_model.safetensors" if with_config else "adapter_config.json"
    assert str(caught.value).startswith(f"{pair.base}: holds an adapter ({first})")
    assert MERGE in str(caught.value)


def test_an_adapter_as_heads(pair: Pair) -> None:
    variants.rename(pair.heads, "model.", "base_model.model.model.")
    (pair.heads / "model.safetensors").rename(pair.heads / "adapter_model.safetensors")
    (pair.heads / "config.json").unlink()
    message = pair.refusal()
    assert message.startswith(f"{pair.heads / 'adapter_model.safetensors'}: tensor 'base_model.")
    assert MERGE in message


def test_settings_of_a_merged_adapter_are_no_obstacle(pair: Pair) -> None:
    tiny.write_json(pair.base / "adapter_config.json", {"peft_type": "LORA"})
    plan_convert(pair.base, pair.heads)


# Folders without a checkpoint.


def test_a_folder_without_config(pair: Pair) -> None:
    (pair.base / "config.json").unlink()
    with pytest.raises(UnsupportedError) as caught:
        read_checkpoint(pair.base)
    message = str(caught.value)
    assert message.startswith(f"{pair.base}: no config.json; ")
    for name in ("model.safetensors", INDEX, "tokenizer.json", "1 more"):
        assert name in message


@pytest.mark.parametrize("with_config", [False, True])
def test_a_folder_of_ggufs(tmp_path: Path, with_config: bool) -> None:
    (tmp_path / "a-Q8_0.gguf").write_bytes(b"GGUF")
    if with_config:
        tiny.write_json(tmp_path / "config.json", {})
    with pytest.raises(UnsupportedError, match=r"one of its GGUF files: 'a-Q8_0\.gguf'$"):
        read_checkpoint(tmp_path)


# Layouts of tensors.


def one_by_one(tensors: tiny.Tensors) -> tiny.Tensors:
    """The first expert of a layer by itself."""
    found = next(name for name in tensors if name.endswith(".experts.down_proj"))
    dtype, shape, data = tensors.pop(found)
    name = found.replace("down_proj", "0.down_proj.weight")
    return tensors | {name: (dtype, shape[1:], data[: len(data) // shape[0]])}


def test_experts_one_by_one(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, tiny.MOE)
    variants.edit_tensors(pair.base, one_by_one)
    message = pair.refusal()
    assert "'model.layers.0.experts.0.down_proj.weight' holds one expert" in message
    assert "experts.gate_up_proj, experts.down_proj" in message
    assert "transformers 5" in message


def test_names_that_end_in_weight_where_others_do_not(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, tiny.MOE)
    expected = target_half(read_checkpoint(pair.base), "f32")

    def add_end(tensors: tiny.Tensors) -> tiny.Tensors:
        ends = (".experts.down_proj", ".experts.gate_up_proj", ".layer_scalar")
        return {
            name + ".weight" if name.endswith(ends) else name: item
            for name, item in tensors.items()
        }

    variants.edit_tensors(pair.base, add_end)
    found = target_half(read_checkpoint(pair.base), "f32")
    assert {(t.name, t.shape) for t in found.tensors} == {
        (t.name, t.shape) for t in expected.tensors
    }


LEFTOVERS = [
    ("absmax", "U8", "bitsandbytes"),
    ("quant_state.bitsandbytes__nf4", "U8", "bitsandbytes"),
    ("SCB", "F32", "bitsandbytes"),
    ("scales", "BF16", "MLX"),
    ("biases", "BF16", "MLX"),
    ("qweight", "I32", "GPTQ"),
    ("weight_scale", "F8_E4M3", "compressed-tensors"),
    ("weight_scale_2", "F32", "NVFP4"),
    ("weight_scale_inv", "F32", "FP8"),
    ("weight_packed", "U8", "compressed-tensors"),
    ("input_scale", "F32", "compressed-tensors"),
]


@pytest.mark.parametrize("role", ["base", "heads"])
@pytest.mark.parametrize(("end", "dtype", "method"), LEFTOVERS, ids=[row[0] for row in LEFTOVERS])
def test_tensors_of_quantized_weights(
    pair: Pair, role: str, end: str, dtype: str, method: str
) -> None:
    width = {"U8": 1, "F8_E4M3": 1, "BF16": 2}.get(dtype, 4)
    name = f"model.layers.0.mlp.up_proj.{end}"
    variants.edit_tensors(
        getattr(pair, role), lambda tensors: tensors | {name: (dtype, (4,), bytes(4 * width))}
    )
    message = pair.refusal()
    assert f"tensor {name!r} " in message
    assert method in message
    assert UNQUANTIZED in message


def test_a_matrix_of_quantized_values(pair: Pair) -> None:
    name = "model.language_model.layers.0.mlp.up_proj.weight"

    def change(tensors: tiny.Tensors) -> tiny.Tensors:
        _, shape, data = tensors[name]
        return tensors | {name: ("F8_E4M3", shape, data[: len(data) // 2])}

    variants.edit_tensors(pair.base, change)
    message = pair.refusal()
    assert f"{name} has dtype F8_E4M3" in message
    assert UNQUANTIZED in message


METHODS: list[tuple[str, Any, str]] = [
    ("quantization_config", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
    ("quantization_config", {"quant_method": "mxfp4"}, "mxfp4"),
    (
        "quantization_config",
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        "compressed-tensors, format nvfp4-pack-quantized",
    ),
    (
        "quantization_config",
        {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4", "load_in_4bit": True},
        "bitsandbytes, bnb_4bit_quant_type nf4",
    ),
    ("quantization_config", {"quant_method": "fp8", "fmt": "e4m3"}, "fp8, fmt e4m3"),
    ("quantization_config", {"group": 4}, "{'group': 4}"),
    ("quantization_config", [1], "[1]"),
    ("quantization", {"group_size": 64, "bits": 4, "mode": "affine"}, "MLX's, 4 bits"),
    ("quantization", True, "MLX's, True"),
]


@pytest.mark.parametrize("role", ["base", "heads"])
@pytest.mark.parametrize(("name", "value", "method"), METHODS, ids=[row[2] for row in METHODS])
@pytest.mark.parametrize("where", ["top", "text"])
def test_quantized_checkpoints(
    pair: Pair, role: str, name: str, value: Any, method: str, where: str
) -> None:
    def change(config: Object) -> None:
        (config if where == "top" else config["text_config"]).update({name: value})

    pair.edit(role, "config.json", change)
    message = pair.refusal()
    assert message.startswith(f"{getattr(pair, role) / 'config.json'}: ")
    assert f"{name} is " in message
    assert method in message
    assert UNQUANTIZED in message


@pytest.mark.parametrize("name", ["quantization_config", "quantization"])
@pytest.mark.parametrize("value", [None, {}])
def test_no_quantization(pair: Pair, name: str, value: Any) -> None:
    pair.edit("base", "config.json", lambda config: config.update({name: value}))
    plan_convert(pair.base, pair.heads)


OTHER_DRAFTERS: list[tuple[Object, str]] = [
    ({"architectures": ["Eagle3DraftModel"], "speculators_model_type": "eagle3"}, "EAGLE-3"),
    ({"architectures": ["LlamaForCausalLMEagle3"]}, "EAGLE-3"),
    ({"speculators_model_type": "eagle3"}, "EAGLE-3"),
    ({"architectures": ["DFlashDraftModel"]}, "DFlash"),
    ({"architectures": ["Gemma4DSparkModel"]}, "DSpark"),
]


@pytest.mark.parametrize(("config", "what"), OTHER_DRAFTERS, ids=str)
@pytest.mark.parametrize("with_scalars", [False, True])
def test_checkpoints_of_other_drafters(
    pair: Pair, config: Object, what: str, with_scalars: bool
) -> None:
    tiny.write_json(pair.heads / "config.json", config)
    if not with_scalars:
        # As theirs are, which otherwise looks like tensors out of a LiteRT package.
        weight = ("BF16", (4,), bytes(8))
        variants.edit_tensors(pair.heads, lambda tensors: {"d2t": weight})
    message = pair.refusal()
    assert message.startswith(f"{pair.heads / 'config.json'}: ")
    assert f"{what} drafter" in message
    assert "convert_hf_to_gguf.py" in message
    assert "--heads" in message


# Indexes and shards.


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny.write_target(tmp_path / "sharded", shards=2)


def test_a_stale_index(pair: Pair, sharded: Path) -> None:
    shutil.copy(sharded / INDEX, pair.base)
    message = pair.refusal()
    assert message.startswith(f"{pair.base / INDEX}: is stale: ")
    assert "'model-00001-of-00002.safetensors'" in message
    assert message.endswith(f"delete {INDEX}")


def test_a_whole_file_next_to_shards(sharded: Path, pair: Pair) -> None:
    shutil.copy(pair.base / "model.safetensors", sharded)
    with pytest.raises(FormatError) as caught:
        read_checkpoint(sharded)
    message = str(caught.value)
    assert message.startswith(f"{sharded}: has model.safetensors and also the shards")
    assert INDEX in message


def test_missing_shards(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FormatError) as caught:
        read_checkpoint(sharded)
    message = str(caught.value)
    assert message.startswith(f"{sharded / INDEX}: 1 of 2 shards are missing")
    assert "'model-00002-of-00002.safetensors'" in message


def test_shards_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    with pytest.raises(FormatError) as caught:
        read_checkpoint(sharded)
    assert str(caught.value).startswith(f"{sharded}: 2 safetensors files but no {INDEX}")


def test_an_index_with_a_tensor_that_no_shard_has(sharded: Path) -> None:
    shard = "model-00001-of-00002.safetensors"
    variants.edit_json(sharded, INDEX, lambda index: index["weight_map"].update(absent=shard))
    with pytest.raises(FormatError) as caught:
        read_checkpoint(sharded)
    assert f"tensor 'absent' is mapped to {shard}, but is in no shard" in str(caught.value)
    assert "again" in str(caught.value)


# Raw pieces and joined parts.

PIECES = [
    ("m.gguf.part1of2", "m.gguf.part2of2"),
    ("m.gguf-split-a", "m.gguf-split-b"),
    ("m.gguf-split-00001", "m.gguf-split-00002"),
    ("m.gguf.partaa", "m.gguf.partab"),
    ("m.gguf.001", "m.gguf.002"),
    ("m.ggufaa", "m.ggufab"),
]


@pytest.mark.parametrize("names", PIECES, ids=[names[0] for names in PIECES])
@pytest.mark.parametrize("role", ["base", "heads"])
def test_raw_pieces_of_a_gguf(
    tmp_path: Path, halves: tuple[Path, Path], names: tuple[str, str], role: str
) -> None:
    base, heads = halves
    data = (base if role == "base" else heads).read_bytes()
    middle = len(data) // 2
    for name, part in zip(names, (data[:middle], data[middle:]), strict=True):
        piece = tmp_path / name
        piece.write_bytes(part)
        with pytest.raises(FormatError) as caught:
            plan_convert(*((piece, heads) if role == "base" else (base, piece)))
        message = str(caught.value)
        assert message.startswith(f"{piece}: looks like a piece of m.gguf,")
        assert "cat" in message


def test_a_raw_piece_of_safetensors(tmp_path: Path, halves: tuple[Path, Path], pair: Pair) -> None:
    data = (pair.heads / "model.safetensors").read_bytes()
    piece = tmp_path / "model.safetensors.part1of2"
    piece.write_bytes(data[:-8])
    with pytest.raises(FormatError) as caught:
        plan_convert(halves[0], piece)
    assert str(caught.value).startswith(f"{piece}: looks like a piece of model.safetensors,")


def test_a_whole_file_with_the_name_of_a_piece_is_read(
    tmp_path: Path, halves: tuple[Path, Path]
) -> None:
    whole = tmp_path / "m.gguf.part1of1"
    shutil.copy(halves[0], whole)
    assert read_gguf(whole).tensors


@pytest.mark.parametrize("first", ["padded", "unpadded", "without tensors"])
def test_parts_joined_with_cat(tmp_path: Path, halves: tuple[Path, Path], first: str) -> None:
    second = halves[0].read_bytes()
    data = build((ARCH,), [], b"") if first == "without tensors" else halves[1].read_bytes()
    (tmp_path / "one.gguf").write_bytes(data)
    file = read_gguf(tmp_path / "one.gguf")
    if first == "unpadded":
        data = data[: max(ref.offset + ref.nbytes for ref in file.tensors)]
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(data + second)
    with pytest.raises(FormatError) as caught:
        read_gguf(joined)
    message = str(caught.value)
    assert " bytes follow " in message
    assert f"another GGUF begins at {len(data)}" in message
    assert "gguf-split --merge" in message


def test_other_bytes_after_a_gguf_are_not_taken_for_a_part(
    tmp_path: Path, halves: tuple[Path, Path]
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(halves[0].read_bytes() + bytes(64))
    with pytest.raises(FormatError) as caught:
        read_gguf(path)
    assert "64 bytes follow the last tensor" in str(caught.value)
    assert "gguf-split" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(STRUCTURES.glob("*B.json")), ids=lambda path: path.stem)
def test_configurations_of_all_sizes_are_read(path: Path) -> None:
    """No setting of a recorded configuration is taken for a scale or for quantization."""
    recorded = json.loads(path.read_text())
    for role in ("target", "drafter"):
        config = recorded[role]["config"]
        text = config["text_config"]
        read_text_config(text, "config", text["model_type"])
