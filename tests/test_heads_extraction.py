"""Loose safetensors as heads: names of both kinds, with and without a configuration."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from gguf_mtp.api import convert, plan_convert
from gguf_mtp.drafters.extraction import upstream_name
from gguf_mtp.errors import FormatError, PairingError, UnsupportedError
from gguf_mtp.plan import FilePlan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.safetensors import read_safetensors

ARCH = "mtp.gemma4-assistant."
LITERT = {
    "pre_projection.weight": "MtpDrafterModel/mtp_pre_project/mtp_pre_proj/btm,md->btd/dot_general",
    "post_projection.weight": "MtpDrafterModel/mtp_post_project/mtp_post_proj/btd,dm->btm/dot",
    "model.embed_tokens.weight": "MtpDrafterModel/decode_softmax/embedder.decode/composite",
    "model.norm.weight": "MtpDrafterModel/final_norm/scale",
}
LITERT_LAYER = {
    "self_attn.q_proj.weight": "attn/q_einsum/btd,dH->btH/dot_general",
    "self_attn.o_proj.weight": "attn/attn_vec_einsum/btH,Hd->btd/dot_general",
    "mlp.gate_proj.weight": "mlp/gating_einsum1/btd,df->btf/dot_general",
    "mlp.up_proj.weight": "mlp/gating_einsum2/btd,df->btf/dot_general",
    "mlp.down_proj.weight": "mlp/linear/btf,fd->btd/dot_general",
    "input_layernorm.weight": "pre_attention_norm/scale",
    "post_attention_layernorm.weight": "post_attention_norm/scale",
    "pre_feedforward_layernorm.weight": "pre_ffw_norm/scale",
    "post_feedforward_layernorm.weight": "post_ffw_norm/scale",
    "self_attn.q_norm.weight": "attn/query_norm/scale",
    "layer_scalar": "layer_scalar",
}


def litert_name(name: str) -> str:
    if name in LITERT:
        return LITERT[name]
    _, _, layer, part = name.split(".", 3)
    return f"MtpDrafterModel/layer_{layer}/{LITERT_LAYER[part]}"


def drafter_tensors(
    kind: tiny.Kind = tiny.E2B, *, scalars: bool = True, ordered: bool = False
) -> tiny.Tensors:
    tensors = {
        name: ("BF16", shape, tiny.noise(name, shape, "BF16"))
        for name, shape in sorted(tiny.drafter_shapes(kind).items())
        if (scalars or "scalar" not in name) and (ordered or "masked" not in name)
    }
    if ordered:
        data = ("I64", (tiny.VOCAB_SIZE,), tiny.ordering())
        tensors["masked_embedding.token_ordering"] = data
    return tensors


def renamed(tensors: tiny.Tensors, style: str) -> tiny.Tensors:
    if style == "litert":
        return {litert_name(name): item for name, item in tensors.items()}
    if style == "bare":
        return {name.removeprefix("model."): item for name, item in tensors.items()}
    if style == "wrapped":
        return {f"mtp.{name.removesuffix('.weight')}": item for name, item in tensors.items()}
    return tensors


def values(plan: FilePlan) -> dict[str, Any]:
    return {key.name: key.value for key in plan.parts[0].plan.resolved_keys({})}


def contents(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    return {ref.name: data[ref.offset :][: ref.nbytes] for ref in read_gguf(path).tensors}


@pytest.mark.parametrize("style", ["huggingface", "bare", "wrapped", "litert"])
@pytest.mark.parametrize("kind", tiny.KINDS, ids=lambda kind: kind.name)
def test_the_same_as_from_a_checkpoint(tmp_path: Path, kind: tiny.Kind, style: str) -> None:
    base = tiny.write_target(tmp_path / "target", kind)
    ordered = kind.ordered and style != "litert"
    plain = tiny.Kind(**{**vars(kind), "ordered": ordered})
    checkpoint = tiny.write_drafter(tmp_path / "drafter", plain)
    convert(base, checkpoint, tmp_path / "expected.gguf")
    tensors = renamed(drafter_tensors(plain, ordered=ordered), style)
    tiny.write_safetensors(tmp_path / "heads.safetensors", tensors)
    convert(base, tmp_path / "heads.safetensors", tmp_path / "m.gguf")
    assert contents(tmp_path / "m.gguf") == contents(tmp_path / "expected.gguf")
    found, expected = (
        {key.name: key.value for key in read_gguf(tmp_path / f"{name}.gguf").keys}
        for name in ("m", "expected")
    )
    stated = {f"{ARCH}masked_embd.top_k"}  # tiny's is not Google's
    assert {key: value for key, value in found.items() if key.startswith(ARCH)} | {
        key: expected[key] for key in stated & set(expected)
    } == {key: value for key, value in expected.items() if key.startswith(ARCH)}
    assert found["mtp.source.kind"] == "extraction"
    assert "gemma4-assistant.attention.key_length" in found["mtp.source.inferred"]
    assert found["mtp.tokenizer.shared"] is True


def test_a_container_without_scalars_and_with_shared_constants(
    tmp_path: Path, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As LiteRT stores it: no layer scalars, one query norm for the sliding layers, [1, 1, n]."""
    tensors = drafter_tensors(scalars=False)
    for name in list(tensors):
        if ".layers.0." in name:
            twin = name.replace(".0.", ".1.")
            full = tensors[twin]
            tensors[name.replace(".0.", ".2.")] = full
            tensors[twin] = tensors[name]
    del tensors["model.layers.1.self_attn.q_norm.weight"]
    for name, (dtype, shape, data) in tensors.items():
        if len(shape) == 1:
            tensors[name] = (dtype, (1, 1, *shape), data)
    tiny.write_safetensors(tmp_path / "heads.safetensors", renamed(tensors, "litert"))
    plan = plan_convert(tiny_target, tmp_path / "heads.safetensors")
    found = values(plan)
    assert found[f"{ARCH}attention.sliding_window_pattern"] == [True, True, False]
    assert found[f"{ARCH}block_count"] == found[f"{ARCH}attention.shared_kv_layers"] == 3
    assert found["mtp.source.kind"] == "litert-extraction"
    inferred = found["mtp.source.inferred"]
    assert "blk.1.attn_q_norm.weight" in inferred
    assert {f"blk.{layer}.layer_output_scale.weight" for layer in range(3)} < set(inferred)
    slots = {slot.tensor.name: slot.tensor for slot in plan.slots}
    assert slots["mtp.blk.0.layer_output_scale.weight"].source == b"\0\0\x80\x3f"
    assert slots["mtp.blk.0.attn_norm.weight"].shape == (tiny.DRAFTER_HIDDEN,)
    first, second = (slots[f"mtp.blk.{layer}.attn_q_norm.weight"].source for layer in (0, 1))
    assert first == second


