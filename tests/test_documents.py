"""Commands, code and links of README and docs: run on the embedded model, under the names there."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gguf_mtp.api import convert, split
from gguf_mtp.cli.main import VERBS, main
from gguf_mtp.drafters import dialects
from litert_fixtures import fixture
from llama_programs import programs, server
from loopback_hub import Hub, serve

REPO = Path(__file__).resolve().parent.parent
PAGES = [
    REPO / "README.md",
    *sorted((REPO / "docs").glob("*.md")),
    REPO / "patches" / "README.md",
    *sorted((REPO / "tests" / "fixtures").glob("*/README.md")),
]
# Only looked at, each for the reason given; everything else is run.
NOT_RUN = {
    "make": "CI runs the targets, and building takes minutes: here they must exist",
    "pip": "test_package.py installs the wheel, tools/setup.sh the rest: here extras must exist",
}
# What makes verbs of the runtime short, appended to the command of the page.
SHORT = {
    "run": ("-n", "4", "--threads", "1"),
    "validate": ("--n-prompts", "1", "--n-predict", "4", "--threads", "1"),
    "bench": ("--n-prompts", "1", "--n-predict", "4", "--repetitions", "1", "--threads", "1"),
}
# Where a page's command may find something.
FINDINGS = {"doctor": (0, 1), "audit": (0, 1)}


def commands(page: Path) -> Iterator[str]:
    """The lines of console blocks that begin with a prompt, with what continues them."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for line in block.replace("\\\n", "").splitlines():
            if line.startswith("$ "):
                yield line[2:]


