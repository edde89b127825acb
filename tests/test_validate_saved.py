"""Report files: whole or not there, whatever ends the run; and nothing else is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from _validate_helpers import library_under_test
from gguf_mtp.cli.main import main
from gguf_mtp.errors import OutputError
from gguf_mtp.validate.saved import MARK, ReportFile
from hung import HUNG
from pair_files import Files

EARLIER = '{"schema": "gguf-mtp.validate/1", "holds": true}\n'


def test_a_report_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    out.write_text(EARLIER)
    saved = ReportFile(out)
    assert list(tmp_path.iterdir()) == []  # the earlier one is gone before the run
    saved.write("new é\n")
    assert out.read_bytes() == "new é\n".encode()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    "content",
    [b"GGUF\x03\x00\x00\x00", b"{}", b"x" * 5000 + EARLIER.encode()],
    ids=["gguf", "json", "late"],
)
def test_what_is_no_report_is_not_touched(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "model.gguf"
    out.write_bytes(content)
    with pytest.raises(OutputError, match=r"model\.gguf: exists and is not a report"):
        ReportFile(out)
    assert out.read_bytes() == content


@pytest.mark.parametrize("verb", ["validate", "bench"])
def test_one_file_cannot_be_both_outputs(tmp_path: Path, verb: str) -> None:
    out = tmp_path / "r.json"
    out.write_text(EARLIER)
    words = [verb, "m.gguf", "--output", str(out), "--html", f"{tmp_path}/./r.json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "--output and --html name the same file" in done.stderr
    assert out.read_text() == EARLIER


def test_an_empty_file_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "r.json").touch()
    ReportFile(tmp_path / "r.json").write(EARLIER)
    assert (tmp_path / "r.json").read_text() == EARLIER


def test_a_place_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone" / "r.json"):
        with pytest.raises(OutputError, match=str(path)):
            ReportFile(path)
    words = ["validate", "model.gguf", "--output", str(tmp_path / "gone" / "r.json")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "r.json" in done.stderr


def command(files: Files, out: Path, n_predict: int) -> list[str]:
    words = ["validate", files.base, "--heads", files.heads, "--output", out, "--threads", 1]
    words += ["--prompts", "python", "--n-prompts", 2, "--n-predict", n_predict, "--device", "cpu"]
    return [str(word) for word in words]


def test_the_command_writes_what_it_prints(files: Files, tmp_path: Path) -> None:
    library_under_test()
    out = tmp_path / "r.json"
    done = CliRunner().invoke(main, [*command(files, out, 8), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text()) == json.loads(done.stdout)
    assert MARK.search(out.read_bytes()[:100])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_stale_report(
    files: Files, tmp_path: Path, number: signal.Signals
) -> None:
    library = library_under_test()
    out = tmp_path / "r.json"
    out.write_text(EARLIER)
    environ = os.environ | {"LLAMA_CPP_LIB_PATH": str(library.directory)}
    process = subprocess.Popen(
        [sys.executable, "-m", "gguf_mtp.cli.main", *command(files, out, 4096)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + HUNG
    while out.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not out.exists()
    assert process.poll() is None  # in the midst of it
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=HUNG)
    assert process.returncode != 0
    assert stdout == b""
    assert list(tmp_path.iterdir()) == []
