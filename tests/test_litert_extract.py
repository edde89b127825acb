"""Drafters out of `.litertlm`: the known originals come back, whatever form they are kept in."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gguf_mtp.drafters.litert.checkpoint import write_checkpoint
from gguf_mtp.drafters.litert.package import LitertDrafter, provenance, read_drafter, remarks
from gguf_mtp.errors import FormatError, OutputError
from gguf_mtp.gemma4.config import FULL, SLIDING, Rope
from gguf_mtp.readers.safetensors import read_safetensors
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.readers.tflite_model import Graph
from litert import original
from litert_fixtures import (
    MOVED,
    ON_GRID,
    POSITIONS,
    all_values,
    change_graph,
    fixture,
    recorded,
    shape_of,
)
from litert_forward import forward


def origin(name: str) -> str:
    """The fixture whose graph `name` holds."""
    return "mixed" if name in MOVED else name


@pytest.mark.parametrize("name", [*ON_GRID, *MOVED])
def test_codes_and_scales_are_the_originals(name: str) -> None:
    drafter = read_drafter(fixture(name))
    grid = original.grid_matrices(origin(name))
    assert {n for n in drafter.weights if not n.endswith("norm")} == set(grid)
    with SourceFile(drafter.path) as source:
        for matrix_name, matrix in grid.items():
            weight = drafter.weights[matrix_name]
            if name == "float":
                values = np.concatenate(list(weight.values(source)))
                assert np.array_equal(values, matrix.values.reshape(-1)), matrix_name
                continue
            assert np.array_equal(np.concatenate(list(weight.codes(source))), matrix.codes)
            assert weight.scales is not None
            if matrix_name == "model.embed_tokens" and drafter.found.folded:
                # Divided by the softcap before quantization, multiplied by it again here.
                np.testing.assert_allclose(weight.scales, matrix.scales, rtol=2**-22)
            else:
                assert np.array_equal(weight.scales, matrix.scales), matrix_name


@pytest.mark.parametrize("name", [*ON_GRID, *MOVED])
def test_all_parameters_are_the_originals(name: str) -> None:
    found = all_values(read_drafter(fixture(name)))
    expected = original.weights(origin(name), scalars=name == "float")
    assert set(expected) <= set(found)
    for key in set(found) - set(expected):
        assert key.endswith("layer_scalar")
        assert found[key] == 1
    for key, value in expected.items():
        if key == "model.embed_tokens.weight":
            np.testing.assert_allclose(found[key], value, rtol=2**-22)
        else:
            assert np.array_equal(found[key], value), key


@pytest.mark.parametrize(("name", "tolerance"), [("float", 2e-6), ("weight-only-int4", 2e-6)])
def test_logits_are_those_of_litert_where_it_computes_in_floats(
    name: str, tolerance: float
) -> None:
    values = recorded(name)
    for position in POSITIONS:
        for key in ("logits", "projected_activations"):
            theirs, ours = values[f"litert {key} {position}"], values[f"hf {key} {position}"]
            assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["mixed", "blockwise-32", "trained"])
def test_logits_are_near_those_of_litert_where_it_quantizes_activations(name: str) -> None:
    values = recorded(name)
    for position in POSITIONS:
        theirs, ours = values[f"litert logits {position}"], values[f"hf logits {position}"]
        assert np.abs(ours - theirs).max() <= 0.06 * np.abs(theirs).max()


@pytest.mark.parametrize("name", [*ON_GRID, *MOVED, "trained"])
def test_logits_are_those_of_the_hugging_face_model(name: str) -> None:
    drafter = read_drafter(fixture(name))
    weights, values = all_values(drafter), recorded(origin(name))
    for position in POSITIONS:
        given = original.inputs(shape_of(name), position)
        ours = forward(weights, shape_of(name), given, drafter.found.softcap)
        for key, value in ours.items():
            theirs = values[f"hf {key} {position}"]
            assert np.abs(value - theirs).max() <= 3e-6 * np.abs(theirs).max()


def same(one: LitertDrafter, other: LitertDrafter) -> bool:
    weights, others = all_values(one), all_values(other)
    return (
        {name: role.value for name, role in one.found.roles.items()}
        == {name: role.value for name, role in other.found.roles.items()}
        and one.findings == other.findings
        and one.found.softcap == other.found.softcap
        and all(np.array_equal(weights[name], others[name]) for name in weights)
    )


@pytest.mark.parametrize("name", [*ON_GRID, *MOVED, "trained"])
def test_names_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    named = read_drafter(fixture(name))

    def rename(graph: Graph) -> Graph:
        tensors = tuple(replace(tensor, name=f"t{tensor.index}") for tensor in graph.tensors)
        return replace(graph, tensors=tensors)

    change_graph(monkeypatch, rename)
    assert same(named, read_drafter(fixture(name)))


def test_what_the_graph_tells() -> None:
    drafter = read_drafter(fixture("mixed"))
    findings = drafter.findings
    assert findings.layer_types == (SLIDING, SLIDING, FULL)
    assert findings.kv_layers == {SLIDING: 13, FULL: 14}
    assert findings.head_dims == {SLIDING: 32, FULL: 64}
    assert (findings.heads, findings.kv_heads) == (2, {SLIDING: 1, FULL: 1})
    assert (findings.window, findings.context, findings.epsilon) == (8, 24, 1e-6)
    assert findings.ropes == {SLIDING: Rope(1e4, 1.0), FULL: Rope(1e6, 0.25)}
    assert (drafter.found.softcap, drafter.found.folded) == (30.0, True)
    # Layers 0 and 1 have one q_norm between them.
    roles = drafter.found.roles
    shared = {roles[f"model.layers.{layer}.self_attn.q_norm"].value for layer in (0, 1)}
    assert len(shared) == 1


def test_a_softcap_and_an_unknown_embedding_scale_are_remarked_on() -> None:
    notes = {note.code: note.message for note in remarks(read_drafter(fixture("mixed")))}
    assert set(notes) == {"litert-softcap", "litert-embedding-scale"}
    assert "caps the drafter's logits at 30" in notes["litert-softcap"]
    assert "unknown: the package has 0 tf_lite_embedder" in notes["litert-embedding-scale"]
    assert remarks(read_drafter(fixture("trained"))) == []


def test_the_embedder_tells_the_embedding_scale() -> None:
    assert read_drafter(fixture("trained")).embedding_scale.factor == 16
    assert read_drafter(fixture("offset-buffers")).embedding_scale.factor == 8


def test_layer_scalars_are_found() -> None:
    assert read_drafter(fixture("float")).layer_scalars() == [0.75, 1.25, 0.875]
    assert read_drafter(fixture("mixed")).layer_scalars() == [1, 1, 1]


def test_the_checkpoint_holds_floats_codes_and_provenance(tmp_path: Path) -> None:
    drafter = read_drafter(fixture("external-weights"))
    out = tmp_path / "out"
    steps: list[int] = []
    facts = write_checkpoint(drafter, out, native=True, progress=steps.append)
    assert sum(steps) >= drafter.file.size
    assert json.loads((out / "litert.json").read_text()) == facts
    assert facts["container_version"] == "1.7.0"
    assert len(facts["sections"]) == 2
    assert json.loads((out / "config.json").read_text())["use_ordered_embeddings"] is False
    expected = all_values(drafter)
    found = {ref.name: ref for ref in read_safetensors(out / "model.safetensors").tensors}
    assert set(found) == set(expected)
    with SourceFile(out / "model.safetensors") as source:
        for name, ref in found.items():
            values = np.frombuffer(source.read(ref.offset, ref.nbytes), "<f4")
            assert np.array_equal(values, expected[name].reshape(-1)), name
    native = {ref.name: ref for ref in read_safetensors(out / "native.safetensors").tensors}
    grid = original.grid_matrices("mixed")
    with SourceFile(out / "native.safetensors") as source:
        for name, matrix in grid.items():
            ref = native[f"{name}.codes"]
            codes = np.frombuffer(source.read(ref.offset, ref.nbytes), np.int8)
            assert np.array_equal(codes, matrix.codes.reshape(-1))
            assert native[f"{name}.scales"].shape == matrix.scales.shape


def test_existing_files_are_kept_unless_forced(tmp_path: Path) -> None:
    drafter = read_drafter(fixture("mixed"))
    write_checkpoint(drafter, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="exists"):
        write_checkpoint(drafter, tmp_path)
    write_checkpoint(drafter, tmp_path, force=True)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_package_that_changes_meanwhile_leaves_no_checkpoint(tmp_path: Path) -> None:
    package = tmp_path / "changing.litertlm"
    package.write_bytes(fixture("mixed").read_bytes())
    drafter = read_drafter(package)
    package.write_bytes(package.read_bytes()[:60_000])
    with pytest.raises(FormatError):
        write_checkpoint(drafter, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_provenance_names_every_tensor() -> None:
    drafter = read_drafter(fixture("blockwise-32"))
    listed = provenance(drafter)["tensors"]
    assert len(listed) == len(drafter.weights)
    assert any(item.startswith("pre_projection ") and "per 32" in item for item in listed)
