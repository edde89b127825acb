"""The verbs convert, split and inspect: exit codes, output and messages."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import tiny
from gguf_bytes import ARCH, STRING, Info, build, pair, text
from gguf_mtp.cli.main import main
from gguf_mtp.readers.gguf import read_gguf


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_convert(tmp_path: Path, tiny_target: Path, tiny_drafter: Path, tiny_merged: Path) -> None:
    out = tmp_path / "m.gguf"
    result = run("convert", "--base", tiny_target, "--heads", tiny_drafter, "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{out}: 85 base and 29 heads tensors, 655.8 KiB in ")
    assert out.read_bytes() == tiny_merged.read_bytes()


def test_convert_json(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    out = tmp_path / "m.gguf"
    result = run("convert", "--base", tiny_target, "--heads", tiny_drafter, "-o", out, "--json")
    facts = json.loads(result.stdout)
    assert facts["bytes"] == out.stat().st_size
    assert (facts["base_tensors"], facts["heads_tensors"]) == (85, 29)
    assert list(facts["sha256"]) == ["model.safetensors"]


def test_convert_quiet(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    out = tmp_path / "m.gguf"
    result = run("convert", "--base", tiny_target, "--heads", tiny_drafter, "-o", out, "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_dry_run_writes_nothing(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    common = ("convert", "--base", tiny_target, "--heads", tiny_drafter, "-o", tmp_path / "m.gguf")
    result = run(*common, "--dry-run")
    assert result.exit_code == 0
    assert "mtp.nextn.pre_projection.weight" in result.stdout
    assert "and 114 tensors, 671,552 bytes (655.8 KiB)" in result.stdout
    facts = json.loads(run(*common, "--dry-run", "--json").stdout)
    assert list(tmp_path.iterdir()) == []
    assert run(*common).exit_code == 0
    gguf = read_gguf(tmp_path / "m.gguf")
    assert facts["bytes"] == gguf.size
    assert [(row["name"], row["type"], row["offset"], row["bytes"]) for row in facts["plan"]] == [
        (ref.name, ref.dtype, ref.offset, ref.nbytes) for ref in gguf.tensors
    ]


def test_split(tmp_path: Path, tiny_merged: Path) -> None:
    base, heads = tmp_path / "b.gguf", tmp_path / "h.gguf"
    result = run("split", tiny_merged, "--base-out", base, "--heads-out", heads)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{base}: 85 tensors, ")
    assert lines[1].startswith(f"{heads}: 27 tensors, ")
    facts = json.loads(run("split", tiny_merged, "--base-out", base, "--force", "--json").stdout)
    assert [item["output"] for item in facts["outputs"]] == [str(base)]


def test_split_needs_an_output(tiny_merged: Path) -> None:
    result = run("split", tiny_merged)
    assert result.exit_code == 2
    assert "give --base-out, --heads-out or both" in result.stderr


def test_split_refuses_one_output_for_both(tmp_path: Path, tiny_merged: Path) -> None:
    out = tmp_path / "x.gguf"
    result = run("split", tiny_merged, "--base-out", out, "--heads-out", out)
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {out}: is the same file as the other output, {out}\n",
    )


@pytest.mark.parametrize("verb", ["convert", "split", "inspect"])
def test_errors_are_one_line_and_exit_2(tmp_path: Path, tiny_merged: Path, verb: str) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_merged.read_bytes()[:-40])
    out = tmp_path / "out.gguf"
    arguments: dict[str, tuple[Any, ...]] = {
        "convert": ("--base", broken, "--heads", broken, "-o", out),
        "split": (broken, "--base-out", out),
        "inspect": (broken,),
    }
    result = run(verb, *arguments[verb])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {broken}: tensor mtp.")
    assert result.stderr.endswith(": truncated\n")
    assert result.stderr.count("\n") == 1
    assert [item.name for item in tmp_path.iterdir()] == ["broken.gguf"]


def test_truncated_shard(tmp_path: Path, tiny_drafter: Path) -> None:
    target = tiny.write_target(tmp_path / "target", shards=2)
    shard = target / "model-00002-of-00002.safetensors"
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 100)
    out = tmp_path / "m.gguf"
    result = run("convert", "--base", target, "--heads", tiny_drafter, "-o", out)
    message = f"error: {shard}: tensors end at {size}, the file at {size - 100}: truncated\n"
    assert (result.exit_code, result.stderr) == (2, message)
    assert [item.name for item in tmp_path.iterdir()] == ["target"]


def test_missing_input(tmp_path: Path, tiny_drafter: Path) -> None:
    nothing = tmp_path / "nothing"
    result = run("convert", "--base", nothing, "--heads", tiny_drafter, "-o", tmp_path / "m.gguf")
    message = f"error: {nothing}: no such file or directory\n"
    assert (result.exit_code, result.stderr) == (2, message)


def test_inspect_a_merged_file(tiny_merged: Path) -> None:
    result = run("inspect", tiny_merged)
    assert (result.exit_code, result.stderr) == (0, "")
    head = result.stdout.split("\n\n")[0].splitlines()
    assert head[0] == "merged.gguf: GGUF v3, 655.8 KiB"
    assert "gemma4, Target" in head[1]
    assert "5 layers of 64, 512 tokens, context 1024" in head[2]
    assert "MTP heads  gemma4-assistant, Drafter" in head[4]
    assert "16 centroids, top 4; rows sorted by centroid" in head[6]
    assert "mtp.gemma4-assistant.masked_embd.centroid_count" in result.stdout
    assert "mtp.blk.1.post_attention_norm.weight" in result.stdout


def test_inspect_json(tiny_merged: Path) -> None:
    facts = json.loads(run("inspect", tiny_merged, "--json").stdout)
    assert facts["summary"]["merged"] is True
    assert facts["summary"]["heads"]["tensors"] == 29
    assert facts["summary"]["heads"]["provenance"]["source.files"] == ["model.safetensors"]
    assert facts["summary"]["ordered_head"] == {
        "centroids": 16,
        "top_k": 4,
        "rows_sorted": True,
        "carried": False,
    }
    tokens = facts["keys"]["tokenizer.ggml.tokens"]
    assert (tokens["count"], len(tokens["value"])) == (512, 64)
    by_name = {item["name"]: item for item in facts["tensors"]}
    assert by_name["mtp.token_embd.weight"]["shape"] == [tiny.DRAFTER_HIDDEN, tiny.VOCAB_SIZE]


def test_inspect_heads_alone(tmp_path: Path, tiny_merged: Path) -> None:
    heads = tmp_path / "h.gguf"
    assert run("split", tiny_merged, "--heads-out", heads).exit_code == 0
    out = run("inspect", heads).stdout
    assert "MTP heads  all of this file is heads: --heads takes it" in out
    assert "16 centroids, top 4; rows in token order, carried as keys" in out


def test_inspect_any_gguf(tmp_path: Path) -> None:
    """Control characters are escaped, unknown tensor types shown, odd floats survive JSON."""
    path = tmp_path / "odd.gguf"
    pairs = (
        ARCH,
        pair(b"general.name", STRING, text(b"evil\x1b[31m\nname [bold]x[/]")),
        pair(b"nan", 6, b"\x00\x00\xc0\x7f"),
        pair(b"bytes", STRING, text(b"\xff\xfe")),
    )
    path.write_bytes(build(pairs, (Info(b"a[b]", (8,), 255, 0),), bytes(64)))
    result = run("inspect", path)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert r"evil\x1b[31m\nname [bold]x[/]" in result.stdout
    assert "a[b]" in result.stdout
    assert "type 255" in result.stdout
    facts = json.loads(run("inspect", path, "--json").stdout)
    assert facts["keys"]["nan"]["value"] == "nan"
    assert facts["keys"]["bytes"]["value"] == "\\xff\\xfe"
    assert facts["tensors"][0]["type"] == "type 255"


@pytest.mark.parametrize("verb", ["convert", "split", "inspect"])
def test_help_shows_an_example(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    gguf-mtp {verb} " in result.stdout
