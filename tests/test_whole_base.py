"""A base GGUF is held against its own keys before it becomes part of a merged file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import tiny
from edited_gguf import (
    Keys,
    Tensors,
    content,
    edited,
    f32_tensor,
    with_keys,
    without_keys,
    without_tensors,
)
from gguf_mtp.api import attach, convert, plan_convert, split
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.keyvalue import KeyValue, string, u32
from gguf_mtp.model import Tensor


@dataclass(frozen=True)
class Pair:
    base: Path
    heads: Path


def pair_of(root: Path, kind: tiny.Kind) -> Pair:
    base = tiny.write_target(root / "target", kind)
    heads = tiny.write_drafter(root / "drafter", kind)
    convert(base, heads, root / "m.gguf")
    split(root / "m.gguf", root / "b.gguf", root / "h.gguf")
    return Pair(root / "b.gguf", root / "h.gguf")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {
        kind.name: pair_of(tmp_path_factory.mktemp(kind.name), kind)
        for kind in (tiny.E2B, tiny.DENSE, tiny.MOE)
    }


def same(items: list[Tensor]) -> list[Tensor]:
    return items


def reshaped(name: str, shape: tuple[int, ...]) -> Tensors:
    def change(tensors: list[Tensor]) -> list[Tensor]:
        return [f32_tensor(name, shape) if item.name == name else item for item in tensors]

    return change


def added(*tensors: Tensor) -> Tensors:
    return lambda found: [*found, *tensors]


SHARED = "gemma4.attention.shared_kv_layers"


@pytest.mark.parametrize(
    ("kind", "keys", "tensors", "named"),
    [
        ("e2b", same, without_tensors("blk.2.attn_k.weight"), ["blk.2.attn_k.weight", "is 2"]),
        ("e2b", same, without_tensors("blk.1.attn_v.weight"), ["blk.1.attn_v.weight"]),
        ("e2b", same, without_tensors("blk.2.attn_v.weight"), []),
        ("e2b", same, without_tensors("blk.0.ffn_up.weight"), ["blk.0.ffn_up.weight"]),
        ("e2b", same, without_tensors("rope_freqs.weight"), ["rope_freqs.weight"]),
        (
            "e2b",
            same,
            without_tensors("per_layer_proj_norm.weight"),
            ["per_layer_proj_norm.weight"],
        ),
        (
            "e2b",
            same,
            without_tensors("blk.3.layer_output_scale.weight"),
            ["blk.3.layer_output_scale.weight"],
        ),
        ("e2b", without_keys(SHARED), same, [f"key {SHARED} is missing"]),
        ("e2b", with_keys(u32(SHARED, 0)), same, ["blk.3.attn_k.weight", f"{SHARED} is 0"]),
        ("e2b", without_keys("tokenizer.ggml.tokens"), same, ["tokenizer.ggml.tokens"]),
        ("e2b", without_keys("gemma4.context_length"), same, ["gemma4.context_length"]),
        (
            "e2b",
            with_keys(u32("gemma4.attention.value_length_swa", 16)),
            same,
            ["gemma4.attention.value_length_swa is 16, expected 32"],
        ),
        (
            "e2b",
            same,
            reshaped("per_layer_token_embd.weight", (500, 80)),
            ["per_layer_token_embd.weight has shape [500, 80], expected [512, 80]"],
        ),
        (
            "e2b",
            same,
            reshaped("blk.1.attn_q.weight", (32, 64)),
            ["blk.1.attn_q.weight has shape [32, 64], expected [64, 64]"],
        ),
        ("dense", same, without_tensors("blk.0.attn_v.weight"), ["blk.0.attn_v.weight"]),
        ("moe", same, without_tensors("blk.1.ffn_gate_inp.scale"), ["blk.1.ffn_gate_inp.scale"]),
        (
            "moe",
            same,
            without_tensors("blk.1.ffn_gate_up_exps.weight"),
            ["blk.1.ffn_gate_up_exps.weight"],
        ),
        ("moe", without_keys("gemma4.expert_used_count"), same, ["gemma4.expert_used_count"]),
    ],
)
def test_refused_by_name(
    tmp_path: Path,
    pairs: dict[str, Pair],
    kind: str,
    keys: Keys,
    tensors: Tensors,
    named: list[str],
) -> None:
    base = edited(pairs[kind].base, tmp_path / "base.gguf", keys=keys, tensors=tensors)
    if not named:
        # The only full layer with keys of its own may use them as values.
        assert plan_convert(base, pairs[kind].heads).slots
        return
    with pytest.raises(FormatError) as caught:
        plan_convert(base, pairs[kind].heads)
    text = str(caught.value)
    assert text.startswith(f"{base}: ")
    assert "\n" not in text
    assert all(name in text for name in named)


@pytest.mark.parametrize(
    "name", ["blk.9.attn_q.weight", "blk.0.attn_q.bias", "vision.x", "q.scale"]
)
def test_a_foreign_tensor(tmp_path: Path, pairs: dict[str, Pair], name: str) -> None:
    extra = added(f32_tensor(name, (64,)))
    base = edited(pairs["e2b"].base, tmp_path / "base.gguf", tensors=extra)
    with pytest.raises(UnsupportedError, match=f"tensor '{name}' is not part of a gemma4 model"):
        plan_convert(base, pairs["e2b"].heads)


def without_shared_keys(tensors: list[Tensor]) -> list[Tensor]:
    shared = [f"blk.{layer}.attn_{name}" for layer in (3, 4) for name in ("k", "v", "k_norm")]
    return list(without_tensors(*(f"{name}.weight" for name in shared))(tensors))


def with_shared_keys(tensors: list[Tensor]) -> list[Tensor]:
    like = {item.name: item for item in tensors}
    for layer, source in ((3, 1), (4, 2)):
        for name in ("k", "v", "k_norm"):
            new = f"blk.{layer}.attn_{name}.weight"
            like.setdefault(new, replace(like[f"blk.{source}.attn_{name}.weight"], name=new))
    return list(like.values())


def with_scales(tensors: list[Tensor]) -> list[Tensor]:
    """As NVFP4 files have them: a factor for each matrix of a layer."""
    matrices = ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    names = [f"blk.{layer}.{name}" for layer in range(5) for name in matrices]
    return [
        *tensors,
        *(f32_tensor(f"{name}.scale", (1,)) for name in names),
        *(f32_tensor(f"{name}.input_scale", (1,)) for name in names),
    ]


def with_split_experts(tensors: list[Tensor]) -> list[Tensor]:
    """Gate and up one by one, as early converters wrote them."""
    found: list[Tensor] = []
    for item in tensors:
        if "ffn_gate_up_exps" not in item.name:
            found.append(item)
            continue
        experts, wide, width = item.shape
        for name in ("ffn_gate_exps", "ffn_up_exps"):
            shape = (experts, wide // 2, width)
            found.append(f32_tensor(item.name.replace("ffn_gate_up_exps", name), shape))
    return found


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("e2b", without_shared_keys),
        ("e2b", with_shared_keys),
        ("e2b", with_scales),
        ("e2b", without_tensors(*(f"blk.{i}.layer_output_scale.weight" for i in range(5)))),
        ("moe", with_split_experts),
    ],
)
def test_legal_layouts(tmp_path: Path, pairs: dict[str, Pair], kind: str, tensors: Tensors) -> None:
    base = edited(pairs[kind].base, tmp_path / "base.gguf", tensors=tensors)
    convert(base, pairs[kind].heads, tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", None)
    assert content(tmp_path / "b.gguf") == content(base)


@pytest.fixture
def with_encoders(tmp_path: Path, pairs: dict[str, Pair]) -> Path:
    """A base as Ollama packs it."""
    names = ("v.blk.0.attn_q.weight", "a.blk.0.conv.weight", "mm.input_projection.weight")
    return edited(
        pairs["e2b"].base,
        tmp_path / "ollama.gguf",
        keys=with_keys(u32("gemma4.vision.block_count", 16), u32("gemma4.audio.block_count", 12)),
        tensors=added(*(f32_tensor(name, (8, 8)) for name in names)),
    )


@pytest.mark.parametrize("layout", ["inline", "tail"])
def test_convert_leaves_encoders_out(
    tmp_path: Path, pairs: dict[str, Pair], with_encoders: Path, layout: str
) -> None:
    written = convert(with_encoders, pairs["e2b"].heads, tmp_path / "m.gguf", layout=layout)
    notes = {note.code: note.message for note in written.plan.notes}
    assert "3 tensors" in notes["encoders-left-out"]
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", None)
    assert content(tmp_path / "b.gguf") == content(pairs["e2b"].base)


def test_attach_explains_encoders(pairs: dict[str, Pair], with_encoders: Path) -> None:
    before = with_encoders.read_bytes()
    with pytest.raises(UnsupportedError, match="vision and audio encoders"):
        attach(with_encoders, pairs["e2b"].heads)
    assert with_encoders.read_bytes() == before


def as_draft_model(keys: list[KeyValue]) -> list[KeyValue]:
    """MTP heads under the architecture of a whole model, as a fork has them."""
    kept = without_keys("mtp.", "tokenizer.")(keys)
    renamed = [key.renamed(key.name.replace("gemma4-assistant.", "gemma4.")) for key in kept]
    marks = (
        string("general.architecture", "gemma4"),
        string("gemma4.assistant.type", "mtp"),
        u32(SHARED, 0),
    )
    return list(with_keys(*marks)(renamed))


def tensors_of_the_fork(tensors: list[Tensor]) -> list[Tensor]:
    return [replace(item, name=item.name.replace("nextn.", "assistant.")) for item in tensors]


@pytest.mark.parametrize("rename", [tensors_of_the_fork, same])
def test_heads_are_not_a_draft_model(
    tmp_path: Path, pairs: dict[str, Pair], rename: Callable[[list[Tensor]], list[Tensor]]
) -> None:
    pair = pairs["e2b"]
    heads = edited(pair.heads, tmp_path / "h.gguf", keys=as_draft_model, tensors=rename)
    with pytest.raises(UnsupportedError, match="belongs to MTP heads"):
        plan_convert(pair.base, heads)


def test_a_draft_model_must_be_whole(tmp_path: Path, pairs: dict[str, Pair]) -> None:
    """The marks alone removed, what is left is not a model."""
    pair = pairs["e2b"]

    def keys(found: list[KeyValue]) -> list[KeyValue]:
        return list(without_keys("gemma4.assistant.", "gemma4.nextn")(as_draft_model(found)))

    def tensors(found: list[Tensor]) -> list[Tensor]:
        return [item for item in found if not item.name.startswith("nextn.")]

    heads = edited(pair.heads, tmp_path / "h.gguf", keys=keys, tensors=tensors)
    with pytest.raises(FormatError, match=r"tensor blk\.0\.attn_k\.weight is missing"):
        plan_convert(pair.base, heads)
