"""Bases and heads by their names on a hub: what is fetched, kept, resumed, checked and refused."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import tiny
from gguf_mtp.cli.main import main
from gguf_mtp.errors import FetchError, UnsupportedError
from gguf_mtp.hub import BASE, HEADS, local_path
from gguf_mtp.hub.origin import HubOrigin, hub_origin, model_name
from gguf_mtp.hub.reference import Reference, parse
from gguf_mtp.readers.gguf import read_gguf
from litert_fixtures import fixture
from loopback_hub import COMMIT, Hub, serve, serve_alone

file_download = pytest.importorskip("huggingface_hub.file_download")
TARGET, DRAFTER = "google/gemma-4-tiny-it", "google/gemma-4-tiny-it-assistant"
OTHER = "2" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_alone(tmp_path, monkeypatch) as running:
        yield running


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def blobs(tmp_path: Path) -> int:
    return sum(1 for path in (tmp_path / "hf").rglob("blobs/*") if path.is_file())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("google/gemma-4-E4B-it", Reference("google/gemma-4-E4B-it")),
        ("google/gemma-4-E4B-it@v1.0", Reference("google/gemma-4-E4B-it", "v1.0")),
        ("hf://a/b", Reference("a/b")),
        ("hf://a/b/", Reference("a/b")),
        ("hf://a/b@main/Q4/x.gguf", Reference("a/b", "main", "Q4/x.gguf")),
        ("hf://a/b@refs/pr/7/x.gguf", Reference("a/b", "refs/pr/7", "x.gguf")),
        ("hf://a/b@feature%2Fx", Reference("a/b", "feature/x")),
        *(
            (path, None)
            for path in ("e2b", "./a/b", "/a/b", "a/b/c", "a/b.gguf", "~/a/b", "a/", "")
        ),
        *((path, None) for path in ("../b", "a\\b", "C:\\models\\e2b", "models/x.litertlm")),
    ],
)
def test_parse(text: str, expected: Reference | None) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["hf://", "hf://a", "hf://../x", "hf://a/b@", "hf:///a/b"])
def test_malformed(text: str) -> None:
    with pytest.raises(UnsupportedError, match="expected hf://owner/repo"):
        parse(text)


def test_origin() -> None:
    snapshot = Path("/h/hub/models--google--gemma-4-E2B-it/snapshots") / COMMIT
    assert hub_origin(snapshot / "x" / "y.gguf") == HubOrigin("google/gemma-4-E2B-it", COMMIT)
    assert model_name(snapshot) == "gemma-4-E2B-it"
    assert model_name(snapshot / "y.gguf") == "y.gguf"
    assert hub_origin(snapshot.with_name("main")) is None
    assert model_name(Path("/m/gemma")) == "gemma"


def test_convert_by_names(hub: Hub, tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    hub.add(TARGET, tiny_target)
    hub.add(DRAFTER, tiny_drafter)
    for name in ("pytorch_model.bin", "modeling_gemma4.py", "tokenizer.pkl", "assets/a.png"):
        hub.put(TARGET, name, b"not wanted")
    result = run("convert", "--base", TARGET, "--heads", DRAFTER, "-o", tmp_path)
    assert (result.exit_code, result.stderr) == (0, "")
    out = tmp_path / "gemma-4-tiny-it-bf16-mtp.gguf"
    assert not hub.fetched & {
        "pytorch_model.bin",
        "modeling_gemma4.py",
        "tokenizer.pkl",
        "assets/a.png",
    }
    keys = read_gguf(out).by_name
    assert keys["general.name"].value == "Gemma 4 Tiny It"
    assert keys["mtp.source.repository"].value == DRAFTER
    assert keys["mtp.source.name"].value == DRAFTER.split("/")[1]
    assert keys["mtp.target.repository"].value == TARGET
    assert keys["mtp.target.revision"].value == COMMIT
    # The same tensors as from directories.
    local = tmp_path / "local.gguf"
    assert (
        run("convert", "--base", tiny_target, "--heads", tiny_drafter, "-o", local).exit_code == 0
    )
    a, b = read_gguf(out), read_gguf(local)
    assert out.read_bytes()[a.data_start :] == local.read_bytes()[b.data_start :]

    # A second time nothing is fetched; offline neither.
    hub.seen.clear()
    again = run("convert", "--base", TARGET, "--heads", DRAFTER, "-o", out, "--force", "--json")
    assert json.loads(again.stdout)["heads_tensors"] == 29
    assert hub.fetched == set()


def test_offline_uses_the_cache(
    hub: Hub, tmp_path: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(DRAFTER, tiny_drafter)
    there = local_path(DRAFTER, HEADS)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert local_path(DRAFTER, HEADS) == there
    with pytest.raises(
        FetchError, match=r"a/b: cannot reach http://127\.0\.0\.1:9 .*not in the cache"
    ):
        local_path("a/b", HEADS)


def test_with_nothing_set(tmp_path: Path) -> None:
    """As a new user has it, in a process of its own: no variable of the hub's, and no network."""
    unset = ("HF_", "XDG_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    environ |= {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "gguf_mtp.cli.main", "convert", "--base", TARGET]
    done = subprocess.run(
        [*command, "--heads", DRAFTER, "-o", "x.gguf"],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.fullmatch(rf"error: {TARGET}: cannot reach .* is not in the cache, .*\n", done.stderr)
    assert str(tmp_path) in done.stderr


def test_a_cache_without_symbolic_links(
    hub: Hub, tmp_path: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows grants them to few: what is there is not fetched twice, whoever put it there."""
    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda *_: False)
    hub.add(DRAFTER, tiny_drafter)
    there = local_path(DRAFTER, HEADS)
    assert not any(path.is_symlink() for path in there.iterdir())
    assert (there / "model.safetensors").read_bytes() == (
        tiny_drafter / "model.safetensors"
    ).read_bytes()
    for path in tmp_path.rglob("blobs/*"):
        path.unlink()
    hub.seen.clear()
    assert local_path(DRAFTER, HEADS) == there
    assert hub.fetched == set()


def test_packages_by_name(hub: Hub, tmp_path: Path) -> None:
    """`extract` and `audit` take what convert takes: a repository, or a file in one."""
    package, drafter = fixture("mixed"), tmp_path / "drafter"
    hub.put("litert/gemma", "gemma-4.litertlm", package.read_bytes())
    hub.put("litert/gemma", "config.json", b"{}")
    hub.put("litert/gemma", "model.safetensors", b"not this one")
    assert run("extract", "litert/gemma", "-o", drafter).exit_code == 0
    assert hub.fetched == {"gemma-4.litertlm"}
    hub.add("google/assistant", drafter)
    local = run("audit", "--litert", package, "--hf", drafter)
    named = run(
        "audit", "--litert", "hf://litert/gemma/gemma-4.litertlm", "--hf", "google/assistant"
    )
    assert (named.exit_code, named.stderr) == (0, "")
    assert named.stdout == local.stdout
    assert run("audit", "--litert", package, "--hf", drafter, "-q").stdout == ""


def test_packages_that_are_none(hub: Hub, tmp_path: Path, tiny_drafter: Path) -> None:
    hub.add(DRAFTER, tiny_drafter)
    for name in ("a.litertlm", "b.litertlm"):
        hub.put("litert/two", name, b"LITERTLM")
    for command, message in (
        (("extract", DRAFTER, "-o", tmp_path / "x"), f"hf://{DRAFTER}: holds no .litertlm"),
        (("extract", "litert/two", "-o", tmp_path / "x"), "name one, as in hf://litert/two/a.lit"),
        (
            ("audit", "--litert", fixture("mixed"), "--hf", "litert/two"),
            "hf://litert/two: holds no checkpoint with safetensors\n",
        ),
        (("extract", "missing.litertlm", "-o", tmp_path / "x"), "missing.litertlm: cannot open"),
    ):
        result = run(*command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    assert not (tmp_path / "x").exists()
    assert hub.fetched == set()


def test_a_local_path_wins(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / TARGET).mkdir(parents=True)
    (tmp_path / TARGET / "config.json").write_text("{}")
    assert local_path(TARGET, BASE) == Path(TARGET)
    assert local_path(Path("hf:/a/b"), BASE) == Path("hf:/a/b")
    assert hub.seen == []


def test_shards_by_the_index(hub: Hub, tmp_path: Path) -> None:
    hub.add(TARGET, tiny.write_target(tmp_path / "t", shards=3))
    hub.put(TARGET, "model.fp32.safetensors", b"another precision")
    found = local_path(TARGET, BASE)
    assert sorted(path.name for path in found.glob("*.safetensors")) == [
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    hub.put(TARGET, "model.safetensors.index.json", b'{"weight_map": {"a": "../model.bin"}}', OTHER)
    hub.put(TARGET, "config.json", b"{}", OTHER)
    hub.put(TARGET, "model-1.safetensors", b"", OTHER)
    with pytest.raises(
        FetchError, match=r"names '\.\./model\.bin', which is not in the repository"
    ):
        local_path(f"{TARGET}@{OTHER}", BASE)


def test_revisions(hub: Hub, tmp_path: Path) -> None:
    hub.revisions["v2"] = OTHER
    hub.put("o/r", "x.gguf", b"first")
    hub.put("o/r", "x.gguf", b"second", OTHER)
    for reference, content in (("hf://o/r/x.gguf", b"first"), ("hf://o/r@v2/x.gguf", b"second")):
        assert local_path(reference, BASE).read_bytes() == content
    assert local_path(f"hf://o/r@{OTHER}/x.gguf", BASE).read_bytes() == b"second"
    with pytest.raises(FetchError, match="o/r has no revision v3"):
        local_path("o/r@v3", BASE)


def test_the_one_gguf(hub: Hub) -> None:
    for name in ("mmproj-f16.gguf", "mtp-e2b.gguf", "e2b-Q4_K_M.gguf"):
        hub.put("o/r", name, name.encode())
    assert local_path("o/r", BASE).name == "e2b-Q4_K_M.gguf"
    assert local_path("o/r", HEADS).name == "mtp-e2b.gguf"
    with pytest.raises(FetchError, match=r"no such file in the repository; found: mmproj-f16"):
        local_path("hf://o/r/e4b.gguf", BASE)
    with pytest.raises(FetchError, match=r"no such file in the repository; found: mtp-e2b\.gguf, "):
        local_path("hf://o/r/mtp-e4b.gguf", HEADS)
    hub.put("o/none", "pytorch_model.bin", b"x")
    with pytest.raises(
        FetchError, match=r"holds no checkpoint with safetensors and no \.gguf of a "
    ):
        local_path("o/none", BASE)


def test_all_parts_of_a_gguf(hub: Hub) -> None:
    names = [f"q/e2b-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for name in (*names, "q/other-00001-of-00003.gguf"):
        hub.put("o/r", name, name.encode())
    found = local_path(f"hf://o/r/{names[1]}", BASE)
    assert found.name == "e2b-00002-of-00003.gguf"
    assert sorted(path.name for path in found.parent.iterdir()) == [n[2:] for n in names]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client keeps what arrives in pieces of 64 KiB, not 10 MB, and does not wait to retry."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


def offsets(hub: Hub) -> list[int]:
    """Where transfers after the first of a file began."""
    asked = [range_ for method, _, range_ in hub.seen if method == "GET" and range_]
    return [int(range_.removeprefix("bytes=").rstrip("-")) for range_ in asked]


@pytest.mark.usefixtures("small_chunks")
def test_an_interrupted_transfer_goes_on(hub: Hub) -> None:
    data = bytes(range(256)) * 4096
    hub.put("o/r", "x.gguf", data)
    hub.cut_after = [300_000, 200_000]
    assert local_path("hf://o/r/x.gguf", BASE).read_bytes() == data
    assert offsets(hub) == [4 << 16, 7 << 16]


@pytest.mark.usefixtures("small_chunks")
def test_a_failed_transfer_goes_on_in_the_next_run(hub: Hub) -> None:
    data = bytes(range(256)) * 4096
    hub.put("o/r", "x.gguf", data)
    hub.cut_after = [300_000, *[0] * 20]
    with pytest.raises(
        FetchError, match=r"o/r/x\.gguf: the download failed .* run this again to continue"
    ):
        local_path("hf://o/r/x.gguf", BASE)
    hub.cut_after.clear()
    hub.seen.clear()
    assert local_path("hf://o/r/x.gguf", BASE).read_bytes() == data
    assert offsets(hub) == [4 << 16]


def test_partial_bytes_that_are_too_many_are_thrown_away(hub: Hub, tmp_path: Path) -> None:
    data = b"x" * 1000
    hub.put("o/r", "x.gguf", data)
    folder = tmp_path / "hf" / "models--o--r" / "blobs"
    folder.mkdir(parents=True)
    digest = hashlib.sha256(data).hexdigest()
    (folder / f"{digest}.gguf-mtp.incomplete").write_bytes(b"y" * 1001)
    assert local_path("hf://o/r/x.gguf", BASE).read_bytes() == data
    assert [path.name for path in folder.iterdir()] == [digest]


def test_a_wrong_hash_is_refused_and_removed(hub: Hub, tmp_path: Path) -> None:
    hub.put("o/r", "x.gguf", b"x" * 1000)
    hub.lies["x.gguf"] = "0" * 64
    with pytest.raises(
        FetchError, match=r"o/r/x\.gguf: sha256 is [0-9a-f]{64}, the hub says 0{64}; it was removed"
    ):
        local_path("hf://o/r/x.gguf", BASE)
    assert blobs(tmp_path) == 0
    hub.lies.clear()
    assert local_path("hf://o/r/x.gguf", BASE).read_bytes() == b"x" * 1000


def test_a_file_that_changed_in_the_cache_is_noticed(hub: Hub) -> None:
    hub.put("o/r", "x.gguf", b"x" * 1000)
    path = local_path("hf://o/r/x.gguf", BASE)
    path.resolve().write_bytes(b"x" * 999 + b"y")
    with pytest.raises(FetchError, match="sha256 is"):
        local_path("hf://o/r/x.gguf", BASE)


def test_refusals_say_what_to_do(hub: Hub, tmp_path: Path) -> None:
    result = run("convert", "--base", "o/nothing", "--heads", "o/r", "-o", tmp_path / "x.gguf")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: o/nothing: no such path here; no repository o/nothing at {hub.url}, or a private "
        "one: log in with `hf auth login` or set HF_TOKEN\n"
    )
    hub.status["o/gated"] = (403, "GatedRepo")
    with pytest.raises(FetchError, match="access to o/gated is gated: accept its terms"):
        local_path("o/gated", BASE)
    hub.status["o/locked"] = (403, "Forbidden")
    with pytest.raises(FetchError, match=r"refuses access to o/locked \(403\)"):
        local_path("o/locked", BASE)


def test_the_token_is_sent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    hub.put("o/r", "x.gguf", b"x")
    with pytest.raises(FetchError, match="or a private one"):
        local_path("o/r", BASE)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert local_path("o/r", BASE).read_bytes() == b"x"


@pytest.mark.usefixtures("small_chunks")
def test_storage_elsewhere_gets_no_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 2048
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve() as storage:
        hub.token, hub.storage, storage.cut_after = "hf_secret", storage, [200_000]
        for one in (hub, storage):
            one.put("o/r", "x.gguf", data)
        assert local_path("o/r", BASE).read_bytes() == data
        assert offsets(storage) == [3 << 16]
        assert set(storage.tokens) == {None}


def test_offline_with_a_part_of_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("o/r", "x.gguf", b"x")
    hub.put("o/r", "y.gguf", b"y")
    local_path("hf://o/r/x.gguf", BASE)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = r"y\.gguf: no such file in the repository.* \(cannot reach .* cache was seen"
    with pytest.raises(FetchError, match=message):
        local_path("hf://o/r/y.gguf", BASE)


def test_space_is_checked_first(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("o/r", "x.gguf", b"x" * 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": 999}))
    with pytest.raises(FetchError, match=r"1,000 bytes to fetch, 999 free in .*HF_HOME moves it"):
        local_path("o/r", BASE)
    assert hub.fetched == set()


def test_without_the_client(
    tmp_path: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = run("convert", "--base", TARGET, "--heads", tiny_drafter, "-o", "x.gguf")
    message = (
        f"error: {TARGET}: no such file or directory; to fetch from the Hugging Face hub: "
        "pip install 'gguf-mtp[hub]'\n"
    )
    assert (result.exit_code, result.stderr) == (2, message)
