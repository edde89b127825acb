"""LiteRT drafters in the forms that people have them: the bare `.tflite`, extractions under the
names of ports, packages and folders with a tokenizer."""

import json
import resource
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors
from click.testing import CliRunner

import tiny
from gguf_mtp.api import convert, plan_convert
from gguf_mtp.cli.main import main
from gguf_mtp.drafters.litert import checkpoint
from gguf_mtp.drafters.litert.checkpoint import write_checkpoint
from gguf_mtp.drafters.litert.package import read_drafter
from gguf_mtp.errors import FormatError, OutputError, PairingError, UnsupportedError
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.sentencepiece_model import MAX_BYTES, MAX_PIECES, read_pieces
from litert_fixtures import fixture
from litert_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SENTENCEPIECE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ZLIB,
    Pieces,
    bare,
    field,
    model,
    piece,
    typed,
    with_tokenizer,
)
from test_heads_extraction import contents, drafter_tensors, values

NAME = "Section11_TFLiteModel_tf_lite_mtp_drafter.tflite"
SPIECE = "Section1_SP_Tokenizer.spiece"


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


# --- the bare .tflite -----------------------------------------------------------------------


@pytest.fixture
def tflite(tmp_path: Path) -> Path:
    return write(tmp_path / "unpacked" / NAME, bare("trained"))


def test_a_bare_tflite_converts_as_its_package(
    tmp_path: Path, tflite: Path, target_dir: Path
) -> None:
    convert(target_dir, tflite, tmp_path / "bare.gguf")
    convert(target_dir, fixture("trained"), tmp_path / "package.gguf")
    assert contents(tmp_path / "bare.gguf") == contents(tmp_path / "package.gguf")
    keys = {key.name: key.value for key in read_gguf(tmp_path / "bare.gguf").keys}
    assert keys["mtp.source.kind"] == "litertlm"
    assert keys["mtp.source.files"] == [NAME]
    assert keys["mtp.source.litert.sections"] == [f"0 TFLiteModel 0 {tflite.stat().st_size}"]
    assert "mtp.source.litert.container_version" not in keys


def test_a_bare_tflite_is_extracted_audited_and_inspected(tmp_path: Path, tflite: Path) -> None:
    code, output = run("extract", tflite, "-o", tmp_path / "bare", "--native", "--json")
    assert code == 0
    assert json.loads(output)["tensors"] == 37
    write_checkpoint(read_drafter(fixture("trained")), tmp_path / "package")
    names = ("bare", "package")
    one, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in names)
    assert one[one.index(b"}") :][-4096:] == other[-4096:]
    assert run("audit", "--litert", tflite, "--hf", tmp_path / "package")[0] == 0
    code, output = run("inspect", tflite, "--json")
    shown = json.loads(output)
    assert (code, shown["container_version"], len(shown["sections"])) == (0, None, 1)
    assert shown["drafter"]["layer_types"] == [tiny.SLIDING, tiny.SLIDING, tiny.FULL]
    code, output = run("inspect", tflite)
    assert code == 0
    assert output.startswith(f"{NAME}: a TFLite model, ")
    assert "model.layers.0.mlp.gate_proj" in output
    assert run("inspect", tflite, "--graph", tmp_path / "g.svg")[0] == 0


def commands(heads: Path, target: Path, out: Path) -> dict[str, list[str | Path]]:
    return {
        "convert": ["convert", "--base", target, "--heads", heads, "-o", out],
        "extract": ["extract", heads, "-o", out],
        "audit": ["audit", "--litert", heads, "--hf", target],
        "inspect": ["inspect", heads],
    }


@pytest.mark.parametrize("verb", ["convert", "extract", "audit"])
def test_another_model_of_a_package(tmp_path: Path, target_dir: Path, verb: str) -> None:
    path = write(tmp_path / "e.tflite", bare("trained", "tf_lite_embedder"))
    code, output = run(*commands(path, target_dir, tmp_path / "out")[verb])
    assert (code, output.count("\n")) == (2, 1)
    assert f"{path}: is a TFLite model but not an MTP drafter" in output
    assert "tf_lite_mtp_drafter" in output
    assert "the whole .litertlm package" in output
    assert not (tmp_path / "out").exists()


