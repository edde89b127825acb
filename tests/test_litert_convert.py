"""Heads straight from `.litertlm` into one GGUF: codes unchanged, and the patched llama.cpp runs
them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import quants
from gguf.constants import GGMLQuantizationType

from _validate_helpers import library_under_test
from demo import same_text
from gguf_mtp.api import convert, split
from gguf_mtp.cli.main import main
from gguf_mtp.drafters.litert.audit import audit
from gguf_mtp.drafters.litert.blocks import carry, refusal, unpack_blocks
from gguf_mtp.drafters.litert.checkpoint import read_values, write_checkpoint
from gguf_mtp.drafters.litert.gguf import gguf_name
from gguf_mtp.drafters.litert.package import read_drafter
from gguf_mtp.errors import PairingError
from gguf_mtp.ggml import TYPES
from gguf_mtp.readers.gguf import GgufFile, read_gguf
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.runtime.bindings import ContextOptions, ModelOptions
from gguf_mtp.runtime.pair import PairContexts, open_pair
from gguf_mtp.validate.prompts import load_prompts
from litert import original
from litert_fixtures import DIRECTORY, fixture
from llama_programs import programs, speculative_simple

PRECISE = ContextOptions(n_ctx=256, kv_type="f32", flash_attn="off")
PLAIN_CPU = ModelOptions(device="cpu", repack=False)


def stored(file: GgufFile, name: str) -> tuple[str, bytes]:
    """Type and bytes of the tensor `name` of a merged file's heads."""
    ref = next(ref for ref in file.tensors if ref.name == f"mtp.{name}")
    with SourceFile(file.path) as source:
        return ref.dtype, source.read(ref.offset, ref.nbytes)


