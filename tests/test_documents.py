"""The commands and links of README and docs: run on a small model, or said here why not."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from gguf_mtp.api import split
from gguf_mtp.cli.main import main
from loopback_hub import Hub, serve

REPO = Path(__file__).resolve().parent.parent
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
# Why a command is not run here, by what is in it.
NOT_RUN = {
    "make ": "the jobs of CI run the targets, and building takes minutes",
    "pip install": "test_package.py runs the program from the built wheel",
    "CMAKE_ARGS=": "installs the bindings: tools/setup.sh does",
    "build/llama.cpp/bin/": "test_programs.py runs the programs",
    "llama-server": "test_programs.py runs the programs",
    "gguf-mtp validate": "needs the library: test_validate_model.py, test_cli_shape.py",
    "gguf-mtp run": "needs the library and minutes: the tests of run",
    "gguf-mtp bench": "needs the library and minutes: the tests of bench",
    "gguf-mtp card e2b-mtp.gguf --report": "needs a validation: test_card.py",
    "gemma.litertlm": "no package fits this pair: test_litert_extract.py, test_litert_convert.py",
    "gguf-mtp report": "needs a validation: test_report_page.py",
}


def commands(page: Path) -> Iterator[str]:
    """The lines of console blocks that begin with a prompt."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield line[2:]


@pytest.fixture
def hub(
    tmp_path: Path,
    tiny_target: Path,
    tiny_drafter: Path,
    tiny_merged: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Hub]:
    """A hub and a directory that hold the small pair under the names of Google's."""
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        for name, directory in (("", tiny_target), ("-assistant", tiny_drafter)):
            running.add(f"google/gemma-4-E2B-it{name}", directory)
            (here / f"gemma-4-E2B-it{name}").symlink_to(directory)
        split(tiny_merged, here / "e2b.gguf", None)
        yield running


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page: Path, hub: Hub) -> None:
    pytest.importorskip("huggingface_hub")
    run = 0
    for line in commands(page):
        if any(part in line for part in NOT_RUN):
            continue
        words = shlex.split(line, comments=True)
        if words[0] == "mkdir":
            Path(words[1]).mkdir()
            continue
        assert words[0] == "gguf-mtp", f"{page.name}: {line}: neither run nor said why not"
        result = CliRunner().invoke(main, words[1:])
        allowed = (0, 1) if words[1] == "doctor" else (0,)
        assert result.exit_code in allowed, f"{page.name}: {line}: {result.output}"
        run += 1
    if page.name in ("README.md", "guide.md"):
        assert run >= 2
    if page.name == "guide.md":
        assert sorted(path.name for path in Path("halves").iterdir()) == [
            "e2b.gguf",
            "mtp-e2b.gguf",
        ]


def test_the_guides_python_runs(hub: Hub) -> None:
    pytest.importorskip("huggingface_hub")
    (code,) = re.findall(
        r"```python\n(.*?)```", (REPO / "docs" / "guide.md").read_text(encoding="utf-8"), re.S
    )
    exec(compile(code, "guide.md", "exec"), {})
    assert Path("from-python.gguf").stat().st_size > 0


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