def test_inspect_shows_another_model_of_a_package(tmp_path: Path) -> None:
    path = write(tmp_path / "e.tflite", bare("trained", "tf_lite_embedder"))
    code, output = run("inspect", path)
    assert (code, "no drafter to extract: " in output) == (0, True)


@pytest.mark.parametrize("verb", ["convert", "extract", "audit", "inspect"])
def test_a_zip_archive(tmp_path: Path, target_dir: Path, verb: str) -> None:
    path = tmp_path / "gemma.task"
    with zipfile.ZipFile(path, "w") as task:
        task.writestr("TF_LITE_PREFILL_DECODE", b"x")
    code, output = run(*commands(path, target_dir, tmp_path / "out")[verb])
    assert (code, output.count("\n")) == (2, 1)
    assert f"{path}: is a zip archive" in output
    assert "give the .litertlm package" in output


def test_a_tflite_without_its_weights(tmp_path: Path) -> None:
    path = write(tmp_path / NAME, bare("external-weights"))
    with pytest.raises(FormatError, match=r"no section of TFLiteWeights .* complete \.litertlm"):
        read_drafter(path)


@pytest.mark.parametrize("size", [0, 5, 8, 100, 5000, 600_000])
def test_a_truncated_tflite(tmp_path: Path, target_dir: Path, size: int) -> None:
    path = write(tmp_path / NAME, bare("trained")[:size])
    with pytest.raises(FormatError, match=str(path)):
        plan_convert(target_dir, path)


def test_what_nothing_knows(tmp_path: Path, target_dir: Path) -> None:
    path = write(tmp_path / "x.bin", b"nothing known")
    with pytest.raises(FormatError, match=r"b'nothing '; supported: GGUF, \.litertlm, \.tflite,"):
        plan_convert(target_dir, path)


# --- names in extractions -------------------------------------------------------------------

