"""Names of outputs, and metadata from a file."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gguf_mtp.api import convert, prepare, split
from gguf_mtp.cli.main import main
from gguf_mtp.errors import FormatError, OutputError, UnsupportedError
from gguf_mtp.naming import name_notes
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.shards import part_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("outtype", "given", "expected"),
    [
        (None, ".", "target-bf16-mtp.gguf"),
        ("q8_0", ".", "target-q8_0-mtp.gguf"),
        ("f32", "{outtype}/x.gguf", "{outtype}/x.gguf"),
        ("f32", "my-{name}.{outtype}.gguf", "my-target.f32.gguf"),
        ("q4_k_m", "{name}-{outtype}.gguf", "target-q4_k_m.gguf"),
        (None, "plain.gguf", "plain.gguf"),
    ],
)
def test_names(
    tmp_path: Path,
    tiny_target: Path,
    tiny_drafter: Path,
    outtype: str | None,
    given: str,
    expected: str,
) -> None:
    prepared = prepare(tiny_target, tiny_drafter, outtype=outtype)
    assert prepared.output_path(tmp_path / given) == tmp_path / expected


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("X-q8_0-mtp.gguf", "X-mtp.q8_0-00002-of-00003.gguf"),
        ("gemma-4-E2B-it-UD-Q4_K_XL-mtp.gguf", "gemma-4-E2B-it-UD-mtp.Q4_K_XL-00002-of-00003.gguf"),
        ("gemma-4-it-mtp.gguf", "mtp.gemma-4-it-00002-of-00003.gguf"),
        ("m.gguf", "m-00002-of-00003.gguf"),
    ],
)
def test_parts_are_not_named_as_drafters(name: str, part: str) -> None:
    assert part_path(Path(name), 1, 3) == Path(part)
    assert part_path(Path(name), 0, 1) == Path(name)
    assert name_notes(Path(part)) == name_notes(Path(name)) == ()


@pytest.mark.parametrize("name", ["mtp-X.gguf", "X-mtp-q8_0.gguf", "my-eagle3-base.gguf"])
def test_a_name_that_downloads_pass_over_is_remarked(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, name: str
) -> None:
    out = tmp_path / name
    common = ("convert", "--base", tiny_target, "--heads", tiny_drafter, "-o", out)
    remark = f"note: {name}: llama.cpp's -hf passes over files with '"
    planned = json.loads(run(*common, "--dry-run", "--json").stdout)
    assert [note["code"] for note in planned["notes"]][-1] == "name-passed-over"
    for result in (run(*common, "--dry-run"), run(*common), run("card", out)):
        assert result.exit_code == 0
        assert remark in " ".join(result.stderr.split())
    assert remark not in " ".join(run("card", out, "-q").stderr.split())


def test_names_of_a_gguf_base(tmp_path: Path, tiny_merged: Path, tiny_drafter: Path) -> None:
    split(tiny_merged, tmp_path / "tiny-Q8_0.gguf", None)
    prepared = prepare(tmp_path / "tiny-Q8_0.gguf", tiny_drafter)
    assert prepared.output_path(tmp_path) == tmp_path / "tiny-Q8_0-mtp.gguf"
    assert prepared.output_path(Path("{outtype}.gguf")) == Path("bf16.gguf")
    with pytest.raises(OutputError, match=r"\{size\} is no field of a name, expected \{name\}"):
        prepared.output_path(tmp_path / "{size}.gguf")


def test_a_directory_gets_the_file(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    common = ("convert", "--base", tiny_target, "--heads", tiny_drafter, "-o", tmp_path)
    result = run(*common, "--outtype", "f16")
    assert result.stdout.startswith(f"{tmp_path / 'target-f16-mtp.gguf'}: 85 base and ")
    result = run(*common, "--outtype", "f16")
    assert (result.exit_code, "exists (--force replaces it)" in result.stderr) == (2, True)


def test_metadata_wins(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    override = tmp_path / "metadata.json"
    wanted = {
        "general.name": "Mine",
        "general.author": "Somebody",
        "general.license": "mit",
        "general.tags": ["a", "b"],
    }
    override.write_text(json.dumps(wanted))
    out, plain = tmp_path / "m.gguf", tmp_path / "plain.gguf"
    common = ("convert", "--base", tiny_target, "--heads", tiny_drafter, "-o")
    assert run(*common, out, "--metadata", override).exit_code == 0
    convert(tiny_target, tiny_drafter, plain)
    found, before = read_gguf(out).by_name, read_gguf(plain).by_name
    assert {name: found[name].value for name in wanted} == wanted
    changed = {name for name in before if found[name] != before[name]}
    assert changed <= set(wanted)
    # The heads' own metadata are their own.
    assert found["mtp.general.name"] == before["mtp.general.name"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object"),
        ('{"general.name": "a", "general.name": "b"}', "occurs twice"),
        ('{"gemma4.block_count": 3}', r"'gemma4\.block_count' is no general"),
        ('{"general.name": {}}', "expected text or numbers"),
        ('{"general.name": 3}', "wrong type"),
        ('{"general.nmae": "typo"}', r"general\.nmae is no key that can be set"),
    ],
)
def test_bad_metadata(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, text: str, message: str
) -> None:
    override = tmp_path / "metadata.json"
    override.write_text(text)
    with pytest.raises(FormatError, match=message):
        prepare(tiny_target, tiny_drafter, metadata=override)


def test_missing_metadata_and_a_gguf_base(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, tiny_merged: Path
) -> None:
    with pytest.raises(FormatError, match="cannot open"):
        prepare(tiny_target, tiny_drafter, metadata=tmp_path / "none.json")
    split(tiny_merged, tmp_path / "b.gguf", None)
    with pytest.raises(UnsupportedError, match="--metadata is not possible"):
        prepare(tmp_path / "b.gguf", tiny_drafter, metadata=tmp_path / "none.json")
