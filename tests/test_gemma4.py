"""Gemma 4's configuration and tokenizer: what is read, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from gguf_mtp.api import plan_convert
from gguf_mtp.errors import FormatError, GgufMtpError, UnsupportedError
from gguf_mtp.gemma4.config import read_text_config
from gguf_mtp.gemma4.target import target_half
from gguf_mtp.gemma4.tensors import text_name
from gguf_mtp.gemma4.vocabulary import suppressed_tokens, vocabulary
from gguf_mtp.readers.checkpoint import read_checkpoint
from variants import edit_json

CONFIG = tiny.text_config(tiny.E2B)


def test_transformers_spelling_of_the_global_head_width() -> None:
    layers = {
        str(i): {"head_dim": 64} for i, t in enumerate(CONFIG["layer_types"]) if t == tiny.FULL
    }
    other = CONFIG | {"per_layer_config": layers}
    del other["global_head_dim"]
    expected = read_text_config(CONFIG, "config", "gemma4_text")
    assert read_text_config(other, "config", "gemma4_text") == expected


def test_defaults_are_those_of_transformers() -> None:
    config = read_text_config({}, "config", "gemma4_text")
    assert (config.hidden_size, config.n_layers, config.vocab_size) == (2304, 30, 262_144)
    assert (config.head_dim, config.full_head_dim, config.sliding_window) == (256, 512, 512)
    assert config.layer_types[:6] == (*(tiny.SLIDING,) * 5, tiny.FULL)
    assert (config.full_rope.theta, config.full_rope.rotated) == (1e6, 0.25)


def test_defaults_of_the_unified_family() -> None:
    config = read_text_config({}, "config", "gemma4_unified_text")
    assert (config.context_length, config.sliding_window) == (262_144, 1024)
    assert config.per_layer_input_size == 0


def test_a_text_configuration_of_the_other_family_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="is 'gemma4_text', expected 'gemma4_unified_text'"):
        read_text_config(CONFIG, "config", "gemma4_unified_text")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_attention_heads": 2.0}, "num_attention_heads is 2.0"),
    ({"num_attention_heads": True}, "num_attention_heads is True"),
    (
        {"num_attention_heads": 3, "num_key_value_heads": 2},
        "is no multiple of the 2 key-value heads",
    ),
    ({"num_hidden_layers": 4}, "expected num_hidden_layers = 4 entries"),
    ({"layer_types": ["sliding"] * 5}, "layer_types is"),
    ({"layer_types": [tiny.FULL] * 4 + [tiny.SLIDING]}, "a last layer of 'full_attention'"),
    ({"vocab_size": None}, "vocab_size is None"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a number above 0 and below 1e+30"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
    ({"final_logit_softcapping": 1e308}, "final_logit_softcapping is 1e+308"),
    ({"use_double_wide_mlp": 1}, "use_double_wide_mlp is 1, expected true or false"),
    ({"num_kv_shared_layers": 6}, "num_kv_shared_layers is 6"),
    ({"model_type": "gemma3_text"}, "model_type is 'gemma3_text'"),
    ({"quantization_config": {"bits": 4}}, "quantized checkpoints are not read"),
    ({"attention_bias": True}, "attention_bias is not supported"),
    ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ({"enable_moe_block": True}, "enable_moe_block is True but num_experts is None"),
    ({"num_experts": 4}, "enable_moe_block is False but num_experts is 4"),
    ({"rope_parameters": {}}, "rope_parameters is {}"),
    (
        {"rope_parameters": {tiny.FULL: {"rope_type": "yarn"}, tiny.SLIDING: {}}},
        "rope_type is 'yarn', expected 'proportional'",
    ),
    ({"per_layer_config": {"2": {}, "4": {}, "02": {}}}, "entries for the full layers [2, 4]"),
    ({"per_layer_config": {"2": {}, "9" * 9999: {}}}, "entries for the full layers [2, 4]"),
    ({"per_layer_config": {"0": {"head_dim": 64}}}, "entries for the full layers [2, 4]"),
    (
        {"per_layer_config": {"2": {"head_dim": 64}, "4": {"head_dim": 128}}},
        "full-attention layers of different widths",
    ),
    ({"per_layer_config": {"2": {"head_dim": 0}, "4": {"head_dim": 0}}}, "head_dim is 0"),
    ({"per_layer_config": {"2": {}, "4": {}}}, "head_dim is None"),
    ({"per_layer_config": {"2": {"x": 1}, "4": {"x": 1}}}, "head_dim and num_key_value_heads only"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[str(c)[:60] for c, _ in REFUSED])
def test_config_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GgufMtpError) as caught:
        read_text_config(CONFIG | change, "dir/config.json", "gemma4_text")
    assert message in str(caught.value)
    assert str(caught.value).startswith("dir/config.json")


@pytest.mark.parametrize(
    ("architectures", "error"),
    [
        (["Gemma3ForCausalLM"], UnsupportedError),
        (["Gemma4AssistantForCausalLM"], UnsupportedError),
        ([], FormatError),
        ("Gemma4ForCausalLM", FormatError),
        (None, FormatError),
    ],
)
def test_architecture_refused(tmp_path: Path, architectures: Any, error: type[Exception]) -> None:
    target = tiny.write_target(tmp_path / "t")
    config = json.loads((target / "config.json").read_text()) | {"architectures": architectures}
    tiny.write_json(target / "config.json", config)
    with pytest.raises(error, match=r"architecture"):
        target_half(read_checkpoint(target), "auto")


def test_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    target = tiny.write_target(tmp_path / "t")
    edit_json(target, "config.json", lambda v: v.update(quantization_config={"bits": 4}))
    with pytest.raises(UnsupportedError, match=r"config\.json: quantization_config is"):
        target_half(read_checkpoint(target), "auto")


@pytest.mark.parametrize(
    ("saved", "name"),
    [
        ("model.language_model.layers.0.layer_scalar", "model.layers.0.layer_scalar"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.layers.0.experts.down_proj.weight", "model.layers.0.experts.down_proj"),
        ("model.embed_audio.embedding_projection.weight", None),
        ("model.vision_tower.std_bias", None),
        ("model.vision_embedder.pos_embedding", None),
    ],
)
def test_names_within_the_text_stack(saved: str, name: str | None) -> None:
    assert text_name(saved) == name


TOKENIZER_CASES: list[tuple[str, Any, str]] = [
    ("tokenizer.json", lambda v: v["model"].update(type="Unigram"), "model is 'Unigram'"),
    ("tokenizer.json", lambda v: v["model"].update(byte_fallback=False), "byte_fallback False"),
    (
        "tokenizer.json",
        lambda v: v["model"].update(merges=[["a"]]),
        "holds more than pairs of strings",
    ),
    ("tokenizer.json", lambda v: v["model"].update(merges=[]), "merges is not a filled list"),
    ("tokenizer.json", lambda v: v["model"].pop("vocab"), "no model.vocab object"),
    ("tokenizer.json", lambda v: v.update(decoder=None), "decoder is not a Sequence"),
    (
        "tokenizer.json",
        lambda v: v.update(normalizer={"type": "Lowercase"}),
        "normalizer Lowercase",
    ),
    ("tokenizer.json", lambda v: v.update(added_tokens={"a": 1}), "added_tokens is not a list"),
    ("tokenizer.json", lambda v: v.update(added_tokens=[{"id": "1"}]), "without content and id"),
    ("tokenizer_config.json", lambda v: v.update(extra_special_tokens=7), "expected a list"),
    ("tokenizer_config.json", lambda v: v.update(chat_template=[{}]), "chat_template holds {}"),
    (
        "tokenizer_config.json",
        lambda v: v.update(chat_template=[{"name": "default", "template": 7}]),
        "expected a name and a text",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), TOKENIZER_CASES)
def test_tokenizer_refused(tmp_path: Path, name: str, change: Any, message: str) -> None:
    target = tiny.write_target(tmp_path / "t")
    edit_json(target, name, change)
    with pytest.raises(GgufMtpError) as caught:
        vocabulary(read_checkpoint(target), tiny.VOCAB_SIZE)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_tokenizer_accepted(tmp_path: Path) -> None:
    target = tiny.write_target(tmp_path / "t")
    keys = {k.name: k.value for k in vocabulary(read_checkpoint(target), tiny.VOCAB_SIZE)}
    assert keys["tokenizer.ggml.tokens"][:5] == list(tiny.CORE_TOKENS)
    types = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"], strict=True))
    assert types["<bos>"] == types["<|turn>"] == 3
    assert types["<|channel>"] == 4
    assert types["<0x0A>"] == 6
    assert types["e"] == 1
    assert keys["tokenizer.ggml.bos_token_id"] == 2
    assert keys["tokenizer.ggml.add_bos_token"] is True


def test_a_hostile_chat_template_is_only_text(tmp_path: Path, tiny_drafter: Path) -> None:
    target = tiny.write_target(tmp_path / "t")
    text = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**9) %}{% endfor %}"
    (target / "chat_template.jinja").write_text(text)
    keys = {k.name: k.value for k in vocabulary(read_checkpoint(target), tiny.VOCAB_SIZE)}
    assert keys["tokenizer.chat_template"] == text


@pytest.mark.parametrize(
    "card", ["---\nlicense: [unclosed\n---\n", "---\nname: {a: 1}\n---\n", "---\nversion: 7\n---\n"]
)
def test_unusable_model_card_is_left_out(tmp_path: Path, card: str) -> None:
    target = tiny.write_target(tmp_path / "t")
    (target / "README.md").unlink()
    without = target_half(read_checkpoint(target), "auto")
    (target / "README.md").write_text(card)
    half = target_half(read_checkpoint(target), "auto")
    assert half.keys == without.keys
    assert [note.code for note in half.notes] == ["model-card"]
    assert str(target / "README.md") in half.notes[0].message
    assert without.notes == ()


@pytest.mark.parametrize("card", ["", "# No front matter\n", "---\ntags: []\n---\n"])
def test_plain_model_card_is_accepted(tmp_path: Path, card: str) -> None:
    target = tiny.write_target(tmp_path / "t")
    (target / "README.md").write_text(card)
    assert target_half(read_checkpoint(target), "auto").license is None


def test_a_template_that_is_not_unicode(tmp_path: Path) -> None:
    target = tiny.write_target(tmp_path / "t")
    (target / "chat_template.jinja").unlink()
    (target / "chat_template.json").write_text('{"chat_template": "\\ud800"}')
    with pytest.raises(FormatError, match=r"chat_template\.json: .* is half a character"):
        vocabulary(read_checkpoint(target), tiny.VOCAB_SIZE)


@pytest.mark.parametrize("value", [7, [True], [1.0], [-1], [tiny.VOCAB_SIZE], ["1"]])
def test_suppressed_tokens_refused(tmp_path: Path, value: Any) -> None:
    target = tiny.write_target(tmp_path / "t")
    edit_json(target, "generation_config.json", lambda v: v.update(suppress_tokens=value))
    with pytest.raises(FormatError, match=r"generation_config\.json: suppress_tokens is"):
        suppressed_tokens(read_checkpoint(target), tiny.VOCAB_SIZE)


@pytest.mark.parametrize("value", [None, []])
def test_no_suppressed_tokens(tmp_path: Path, value: Any) -> None:
    target = tiny.write_target(tmp_path / "t")
    edit_json(target, "generation_config.json", lambda v: v.update(suppress_tokens=value))
    assert suppressed_tokens(read_checkpoint(target), tiny.VOCAB_SIZE) == []


@pytest.mark.parametrize("name", ["temperature", "top_k"])
def test_generation_config_of_the_wrong_type(tmp_path: Path, name: str) -> None:
    target = tiny.write_target(tmp_path / "t")
    edit_json(target, "generation_config.json", lambda value: value.update({name: "warm"}))
    with pytest.raises(FormatError, match="wrong type"):
        target_half(read_checkpoint(target), "auto")


def test_a_tag_that_is_a_long_number_is_left_out(tmp_path: Path) -> None:
    """Found by fuzzing: an error of `struct`."""
    target = tiny.write_target(tmp_path / "t")
    (target / "README.md").write_text("---\ntags:\n- 20000000000000000\n---\n")
    notes = plan_convert(target, tiny.write_drafter(tmp_path / "d")).notes
    messages = [note.message for note in notes if note.code == "model-card"]
    assert len(messages) == 1
    assert "expected strings or integers of 32 bits" in messages[0]