Rename = dict[str, str]
# How three public ports call the modules of their drafter: whole names, and those in a layer.
PORTS: dict[str, tuple[Rename, str, Rename]] = {
    "blocks": (
        {
            "pre_projection": "pre_project",
            "post_projection": "post_project",
            "model.embed_tokens": "logits_head",
            "model.norm": "final_norm",
        },
        "blocks.{}.",
        {
            "self_attn.q_proj": "attention.q_proj",
            "self_attn.o_proj": "attention.o_proj",
            "self_attn.q_norm": "attention.q_norm",
            "input_layernorm": "pre_attn_norm",
            "post_attention_layernorm": "post_attn_norm",
            "pre_feedforward_layernorm": "pre_ffw_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
    ),
    "layers": (
        {
            "pre_projection": "mtp_pre_proj",
            "post_projection": "mtp_post_proj",
            "model.embed_tokens": "lm_head",
            "model.norm": "final_norm",
        },
        "layers.{}.",
        {
            "self_attn.q_proj": "q_proj",
            "self_attn.o_proj": "o_proj",
            "self_attn.q_norm": "q_norm",
            "mlp.gate_proj": "gate_proj",
            "mlp.up_proj": "up_proj",
            "mlp.down_proj": "down_proj",
        },
    ),
    "gates": (
        {
            "pre_projection": "drafter.pre_proj",
            "post_projection": "drafter.post_proj",
            "model.embed_tokens": "decode.lm_head",
            "model.norm": "drafter.mtp_final_norm",
        },
        "drafter.layer_{:0>2}.",
        {
            "self_attn.q_proj": "attn.q",
            "self_attn.o_proj": "attn.o",
            "self_attn.q_norm": "attn.query_norm",
            "mlp.gate_proj": "mlp.gating1",
            "mlp.up_proj": "mlp.gate2",
            "mlp.down_proj": "mlp.down",
            "input_layernorm": "pre_attention_norm",
            "post_attention_layernorm": "post_attention_norm",
            "layer_scalar": "skip_scale",
        },
    ),
}


def ported(name: str, port: str) -> str:
    whole, prefix, inner = PORTS[port]
    stem = name.removesuffix(".weight")
    if stem in whole:
        return f"{whole[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"{prefix.format(layer)}{inner.get(part, part)}.weight"


@pytest.mark.parametrize("port", PORTS)
def test_names_of_ports(tmp_path: Path, tiny_target: Path, port: str) -> None:
    plain = tiny.Kind(**{**vars(tiny.E2B), "ordered": False})
    convert(tiny_target, tiny.write_drafter(tmp_path / "d", plain), tmp_path / "expected.gguf")
    tensors = {ported(name, port): item for name, item in drafter_tensors(plain).items()}
    tiny.write_safetensors(tmp_path / "heads.safetensors", tensors)
    convert(tiny_target, tmp_path / "heads.safetensors", tmp_path / "m.gguf")
    assert contents(tmp_path / "m.gguf") == contents(tmp_path / "expected.gguf")
    code, output = run("inspect", tmp_path / "heads.safetensors")
    assert (code, "--heads takes this file" in output) == (0, True)
    code, output = run("inspect", tmp_path / "heads.safetensors", "--json")
    shown = json.loads(output)
    assert (shown["heads"], len(shown["tensors"])) == (True, len(tensors))
    assert {item["name"] for item in shown["tensors"]} == set(tensors)


@pytest.mark.parametrize(
    "name", ["jax2tf_arg_12/ReadVariableOp;StatefulPartitionedCall", "arith.constant3"]
)
def test_raw_constants(tmp_path: Path, tiny_target: Path, name: str) -> None:
    path = tmp_path / "heads.safetensors"
    tiny.write_safetensors(path, {**drafter_tensors(), name: ("F32", (1,), bytes(4))})
    with pytest.raises(UnsupportedError) as caught:
        plan_convert(tiny_target, path)
    assert f"tensor {name!r} is a numbered constant of a LiteRT graph" in str(caught.value)
    assert "the .tflite or .litertlm package itself, or what gguf-mtp extract" in str(caught.value)
    code, output = run("inspect", path)
    assert (code, "constants of a LiteRT graph" in output) == (0, True)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {
                "drafter.dot_general": ("U8", (8,), bytes(8)),
                "drafter.dot_general.scale": ("F32", (2,), bytes(8)),
            },
            r"'drafter\.dot_general' has dtype U8, .*scales are in 'drafter\.dot_general\.scale'",
        ),
        (
            {
                "pre_projection.codes": ("I8", (2, 4), bytes(8)),
                "pre_projection.scales": ("F32", (2, 1), bytes(8)),
            },
            r"'pre_projection\.codes' has dtype I8, .*scales are in 'pre_projection\.scales'",
        ),
        (
            {"pre_proj.weight": ("I8", (2, 4), bytes(8))},
            r"'pre_proj\.weight' has dtype I8, .*scales are not in the file",
        ),
    ],
    ids=["packed", "native", "without scales"],
)
def test_codes_of_quantized_matrices(
    tmp_path: Path, tiny_target: Path, tensors: tiny.Tensors, message: str
) -> None:
    path = tmp_path / "heads.safetensors"
    tiny.write_safetensors(path, tensors)
    with pytest.raises(UnsupportedError, match=message + ".*expected F32, F16 or BF16: give"):
        plan_convert(tiny_target, path)


# --- vocabularies ---------------------------------------------------------------------------

Edit = Callable[[Pieces], object]


@pytest.fixture(scope="session")
def pieces(target_dir: Path) -> Pieces:
    """The embedded target's vocabulary, as SentencePiece has it."""
    keys = values(plan_convert(target_dir, fixture("trained")))
    return typed(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"])


def vocabulary_notes(target: Path, heads: Path) -> dict[str, str]:
    notes = plan_convert(target, heads).notes
    return {note.code: note.message for note in notes if note.code.startswith("vocabulary")}


def place(text: str) -> Callable[[Pieces], int]:
    return lambda pieces: [item[0] for item in pieces].index(text)


def renamed(at: Callable[[Pieces], int], text: str, kind: int) -> Edit:
    return lambda pieces: pieces.__setitem__(at(pieces), (text, kind))


def test_the_same_vocabulary(tmp_path: Path, target_dir: Path, pieces: Pieces) -> None:
    heads = with_tokenizer(tmp_path / "g.litertlm", SENTENCEPIECE, model(pieces))
    assert vocabulary_notes(target_dir, heads) == {}


def test_a_package_without_a_tokenizer(target_dir: Path) -> None:
    notes = vocabulary_notes(target_dir, fixture("trained"))
    assert list(notes) == ["vocabulary-unchecked"]
    assert "trained.litertlm: token ids were not compared" in notes["vocabulary-unchecked"]


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, UNUSED])
def test_placeholders_may_have_other_names(
    tmp_path: Path, target_dir: Path, pieces: Pieces, kind: int
) -> None:
    found = list(pieces)
    at = place("<|turn>")(found)
    found[at] = ("<start_of_turn>", kind)
    heads = with_tokenizer(tmp_path / "g.litertlm", SENTENCEPIECE, model(found))
    note = vocabulary_notes(target_dir, heads)["vocabulary-renamed"]
    assert f"the first is {at}, '<start_of_turn>', in the base '<|turn>'" in note
    assert "section 1 (SP_Tokenizer)" in note


