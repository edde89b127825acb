"""Heads in every GGUF dialect: read, merged, written back, with names spelt out here."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tiny
from gguf_mtp.api import convert, plan_convert, split
from gguf_mtp.cli import inspect
from gguf_mtp.drafters import dialects, translate
from gguf_mtp.drafters.dialects import BY_NAME, WRITABLE, Dialect, Key
from gguf_mtp.drafters.infer import complete
from gguf_mtp.drafters.ordered_head import Ordering
from gguf_mtp.drafters.sources import SOURCES
from gguf_mtp.errors import FormatError, GgufMtpError, PairingError, UnsupportedError
from gguf_mtp.ggml import F32, I32, type_by_id
from gguf_mtp.keyvalue import KeyValue, ValueType, array, f32, string, u32
from gguf_mtp.model import Half, Tensor, half_from_gguf, read_tensor
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.writer import write_gguf

# What the published descriptions and files of each dialect show, by this project's table's names.
NAMES: dict[str, dict[str, Any]] = {
    "22738": {
        "arch": "gemma4-assistant",
        "keys": {
            "backbone_hidden_size": tiny.HIDDEN,
            "assistant.num_centroids": tiny.CENTROIDS,
            "assistant.centroid_intermediate_top_k": tiny.TOP_K,
            "assistant.use_ordered_embeddings": True,
        },
        "absent": ["embedding_length_out", "nextn_predict_layers", "masked_embd.top_k"],
        "tensors": {
            "assist_pre_proj.weight": "nextn.pre_projection.weight",
            "assist_post_proj.weight": "nextn.post_projection.weight",
            "assist_embed_centroids.weight": "masked_embd_centroids.weight",
            "assist_token_ordering.weight": None,
            "rope_freqs.weight": "rope_freqs.weight",
        },
    },
    "ordered": {
        "arch": "gemma4-assistant",
        "keys": {
            "n_centroids": tiny.CENTROIDS,
            "centroid_top_k": tiny.TOP_K,
            "use_ordered_embeddings": True,
            "requires_target_arch": "gemma4",
            "embedding_length_out": tiny.HIDDEN,
            "nextn_predict_layers": 2,
        },
        "absent": ["masked_embd.centroid_count", "masked_embd.top_k"],
        "tensors": {"masked_embd_centroids.weight": "masked_embd_centroids.weight"},
    },
    "masked-embedding": {
        "arch": "gemma4-assistant",
        "keys": {
            "masked_embedding.centroid_count": tiny.CENTROIDS,
            "masked_embedding.top_k": tiny.TOP_K,
        },
        "absent": ["masked_embd.centroid_count"],
        "tensors": {"masked_embd_centroids.weight": "masked_embd_centroids.weight"},
    },
    "upstream": {
        "arch": "gemma4-assistant",
        "keys": {"embedding_length_out": tiny.HIDDEN, "nextn_predict_layers": 2},
        "absent": [],
        "tensors": {"nextn.pre_projection.weight": "nextn.pre_projection.weight"},
    },
    "atomic": {
        "arch": "gemma4_assistant",
        "keys": {
            "n_embd_backbone": tiny.HIDDEN,
            "n_centroids": tiny.CENTROIDS,
            "centroid_top_k": tiny.TOP_K,
            "use_ordered_embeddings": True,
            "requires_target_arch": "gemma4",
            "block_count": 2,
        },
        "absent": ["nextn_predict_layers", "embedding_length_out"],
        "tensors": {
            "mtp.pre_projection.weight": "nextn.pre_projection.weight",
            "mtp.post_projection.weight": "nextn.post_projection.weight",
            "mtp.centroids.weight": "masked_embd_centroids.weight",
            "mtp.token_ordering.weight": "masked_embd_ordering",
            "rope_freqs.weight": "rope_freqs.weight",
        },
    },
    "ik": {
        "arch": "gemma4_mtp",
        "keys": {
            "backbone_embedding_length": tiny.HIDDEN,
            "centroid_count": tiny.CENTROIDS,
            "centroid_top_k": tiny.TOP_K,
            "use_ordered_embeddings": True,
        },
        "absent": [
            "nextn_predict_layers",
            "embedding_length_out",
            "attention.shared_kv_layers",
            "embedding_length_per_layer_input",
        ],
        "tensors": {
            "mtp_pre_proj.weight": "nextn.pre_projection.weight",
            "mtp_post_proj.weight": "nextn.post_projection.weight",
            "mtp_centroids.weight": "masked_embd_centroids.weight",
            "mtp_token_ordering.weight": None,
        },
    },
}
PROVENANCE = "mtp."


def values(path: Path) -> dict[str, Any]:
    return {key.name: key.value for key in read_gguf(path).keys}


def contents(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Tensors by name: type, shape, bytes."""
    data = path.read_bytes()
    return {
        ref.name: (ref.dtype, ref.shape, data[ref.offset :][: ref.nbytes])
        for ref in read_gguf(path).tensors
    }