@pytest.fixture
def here(
    tmp_path: Path,
    target_dir: Path,
    drafter_dir: Path,
    merged_auto: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """A directory that holds what pages speak of: the embedded pair under the names of Google's, in
    place and on a hub; it is the current one."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", library())
    with serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        place = tmp_path / "here"
        place.mkdir()
        monkeypatch.chdir(place)
        fill(place, hub, target_dir, drafter_dir, merged_auto)
        yield place


def fill(place: Path, hub: Hub, target: Path, drafter: Path, merged: Path) -> None:
    for name, directory in (("", target), ("-assistant", drafter)):
        hub.add(f"google/gemma-4-E2B-it{name}", directory)
        (place / f"gemma-4-E2B-it{name}").symlink_to(directory)
    (place / "gemma.litertlm").symlink_to(fixture("trained"))
    (place / "gemma4-tiny-mtp.gguf").symlink_to(merged)
    split(merged, place / "e2b.gguf", None)


def library() -> str:
    """Where the patched programs and their library are."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    return str(programs("default"))


def python(*arguments: str) -> str:
    """What a Python in a process of its own prints: one process can have one libllama."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_gguf_mtp(words: list[str], output: str | None) -> None:
    verb = words[0]
    if verb not in SHORT:
        result = CliRunner().invoke(main, words)
        assert result.exit_code in FINDINGS.get(verb, (0,)), result.output
        return
    printed = python("-m", "gguf_mtp.cli.main", *words, *SHORT[verb])
    if output is not None:
        Path(output).write_text(printed, "utf-8")


def run_server(words: list[str], _output: str | None) -> None:
    with server(Path(os.environ["LLAMA_CPP_LIB_PATH"]), *words, log=Path("server.log")) as running:
        assert running.complete("def", 4)["tokens"]


def make_directory(words: list[str], _output: str | None) -> None:
    Path(words[0]).mkdir()


def look_at_make(words: list[str], _output: str | None) -> None:
    done = subprocess.run(["make", "-n", *words], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def look_at_pip(words: list[str], _output: str | None) -> None:
    project = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"\[([\w-]+)\]", " ".join(words)):
        assert re.search(rf"^{extra} = \[", project, re.M), extra


RUNNERS: dict[str, Callable[[list[str], str | None], None]] = {
    "gguf-mtp": run_gguf_mtp,
    "llama-server": run_server,
    "mkdir": make_directory,
    "make": look_at_make,
    "pip": look_at_pip,
}


def run_line(line: str) -> None:
    """Run a line of a page: settings before it count, [options] are given, > FILE is written."""
    words = shlex.split(re.sub(r"\[(--[^\]]+)\]", r"\1", line), comments=True)
    output = words[words.index(">") + 1] if ">" in words else None
    if output is not None:
        words = words[: words.index(">")]
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    program = Path(words[0]).name
    assert program in RUNNERS, f"{line}: neither run nor said why not"
    RUNNERS[program](words[1:], output)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if list(commands(page))], ids=lambda page: page.name
)
def test_commands(page: Path, here: Path, merged_auto: Path) -> None:
    if page.name == "run.md":  # its report is of a validation that is not on the page
        run_gguf_mtp(["validate", "gemma4-tiny-mtp.gguf", "--json"], "val.json")
    for line in commands(page):
        run_line(line)
    if page.name == "guide.md":
        assert sorted(path.name for path in Path("halves").iterdir()) == [
            "e2b.gguf",
            "mtp-e2b.gguf",
        ]
        assert "Not validated" not in Path("README.md").read_text("utf-8")
        assert "Not validated" in Path("CARD.md").read_text("utf-8")


def test_what_is_not_run_is_still_looked_at() -> None:
    assert set(NOT_RUN) == {"make", "pip"}
    assert RUNNERS["make"] is look_at_make
    with pytest.raises(AssertionError):
        run_line("make no-such-target")
    with pytest.raises(AssertionError):
        run_line("CMAKE_ARGS=-DX=1 pip install '.[no-such-extra]'")
    with pytest.raises(AssertionError, match="neither run nor said why not"):
        run_line("ollama run gemma")


def mentioned(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Verbs and options of ``gguf-mtp VERB … --option`` in running text."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for code in re.findall(r"`gguf-mtp ([^`]+)`", text):
        verb, _, rest = code.partition(" ")
        for one in verb.replace("\\|", "|").split("|"):
            yield one, re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_options_in_text_exist(page: Path) -> None:
    with click.Context(main) as context:
        for verb, options in mentioned(page):
            assert verb in VERBS, f"{page.name}: gguf-mtp {verb}"
            command = main.get_command(context, verb)
            assert command is not None
            known = {name for parameter in command.params for name in parameter.opts}
            assert set(options) <= known | {"--help"}, f"{page.name}: gguf-mtp {verb}"


def python_blocks(name: str) -> list[str]:
    text = (REPO / "docs" / name).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_guides_python_runs(here: Path) -> None:
    (code,) = python_blocks("guide.md")
    exec(compile(code, "guide.md", "exec"), {})
    assert Path("from-python.gguf").stat().st_size > 0


def test_the_python_that_generates_runs(here: Path) -> None:
    """The page's program, with fewer tokens and a model that was never taught to chat."""
    (code,) = python_blocks("run.md")
    code = code.replace(", 200, ", ", 8, ").replace('rivers."', 'rivers.", 8')
    Path("program.py").write_text(code.replace('longest?"', 'longest?", 8'), "utf-8")
    convert(Path("gemma-4-E2B-it"), Path("gemma-4-E2B-it-assistant"), Path("e2b-mtp.gguf"))
    assert "accepted" in python("program.py")


def test_the_example_of_a_dialect_is_one() -> None:
    (code,) = python_blocks("dialects.md")
    found = eval(compile(code, "dialects.md", "eval"), vars(dialects).copy())
    assert isinstance(found, dialects.Dialect)


@pytest.mark.parametrize("reason", NOT_RUN.values())
def test_the_tests_that_reasons_name_exist(reason: str) -> None:
    for name in re.findall(r"\btest_\w+\.py", reason):
        assert (REPO / "tests" / name).is_file()


@pytest.mark.parametrize("page", [*PAGES, REPO / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_guide_is_of_this_program() -> None:
    """Every path in the table of changes exists."""
    text = (REPO / "docs" / "guide.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tools|drafters|gemma4|card|doctor)/[\w/]+\.py)`", text):
        root = REPO if path.startswith("tools/") else REPO / "gguf_mtp"
        assert (root / path).is_file(), path