def test_a_directory_of_several_files(tmp_path: Path, tiny_target: Path) -> None:
    tensors = list(drafter_tensors().items())
    (tmp_path / "heads").mkdir()
    tiny.write_safetensors(tmp_path / "heads" / "a.safetensors", dict(tensors[::2]))
    tiny.write_safetensors(tmp_path / "heads" / "b.safetensors", dict(tensors[1::2]))
    found = values(plan_convert(tiny_target, tmp_path / "heads"))
    assert found["mtp.source.files"] == ["a.safetensors", "b.safetensors"]
    assert found["mtp.general.name"] == "heads"


def with_config(directory: Path, config: dict[str, Any]) -> Path:
    directory.mkdir()
    tensors = drafter_tensors(scalars=False, ordered=True)
    tiny.write_safetensors(directory / "model.safetensors", tensors)
    tiny.write_json(directory / "config.json", config)
    return directory


@pytest.mark.parametrize("nested", [True, False])
def test_a_configuration_beside_it_is_heeded(
    tmp_path: Path, tiny_target: Path, nested: bool
) -> None:
    text = tiny.text_config(tiny.E2B, drafter=True) | {"sliding_window": 48, "rms_norm_eps": 1e-5}
    config: dict[str, Any] = {"text_config": text} if nested else text
    config["architectures"] = ["Gemma4AssistantForCausalLM"]
    config["centroid_intermediate_top_k"] = tiny.TOP_K
    heads = with_config(tmp_path / "heads", config)
    for path in (heads, heads / "model.safetensors"):
        found = values(plan_convert(tiny_target, path))
        assert found[f"{ARCH}attention.sliding_window"] == 48
        assert found[f"{ARCH}attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
        assert found[f"{ARCH}masked_embd.top_k"] == tiny.TOP_K
        assert "gemma4-assistant.attention.sliding_window" not in found["mtp.source.inferred"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sliding_window": "512"}, "sliding_window is '512', which no drafter has"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"layer_types": ["other"]}, r"layer_types is \['other'\]"),
    ],
)
def test_a_bad_configuration_is_refused(
    tmp_path: Path, tiny_target: Path, change: dict[str, Any], message: str
) -> None:
    heads = with_config(tmp_path / "heads", {"text_config": change})
    with pytest.raises(FormatError, match=message):
        plan_convert(tiny_target, heads)