def write_half(half: Half, path: Path) -> Path:
    write_gguf(plan(half.keys, half.tensors), path)
    return path


def foreign(path: Path, out: Path) -> Path:
    """A copy without this project's provenance, as another program would have made it."""
    half = half_from_gguf(read_gguf(path))
    keys = tuple(key for key in half.keys if not key.name.startswith(PROVENANCE))
    return write_half(replace(half, keys=keys), out)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_merged: Path) -> dict[str, Path]:
    """The tiny heads in every dialect, without provenance, and their base. Do not write to them."""
    root = tmp_path_factory.mktemp("dialects")
    found = {"base": root / "base.gguf"}
    for name in WRITABLE:
        split(tiny_merged, None, root / f"{name}.own.gguf", dialect=name)
        if name == "upstream":
            found[name] = root / "upstream.own.gguf"
        else:
            found[name] = foreign(root / f"{name}.own.gguf", root / f"{name}.gguf")
    split(tiny_merged, found["base"], None)
    return found


def test_every_dialect_is_spelt_out_here() -> None:
    assert set(NAMES) == set(WRITABLE)


@pytest.mark.parametrize("name", WRITABLE)
def test_names_written(files: dict[str, Path], tiny_merged: Path, name: str) -> None:
    expected, found = NAMES[name], values(files[name])
    arch = expected["arch"]
    assert found["general.architecture"] == arch
    assert {key: found[f"{arch}.{key}"] for key in expected["keys"]} == expected["keys"]
    assert not [key for key in expected["absent"] if f"{arch}.{key}" in found]
    merged, heads = contents(tiny_merged), contents(files[name])
    for theirs, ours in expected["tensors"].items():
        assert theirs in heads
        if ours is not None and ours != "masked_embd_ordering":
            assert heads[theirs] == merged[f"mtp.{ours}"]
    assert ("rope_freqs.weight" in heads) == (name != "ik")


def orderings(files: dict[str, Path]) -> dict[str, tuple[str, Any]]:
    names = {"22738": "assist_token_ordering.weight", "ik": "mtp_token_ordering.weight"}
    names |= {"atomic": "mtp.token_ordering.weight", "ordered": "masked_embd_ordering"}
    found = {}
    for dialect, name in names.items():
        dtype, _, data = contents(files[dialect])[name]
        found[dialect] = (dtype, np.frombuffer(data, "<f4" if dtype == "F32" else "<i4"))
    return found


def test_orderings_written(files: dict[str, Path]) -> None:
    found = orderings(files)
    tokens = np.frombuffer(tiny.ordering(), "<i8")
    assert {name: dtype for name, (dtype, _) in found.items()} == {
        "22738": "F32",
        "ik": "I32",
        "atomic": "I32",
        "ordered": "I32",
    }
    for name in ("22738", "atomic", "ordered"):
        assert (found[name][1] == tokens).all()
    per_centroid = tiny.VOCAB_SIZE // tiny.CENTROIDS
    for place, token in enumerate(tokens.tolist()):
        assert found["ik"][1][token] == place // per_centroid