@pytest.fixture(scope="module")
def native(target_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded target and the trained drafter with its own codes."""
    out = tmp_path_factory.mktemp("native") / "merged.gguf"
    convert(target_dir, fixture("trained"), out, outtype="f32")
    return out


@pytest.fixture(scope="module")
def floats(target_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same drafter, extracted as a checkpoint first, all in F32."""
    root = tmp_path_factory.mktemp("floats")
    write_checkpoint(read_drafter(fixture("trained")), root / "drafter")
    convert(target_dir, root / "drafter", root / "merged.gguf", outtype="f32", heads_type="f32")
    return root / "merged.gguf"


@pytest.mark.parametrize("name", ["mixed", "blockwise-32", "weight-only-int4"])
def test_blocks_hold_the_original_codes(name: str) -> None:
    drafter = read_drafter(fixture(name))
    with SourceFile(drafter.path) as source:
        for role, matrix in original.grid_matrices(name).items():
            weight = drafter.weights[role]
            assert refusal(weight) is None
            carried = carry(source, role, weight)
            blocks = np.frombuffer(carried.data, np.uint8).reshape(-1, carried.type.block_bytes)
            codes = unpack_blocks(blocks, carried.type)
            assert np.array_equal(codes.reshape(matrix.codes.shape), matrix.codes)
            # Scales of few digits are exact, so gguf-py must give back the original values.
            rows = blocks.reshape(matrix.codes.shape[0], -1)
            number = GGMLQuantizationType[carried.type.name]
            values = quants.dequantize(rows, number)
            assert carried.scale_error < 1e-6
            np.testing.assert_allclose(values, matrix.values, rtol=1e-6)


def test_convert_carries_the_codes(native: Path) -> None:
    drafter, file = read_drafter(fixture("trained")), read_gguf(native)
    kinds = {"INT8": "Q8_0", "INT4": "Q4_0", "FLOAT32": "F32"}
    with SourceFile(drafter.path) as source:
        for role, weight in drafter.weights.items():
            dtype, data = stored(file, gguf_name(role))
            assert dtype == kinds[weight.tensor.dtype]
            if weight.scales is None:
                assert data == read_values(drafter, weight).tobytes()
                continue
            number = TYPES[dtype]
            blocks = np.frombuffer(data, np.uint8).reshape(-1, number.block_bytes)
            codes = np.concatenate(list(weight.codes(source)))
            assert np.array_equal(unpack_blocks(blocks, number).reshape(codes.shape), codes)
            scales = blocks[:, :2].copy().view(np.float16).reshape(len(codes), -1)
            assert (scales == weight.scales.astype(np.float16)).all()


def test_provenance_of_a_merged_file(native: Path) -> None:
    keys = {key.name: key.value for key in read_gguf(native).keys}
    assert keys["mtp.source.kind"] == "litertlm"
    assert keys["mtp.source.litert.window_keys"] == 64
    assert keys["mtp.source.litert.embedding_scale"] == "embedder multiplies by 16"
    assert 0 < keys["mtp.source.litert.worst_scale_error"] < 2**-11
    assert len(keys["mtp.source.litert.tensors"]) == 34
    assert len(keys["mtp.source.sha256"][0]) == 64


@pytest.mark.parametrize("heads_type", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_other_types_convert_the_values(target_dir: Path, tmp_path: Path, heads_type: str) -> None:
    out = tmp_path / "out.gguf"
    convert(target_dir, fixture("trained"), out, heads_type=heads_type)
    drafter = read_drafter(fixture("trained"))
    weight = drafter.weights["post_projection"]
    dtype, data = stored(read_gguf(out), "nextn.post_projection.weight")
    assert dtype == heads_type.upper()
    number = GGMLQuantizationType[dtype]
    expected = quants.quantize(read_values(drafter, weight), number)
    assert data == expected.tobytes()


def test_a_drafter_for_another_target_is_refused(target_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(PairingError, match=r"vocabulary size: expected 2048 .*, found 128"):
        convert(target_dir, fixture("mixed"), tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


def test_splitting_and_merging_again_gives_the_same(native: Path, tmp_path: Path) -> None:
    base, heads, again = (tmp_path / f"{name}.gguf" for name in ("base", "heads", "again"))
    split(native, base, heads)
    convert(base, heads, again)
    assert again.read_bytes() == native.read_bytes()


def test_native_is_what_is_done_by_default(native: Path, target_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    convert(target_dir, fixture("trained"), out, outtype="f32", heads_type="native")
    assert out.read_bytes() == native.read_bytes()


def test_heads_can_be_attached_to_a_base(native: Path, tmp_path: Path) -> None:
    base, whole, again = (tmp_path / f"{name}.gguf" for name in ("base", "whole", "again"))
    split(native, base, None)
    code, output = run("attach", base, "--heads", fixture("trained"), "-o", whole)
    assert code == 0
    assert "codes carried unchanged and compared: 8 INT8 as Q8_0, 10 INT4 as Q4_0" in output
    assert run("detach", whole, "-o", again)[0] == 0
    assert again.read_bytes() == base.read_bytes()


# --- run by llama.cpp ---------------------------------------------------------------------


@pytest.fixture
def contexts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PairContexts]:
    """Contexts that round least, over the merged file that the parameter names."""
    merged = request.getfixturevalue(request.param)
    base, heads = tmp_path / "base.gguf", tmp_path / "heads.gguf"
    split(merged, base, heads)
    library = library_under_test()
    with (
        open_pair(base=base, heads=heads, library=library, options=PLAIN_CPU) as pair,
        pair.contexts(PRECISE) as opened,
    ):
        yield opened


# Floats: what the F16 table behind GELU leaves. Codes: llama.cpp rounds activations to 8 bits.
@pytest.mark.parametrize(
    ("contexts", "tolerance"), [("floats", 0.005), ("native", 0.12)], indirect=["contexts"]
)
def test_logits_in_llama_cpp_are_those_of_hugging_face(
    contexts: PairContexts, tolerance: float, target_dir: Path
) -> None:
    with np.load(DIRECTORY / "trained-drafts.npz") as recorded:
        expected: dict[str, Any] = dict(recorded)
    with np.load(target_dir.parent / "reference.npz") as reference:
        sequences = [reference[f"seq{n}_ids"].tolist() for n in range(4)]
    for number, ids in enumerate(sequences):
        position = len(ids) - 1
        contexts.target.prefill(ids[:position])
        token, hidden = ids[position], contexts.target.hidden(position - 1)
        logits, states = expected[f"seq{number} logits"], expected[f"seq{number} hidden"]
        for step in range(len(logits)):
            contexts.drafter.decode_with_hidden(token, hidden, position)
            assert np.abs(contexts.drafter.logits(0) - logits[step]).max() < tolerance
            # From the recorded state on, so that each step stands for itself.
            token, hidden = int(logits[step].argmax()), states[step]


def test_the_patched_program_drafts_with_them(native: Path) -> None:
    exact = programs("exact")
    accepted = drafted = 0
    for prompt in load_prompts(["python"])[:3]:
        mtp = speculative_simple(exact, "-m", native, prompt=prompt.text)
        plain = speculative_simple(exact, "-m", native, "--spec-type", "none", prompt=prompt.text)
        assert same_text(mtp.text, plain.text)
        accepted += mtp.figure("n_accept")
        drafted += mtp.figure("n_drafted")
    # 135 of 201 here; llama.cpp had 0.70 with the drafter in bfloat16.
    assert accepted / drafted > 0.6


# --- command line -------------------------------------------------------------------------


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_extract_says_what_came_out(tmp_path: Path) -> None:
    code, output = run("extract", fixture("mixed"), "-o", tmp_path / "out")
    assert code == 0
    assert "37 tensors, 45,603 parameters" in output
    assert "16 FLOAT32, 10 INT4, 8 INT8" in output
    assert "note: the package caps the drafter's logits at 30" in output


def test_extract_prints_json(tmp_path: Path) -> None:
    code, output = run("extract", fixture("mixed"), "-o", tmp_path / "out", "--json")
    assert code == 0
    result = json.loads(output)
    assert result["parameters"] == 45603
    assert result["provenance"]["softcap"] == 30


def test_what_cannot_be_extracted_exits_2(tmp_path: Path) -> None:
    code, output = run("extract", fixture("npu"), "-o", tmp_path / "out")
    assert (code, output.count("\n")) == (2, 1)
    assert "compiled for one device" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["svg", "html"])
def test_inspect_draws_the_graph(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"graph.{suffix}"
    code, output = run("inspect", fixture("mixed"), "--graph", out)
    assert code == 0
    assert "model.layers.1.mlp.gate_proj" in output
    page = out.read_text()
    assert page.count("gate_proj</text>") == 3
    assert "a window of 8 keys" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert run("inspect", fixture("mixed"), "--graph", out)[0] == 2
    assert run("inspect", fixture("mixed"), "--graph", out, "--force")[0] == 0


@pytest.mark.parametrize("name", ["no-drafter", "npu", "external-weights"])
def test_inspect_shows_any_package(name: str) -> None:
    code, output = run("inspect", fixture(name), "--json")
    assert code == 0
    shown = json.loads(output)
    assert ("error" in shown["drafter"]) == (name != "external-weights")
    assert all(entry["model_type"] for entry in shown["sections"])
    assert run("inspect", fixture(name))[0] == 0


def test_audit_finds_what_the_package_lacks(drafter_dir: Path) -> None:
    code, output = run("audit", "--litert", fixture("trained"), "--hf", drafter_dir, "--json")
    assert code == 1
    found = json.loads(output)
    by_name = {role["name"]: role for role in found["roles"]}
    assert by_name["masked_embedding.centroids.weight"]["verdict"] == "only in the checkpoint"
    assert by_name["pre_projection.weight"]["verdict"] == "same grid"
    assert by_name["model.norm.weight"]["verdict"] == "equal"
    assert 0.4 < by_name["model.embed_tokens.weight"]["steps"] < 0.52
    assert [setting["name"] for setting in found["settings"]] == ["use_ordered_embeddings"]
    assert run("audit", "--litert", fixture("trained"), "--hf", drafter_dir)[0] == 1


def test_audit_of_the_extraction_itself_is_clean(tmp_path: Path) -> None:
    write_checkpoint(read_drafter(fixture("float")), tmp_path / "own")
    assert run("audit", "--litert", fixture("float"), "--hf", tmp_path / "own")[0] == 0
    other = audit(fixture("weight-only-int4"), tmp_path / "own")
    verdicts = {role.name: role.verdict for role in other.roles}
    assert verdicts["pre_projection.weight"] == "different"
    assert verdicts["model.layers.0.layer_scalar"] == "different"
    assert not other.same


def test_audit_of_what_cannot_be_read_exits_2(tmp_path: Path) -> None:
    code, output = run("audit", "--litert", fixture("npu"), "--hf", tmp_path)
    assert code == 2
    assert output.startswith("error: ")
