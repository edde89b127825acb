"""Fuzzing by coverage: the seeds are sound, the oracle bites, a minute finds nothing."""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fuzz.small import CORPUS, Small, make_small
from fuzz.targets import TARGETS
from fuzz_readers import fuzz, report, write_seeds

TOOLS = Path(__file__).resolve().parent.parent / "tools"
SECONDS = float(os.environ.get("GGUF_MTP_FUZZ_SECONDS", 60))  # for each target
# Nearly the same inputs in every run of the same code: what is found came with the change.
SEED = 1

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is for Linux on x86-64"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("small"))


def test_the_seeds_are_what_the_tool_makes(tmp_path: Path) -> None:
    write_seeds(tmp_path)

    def contents(root: Path) -> dict[str, bytes]:
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    made = contents(tmp_path)
    assert contents(CORPUS) == made
    assert {name.split("/")[0] for name in made} | {"litertlm"} == set(TARGETS)
    assert max(map(len, made.values())) < 16_000


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "litertlm"])
def test_every_seed_is_read_to_the_end(tmp_path: Path, small: Small, name: str) -> None:
    run = TARGETS[name].runner(small, tmp_path)
    for path in sorted((CORPUS / name).iterdir()):
        assert run(path.read_bytes())


BROKEN = """
import sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
import fuzz.targets
def read(small, path):
    if path.read_bytes()[:4] == b"GGUF":
        raise {error}
table = fuzz.targets.TARGETS
table["gguf"] = replace(table["gguf"], read=read)
sys.argv = ["one.py", "gguf", "-runs=50", *sys.argv[2:]]
import fuzz.one
fuzz.one.MAX_SECONDS = 1
fuzz.one.main()
"""


@needs_atheris
@pytest.mark.parametrize(
    ("error", "words"),
    [
        ('KeyError("planted")', "KeyError: 'planted'"),
        ('GgufMtpError.__new__(GgufMtpError, "two\\nlines")', "no line of error"),
        ("all(iter(lambda: True, None))", "TooSlowError"),
    ],
)
def test_what_escapes_is_a_finding(tmp_path: Path, error: str, words: str) -> None:
    code = "from gguf_mtp.errors import GgufMtpError\n" + BROKEN.format(error=error)
    command = [sys.executable, "-c", code, str(TOOLS), f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run([*command, str(CORPUS / "gguf")], capture_output=True, text=True)
    assert done.returncode != 0
    assert words in done.stdout + done.stderr
    assert [path.name[:6] for path in tmp_path.iterdir()] == ["crash-"]


@needs_atheris
def test_a_minute_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = min(2, os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(lambda name: fuzz(name, SECONDS, tmp_path, SEED), TARGETS))
    with capsys.disabled():
        print(f"\n{report(outcomes)}")
    assert [found.finding for found in outcomes if found.finding] == []
    assert all(found.inputs > 10 for found in outcomes)
