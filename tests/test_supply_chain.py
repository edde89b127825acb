"""What runs, what is loaded and what is installed: nothing out of a model, and all of it known."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import licences
import tiny
from variants import edit_json

PACKAGE = Path(__file__).resolve().parent.parent / "gguf_mtp"
# Modules that run, or may run, what they read; and readers that ours stand in for.
FORBIDDEN = frozenset(
    (
        *("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code"),
        *("torch", "transformers", "tokenizers"),
    )
)
# Libraries of other languages, each in the one module that bounds what it is given, and imported
# only when a file asks for it.
NATIVE = {
    "safetensors": PACKAGE / "drafters" / "litert" / "checkpoint.py",
    "sentencepiece": PACKAGE / "readers" / "sentencepiece_model.py",
}
CALLS = frozenset({"eval", "exec", "compile", "__import__"})
# What writes pages and cards, by templates that ship with the package, beside them.
PAGES = {PACKAGE / "report", PACKAGE / "card"}
PERMISSIVE = re.compile(r"MIT|BSD|Apache|MPL|Mozilla|PSF|Zlib|0BSD|CC0")


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_nothing_is_imported_that_runs_what_it_reads() -> None:
    count = 0
    for path, tree in modules():
        names = set(imported(tree))
        assert not names & FORBIDDEN, path
        assert "jinja2" not in names or PAGES & {*path.parents}, path
        assert all(path == NATIVE[name] for name in names & NATIVE.keys()), path
        count += 1
    assert count > 80


def test_the_command_line_starts_without_them() -> None:
    script = f"import sys, gguf_mtp.cli.main; sys.exit(str({sorted(NATIVE)} & sys.modules.keys()))"
    script = script.replace("[", "{").replace("]", "}")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "set()\n"


def test_nothing_is_evaluated() -> None:
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in CALLS, f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("from_string", "unsafe_load", "full_load", "allow_pickle")
                assert node.attr != "Environment" or PAGES & {*path.parents}, path


def test_code_beside_a_model_is_not_run(tmp_path: Path, tiny_drafter: Path) -> None:
    """``auto_map`` names it, it lies where Python would find it, and it is a package's setup."""
    target = tiny.write_target(tmp_path / "t")
    edit_json(target, "config.json", lambda v: v.update(auto_map={"AutoConfig": "evil.Config"}))
    trap = f"open({str(tmp_path / 'RAN')!r}, 'w')\n"
    for name in ("evil.py", "__init__.py", "conftest.py", "sitecustomize.py", "setup.py"):
        (target / name).write_text(trap)
    out = tmp_path / "m.gguf"
    command = [sys.executable, "-m", "gguf_mtp.cli.main", "convert", "-q", "-o", str(out)]
    command += ["--base", str(target), "--heads", str(tiny_drafter)]
    done = subprocess.run(command, cwd=target.parent, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "RAN").exists()
    # The trap does work where it is run.
    subprocess.run([sys.executable, "-c", "import evil"], cwd=target, check=True)
    assert (tmp_path / "RAN").exists()
    assert os.path.getsize(out) > 0


def test_the_page_lists_what_is_asked_for() -> None:
    page = licences.rows(licences.PAGE.read_text())
    for name, by in licences.dependencies().items():
        if any(reason == licences.PROJECT or reason.startswith("[") for reason in by):
            assert name in page, f"{name} is not in {licences.PAGE}: run tools/licences.py"
            stated = page[name][1].split(", ")
            assert {reason for reason in by if reason in stated} >= {
                reason for reason in by if reason == licences.PROJECT or reason.startswith("[")
            }


@pytest.mark.parametrize("name", sorted(licences.dependencies()))
def test_licences_are_permissive(name: str) -> None:
    found = licences.licence(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    assert PERMISSIVE.search(found), found
