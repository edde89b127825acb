"""What a conversion must not do, or not twice, as it costs more than the copying."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf import GGML_QUANT_VERSION
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

import tiny
from gguf_mtp.api import attach, convert, split
from gguf_mtp.gemma4 import vocabulary
from gguf_mtp.gemma4.keys import FILE_TYPES
from gguf_mtp.ggml import QUANTIZATION_VERSION, TYPES_BY_ID
from gguf_mtp.keyvalue import KeyValue
from gguf_mtp.readers.strict_json import parse_object


def test_one_tokenizer_is_parsed_for_base_and_heads(
    tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter")
    text = (tiny_target / "tokenizer.json").read_bytes()
    (heads / "tokenizer.json").write_bytes(text)
    parsed = []

    def counted(encoded: bytes, where: str) -> dict[str, Any]:
        parsed.append(where)
        return parse_object(encoded, where)

    monkeypatch.setattr(vocabulary, "parse_object", counted)
    monkeypatch.setattr(vocabulary, "_last_read", {})
    convert(tiny_target, heads, tmp_path / "once.gguf")
    assert parsed == [str(tiny_target / "tokenizer.json")]
    # The same tokenizer in other bytes is another one, and comes to the same.
    (heads / "tokenizer.json").write_bytes(text + b"\n")
    convert(tiny_target, heads, tmp_path / "twice.gguf")
    assert parsed[1:] == [str(heads / "tokenizer.json")]
    again = tmp_path / "twice.gguf"
    monkeypatch.setattr(vocabulary, "_last_read", {})
    convert(tiny_target, heads, tmp_path / "third.gguf")
    assert len(parsed) == 4
    assert (tmp_path / "third.gguf").read_bytes() == again.read_bytes()


def test_strings_of_ggufs_are_not_looked_at(
    tiny_merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, heads = tmp_path / "base.gguf", tmp_path / "heads.gguf"
    split(tiny_merged, base, heads)

    def refuse(key: KeyValue, limit: int) -> list[bytes]:
        if key.name.startswith("tokenizer.") and limit > 100:
            raise AssertionError(f"{key.name} was taken apart")
        return real(key, limit)

    real = KeyValue.encoded_strings
    monkeypatch.setattr(KeyValue, "encoded_strings", refuse)
    convert(base, heads, tmp_path / "merged.gguf")
    attach(base, heads)
    split(tmp_path / "merged.gguf", tmp_path / "b.gguf", tmp_path / "h.gguf")
    assert (tmp_path / "merged.gguf").read_bytes() == tiny_merged.read_bytes()


def test_appending_heads_imports_neither_gguf_py_nor_rich() -> None:
    code = "import sys, gguf_mtp.cli.attach; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken = {name.partition(".")[0] for name in done.stdout.split()}
    assert not {"gguf", "yaml", "rich", "llama_cpp"} & taken
    assert "gguf_mtp.drafters.litert" not in done.stdout


def test_ggml_s_tables_are_those_of_gguf_py() -> None:
    found = {
        number.id: (number.name, number.block_values, number.block_bytes)
        for number in TYPES_BY_ID.values()
    }
    sizes = {int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    assert found == {number: sizes[number] for number in found}
    assert QUANTIZATION_VERSION == GGML_QUANT_VERSION
    names = {number.name: LlamaFileType(value).name for number, value in FILE_TYPES.items()}
    assert names == {
        "F32": "ALL_F32",
        "F16": "MOSTLY_F16",
        "BF16": "MOSTLY_BF16",
        "Q8_0": "MOSTLY_Q8_0",
        "Q4_0": "MOSTLY_Q4_0",
    }
