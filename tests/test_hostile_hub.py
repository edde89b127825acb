"""A hub whose answers lie: one line of error, nothing fetched, nothing written anywhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gguf_mtp.cli.main import main
from loopback_hub import COMMIT, Hub, serve_alone

pytest.importorskip("huggingface_hub")
REPO = "o/r"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_alone(tmp_path, monkeypatch) as running:
        running.put(REPO, "x.gguf", b"x")
        yield running


def refused(hub: Hub, tmp_path: Path, heads: Path, body: bytes) -> str:
    """The line that is said where `body` is the list of files."""
    hub.raw[REPO] = body
    arguments = ["convert", "--base", REPO, "--heads", str(heads), "-o", "out.gguf"]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result
    assert result.stderr.startswith(f"error: {REPO}: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr[:-1].isprintable()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert hub.fetched == set()
    return result.stderr


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"id": "o/r", "siblings": 7}',
        b'{"id": "o/r", "siblings": [7]}',
        b'{"id": "o/r", "siblings": [{}]}',
        b'{"id": "o/r", "siblings": [{"rfilename": "x.gguf", "lfs": 7}]}',
        b'{"id": "o/r", "siblings": [{"rfilename": "x.gguf", "lfs": {"size": 1}}]}',
        b'{"id": "o/r", "sha": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: ascii(body[-40:]),
)
def test_no_list_of_files(hub: Hub, tmp_path: Path, tiny_drafter: Path, body: bytes) -> None:
    line = refused(hub, tmp_path, tiny_drafter, body)
    assert ", not a file list (" in line


LFS = {"size": 1, "sha256": "a" * 64, "pointerSize": 1}
SOUND: dict[str, Any] = {"rfilename": "x.gguf", "size": 1, "blobId": "b" * 40, "lfs": LFS}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rfilename": 7}, "lists 7, which is not a path in a repository"),
        ({"rfilename": None}, "lists None, which"),
        ({"rfilename": ""}, "lists '', which"),
        ({"rfilename": "../x.gguf"}, "lists '../x.gguf', which"),
        ({"rfilename": "a/../../x.gguf"}, "lists 'a/../../x.gguf', which"),
        ({"rfilename": "/etc/x.gguf"}, "lists '/etc/x.gguf', which"),
        ({"rfilename": "a\\..\\x.gguf"}, "which is not a path"),
        ({"rfilename": "x\0.gguf"}, "which is not a path"),
        ({"rfilename": "x" * 100_000 + "//"}, "which is not a path"),
        ({"size": "many"}, "'x.gguf': size is 'many', expected a number of bytes"),
        ({"size": -1}, "size is -1"),
        ({"size": True}, "size is True"),
        ({"blobId": "../../../x"}, "blobId is '../../../x', expected 40 or 64"),
        ({"blobId": []}, "blobId is []"),
        ({"lfs": {**LFS, "sha256": "../../../../x"}}, "lfs.sha256 is '../../../../x', expected 64"),
        ({"lfs": {**LFS, "sha256": "A" * 64}}, "lfs.sha256 is"),
        ({"lfs": {**LFS, "sha256": 7}}, "lfs.sha256 is 7"),
    ],
    ids=lambda value: ascii(value)[:40] if isinstance(value, dict) else "",
)
def test_fields_that_lie(
    hub: Hub, tmp_path: Path, tiny_drafter: Path, changes: dict[str, Any], words: str
) -> None:
    body = {"id": REPO, "sha": COMMIT, "siblings": [SOUND | changes]}
    assert words in refused(hub, tmp_path, tiny_drafter, json.dumps(body).encode())


@pytest.mark.parametrize("commit", [None, 7, "main", "../../../../x", "1" * 39, "G" * 40])
def test_no_commit(hub: Hub, tmp_path: Path, tiny_drafter: Path, commit: object) -> None:
    body = {"id": REPO, "sha": commit, "siblings": [SOUND]}
    line = refused(hub, tmp_path, tiny_drafter, json.dumps(body).encode())
    assert f"commit is {commit!a}, expected 40 hexadecimal digits" in line


def test_the_same_list_when_it_is_sound(hub: Hub, tmp_path: Path, tiny_drafter: Path) -> None:
    """The control: what is refused then is the file itself, for its hash."""
    body = {"id": REPO, "sha": COMMIT, "siblings": [SOUND]}
    hub.raw[REPO] = json.dumps(body).encode()
    arguments = ["convert", "--base", REPO, "--heads", str(tiny_drafter), "-o", "out.gguf"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert f"the hub says {LFS['sha256']}" in result.stderr
