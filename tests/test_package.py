"""What is published: the contents of wheel and sdist, and the program run from the wheel alone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import check_package
import release_check
from gguf_mtp import __version__

pytest.importorskip("build")
IN_WHEEL = (
    "gguf_mtp/py.typed",
    "gguf_mtp/data/prompts/python.jsonl",
    "gguf_mtp/card/templates/card.md",
    "gguf_mtp/report/templates/page.html",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if not (check_package.REPO / ".git").exists():
        pytest.skip("not a clone: which files are tracked is not known")
    return check_package.build(tmp_path_factory.mktemp("dist"))


def test_contents(built: tuple[Path, Path]) -> None:
    assert check_package.findings(*built) == []
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
    assert set(IN_WHEEL) <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "tools/", "patches/"))]


def test_what_is_wrong_is_found(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel = tmp_path / built[0].name
    with zipfile.ZipFile(built[0]) as old, zipfile.ZipFile(wheel, "w") as new:
        for name in old.namelist():
            if name != IN_WHEEL[1]:
                new.writestr(name, old.read(name))
        new.writestr("tests/conftest.py", "")
        new.writestr("gguf_mtp/secret.txt", "")
    assert check_package.findings(wheel, built[1]) == [
        f"wheel: {IN_WHEEL[1]} is missing",
        "wheel: gguf_mtp/secret.txt is not tracked",
        "wheel: tests/conftest.py does not belong there",
    ]


def test_it_runs_from_the_wheel(
    built: tuple[Path, Path], tmp_path: Path, tiny_target: Path, tiny_drafter: Path
) -> None:
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(place), str(built[0])], check=True)
    environ = os.environ | {"PYTHONPATH": str(place), "HOME": str(tmp_path)}

    def run(*arguments: object) -> str:
        command = [sys.executable, "-P", str(place / "bin" / "gguf-mtp"), *map(str, arguments)]
        if sys.version_info < (3, 11):
            command.remove("-P")
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("--version").strip() == f"gguf-mtp, version {__version__}"
    run("convert", "--base", tiny_target, "--heads", tiny_drafter, "-o", "m.gguf")
    assert "# Target with MTP heads" in run("card", "m.gguf")
    where = "import gguf_mtp.validate.prompts as p; print(p.__file__, len(p.load_prompts(())))"
    done = subprocess.run(
        [sys.executable, "-c", where], env=environ, cwd=tmp_path, capture_output=True, text=True
    )
    file, count = done.stdout.split()
    assert Path(file).is_relative_to(place)
    assert int(count) > 0


def test_the_version_stands_in_one_place() -> None:
    assert check_package.version() == __version__
    assert "version = {" in (check_package.REPO / "pyproject.toml").read_text()
    assert release_check.changelog() in ("", "CHANGELOG.md: no date yet")