@pytest.mark.parametrize("name", WRITABLE)
def test_merged_and_back_is_the_same_file(
    tmp_path: Path, files: dict[str, Path], name: str
) -> None:
    """Keys, their order and types, tensors, their order, types and bytes."""
    convert(files["base"], files[name], tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", tmp_path / "own.gguf", dialect=name)
    assert (tmp_path / "b.gguf").read_bytes() == files["base"].read_bytes()
    back = foreign(tmp_path / "own.gguf", tmp_path / "h.gguf")
    first, second = (read_gguf(path) for path in (files[name], back))
    own = tuple(key for key in first.keys if not key.name.startswith(PROVENANCE))
    assert second.keys == own
    assert list(contents(back).items()) == list(contents(files[name]).items())


@pytest.mark.parametrize("dialect", WRITABLE)
def test_merged_heads_do_not_depend_on_the_dialect(
    tmp_path: Path, files: dict[str, Path], tiny_merged: Path, dialect: str
) -> None:
    convert(files["base"], files[dialect], tmp_path / "m.gguf")
    found, expected = contents(tmp_path / "m.gguf"), contents(tiny_merged)
    if dialect == "ik":
        # It does not say in which order a centroid lists its tokens: by id, then.
        name = "mtp.masked_embd_ordering"
        tokens, theirs = (np.frombuffer(c[name][2], "<i4") for c in (found, expected))
        per_centroid = tiny.VOCAB_SIZE // tiny.CENTROIDS
        assert (tokens == np.sort(theirs.reshape(-1, per_centroid)).reshape(-1)).all()
        for moved in (name, "mtp.token_embd.weight"):
            del found[moved], expected[moved]
    assert found == expected
    keys, ours = values(tmp_path / "m.gguf"), values(tiny_merged)
    arch = "mtp.gemma4-assistant."
    kept = {key: value for key, value in ours.items() if key.startswith(arch)}
    assert {key: keys[key] for key in kept} == kept
    added = {key for key in keys if key.startswith(arch)} - set(kept)
    assert added <= {f"{arch}use_ordered_embeddings", f"{arch}requires_target_arch"}
    assert keys["mtp.source.kind"] == ("gguf" if dialect != "upstream" else "huggingface")
    if dialect != "upstream":
        assert keys["mtp.source.dialect"] == dialect
        assert "mtp.source.inferred" not in keys


@pytest.mark.parametrize("name", [name for name in WRITABLE if name != "upstream"])
def test_heads_without_ordered_head(tmp_path: Path, tiny_target: Path, name: str) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter", replace(tiny.E2B, ordered=False))
    convert(tiny_target, heads, tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", tmp_path / "h.gguf", dialect=name)
    found = values(tmp_path / "h.gguf")
    flags = [value for key, value in found.items() if key.endswith("use_ordered_embeddings")]
    assert flags in ([], [False])
    assert not any("ordering" in tensor for tensor in contents(tmp_path / "h.gguf"))
    convert(tmp_path / "b.gguf", tmp_path / "h.gguf", tmp_path / "again.gguf")
    assert contents(tmp_path / "again.gguf") == contents(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", WRITABLE)
def test_from_a_tail_as_from_an_inline_file(
    tmp_path: Path, files: dict[str, Path], name: str
) -> None:
    convert(files["base"], files["upstream"], tmp_path / "t.gguf", layout="tail")
    split(tmp_path / "t.gguf", tmp_path / "b.gguf", tmp_path / "h.gguf", dialect=name)
    assert (tmp_path / "b.gguf").read_bytes() == files["base"].read_bytes()
    again = foreign(tmp_path / "h.gguf", tmp_path / "f.gguf")
    expected = foreign(files[name], tmp_path / "e.gguf")
    assert again.read_bytes() == expected.read_bytes()


def test_split_refuses_an_unknown_dialect(tmp_path: Path, tiny_merged: Path) -> None:
    for name in ("overlay", "no such"):
        with pytest.raises(UnsupportedError, match="expected one of 22738, ordered"):
            split(tiny_merged, None, tmp_path / "h.gguf", dialect=name)


def edited(
    files: dict[str, Path],
    name: str,
    out: Path,
    *,
    keys: dict[str, KeyValue | None] | None = None,
    tensors: dict[str, Tensor | None] | None = None,
) -> Path:
    """A dialect's file with keys and tensors replaced, added or (None) dropped."""
    half = half_from_gguf(read_gguf(files[name]))
    keys, tensors = keys or {}, tensors or {}
    kept = [keys.get(key.name, key) for key in half.keys]
    kept += [key for name, key in keys.items() if name not in half.by_name]
    items = [tensors.get(item.name, item) for item in half.tensors]
    items += [item for name, item in tensors.items() if name not in half.tensor_by_name]
    return write_half(
        replace(
            half,
            keys=tuple(key for key in kept if key is not None),
            tensors=tuple(item for item in items if item is not None),
        ),
        out,
    )


def test_ordering_that_is_not_what_its_dialect_says(
    tmp_path: Path, files: dict[str, Path], tiny_merged: Path
) -> None:
    """ik's name with a list of tokens in it: taken for what it is."""
    data = np.frombuffer(tiny.ordering(), "<i8").astype("<i4").tobytes()
    name = "mtp_token_ordering.weight"
    tensor = Tensor(name, I32, (tiny.VOCAB_SIZE,), data, verbatim=True)
    heads = edited(files, "ik", tmp_path / "h.gguf", tensors={name: tensor})
    convert(files["base"], heads, tmp_path / "m.gguf")
    assert contents(tmp_path / "m.gguf") == contents(tiny_merged)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, *range(1, 512)], "entry 0 is 0.5, expected a whole number"),
        ([*range(511), float("nan")], "entry 511 is nan"),
        ([0, 0, *range(2, 512)], "is neither the token at place i"),
        ([-1, *range(1, 512)], "is neither"),
        ([*range(511), 512], "is neither"),
    ],
)
def test_ordering_that_is_none(
    tmp_path: Path, files: dict[str, Path], values: list[float], message: str
) -> None:
    name = "assist_token_ordering.weight"
    data = struct.pack(f"<{len(values)}f", *values)
    tensor = Tensor(name, F32, (len(values),), data, verbatim=True)
    heads = edited(files, "22738", tmp_path / "h.gguf", tensors={name: tensor})
    with pytest.raises(FormatError, match=message):
        plan_convert(files["base"], heads)


