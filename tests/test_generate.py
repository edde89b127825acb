"""Generating text: the API under ``gguf-mtp run``, and the verb."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from _validate_helpers import library_under_test, require_patches
from gguf_mtp.api import convert
from gguf_mtp.cli.main import main
from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import Context, ContextOptions, ModelOptions
from gguf_mtp.runtime.generate import Generation, MtpModel
from gguf_mtp.runtime.library import Library
from gguf_mtp.runtime.speculative import Round, decode_plainly
from hung import HUNG
from pair_files import Files

CPU = ModelOptions(device="cpu", repack=False)
PROMPT = "def main(args):\n    "
N = 40


@pytest.fixture(scope="module")
def library() -> Library:
    return library_under_test()


@pytest.fixture(scope="module")
def opened(library: Library, files: Files) -> Iterator[MtpModel]:
    with opened_model(library, files) as model:
        yield model


def opened_model(library: Library, files: Files, n_ctx: int = 256) -> MtpModel:
    return MtpModel(files.base, files.heads, n_ctx=n_ctx, n_threads=1, options=CPU, library=library)


@pytest.fixture(scope="module")
def plain(opened: MtpModel) -> tuple[int, ...]:
    """The tokens of plain decoding, by the loop that is the baseline of every proof."""
    base = opened.pair.base
    with Context(base, ContextOptions(n_ctx=256)) as context:
        return decode_plainly(context, base.tokenize(PROMPT), N).tokens


def test_greedy_text_is_that_of_plain_decoding(opened: MtpModel, plain: tuple[int, ...]) -> None:
    answer = opened.stream(PROMPT, N)
    pieces = list(answer)
    assert tuple(answer.tokens) == plain
    assert "".join(piece.text for piece in pieces) == opened.pair.base.text(plain)
    s = answer.statistics
    assert (s.tokens, s.ended) == (N, "length")
    assert sum(piece.drafted for piece in pieces) == s.accepted > 0
    assert s.passes + s.accepted == N - 1
    assert s.drafted >= s.accepted
    assert s.tokens_per_second is not None


def test_without_drafts_nothing_is_drafted(opened: MtpModel, plain: tuple[int, ...]) -> None:
    answer = opened.stream(PROMPT, N, n_max=0)
    assert not any(piece.drafted for piece in answer)
    assert tuple(answer.tokens) == plain
    assert (answer.statistics.passes, answer.statistics.drafted) == (N - 1, 0)
    assert answer.statistics.acceptance is None


def test_equal_seeds_give_equal_texts(opened: MtpModel) -> None:
    first, again, other = (
        opened.stream(PROMPT, N, temperature=1.0, seed=seed).text() for seed in (1, 1, 2)
    )
    assert first == again != other
    unseeded = [opened.stream(PROMPT, N, temperature=1.0).text() for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_a_sampled_text_does_not_depend_on_the_number_of_drafts(
    library: Library, opened: MtpModel
) -> None:
    if library.choice.origin != "exact record":
        pytest.skip("only the exact build's logits do not depend on the batch shape")
    for seed in (1, 2, 4294967295):
        texts = set()
        for n_max in (0, 1, 3, 5):
            answer = opened.stream(PROMPT, N, temperature=0.8, seed=seed, n_max=n_max)
            texts.add(answer.text())
            assert (answer.statistics.accepted > 0) == (n_max > 0)
        assert len(texts) == 1


def test_a_text_goes_on_as_it_would_have(library: Library, opened: MtpModel) -> None:
    """The noise counts tokens of the sequence, the prompt's too, and not those of one call."""
    if library.choice.origin != "exact record":
        pytest.skip("only the exact build's logits do not depend on the batch shape")
    whole = opened.stream(PROMPT, N, temperature=0.8, seed=3)
    whole.text()
    begun = (*whole.prompt, *whole.tokens[:11])
    rest = opened.generate(begun, N - 11, temperature=0.8, seed=3)
    rest.text()
    assert rest.tokens == whole.tokens[11:]


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_seed_is_a_32_bit_number(opened: MtpModel, seed: int) -> None:
    with pytest.raises(ValueError, match=r"^seed must be within 0\.\.4294967295, not "):
        opened.stream(PROMPT, N, temperature=1.0, seed=seed)