def test_a_configuration_that_contradicts_the_base(tmp_path: Path, tiny_target: Path) -> None:
    rope = {"rope_parameters": {tiny.SLIDING: {"rope_theta": 5000.0}}}
    heads = with_config(tmp_path / "heads", {"text_config": rope})
    with pytest.raises(PairingError, match="rope base of sliding_attention"):
        plan_convert(tiny_target, heads)


def test_a_checkpoint_is_still_one(tmp_path: Path, tiny_target: Path) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter")
    assert values(plan_convert(tiny_target, heads))["mtp.source.kind"] == "huggingface"
    config = json.loads((heads / "config.json").read_text())
    del config["architectures"]
    tiny.write_json(heads / "config.json", config)
    assert values(plan_convert(tiny_target, heads))["mtp.source.kind"] == "extraction"


def test_a_head_stored_beside_its_embedding(tmp_path: Path, tiny_target: Path) -> None:
    tensors = drafter_tensors()
    dtype, shape, data = tensors["model.embed_tokens.weight"]
    path = tmp_path / "heads.safetensors"
    tiny.write_safetensors(path, {**tensors, "lm_head.weight": (dtype, shape, data)})
    assert len(plan_convert(tiny_target, path).slots) > len(tensors)
    other = data[:-1] + bytes([data[-1] ^ 1])
    tiny.write_safetensors(path, {**tensors, "lm_head.weight": (dtype, shape, other)})
    with pytest.raises(FormatError, match=r"both are token_embd\.weight, and differ"):
        plan_convert(tiny_target, path)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("model.layers.0.self_attn.q_proj.weight", r"blk\.0\.attn_q\.weight is missing"),
        ("post_projection.weight", r"nextn\.post_projection\.weight is missing"),
        (
            "model.layers.0.self_attn.q_norm.weight",
            r"no query norm \(blk\.N\.attn_q_norm\.weight\) for the layers \[0\];",
        ),
        ("model.layers.1.mlp.up_proj.weight", "found 26 of 27 expected tensors"),
        ("model.norm.weight", "first missing: output_norm.weight"),
    ],
)
def test_a_missing_tensor(tmp_path: Path, tiny_target: Path, gone: str, message: str) -> None:
    tensors = drafter_tensors()
    del tensors[gone]
    path = tmp_path / "heads.safetensors"
    tiny.write_safetensors(path, tensors)
    with pytest.raises(FormatError, match=message):
        plan_convert(tiny_target, path)


@pytest.mark.parametrize(
    ("name", "item", "message"),
    [
        ("model.layers.0.self_attn.k_proj.weight", ("BF16", (1,), b"ab"), "is not part of a gem"),
        ("vision_tower.weight", ("BF16", (1,), b"ab"), "is not known in a drafter"),
        ("n" * 600, ("BF16", (1,), b"ab"), "is not known in a drafter"),
        ("model.layers.99999.layer_scalar", ("BF16", (1,), b"ab"), "is not known in a drafter"),
        ("model.layers.0.layer_scalar", ("I8", (1,), b"a"), "has dtype I8"),
    ],
    ids=["keys", "foreign", "long", "far layer", "integers"],
)
def test_a_tensor_too_many(
    tmp_path: Path, tiny_target: Path, name: str, item: Any, message: str
) -> None:
    path = tmp_path / "heads.safetensors"
    tiny.write_safetensors(path, {**drafter_tensors(), name: item})
    with pytest.raises(UnsupportedError, match=message):
        plan_convert(tiny_target, path)


def test_names_of_google_s_own_checkpoint(drafter_dir: Path) -> None:
    names = {
        upstream_name(ref.name)
        for ref in read_safetensors(drafter_dir / "model.safetensors").tensors
    }
    assert None not in names
    assert {"token_embd.weight", "nextn.pre_projection.weight", "masked_embd_ordering"} < names


def test_the_trained_heads_without_their_configuration(
    tmp_path: Path, target_dir: Path, drafter_dir: Path
) -> None:
    shutil.copy(drafter_dir / "model.safetensors", tmp_path / "heads.safetensors")
    convert(target_dir, tmp_path / "heads.safetensors", tmp_path / "m.gguf")
    convert(target_dir, drafter_dir, tmp_path / "expected.gguf")
    assert contents(tmp_path / "m.gguf") == contents(tmp_path / "expected.gguf")