def test_one_tensor_under_two_names(tmp_path: Path, files: dict[str, Path]) -> None:
    half = half_from_gguf(read_gguf(files["atomic"]))
    name = "nextn.pre_projection.weight"
    twin = replace(half.tensor_by_name["mtp.pre_projection.weight"], name=name)
    heads = edited(files, "atomic", tmp_path / "h.gguf", tensors={name: twin})
    with pytest.raises(FormatError, match=f"tensor {name} is there under two names"):
        plan_convert(files["base"], heads)


def test_one_key_under_two_names(tmp_path: Path, files: dict[str, Path]) -> None:
    arch = "gemma4-assistant"
    name = f"{arch}.masked_embd.centroid_count"
    for value in (tiny.CENTROIDS, 7):
        heads = edited(files, "ordered", tmp_path / f"{value}.gguf", keys={name: u32(name, value)})
        if value == tiny.CENTROIDS:
            assert plan_convert(files["base"], heads).slots
        else:
            with pytest.raises(FormatError, match=rf"{name} is given twice: 16 and 7"):
                plan_convert(files["base"], heads)


def test_heads_for_another_architecture(tmp_path: Path, files: dict[str, Path]) -> None:
    name = "gemma4_assistant.requires_target_arch"
    heads = edited(files, "atomic", tmp_path / "h.gguf", keys={name: string(name, "gemma3")})
    with pytest.raises(PairingError, match="requires_target_arch is 'gemma3', expected 'gemma4'"):
        plan_convert(files["base"], heads)


def test_what_a_file_does_not_say_is_inferred_and_said(
    tmp_path: Path, files: dict[str, Path], tiny_merged: Path
) -> None:
    arch = "gemma4_assistant"
    unsaid = [
        "attention.shared_kv_layers",
        "attention.head_count_kv",
        "rope.freq_base_swa",
        "attention.sliding_window_pattern",
        "attention.key_length",
        "n_centroids",
    ]
    heads = edited(
        files,
        "atomic",
        tmp_path / "h.gguf",
        keys={f"{arch}.{name}": None for name in unsaid},
        tensors={"blk.0.layer_output_scale.weight": None},
    )
    merged = plan_convert(files["base"], heads)
    found = {key.name: key.value for key in merged.parts[0].plan.resolved_keys({})}
    ours = values(tiny_merged)
    upstream = [*unsaid[:-1], "masked_embd.centroid_count"]
    for name in upstream:
        full = f"mtp.gemma4-assistant.{name}"
        assert found[full] == ours[full]
    assert set(found["mtp.source.inferred"]) == {
        *(f"gemma4-assistant.{name}" for name in upstream),
        "blk.0.layer_output_scale.weight",
    }
    scale = next(s for s in merged.slots if s.tensor.name == "mtp.blk.0.layer_output_scale.weight")
    assert scale.tensor.source == struct.pack("<f", 1.0)


