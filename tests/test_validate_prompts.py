"""Prompt sets: those that ship, files, fair turns, and what is refused."""

from pathlib import Path

import pytest

from gguf_mtp.errors import FormatError
from gguf_mtp.validate.prompts import Prompt, load_prompts, parse_prompts, shipped_sets


def write(path: Path, *ids: str) -> str:
    lines = [f'{{"id": "{id}", "text": "text of {id}", "source": "test"}}' for id in ids]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_sets_take_turns(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", "a1", "a2", "a3")
    b = write(tmp_path / "b.jsonl", "b1")
    assert [p.id for p in load_prompts([a, b])] == ["a1", "b1", "a2", "a3"]


def test_source_may_be_left_out() -> None:
    assert parse_prompts('\n{"id": "x", "text": "y"}\n\n', "f") == [Prompt("x", "y", "")]


def test_line_separators_inside_a_text_do_not_end_a_line() -> None:
    text = '{"id": "x", "text": "a\u2028b"}'
    assert parse_prompts(text, "f")[0].text == "a\u2028b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: no prompts"),
        ("{", "f:1: not JSON"),
        ('{"id": "a", "text": "b"}\n[]', "f:2: not a JSON object"),
        ('{"id": "a"}', 'f:1: needs strings "id" and "text"'),
        ('{"id": "", "text": "b"}', 'f:1: needs strings "id" and "text"'),
        ('{"id": "a", "text": ""}', 'f:1: needs strings "id" and "text"'),
        ('{"id": "a", "text": "b", "source": 3}', 'f:1: needs strings "id" and "text"'),
        ("[" * 100_000, "f:1: not JSON"),
    ],
)
def test_malformed_sets_are_refused_by_line(text: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_prompts(text, "f")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_id_may_occur_once(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", "same")
    b = write(tmp_path / "b.jsonl", "same")
    with pytest.raises(FormatError, match="'same' occurs twice"):
        load_prompts([a, b])


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(FormatError, match="nowhere: no such prompt set or file"):
        load_prompts(["nowhere"])


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="cannot read prompts"):
        load_prompts([str(path)])


def test_shipped_sets_load() -> None:
    assert {"general", "python"} <= set(shipped_sets())
    for name in shipped_sets():
        assert load_prompts([name])
    assert load_prompts()