def test_reserved_tokens_may_have_any_type(
    tmp_path: Path, target_dir: Path, pieces: Pieces
) -> None:
    found = list(pieces)
    found[place("<|turn>")(found)] = ("<unused5>", NORMAL)
    heads = with_tokenizer(tmp_path / "g.litertlm", SENTENCEPIECE, model(found))
    assert list(vocabulary_notes(target_dir, heads)) == ["vocabulary-renamed"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("text that is none", NORMAL),
        ("text that is none", USER_DEFINED),
        ("<not marked as a placeholder>", NORMAL),
    ],
)
@pytest.mark.parametrize("at", ["<|turn>", "<0x41>", "e"])
def test_other_texts_do_not_pair(
    tmp_path: Path, target_dir: Path, pieces: Pieces, at: str, text: str, kind: int
) -> None:
    found = [item for item in pieces if item[0] != at]
    number = place(at)(pieces)
    # Byte pieces must stay complete: the one replaced takes the place of the last token.
    found.insert(number, (text, kind))
    if at.startswith("<0x"):
        found[-1] = (at, BYTE)
    heads = with_tokenizer(tmp_path / "g.litertlm", SENTENCEPIECE, model(found))
    with pytest.raises(PairingError) as caught:
        plan_convert(target_dir, heads)
    message = str(caught.value)
    assert f"token {number}: expected {at!r} (base {target_dir})" in message
    assert f"found {text!r} (heads {heads}: section 1 (SP_Tokenizer))" in message


def test_a_text_may_not_hide_as_a_placeholder(
    tmp_path: Path, target_dir: Path, pieces: Pieces
) -> None:
    found = list(pieces)
    number = place("e")(found)
    found[number] = ("<unused7>", UNUSED)
    heads = with_tokenizer(tmp_path / "g.litertlm", SENTENCEPIECE, model(found))
    with pytest.raises(PairingError, match=rf"token {number}: expected 'e' .*found '<unused7>'"):
        plan_convert(target_dir, heads)


def test_two_tokens_swapped(tmp_path: Path, target_dir: Path, pieces: Pieces) -> None:
    found = list(pieces)
    found[-1], found[-2] = found[-2], found[-1]
    heads = with_tokenizer(tmp_path / "g.litertlm", SENTENCEPIECE, model(found))
    with pytest.raises(PairingError, match=f"token {len(found) - 2}: expected"):
        plan_convert(target_dir, heads)


def test_another_number_of_tokens(tmp_path: Path, target_dir: Path, pieces: Pieces) -> None:
    heads = with_tokenizer(tmp_path / "g.litertlm", SENTENCEPIECE, model(pieces[:-1]))
    count = len(pieces)
    with pytest.raises(PairingError, match=f"expected {count} .*, found {count - 1} .*g.litertlm"):
        plan_convert(target_dir, heads)


