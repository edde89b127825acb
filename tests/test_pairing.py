"""Pairs that do not fit are refused before a byte is written, naming both files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tiny
from edited_gguf import edited, without_keys
from gguf_mtp.api import convert, plan_convert, split
from gguf_mtp.cli.main import main
from gguf_mtp.errors import PairingError, UnsupportedError
from gguf_mtp.keyvalue import boolean
from gguf_mtp.model import half_from_gguf
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.writer import write_gguf


def edit_config(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "config.json"
    value = json.loads(path.read_text())
    change(value["text_config"])
    tiny.write_json(path, value)


def edit_tokenizer(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    tiny.write_json(path, value)


def swap_tokens(value: dict[str, Any]) -> None:
    vocab = value["model"]["vocab"]
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]


def drop_merge(value: dict[str, Any]) -> None:
    value["model"]["merges"].pop()


def refused(base: Path, heads: Path, message: str) -> None:
    with pytest.raises(PairingError) as caught:
        plan_convert(base, heads)
    text = str(caught.value)
    assert message in text
    assert str(base) in text
    assert str(heads) in text
    assert "\n" not in text


def test_control(tiny_target: Path, tiny_drafter: Path) -> None:
    assert plan_convert(tiny_target, tiny_drafter).slots


def test_hidden_size(tmp_path: Path, tiny_target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "HIDDEN", 96)
    heads = tiny.write_drafter(tmp_path / "drafter")
    refused(tiny_target, heads, "target hidden size: expected 64")


def test_vocabulary_size(
    tmp_path: Path, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "VOCAB_SIZE", 480)
    heads = tiny.write_drafter(tmp_path / "drafter", tiny.Kind("plain", ordered=False))
    refused(tiny_target, heads, "vocabulary size: expected 512")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_tokens, "tokenizer.ggml.tokens: expected 'e' at"),
        (drop_merge, "tokenizer.ggml.merges: expected 149 entries"),
    ],
)
def test_tokenizer(
    tmp_path: Path, tiny_target: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter")
    edit_tokenizer(heads, change)
    refused(tiny_target, heads, message)


def test_rope_base(tmp_path: Path, tiny_target: Path) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter")
    edit_config(heads, lambda c: c["rope_parameters"][tiny.SLIDING].update(rope_theta=5000.0))
    refused(tiny_target, heads, "rope base of sliding_attention: expected 10000.0")


def test_share_of_a_head_that_turns(tmp_path: Path, tiny_target: Path) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter")
    change = {"partial_rotary_factor": 0.5}
    edit_config(heads, lambda config: config["rope_parameters"][tiny.FULL].update(change))
    refused(tiny_target, heads, "rope_freqs.weight: expected '8 of 32 turning")


def test_hidden_size_of_the_drafter_must_differ(
    tmp_path: Path, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "DRAFTER_HIDDEN", tiny.HIDDEN)
    heads = tiny.write_drafter(tmp_path / "drafter")
    with pytest.raises(UnsupportedError, match="hidden size is its target's, 64"):
        plan_convert(tiny_target, heads)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        (
            "HEAD_DIM",
            64,
            "key width of sliding_attention (heads layer 0, base layer 1): expected 32",
        ),
        (
            "FULL_HEAD_DIM",
            32,
            "key width of full_attention (heads layer 1, base layer 2): expected 64",
        ),
    ],
)
def test_key_width(
    tmp_path: Path,
    tiny_target: Path,
    monkeypatch: pytest.MonkeyPatch,
    attribute: str,
    value: int,
    message: str,
) -> None:
    monkeypatch.setattr(tiny, attribute, value)
    heads = tiny.write_drafter(tmp_path / "drafter")
    refused(tiny_target, heads, message)


def test_key_value_heads(tmp_path: Path, tiny_target: Path) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter")
    edit_config(heads, lambda config: config.update(num_key_value_heads=2))
    refused(tiny_target, heads, "key-value heads of full_attention")


def test_query_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number agrees, but three query heads cannot share two key-value heads."""
    base = tiny.write_target(tmp_path / "target", tiny.DENSE)
    convert(base, tiny.write_drafter(tmp_path / "drafter", tiny.DENSE), tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", tmp_path / "h.gguf")
    monkeypatch.setattr(tiny, "HEADS", 3)
    heads = tiny.write_drafter(tmp_path / "three", tiny.DENSE)
    with pytest.raises(Exception, match="no multiple of the 2 key-value heads"):
        plan_convert(tmp_path / "b.gguf", heads)


def test_heads_of_another_pair(tmp_path: Path, tiny_target: Path) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter", tiny.DENSE)
    refused(tiny_target, heads, "key-value heads of sliding_attention")


def test_carried_target_is_checked(tmp_path: Path, tiny_merged: Path) -> None:
    split(tiny_merged, None, tmp_path / "h.gguf")
    base = tiny.write_target(tmp_path / "target")
    edit_tokenizer(base, lambda value: value["model"]["merges"].reverse())
    refused(base, tmp_path / "h.gguf", "tokenizer.ggml.merges: expected")


def test_the_digest_stands_in_for_a_tokenizer(tmp_path: Path, tiny_merged: Path) -> None:
    """Heads that `split` wrote, without tokens: the digest of their target's is all there is."""
    split(tiny_merged, tmp_path / "b.gguf", tmp_path / "h.gguf")
    heads = edited(tmp_path / "h.gguf", tmp_path / "bare.gguf", keys=without_keys("tokenizer."))
    assert plan_convert(tmp_path / "b.gguf", heads).slots
    base = tiny.write_target(tmp_path / "target")
    edit_tokenizer(base, lambda value: value["model"]["merges"].reverse())
    refused(base, heads, "mtp.target.tokenizer_sha256: expected")


def test_layers_that_llama_cpp_cannot_share(tmp_path: Path, tiny_drafter: Path) -> None:
    kind = tiny.Kind("odd", layers=(tiny.SLIDING, tiny.FULL, tiny.FULL), shared=0)
    base = tiny.write_target(tmp_path / "target", kind)
    with pytest.raises(UnsupportedError, match="last layers that own keys and values"):
        plan_convert(base, tiny_drafter)


def codes(base: Path, heads: Path) -> list[str]:
    notes = plan_convert(base, heads).notes
    assert all(note.message and "\n" not in note.message for note in notes)
    return [note.code for note in notes]


def test_nothing_to_say_of_a_matching_pair(tiny_target: Path, tiny_drafter: Path) -> None:
    assert codes(tiny_target, tiny_drafter) == []


@pytest.mark.parametrize(
    ("base", "heads", "expected"),
    [
        ("gemma-it", "gemma-it-qat-assistant", ["qat-mismatch"]),
        ("gemma-it-qat-q4_0", "gemma-it-assistant", ["qat-mismatch"]),
        ("gemma-it-QAT-q4_0", "gemma_qat_assistant", []),
        ("gemma-qatar", "gemma-it-assistant", []),
    ],
)
def test_quantization_aware_heads_and_bases(
    tmp_path: Path, base: str, heads: str, expected: list[str]
) -> None:
    target = tiny.write_target(tmp_path / base)
    drafter = tiny.write_drafter(tmp_path / heads)
    assert codes(target, drafter) == expected
    # The names travel with the heads.
    convert(target, drafter, tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", tmp_path / "h.gguf")
    assert codes(tmp_path / "b.gguf", tmp_path / "h.gguf") == expected


def test_depth_for_a_mixture_of_experts(tmp_path: Path) -> None:
    base = tiny.write_target(tmp_path / "target", tiny.MOE)
    heads = tiny.write_drafter(tmp_path / "drafter", tiny.MOE)
    assert codes(base, heads) == ["moe-depth"]


def test_heads_from_a_litert_package(tmp_path: Path, tiny_target: Path) -> None:
    shapes = tiny.drafter_shapes(tiny.Kind("plain", ordered=False))
    tensors: tiny.Tensors = {
        name: ("BF16", shape, tiny.noise(name, shape, "BF16"))
        for name, shape in shapes.items()
        if "scalar" not in name
    }
    tiny.write_safetensors(tmp_path / "heads.safetensors", tensors)
    assert codes(tiny_target, tmp_path / "heads.safetensors") == [
        "inferred",
        "vocabulary-unchecked",
        "litert-heads",
    ]
    convert(tiny_target, tmp_path / "heads.safetensors", tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", tmp_path / "h.gguf")
    assert codes(tmp_path / "b.gguf", tmp_path / "h.gguf") == ["litert-heads"]


def test_ordered_head_that_is_off(tmp_path: Path, tiny_merged: Path) -> None:
    split(tiny_merged, tmp_path / "b.gguf", tmp_path / "h.gguf", dialect="ordered")
    half = half_from_gguf(read_gguf(tmp_path / "h.gguf"))
    name = "gemma4-assistant.use_ordered_embeddings"
    keys = tuple(boolean(name, False) if key.name == name else key for key in half.keys)
    write_gguf(plan(keys, half.tensors), tmp_path / "off.gguf")
    assert codes(tmp_path / "b.gguf", tmp_path / "h.gguf") == []
    assert codes(tmp_path / "b.gguf", tmp_path / "off.gguf") == ["ordered-head-off"]


def test_ordered_head_that_is_missed(
    tmp_path: Path, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter", tiny.Kind("plain", ordered=False))
    assert codes(tiny_target, heads) == []
    monkeypatch.setattr("gguf_mtp.pairing.ORDERED_HEAD_WIDTH", tiny.DRAFTER_HIDDEN)
    assert codes(tiny_target, heads) == ["no-ordered-head"]


def test_notes_on_the_command_line(tmp_path: Path) -> None:
    base = tiny.write_target(tmp_path / "target", tiny.MOE)
    heads = tiny.write_drafter(tmp_path / "drafter", tiny.MOE)
    arguments = ["convert", "--base", str(base), "--heads", str(heads), "-o"]
    shown = CliRunner().invoke(main, [*arguments, str(tmp_path / "a.gguf")])
    assert shown.exit_code == 0
    assert shown.stderr.startswith("note: a mixture of experts")
    assert "note:" not in shown.stdout
    as_json = CliRunner().invoke(main, [*arguments, str(tmp_path / "b.gguf"), "--json"])
    assert [note["code"] for note in json.loads(as_json.stdout)["notes"]] == ["moe-depth"]
    quiet = CliRunner().invoke(main, [*arguments, str(tmp_path / "c.gguf"), "--quiet"])
    assert quiet.output == ""
