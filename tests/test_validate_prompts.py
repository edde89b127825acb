"""Prompt sets: those that ship, files, fair turns, and what is refused."""

from pathlib import Path
from typing import cast

import pytest

from gguf_mtp.errors import FormatError
from gguf_mtp.runtime.bindings import Model
from gguf_mtp.validate.prompts import Prompt, encode, load_prompts, parse_prompts, shipped_sets


def write(path: Path, *ids: str) -> str:
    lines = [f'{{"id": "{id}", "text": "text of {id}", "source": "test"}}' for id in ids]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_sets_take_turns(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", "a1", "a2", "a3")
    b = write(tmp_path / "b.jsonl", "b1")
    assert [p.id for p in load_prompts([a, b])] == ["a1", "b1", "a2", "a3"]


def test_source_may_be_left_out() -> None:
    assert parse_prompts(b'\n{"id": "x", "text": "y"}\n\n', "f") == [Prompt("x", "y", "", "f")]


def test_line_separators_inside_a_text_do_not_end_a_line() -> None:
    text = '{"id": "x", "text": "a\u2028b"}'
    assert parse_prompts(text.encode(), "f")[0].text == "a\u2028b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: no prompts"),
        ("{", "f:1: not JSON"),
        ('{"id": "a", "text": "b"}\n[]', "f:2: expected a JSON object, found list"),
        ('{"id": "a"}', 'f:1: needs strings "id" and "text"'),
        ('{"id": "", "text": "b"}', 'f:1: needs strings "id" and "text"'),
        ('{"id": "a", "text": ""}', 'f:1: needs strings "id" and "text"'),
        ('{"id": "a", "text": "b", "source": 3}', 'f:1: needs strings "id" and "text"'),
        ("[" * 100_000, "f:1: nested too deeply"),
        ('{"id": "a", "text": "b", "chat": 1}', 'f:1: "chat" is true or false'),
        ('{"id": "a", "text": "b", "windows": true}', 'f:1: "windows" is a number'),
        ('{"id": "a", "text": "b", "windows": 65}', 'f:1: "windows" is a number up to 64'),
    ],
)
def test_malformed_sets_are_refused_by_line(text: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_prompts(text.encode(), "f")
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
    with pytest.raises(FormatError, match=r"bytes\.jsonl:1: not UTF-8 at byte 0"):
        load_prompts([str(path)])


def test_shipped_sets_load() -> None:
    assert set(shipped_sets()) == {
        "chat", "code", "json", "languages", "long", "maths", "prose", "python",
    }  # fmt: skip
    for name in shipped_sets():
        assert load_prompts([name])
    assert load_prompts()


def test_the_first_eight_are_one_of_each_set() -> None:
    first = load_prompts()[:8]
    assert {prompt.prompt_set for prompt in first} == set(shipped_sets())
    assert [prompt.chat for prompt in first if prompt.prompt_set == "chat"] == [True]
    assert [prompt.windows for prompt in first if prompt.prompt_set == "long"] == [2]


class WordModel:
    """A model whose tokens are words, with a window of eight."""

    n_swa = 8

    def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(range(len(text.split())))

    def tokenize_turn(self, text: str) -> tuple[int, ...]:
        return (-1, *self.tokenize(text))


def test_texts_are_wrapped_and_repeated_as_they_ask() -> None:
    model = cast(Model, WordModel())
    assert encode(Prompt("a", "b c", ""), model) == (0, 1)
    assert encode(Prompt("a", "b c", ""), model, chat=True) == (-1, 0, 1)
    assert encode(Prompt("a", "b c", "", chat=True), model) == (-1, 0, 1)
    # "[1] b c" is three words: six of them are the first to reach two windows of eight.
    assert len(encode(Prompt("a", "b c", "", windows=2), model)) == 18