@pytest.mark.parametrize("name", ["tokenizer.model", SPIECE])
@pytest.mark.parametrize("form", ["tflite", "safetensors", "directory", "checkpoint"])
def test_a_model_next_to_the_heads(
    tmp_path: Path, target_dir: Path, drafter_dir: Path, pieces: Pieces, form: str, name: str
) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    heads = folder
    if form == "tflite":
        heads = write(folder / NAME, bare("trained"))
    else:
        weights = (drafter_dir / "model.safetensors").read_bytes()
        path = write(folder / "model.safetensors", weights)
        heads = path if form == "safetensors" else folder
    if form == "checkpoint":
        write(folder / "config.json", (drafter_dir / "config.json").read_bytes())
    assert list(vocabulary_notes(target_dir, heads)) == ["vocabulary-unchecked"]
    write(folder / name, model(pieces))
    assert vocabulary_notes(target_dir, heads) == {}
    other = list(pieces)
    other[-1] = ("another", NORMAL)
    write(folder / name, model(other))
    with pytest.raises(PairingError, match=rf"token {len(other) - 1}: .*{name}"):
        plan_convert(target_dir, heads)


def tokenizer_json(target: Path, **change: int) -> bytes:
    content = json.loads((target / "tokenizer.json").read_text())
    content["model"]["vocab"] |= change
    return json.dumps(content).encode()


def test_a_tokenizer_json_next_to_an_extraction(
    tmp_path: Path, target_dir: Path, drafter_dir: Path, pieces: Pieces
) -> None:
    weights = (drafter_dir / "model.safetensors").read_bytes()
    heads = write(tmp_path / "heads" / "x.safetensors", weights)
    write(heads.parent / "tokenizer.json", tokenizer_json(target_dir))
    # The first file counts: what a broken one of lower rank holds is not looked at.
    write(heads.parent / "tokenizer.model", b"nothing")
    assert vocabulary_notes(target_dir, heads) == {}
    last = len(pieces) - 1
    swapped = {pieces[-1][0]: last - 1, pieces[-2][0]: last}
    write(heads.parent / "tokenizer.json", tokenizer_json(target_dir, **swapped))
    with pytest.raises(PairingError, match=rf"token {last - 1}: expected .*tokenizer\.json"):
        plan_convert(target_dir, heads)


def packed(content: bytes, size: int | None = None) -> bytes:
    return (len(content) if size is None else size).to_bytes(8, "little") + zlib.compress(content)


def test_a_compressed_tokenizer_json(tmp_path: Path, target_dir: Path, pieces: Pieces) -> None:
    path = tmp_path / "g.litertlm"
    heads = with_tokenizer(path, ZLIB, packed(tokenizer_json(target_dir)))
    assert vocabulary_notes(target_dir, heads) == {}
    last = len(pieces) - 1
    swapped = {pieces[-1][0]: last - 1, pieces[-2][0]: last}
    with_tokenizer(path, ZLIB, packed(tokenizer_json(target_dir, **swapped)))
    with pytest.raises(PairingError, match=rf"token {last - 1}: .*HF_Tokenizer_Zlib"):
        plan_convert(target_dir, heads)