@pytest.mark.parametrize("place", [1, 12, 13, 14])
def test_an_end_token_is_the_last_one(
    opened: MtpModel, plain: tuple[int, ...], place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in a round it falls; what the round emitted behind it is not shown."""
    monkeypatch.setattr(opened, "_ends", frozenset({plain[place]}))
    answer = opened.stream(PROMPT, N)
    answer.text()
    assert tuple(answer.tokens) == plain[: plain.index(plain[place]) + 1]
    assert answer.statistics.ended == "end"


def test_a_full_context_ends_the_text(library: Library, files: Files) -> None:
    with opened_model(library, files, n_ctx=256) as model:
        n_ctx = model.target.options.n_ctx
        answer = model.stream(PROMPT, 1000)
        answer.text()
        # The newest token needs no place in the cache.
        assert len(answer.prompt) + len(answer.tokens) == n_ctx + 1
        assert answer.statistics.ended == "context"
        assert model.plain_tokens_per_second() is None
        with pytest.raises(RuntimeUnavailable, match=r"prompt tokens fill the context of 256$"):
            model.stream("x = 1\n" * 300)


def test_a_chat_decodes_only_what_is_new(library: Library, files: Files) -> None:
    with opened_model(library, files) as model:
        chat = model.chat()
        first = chat.say("import os", 20)
        first.text()
        second = chat.say("import sys", 20)
        text = second.text()
        assert second.prompt[: len(first.prompt) + 20] == (*first.prompt, *first.tokens)
        assert second.statistics.reused_tokens >= len(first.prompt) + 19
        fresh = model.generate(second.prompt, 20)
        assert fresh.text() == text
        assert fresh.statistics.reused_tokens == 0


def test_turns_are_marked_up_once(opened: MtpModel) -> None:
    chat = opened.chat()
    chat.say("a", 5).text()
    base = opened.pair.base
    said = base.text(chat.say("b", 5).prompt)
    assert said.count(base.text(base.tokenize("")[:1])) == 1  # BOS
    assert said.count("<|turn>user\n") == 2
    assert said.endswith("<turn|>\n<|turn>user\nb<turn|>\n<|turn>model\n")


def test_an_answer_that_is_stopped_can_be_followed(library: Library, files: Files) -> None:
    with opened_model(library, files) as model:
        chat = model.chat()
        first = chat.say("import os", 100)
        for i, _ in enumerate(first):
            if i == 7:
                first.stop()
        assert first.statistics.ended == "stopped"
        assert 8 <= len(first.tokens) <= 12
        second = chat.say("import sys", 10)
        text = second.text()
        assert model.generate(second.prompt, 10).text() == text


def test_an_interrupted_round_leaves_a_usable_cache(
    opened: MtpModel, plain: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between a decode and its rollback: drafts are in the cache, nothing counts them."""

    def interrupted(_self: Context, _n: int) -> None:
        raise KeyboardInterrupt

    chat = opened.chat()
    answer = chat.say("import os", 100)
    with monkeypatch.context() as patch:
        patch.setattr(Context, "keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            answer.text()
    text = (after := chat.say("import sys", 10)).text()
    assert after.statistics.reused_tokens > 0
    assert opened.generate(after.prompt, 10).text() == text


def test_a_stopped_prompt_gives_nothing(opened: MtpModel) -> None:
    answer = opened.stream(PROMPT, N)
    answer.stop()
    assert list(answer) == []
    assert answer.statistics.ended == "stopped"


def test_an_earlier_generation_does_not_disturb_a_later_one(opened: MtpModel) -> None:
    first = iter(opened.stream(PROMPT, N))
    next(first)
    second = opened.stream(PROMPT, N)
    with pytest.raises(RuntimeUnavailable, match=r"^another generation of this model has begun$"):
        list(first)
    assert second.statistics.tokens == 0
    assert len(second.text()) > 0


def test_the_plain_speed_is_measured_without_drafts(opened: MtpModel) -> None:
    widths: list[int] = []
    decode = opened.target.decode
    answer = opened.stream(PROMPT, 8)
    answer.text()

    def counted(tokens: Sequence[int], position: int) -> None:
        widths.append(len(tokens))
        decode(tokens, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opened.target, "decode", counted)
        rate = opened.plain_tokens_per_second(5)
    assert widths == [1] * 5
    assert rate is not None
    assert answer.statistics.tokens == 8


# --- bytes to text --------------------------------------------------------------------------


def pieces_of(parts: list[bytes], accepted: int = 0) -> list[tuple[str, bool]]:
    """What a generation makes of tokens with these bytes, `accepted` of each round drafted."""

    class Sequence:
        """Emits the parts, two a round."""

        ends = frozenset({len(parts) - 1})
        target = SimpleNamespace(model=SimpleNamespace(piece=lambda t, control: parts[t]))
        at = 0

        def feed(self, _tokens: object, _reused: int) -> Iterator[None]:
            return iter(())

        def place(self) -> Any:
            return SimpleNamespace(token=0)

        def room(self) -> int:
            return 100

        def round(self, _place: object, _useful: int) -> tuple[Round, Any]:
            emitted = tuple(range(self.at + 1, min(self.at + 3, len(parts))))
            self.at = emitted[-1]
            done = Round(0, 0, emitted[:-1], len(emitted) - 1, emitted, 0.0, 0.0)
            return done, SimpleNamespace(token=self.at)

    sequence: Any = Sequence()
    return [(p.text, p.drafted) for p in Generation(sequence, (1,), 100, reuse=False)]


def test_a_character_appears_when_its_last_byte_does() -> None:
    assert pieces_of([b"a", b"\xe2", b"\x82", b"\xac!", b""]) == [
        ("a", False),
        ("", True),
        ("", False),
        ("€!", True),
        ("", False),
    ]


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert pieces_of([b"\xff", b"b", b"\xe2\x82"]) == [
        ("�", False),
        ("b", True),
        ("", False),
        ("�", False),
    ]


# --- the verb -------------------------------------------------------------------------------


def run(files: Files, *words: object, stdin: str | bytes | None = None) -> Result:
    fixed = ["--heads", files.heads, "--device", "cpu", "--threads", "1", "--ctx", "256"]
    arguments = [str(word) for word in ("run", files.base, *fixed, *words)]
    return CliRunner().invoke(main, arguments, input=stdin)


@pytest.mark.usefixtures("library")
def test_run_prints_text_and_then_figures(files: Files, opened: MtpModel) -> None:
    done = run(files, PROMPT, "--raw", "-n", N)
    assert done.exit_code == 0, done.output
    assert done.stdout == opened.stream(PROMPT, N).text() + "\n"
    assert done.stderr.startswith("[40 tokens, ")
    for part in (" tokens/s with MTP, ", " without: ", " of drafts accepted", "cut at -n]"):
        assert part in done.stderr


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layout", ["inline", "tail"])
def test_a_merged_file_as_heads_means_the_heads_in_it(
    files: Files, opened: MtpModel, tmp_path: Path, layout: str
) -> None:
    merged = files.merged
    if layout == "tail":
        merged = tmp_path / "tail.gguf"
        convert(files.base, files.heads, merged, layout=layout)
    done = run(files, PROMPT, "--raw", "-n", N, "--json", "--heads", merged)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["text"] == opened.stream(PROMPT, N).text()
    assert data["statistics"]["accepted"] > 0


@pytest.mark.usefixtures("library")
def test_run_repeats_a_sampled_text(files: Files, opened: MtpModel) -> None:
    sampled = ("--raw", "-n", N, "-q", "--temperature", "0.8", "--seed", "5")
    expected = opened.stream(PROMPT, N, temperature=0.8, seed=5, n_max=0).text() + "\n"
    for drafts in (("--n-max", "0"), ("--no-mtp",)):
        done = run(files, PROMPT, *sampled, *drafts)
        assert done.exit_code == 0, done.output
        assert done.stdout == expected
    assert run(files, PROMPT, *sampled).stdout == run(files, PROMPT, *sampled).stdout != ""


@pytest.mark.usefixtures("library")
def test_run_reads_stdin_and_prints_json(files: Files, opened: MtpModel) -> None:
    done = run(files, "-", "--raw", "-n", N, "--json", stdin=PROMPT)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    answer = opened.stream(PROMPT, N)
    assert (data["text"], data["tokens"]) == (answer.text(), answer.tokens)
    assert data["statistics"]["accepted"] == answer.statistics.accepted
    assert data["plain_tokens_per_second"] > 0


@pytest.mark.usefixtures("library")
def test_run_uses_turns_where_the_file_has_a_template(files: Files, opened: MtpModel) -> None:
    done = run(files, "import os", "-n", 10, "-q", "--no-mtp")
    assert done.stdout.rstrip("\n") == opened.stream("import os", 10, turn=True).text().rstrip("\n")
    assert done.stderr == ""


@pytest.mark.usefixtures("library")
def test_run_marks_what_was_drafted(files: Files) -> None:
    done = run(files, PROMPT, "--raw", "-n", N, "--show-drafts")
    plain = run(files, PROMPT, "--raw", "-n", N)
    marked = done.stdout.count("\x1b[4m")
    assert marked > 0
    assert "\x1b" not in plain.stdout
    assert done.stdout.replace("\x1b[32m\x1b[4m", "").replace("\x1b[0m", "") == plain.stdout


@pytest.mark.usefixtures("library")
def test_run_chats_until_the_end_of_input(files: Files, opened: MtpModel) -> None:
    done = run(files, "--chat", "-n", 10, stdin="import os\n\n-\n")
    assert done.exit_code == 0, done.output
    chat = opened.chat()
    texts = [chat.say(message, 10).text() for message in ("import os", "-")]
    assert done.stdout == "".join(text if text.endswith("\n") else text + "\n" for text in texts)
    assert done.stderr.count(" tokens a pass") == 2


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        ((), None, "give a PROMPT, - for stdin, or --chat"),
        (("--chat", "--json"), None, "--chat does not go with --json"),
        (("-",), b"\xff", "the prompt is not UTF-8"),
        (("--chat",), b"\xff\n", "the prompt is not UTF-8"),
        (("x" * 999, "--raw"), None, "prompt tokens fill the context of 256"),
        (("",), None, None),
    ],
)
def test_run_says_what_is_wrong(
    files: Files, words: tuple[str, ...], stdin: bytes | None, message: str | None
) -> None:
    done = run(files, *words, "-n", 4, stdin=stdin)
    if message is None:  # nothing said is still a turn
        assert done.exit_code == 0, done.output
        return
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_run_makes_control_characters_harmless_on_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from gguf_mtp.cli.run import _Shown

    _Shown(marks=False, safe=True).write("a\x1b]0;x\x07\tb\n", drafted=False)
    _Shown(marks=False, safe=False).write("\x1b", drafted=False)
    assert capsys.readouterr().out == "a�]0;x�\tb\n\x1b"


@pytest.mark.usefixtures("library")
def test_ctrl_c_stops_an_answer_and_not_the_chat(files: Files) -> None:
    command = [sys.executable, "-m", "gguf_mtp.cli.main", "run", str(files.base)]
    command += ["--heads", str(files.heads), "--device", "cpu", "--threads", "1"]
    command += ["--chat", "-n", "100000", "--ctx", "1024"]
    environ = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"import os\n")
            process.stdin.flush()
            assert process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(b"import sys\n", timeout=HUNG)
        finally:
            process.kill()
    assert process.returncode == 0, err
    figures = [line for line in err.decode().splitlines() if line.startswith("[")]
    assert len(figures) == 2
    assert figures[0].endswith("stopped]")
    assert figures[1].endswith("the context is full]")
    assert b"Traceback" not in err
    assert out


def test_a_merged_file_is_opened_by_name(merged_f32: Path, library: Library) -> None:
    require_patches(library)
    with MtpModel(str(merged_f32), n_threads=1, options=CPU, library=library) as model:
        assert model.target.options.n_ctx == min(4096, model.pair.base.n_ctx_train)
        assert model.stream(PROMPT, 5).text()