def test_rotation_is_the_bases(tmp_path: Path, files: dict[str, Path]) -> None:
    """ik's files have no rope_freqs: those of the base, whatever they are, fit."""
    half = half_from_gguf(read_gguf(files["base"]))
    odd = replace(half.tensor_by_name["rope_freqs.weight"], source=struct.pack("<32f", *[1.0] * 32))
    tensors = tuple(odd if t.name == odd.name else t for t in half.tensors)
    base = write_half(replace(half, tensors=tensors), tmp_path / "b.gguf")
    convert(base, files["ik"], tmp_path / "m.gguf")
    assert contents(tmp_path / "m.gguf")["mtp.rope_freqs.weight"][2] == odd.source
    with pytest.raises(PairingError, match="rope_freqs"):
        plan_convert(base, files["atomic"])


def test_keys_that_ik_files_never_have(tmp_path: Path, files: dict[str, Path]) -> None:
    """Stated nevertheless, they serve the merged file and do not come back."""
    stated = (
        u32("gemma4_mtp.attention.shared_kv_layers", 2),
        u32("gemma4_mtp.embedding_length_per_layer_input", 0),
    )
    odd = edited(files, "ik", tmp_path / "h.gguf", keys={key.name: key for key in stated})
    for heads, name in ((odd, "odd"), (files["ik"], "usual")):
        convert(files["base"], heads, tmp_path / f"{name}.gguf")
        found = values(tmp_path / f"{name}.gguf")
        assert found["mtp.gemma4-assistant.attention.shared_kv_layers"] == 2
        assert found["mtp.gemma4-assistant.embedding_length_per_layer_input"] == 0
        assert "mtp.source.inferred" not in found
        split(tmp_path / f"{name}.gguf", None, tmp_path / f"{name}-ik.gguf", dialect="ik")
        back = foreign(tmp_path / f"{name}-ik.gguf", tmp_path / f"{name}-back.gguf")
        assert values(back) == values(files["ik"])