SMALL: Pieces = [("<unk>", UNKNOWN), *((f"<0x{byte:02X}>", BYTE) for byte in range(256)), ("a", 1)]
JSON = b'{"model": {"vocab": {"a": 0, "b": 1}}}'
# What a hostile tokenizer is, its section, and the message.
HOSTILE: dict[str, tuple[int, bytes, str]] = {
    "empty": (SENTENCEPIECE, b"", "lists no pieces"),
    "zeros": (SENTENCEPIECE, bytes(64), "not a SentencePiece model"),
    "text": (SENTENCEPIECE, b"<html><body>not found</body></html>", "not a SentencePiece model"),
    "truncated": (SENTENCEPIECE, model(SMALL)[:-1], "not a SentencePiece model"),
    "truncated piece": (SENTENCEPIECE, piece("abc", 1)[:-1], "truncated"),
    "long number": (SENTENCEPIECE, b"\x0a" + b"\xff" * 20, "no whole number at byte 1"),
    "group": (SENTENCEPIECE, b"\x0b\x0c", "wire type 3"),
    "long field": (SENTENCEPIECE, b"\x12\xff\xff\xff\x7f", "past the end"),
    "not UTF-8": (SENTENCEPIECE, model(SMALL) + field(1, field(1, b"\xff")), "codec can't decode"),
    "twice": (SENTENCEPIECE, model([*SMALL, SMALL[-1]]), "already defined"),
    "a byte missing": (SENTENCEPIECE, model(SMALL[2:]), "not a SentencePiece model"),
    "many": (SENTENCEPIECE, b"\x0a\x00" * (MAX_PIECES + 2), f"more than {MAX_PIECES} pieces"),
    "large": (SENTENCEPIECE, bytes(MAX_BYTES + 1), f"up to {MAX_BYTES}"),
    "no size": (ZLIB, b"abc", "bytes when unpacked"),
    "huge size": (ZLIB, packed(JSON, 1 << 60), "bytes when unpacked, expected up to"),
    "bomb": (ZLIB, packed(bytes(1 << 27), 100), "unpacks to more than 100 bytes"),
    "short": (ZLIB, packed(JSON, len(JSON) + 1), f"unpacks to {len(JSON)} bytes, expected"),
    "not zlib": (ZLIB, packed(JSON)[:8] + JSON, "not zlib data"),
    "not JSON": (ZLIB, packed(b"abc"), "not JSON"),
    "no vocabulary": (ZLIB, packed(b"{}"), "no model.vocab object"),
    "hole": (ZLIB, packed(JSON.replace(b"1", b"2")), "2 tokens, and id 1 is missing"),
    "two texts": (ZLIB, packed(JSON.replace(b"1", b"0")), "id 0 is both 'a' and 'b'"),
    "text as id": (ZLIB, packed(JSON.replace(b"1", b'"1"')), "token 'b' has id '1'"),
    "added": (ZLIB, packed(JSON[:-1] + b', "added_tokens": [7]}'), "token 7 has id None"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokenizers(tmp_path: Path, target_dir: Path, name: str) -> None:
    kind, data, message = HOSTILE[name]
    heads = with_tokenizer(tmp_path / "g.litertlm", kind, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError) as caught:
        plan_convert(target_dir, heads)
    kilobytes = 1 if sys.platform != "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // kilobytes
    assert message in str(caught.value)
    assert str(heads) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert grown < 300 << 10


def changed(data: bytes) -> Iterator[bytes]:
    """`data` with one byte changed: each of the first and last ones, and some of the others."""
    for at in sorted({*range(40), *range(40, len(data), 41), *range(len(data) - 40, len(data))}):
        for value in {0, 0x7F, 0xFF, data[at] ^ 1}:
            yield data[:at] + bytes([value]) + data[at + 1 :]


def test_any_changed_byte_is_read_or_refused() -> None:
    """The library is given what is well-formed only, and what it raises is an error of ours."""
    read = 0
    for data in changed(model(SMALL)):
        with suppress(FormatError):
            found = read_pieces(data, "x")
            read += all(found.type(number) >= 0 for number in range(len(found.texts)))
    assert read > 10


def test_types_of_pieces() -> None:
    kinds = [NORMAL, CONTROL, USER_DEFINED, UNUSED]
    listed = [*SMALL, *((f"{kind}" * 200, kind) for kind in kinds)]
    found = read_pieces(field(5, b"x") + model(listed) + field(1, field(1, b"last")), "x")
    assert found.texts == [*(text for text, _ in listed), "last"]
    assert [found.type(n) for n in range(len(listed))] == [kind for _, kind in listed]


# --- what extract writes --------------------------------------------------------------------


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    write_checkpoint(read_drafter(fixture("mixed")), tmp_path / "out", native=True)
    for name, count in (("model", 37), ("native", 36)):
        path = tmp_path / "out" / f"{name}.safetensors"
        with safetensors.safe_open(path, framework="numpy") as opened:
            assert len(opened.keys()) == count
            assert opened.metadata()["source"] == "mixed.litertlm"


@pytest.mark.parametrize("fault", ["name", "header"])
def test_what_does_not_read_back_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    made = checkpoint._safetensors

    def faulty(*arguments: Any) -> Any:
        pieces, nbytes = made(*arguments)
        old, new = (b"model.norm", b"model.morn") if fault == "name" else (b"{", b"[")
        return (part.replace(old, new, 1) if at == 0 else part for at, part in enumerate(pieces)), (
            nbytes
        )

    monkeypatch.setattr(checkpoint, "_safetensors", faulty)
    with pytest.raises(OutputError, match=r"model\.safetensors: "):
        write_checkpoint(read_drafter(fixture("mixed")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
