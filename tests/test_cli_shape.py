"""The command line as a whole: help, exit codes, JSON, completion, terminals and pipes."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cli_reference
from gguf_mtp.api import split
from gguf_mtp.cli.main import VERBS, main
from litert_fixtures import fixture
from llama_programs import programs

DOCS = Path(__file__).resolve().parent.parent / "docs"
TYPES: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "flag": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}
# Documents of others that grow: what json.md has of them must be there, more may be.
GROWING = ("validate",)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_and_fits(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Example:\s+(gguf-mtp .*\n\s+)*gguf-mtp {verb} ?", result.stdout)
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_the_reference_is_up_to_date() -> None:
    assert cli_reference.run(["--check"]) == 0


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_option_exits_with_2(verb: str) -> None:
    result = run(verb, "--no-such-option")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No such option" in result.stderr


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("convert --base DRAFTER --heads TARGET -o x.gguf", "--base and --heads swapped?"),
        ("convert --base TARGET --heads TARGET -o x.gguf", "swapped?"),
        ("convert --base MERGED --heads DRAFTER -o x.gguf", "--replace-heads"),
        ("convert --base BASE --heads MERGED -o x.gguf", "split it first (--heads-out)"),
        ("convert --base BASE --heads DRAFTER -o MERGED", "--force replaces it"),
        ("convert --base BASE --heads DRAFTER -o -", "name a file"),
        ("convert --base TARGET --heads DRAFTER -o {nam}.gguf", "expected {name}, {outtype}"),
        ("attach TARGET --heads DRAFTER --in-place", "convert makes one"),
        ("attach MERGED --heads DRAFTER --in-place", "--replace-heads"),
        ("detach MERGED", "split takes apart what convert merged"),
        ("split BASE --base-out x.gguf", "which convert makes"),
        ("split MERGED", "give --base-out, --heads-out or both"),
        ("verify MERGED", "convert --verify leaves one"),
        ("inspect TARGET", "name a GGUF, .litertlm, .tflite or .safetensors file in it"),
        ("card BASE", "gguf-mtp convert puts some in"),
        ("conver --base x", "Did you mean convert?"),
        ("doctr", "Did you mean doctor?"),
    ],
)
def test_errors_say_what_to_type_next(
    command: str,
    hint: str,
    tiny_target: Path,
    tiny_drafter: Path,
    tiny_merged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "base.gguf"
    split(tiny_merged, base, None)
    paths = {"TARGET": tiny_target, "DRAFTER": tiny_drafter, "MERGED": tiny_merged, "BASE": base}
    result = run(*(paths.get(word, word) for word in command.split()))
    assert (result.exit_code, result.stdout) == (2, "")
    assert hint in result.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


def test_number_types_in_upper_case(tiny_target: Path, tiny_drafter: Path, tmp_path: Path) -> None:
    """As files of GGUF are named: Q8_0."""
    pair = ("--base", tiny_target, "--heads", tiny_drafter)
    types = ("--outtype", "Q8_0", "--heads-type", "F16")
    result = run("convert", *pair, *types, "-o", tmp_path / "{outtype}.gguf")
    assert (result.exit_code, result.stderr) == (0, "")
    assert (tmp_path / "q8_0.gguf").is_file()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_GGUF_MTP_COMPLETE={shell}_complete" in result.stdout
    if shell == "bash" and shutil.which("bash"):
        checked = subprocess.run(["bash", "-n"], input=result.stdout, text=True)
        assert checked.returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("gguf-mtp co", {"plain,completion", "plain,convert"}),
        ("gguf-mtp convert --lay", {"plain,--layout"}),
        ("gguf-mtp convert --layout t", {"plain,tail"}),
        ("gguf-mtp convert --base x", {"file,x"}),
        ("gguf-mtp inspect x", {"file,x"}),
    ],
)
def test_completion(words: str, expected: set[str]) -> None:
    environ = {
        "_GGUF_MTP_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    result = CliRunner().invoke(main, [], env=environ, prog_name="gguf-mtp")
    assert set(result.stdout.split()) == expected


def documented() -> dict[str, dict[str, list[str]]]:
    """Fields and their types, by verb, as json.md has them."""
    found: dict[str, dict[str, list[str]]] = {}
    verb = ""
    for line in (DOCS / "json.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            verb = line[3:]
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if verb and len(row) == 3 and row[0] not in ("field", "---"):
            found.setdefault(verb, {})[row[0]] = row[1].split(", ")
    return found


@pytest.fixture(scope="session")
def json_of(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_target: Path,
    tiny_drafter: Path,
    tiny_merged: Path,
) -> Callable[[str], dict[str, Any]]:
    """The document that a verb prints."""
    at = tmp_path_factory.mktemp("json")
    base, out = at / "base.gguf", at / "merged.gguf"
    pair = ("--base", tiny_target, "--heads", tiny_drafter)
    assert run("split", tiny_merged, "--base-out", base).exit_code == 0
    package = fixture("mixed")
    commands: dict[str, list[tuple[object, ...]]] = {
        "convert": [("convert", *pair, "-o", out, "--force")],
        "attach": [("attach", base, "--heads", tiny_drafter, "-o", at / "tail.gguf", "--force")],
        "detach": [
            ("attach", base, "--heads", tiny_drafter, "-o", at / "tail.gguf", "--force"),
            ("detach", at / "tail.gguf"),
        ],
        "split": [("split", tiny_merged, "--base-out", at / "b.gguf", "--force")],
        "inspect": [("inspect", tiny_merged)],
        "verify": [("convert", *pair, "-o", out, "--force", "--verify"), ("verify", out)],
        "extract": [("extract", package, "-o", at / "x", "--force")],
        "audit": [
            ("extract", package, "-o", at / "x", "--force"),
            ("audit", "--litert", package, "--hf", at / "x"),
        ],
        "doctor": [("doctor",)],
    }

    def document(verb: str) -> dict[str, Any]:
        results = [run(*command, "--json") for command in commands[verb]]
        assert [result.stderr for result in results] == [""] * len(results)
        found: dict[str, Any] = json.loads(results[-1].stdout)
        return found

    return document


def compare(verb: str, found: dict[str, Any]) -> None:
    fields = documented()[verb]
    assert set(fields) <= set(found)
    if verb not in GROWING:
        assert set(fields) == set(found)
    for name, kinds in fields.items():
        assert any(TYPES[kind](found[name]) for kind in kinds), (name, found[name], kinds)


@pytest.mark.parametrize("verb", sorted(set(documented()) - {"validate"}))
def test_json_is_as_documented(verb: str, json_of: Callable[[str], dict[str, Any]]) -> None:
    compare(verb, json_of(verb))


def test_validates_json_is_as_documented(merged_f32: Path) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    environ = os.environ | {"LLAMA_CPP_LIB_PATH": str(programs("default"))}
    settings = ("--n-prompts", "1", "--n-predict", "4", "--threads", "1", "--json")
    command = [sys.executable, "-m", "gguf_mtp.cli.main", "validate", str(merged_f32), *settings]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compare("validate", json.loads(done.stdout))


def on_a_terminal(columns: int, *arguments: object, **environ: str) -> str:
    """What `gguf-mtp` writes to a terminal of that width, escapes and all."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    settings = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24"} | environ
    process = subprocess.Popen(
        [sys.executable, "-m", "gguf_mtp.cli.main", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        env={key: value for key, value in os.environ.items() if key != "NO_COLOR"} | settings,
    )
    os.close(follower)
    written = b""
    try:
        while data := os.read(leader, 1 << 16):
            written += data
    except OSError:  # Linux: the other end is closed
        pass
    os.close(leader)
    process.wait()
    return written.decode()


def test_colours_and_no_colours(tiny_merged: Path, tiny_drafter: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    assert run("split", tiny_merged, "--base-out", base, "-q").exit_code == 0
    convert = ("convert", "--base", base, "--heads", tiny_drafter, "--force")
    coloured = on_a_terminal(80, "doctor")
    assert "\x1b[32mok" in coloured
    plain = on_a_terminal(80, "doctor", NO_COLOR="1")
    assert "\x1b[" not in plain
    # Something that is missing, too: only its state has a style.
    nothing = {"LLAMA_CPP_LIB_PATH": str(tmp_path / "none")}
    assert "\x1b[31mmissing \x1b[0mllama.cpp  " in on_a_terminal(80, "doctor", **nothing)
    without = on_a_terminal(80, "doctor", NO_COLOR="1", **nothing)
    assert "missing llama.cpp  " in without
    assert "\x1b[" not in without
    bar = on_a_terminal(80, *convert, "-o", tmp_path / "m.gguf", NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*m", re.sub(r"\x1b\[0?m", "", bar))


# click wraps at 50 where there are fewer; names of options and examples are never broken.
@pytest.mark.parametrize(("columns", "widest"), [(80, 80), (40, 50)])
def test_help_keeps_to_the_width(columns: int, widest: int) -> None:
    lines = on_a_terminal(columns, "split", "--help").splitlines()
    wrapped = [line for line in lines if not line.startswith(("  --", "  -q", "    gguf-mtp"))]
    assert max(map(len, wrapped)) <= widest


def test_a_pipe_that_closes_is_no_error(tiny_merged: Path) -> None:
    command = [sys.executable, "-m", "gguf_mtp.cli.main", "inspect", str(tiny_merged), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() in (0, 1)