def test_a_further_dialect_is_a_row(
    tmp_path: Path, files: dict[str, Path], tiny_merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = Dialect(
        name="made-up",
        whose="nobody",
        arch="gemma-drafter",
        keys=(
            Key("target_width", ("embedding_length_out",)),
            Key("clusters", ("masked_embd.centroid_count",)),
            Key("attn.heads", ("attention.head_count",)),
        ),
        tensors={
            "nextn.pre_projection.weight": "in.weight",
            "nextn.post_projection.weight": "out.weight",
            "masked_embd_ordering": "clusters.of_token",
            "blk.*.attn_q.weight": "layers.blk.*.query.weight",
        },
        ordering=Ordering.CENTROIDS,
        ordering_type=F32,
        lacks=("nextn_predict_layers", "rope_freqs.weight"),
        states={"use_ordered_embeddings": True},
    )
    table = (*dialects.DIALECTS, made_up)
    monkeypatch.setattr(translate, "DIALECTS", table)
    monkeypatch.setattr("gguf_mtp.api.BY_NAME", BY_NAME | {"made-up": made_up})
    monkeypatch.setattr("gguf_mtp.api.WRITABLE", (*WRITABLE, "made-up"))
    split(tiny_merged, None, tmp_path / "own.gguf", dialect="made-up")
    heads = foreign(tmp_path / "own.gguf", tmp_path / "h.gguf")
    found = values(heads)
    assert found["gemma-drafter.target_width"] == tiny.HIDDEN
    assert found["gemma-drafter.attn.heads"] == tiny.HEADS
    assert "layers.blk.1.query.weight" in contents(heads)
    convert(files["base"], heads, tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", None, tmp_path / "own2.gguf", dialect="made-up")
    again = foreign(tmp_path / "own2.gguf", tmp_path / "h2.gguf")
    assert again.read_bytes() == heads.read_bytes()


def overlay(base: Path, heads: Path, out: Path, *, alone: bool = False) -> Path:
    """`heads` as the fork with ``gemma4.mtp.*`` stores them, in `base` or by themselves."""
    half = half_from_gguf(read_gguf(base))
    drafter = half_from_gguf(read_gguf(heads))
    names = {
        "token_embd.weight": "mtp.embed_tokens.weight",
        "output_norm.weight": "mtp.norm.weight",
        "nextn.pre_projection.weight": "mtp.pre_proj.weight",
        "nextn.post_projection.weight": "mtp.post_proj.weight",
        "masked_embd_centroids.weight": "mtp.masked_emb_centroids.weight",
        "masked_embd_ordering": "mtp.masked_emb_token_ordering.weight",
    }
    parts = {
        "post_attention_norm": "attn_post_norm",
        "ffn_norm": "ffn_pre_norm",
        "post_ffw_norm": "ffn_post_norm",
        "layer_output_scale": "layer_scalar",
    }
    tensors = []
    for tensor in drafter.tensors:
        name = names.get(tensor.name)
        if tensor.name.startswith("blk."):
            _, layer, part, _ = tensor.name.split(".")
            name = f"mtp.blk.{layer}.{parts.get(part, part)}.weight"
        if name is not None:
            tensors.append(replace(tensor, name=name))
    keys = [
        u32("gemma4.nextn_predict_layers", 2),
        u32("gemma4.mtp.hidden_size", tiny.DRAFTER_HIDDEN),
        u32("gemma4.mtp.intermediate_size", tiny.DRAFTER_WIDE),
        u32("gemma4.mtp.attention.head_count", tiny.HEADS),
        u32("gemma4.mtp.attention.head_count_kv", 1),
        u32("gemma4.mtp.attention.head_dim", tiny.HEAD_DIM),
        u32("gemma4.mtp.attention.global_head_dim", tiny.FULL_HEAD_DIM),
        u32("gemma4.mtp.attention.sliding_window", 64),
        f32("gemma4.mtp.attention.layer_norm_rms_epsilon", 1e-6),
        array("gemma4.mtp.layer_types", ValueType.INT32, [0, 1]),
        f32("gemma4.mtp.rope.full.partial_rotary_factor", 0.25),
        u32("gemma4.mtp.rope.sliding.theta_e3", 10),
    ]
    if alone:
        return write_half(replace(half, keys=(half.keys[0], *keys), tensors=tuple(tensors)), out)
    return write_half(
        replace(half, keys=(*half.keys, *keys), tensors=(*half.tensors, *tensors)), out
    )


@pytest.mark.parametrize("alone", [False, True])
def test_heads_of_an_overlay(
    tmp_path: Path, files: dict[str, Path], tiny_merged: Path, alone: bool
) -> None:
    heads = overlay(files["base"], files["masked-embedding"], tmp_path / "o.gguf", alone=alone)
    convert(files["base"], heads, tmp_path / "m.gguf")
    assert contents(tmp_path / "m.gguf") == contents(tiny_merged)
    found, ours = values(tmp_path / "m.gguf"), values(tiny_merged)
    arch = "mtp.gemma4-assistant."
    expected = {key: value for key, value in ours.items() if key.startswith(arch)}
    # Not stated: Google's own drafters score 32 centroids, or all there are.
    expected[f"{arch}masked_embd.top_k"] = tiny.CENTROIDS
    assert {key: value for key, value in found.items() if key.startswith(arch)} == expected
    assert found["mtp.source.dialect"] == "overlay"
    assert "gemma4-assistant.attention.head_count_kv" in found["mtp.source.inferred"]


@pytest.mark.parametrize("alone", [False, True])
def test_an_overlay_is_inspected(tmp_path: Path, files: dict[str, Path], alone: bool) -> None:
    """Heads in a base are not counted as the base's tensors; alone they are all of the file."""
    path = overlay(files["base"], files["masked-embedding"], tmp_path / "o.gguf", alone=alone)
    found = inspect.summary(read_gguf(path))
    counted = read_gguf(path if alone else files["base"]).tensors
    assert sum(found["types"].values()) == len(counted)
    assert found["bytes"] == sum(ref.nbytes for ref in counted)
    # Its file states no count: it is that of the centroids.
    assert found["ordered_head"] == {
        "centroids": tiny.CENTROIDS,
        "top_k": None,
        "rows_sorted": False,
        "carried": False,
    }
    lines = CliRunner().invoke(inspect.command, [str(path)]).stdout.splitlines()
    whose = BY_NAME["overlay"].whose
    assert f"  MTP heads  those of {whose}: --heads takes this file" in lines


def test_base_with_an_overlay(tmp_path: Path, files: dict[str, Path]) -> None:
    base = overlay(files["base"], files["masked-embedding"], tmp_path / "o.gguf")
    with pytest.raises(UnsupportedError, match=r"has heads in it .*--replace-heads"):
        plan_convert(base, files["upstream"])
    convert(base, files["upstream"], tmp_path / "m.gguf", replace_heads=True)
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", None)
    assert (tmp_path / "b.gguf").read_bytes() == files["base"].read_bytes()
    # What is left of the base is no copy of its file, so that a tail goes to a file written anew.
    convert(base, files["upstream"], tmp_path / "t.gguf", layout="tail", replace_heads=True)
    split(tmp_path / "t.gguf", tmp_path / "b2.gguf", None)
    assert (tmp_path / "b2.gguf").read_bytes() == files["base"].read_bytes()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (array("gemma4.mtp.layer_types", ValueType.INT32, [0, 2]), r"\[0, 2\], expected a list of"),
        (string("gemma4.mtp.rope.sliding.theta_e3", "10"), "is '10', expected an integer"),
    ],
)
def test_odd_values_in_an_overlay(
    tmp_path: Path, files: dict[str, Path], key: KeyValue, message: str
) -> None:
    heads = overlay(files["base"], files["masked-embedding"], tmp_path / "o.gguf")
    odd = edited({"o": heads}, "o", tmp_path / "odd.gguf", keys={key.name: key})
    with pytest.raises(FormatError, match=message) as caught:
        plan_convert(files["base"], odd)
    assert str(caught.value).startswith(str(odd))


