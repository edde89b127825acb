"""--verify: what was written is compared with the sources, and can be again with a manifest."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gguf_mtp.api import convert
from gguf_mtp.cli.main import main
from gguf_mtp.errors import OutputError
from gguf_mtp.readers.gguf import read_gguf


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("layout", ["inline", "tail"])
@pytest.mark.parametrize("outtype", ["bf16", "q8_0"])
def test_the_manifest_says_what_is_there(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, layout: str, outtype: str
) -> None:
    out = tmp_path / "m.gguf"
    convert(tiny_target, tiny_drafter, out, outtype=outtype, layout=layout, verify=True)
    manifest = json.loads((tmp_path / "m.gguf.manifest.json").read_text())
    data = out.read_bytes()
    assert manifest["file"] == "m.gguf"
    assert manifest["bytes"] == len(data)
    assert manifest["sha256"] == hashlib.sha256(data).hexdigest()
    assert len(manifest["tensors"]) == (114 if layout == "inline" else 112)
    for entry in manifest["tensors"]:
        part = data[entry["offset"] :][: entry["bytes"]]
        assert hashlib.sha256(part).hexdigest() == entry["sha256"]
    if layout == "inline":
        names = [ref.name for ref in read_gguf(out).tensors]
        assert [entry["name"] for entry in manifest["tensors"]] == names
    assert run("verify", out).stdout == f"{out}: as it was written\n"


def test_parts_have_a_manifest_each(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    common = ("convert", "--base", tiny_target, "--heads", tiny_drafter, "-o", tmp_path / "m.gguf")
    assert run(*common, "--verify", "--split-max-size", "300K").exit_code == 0
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    assert [run("verify", part, "-q").exit_code for part in parts] == [0, 0, 0]


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "mtp.token_embd.weight"])
def test_a_wrong_byte_keeps_the_file_from_appearing(
    tmp_path: Path,
    tiny_target: Path,
    tiny_drafter: Path,
    tiny_merged: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """One of a plain tensor, or of one whose rows are reordered."""
    ref = next(ref for ref in read_gguf(tiny_merged).tensors if ref.name == name)
    real = os.pwrite

    def damage(fd: int, data: Any, offset: int) -> int:
        if offset == ref.offset:
            data = bytes([data[0] ^ 1]) + bytes(data[1:])
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", damage)
    out = tmp_path / "m.gguf"
    with pytest.raises(
        OutputError, match=rf"{name} differs from its source at offset {ref.offset}"
    ):
        convert(tiny_target, tiny_drafter, out, verify=True)
    assert list(tmp_path.iterdir()) == []


def test_later_damage_is_found(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    out = tmp_path / "m.gguf"
    convert(tiny_target, tiny_drafter, out, verify=True)
    good = out.read_bytes()
    ref = read_gguf(out).tensors[3]

    def damaged(offset: int) -> Result:
        raw = bytearray(good)
        raw[offset] ^= 1
        out.write_bytes(raw)
        return run("verify", out)

    result = damaged(ref.offset + ref.nbytes - 1)
    assert (result.exit_code, result.stdout) == (1, f"{ref.name}: its bytes have changed\n")
    result = damaged(100)
    assert (result.exit_code, "between the tensors" in result.stdout) == (1, True)
    out.write_bytes(good[:-100])
    result = run("verify", out, "--json")
    assert (result.exit_code, len(json.loads(result.stdout)["findings"])) == (1, 2)
    (tmp_path / "m.gguf.manifest.json").write_text("{}")
    result = run("verify", out)
    assert (result.exit_code, "expected 'gguf-mtp manifest 1'" in result.stderr) == (2, True)


def test_a_manifest_is_not_overwritten_unasked(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path
) -> None:
    (tmp_path / "m.gguf.manifest.json").write_text("mine")
    with pytest.raises(OutputError, match=r"manifest\.json: exists"):
        convert(tiny_target, tiny_drafter, tmp_path / "m.gguf", verify=True)
    assert [item.name for item in tmp_path.iterdir()] == ["m.gguf.manifest.json"]
    convert(tiny_target, tiny_drafter, tmp_path / "m.gguf", verify=True, force=True)