@pytest.mark.parametrize("name", [*WRITABLE, "overlay"])
def test_any_missing_tensor_is_one_line(tmp_path: Path, files: dict[str, Path], name: str) -> None:
    """Whatever of the heads is gone, the answer is an error of ours or a file that reads back."""
    if name == "overlay":
        path = overlay(files["base"], files["masked-embedding"], tmp_path / "o.gguf", alone=True)
    else:
        path = files[name]
    for ref in read_gguf(path).tensors:
        heads = edited({"x": path}, "x", tmp_path / "gone.gguf", tensors={ref.name: None})
        message = ""
        try:
            plan_convert(files["base"], heads)
        except GgufMtpError as error:
            message = str(error)
        optional = ("rope_freqs.weight", "layer_output_scale.weight", "layer_scalar.weight")
        assert bool(message) != ref.name.endswith(optional)
        assert "\n" not in message
        heads.unlink()


@pytest.mark.parametrize("name", WRITABLE)
def test_any_missing_key_is_one_line(tmp_path: Path, files: dict[str, Path], name: str) -> None:
    for key in read_gguf(files[name]).keys:
        heads = edited(files, name, tmp_path / "gone.gguf", keys={key.name: None})
        message = ""
        try:
            plan_convert(files["base"], heads)
        except GgufMtpError as error:
            message = str(error)
        # Everything else follows from shapes and the base, or nothing hangs on it.
        expected = key.name == "general.architecture" or ".carried." in key.name
        assert bool(message) == expected, key.name
        heads.unlink()


def test_shapes_that_nothing_bounds(tmp_path: Path, files: dict[str, Path]) -> None:
    """A type nobody knows fits any shape: what is inferred from it has to be looked at."""
    name = "blk.1.attn_q_norm.weight"
    wide = Tensor(name, type_by_id(200), (1 << 60,), bytes(32), verbatim=True)
    arch = "gemma4_assistant"
    heads = edited(
        files,
        "atomic",
        tmp_path / "h.gguf",
        keys={f"{arch}.attention.key_length": None},
        tensors={name: wide, "rope_freqs.weight": None},
    )
    with pytest.raises(FormatError, match=rf"{name} has shape \[1152921504606846976\], expected"):
        plan_convert(files["base"], heads)


def test_a_gguf_is_told_by_its_magic(files: dict[str, Path]) -> None:
    """Its byte 8, the low one of the tensor count, may be what a safetensors header begins with."""
    start = b"GGUF" + struct.pack("<IQQ", 3, ord("{"), 40)
    first = next(row for row in SOURCES if row.found(files["ik"], start))
    assert first.name == "GGUF"


def test_nothing_is_added_to_a_complete_file(files: dict[str, Path]) -> None:
    base = half_from_gguf(read_gguf(files["base"]))
    half = half_from_gguf(read_gguf(files["upstream"]))
    assert complete(half, base) == (half, ())
    assert read_tensor(half.tensor_by_name["rope_freqs.weight"])
