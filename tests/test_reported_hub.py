"""Which file of a repository or folder is the base and which the drafter, by published names."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gguf_mtp.api import convert, split
from gguf_mtp.cli.main import main
from gguf_mtp.drafters.vocabulary import FILES
from gguf_mtp.errors import FetchError, UnsupportedError
from gguf_mtp.hub import BASE, CHECKPOINT, HEADS, PACKAGE, local_path
from gguf_mtp.hub.choose import LOOKED_FOR, PREFERRED_TYPES, ROLES
from gguf_mtp.hub.reference import Reference
from gguf_mtp.hub.select import NEXT_TO_LOOSE, is_checkpoint, only_model
from gguf_mtp.model import half_from_gguf
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.writer import write_gguf
from litert_fixtures import fixture
from loopback_hub import COMMIT, Hub, serve_alone

LARGE = ("BF16", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0")
SMALL = ("IQ4_NL", "IQ4_XS", "Q3_K_M", "Q3_K_S", "Q4_0", "Q4_1", "Q4_K_M", "Q4_K_S")
UNSLOTH_BASES = [f"gemma-4-E2B-it-{kind}.gguf" for kind in (*LARGE, *SMALL)]
UNSLOTH = ["README.md", "config.json", "imatrix_unsloth.gguf", "mmproj-BF16.gguf", *UNSLOTH_BASES]
UNSLOTH_MTP = [f"MTP/gemma-4-E4B-it-{kind}-MTP.gguf" for kind in ("Q4_0", "Q8_0")]
ATOMIC = [f"gemma-4-E4B-it-assistant.{t}.gguf" for t in ("F16", "Q4_K_M", "Q4_K_S", "Q5_K_M")]
GEMMABLE = ["gemmable-4-12b-Q4_K_M-mtp.gguf", "gemmable-4-12b-Q4_K_M.gguf"]
GOOGLE = ["gemma-4-E4B_q4_0-it.gguf", "mmproj-gemma-4-E4B-it.gguf"]
IK = [f"gemma-4-12B-it-MTP-ik_llama-{kind}.gguf" for kind in ("Q4_K_M", "Q8_0")]
PARTS = [f"BF16/gemma-4-31B-it-BF16-0000{n}-of-00002.gguf" for n in (1, 2)]
MERGED_PARTS = [f"X-mtp.q8_0-0000{n}-of-00002.gguf" for n in (1, 2)]
EITHER = (BASE, HEADS)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with serve_alone(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture(scope="module")
def halves(
    tmp_path_factory: pytest.TempPathFactory, tiny_target: Path, tiny_drafter: Path
) -> tuple[Path, Path]:
    """A base and its heads, as GGUFs; the heads without this project's own keys."""
    directory = tmp_path_factory.mktemp("halves")
    base, heads = directory / "b.gguf", directory / "h.gguf"
    convert(tiny_target, tiny_drafter, directory / "m.gguf")
    split(directory / "m.gguf", base, heads)
    half = half_from_gguf(read_gguf(heads))
    keys = tuple(key for key in half.keys if not key.name.startswith("mtp."))
    write_gguf(plan(keys, half.tensors), directory / "foreign.gguf")
    return base, directory / "foreign.gguf"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def chosen(repo: str, names: list[str], role: str) -> list[str]:
    return only_model(Reference(repo), names, role)


def refused(repo: str, names: list[str], role: str) -> str:
    with pytest.raises(FetchError) as caught:
        chosen(repo, names, role)
    return str(caught.value)


def proposed(message: str) -> str:
    return message.partition("name one, as in ")[2].partition(";")[0]


@pytest.mark.parametrize(
    ("repo", "names", "role", "expected"),
    [
        ("u/gemma-4-GGUF", [*UNSLOTH, "mtp-gemma-4-E2B-it.gguf"], HEADS, "mtp-gemma-4-E2B-it.gguf"),
        ("u/gemma-4-GGUF", [*UNSLOTH, UNSLOTH_MTP[1]], HEADS, UNSLOTH_MTP[1]),
        ("u/gemma-4-GGUF", [GOOGLE[0], *UNSLOTH_MTP], BASE, GOOGLE[0]),
        ("google/gemma-4-E4B-it-qat-q4_0-gguf", GOOGLE, BASE, GOOGLE[0]),
        ("Mia-AiLab/Gemmable-4-12B-MTP-GGUF", GEMMABLE, BASE, GEMMABLE[1]),
        ("Mia-AiLab/Gemmable-4-12B-MTP-GGUF", GEMMABLE, HEADS, GEMMABLE[0]),
        ("AtomicChat/gemma-4-E4B-it-assistant-GGUF", ATOMIC[:1], HEADS, ATOMIC[0]),
        ("a/b", ["gemma-4-E2B-it-assistant-IQ4_NL.gguf"], HEADS, None),
        ("a/b", ["gemma-4-E4B-it-assist-F16.gguf", *GOOGLE], HEADS, None),
        ("a/b", ["gemma-4-12B-it-qat-assistant-MTP-Q8_0.gguf", *GOOGLE], HEADS, None),
        ("a/b", ["mtp-gemma-4-26B-A4B-it-UD-Q8_K_XL.gguf", *UNSLOTH], HEADS, None),
        ("a/b", ["Gemma-4-E2B-it-qat-assistant-MTP-Q8_0.GGUF", *GOOGLE], HEADS, None),
        ("a/b", [IK[1], *GOOGLE], HEADS, None),
        ("a/b", ["mtp/gemma-4-12B-it-F16.gguf", *GOOGLE], HEADS, None),
        ("a/b", ["gemma-4-31B-it-eagle3-F16.gguf", *GOOGLE], HEADS, None),
        # A merged file of this project does not hide the drafter that it was made from.
        ("a/b", ["mtp-X.gguf", "X-q8_0.gguf", "X-q8_0-mtp.gguf"], HEADS, "mtp-X.gguf"),
        ("a/b", ["mtp-X.gguf", "X-q8_0.gguf", "X-q8_0-mtp.gguf"], BASE, "X-q8_0.gguf"),
        ("a/b", [*MERGED_PARTS, "X-q8_0.gguf"], BASE, "X-q8_0.gguf"),
        ("a/b", [*MERGED_PARTS, "mtp-X.gguf"], HEADS, "mtp-X.gguf"),
        # The repository's name decides where no file's does, and not for a package.
        ("a/gemma-4-E4B-it-assistant-GGUF", ["gemma-4-E4B-it-Q8_0.gguf"], HEADS, None),
        ("a/gemma-4.5-MTP", ["drafting.gguf", "mmproj-F16.gguf"], HEADS, "drafting.gguf"),
        ("assistant/gemma-4", ["gemma-4-E4B-it-Q8_0.gguf"], BASE, "gemma-4-E4B-it-Q8_0.gguf"),
        ("a/mtp", ["gemma-4-E2B-it.litertlm"], PACKAGE, "gemma-4-E2B-it.litertlm"),
        # Other kinds of heads.
        ("a/b", ["gemma-4-E2B-it.litertlm", "X-Q8_0.gguf"], HEADS, "gemma-4-E2B-it.litertlm"),
        ("a/b", ["mtp_drafter.safetensors", "X-Q8_0.gguf"], HEADS, "mtp_drafter.safetensors"),
        ("a/b", ["gemma.litertlm", "mtp-X.gguf", "x.safetensors"], HEADS, "mtp-X.gguf"),
        ("a/b", ["gemma.litertlm", "X-mtp.gguf"], HEADS, "X-mtp.gguf"),
        ("a/b", ["gemma.litertlm", "mtp_drafter.tflite"], HEADS, "gemma.litertlm"),
        *(
            (
                "s/gemma-4-e4b-mtp-extraction-effort",
                ["Section9_tf_lite_embedder.tflite", "Section11_tf_lite_mtp_drafter.tflite"],
                role,
                "Section11_tf_lite_mtp_drafter.tflite",
            )
            for role in (HEADS, PACKAGE)
        ),
        # Neither one nor the other.
        *(
            ("a/b", [name, "gemma-4-lora-merged-Q8_0.gguf"], BASE, "gemma-4-lora-merged-Q8_0.gguf")
            for name in (
                "mmproj-google_gemma-4-E2B-it-f16.gguf",
                "gemma-4-E2B-it.mmproj-Q8_0.gguf",
                "google_gemma-4-E2B-it-imatrix.gguf",
                "imatrix_unsloth.gguf",
                "ggml-lora-f16.gguf",
                "gemma-4-E2B-it-F16-LoRA.gguf",
                "gemma-4-E2B-it-lora-q8_0.gguf",
                "adapter_model.gguf",
            )
        ),
        ("a/b", ["mmproj-mtp.gguf", "mtp-X.gguf"], HEADS, "mtp-X.gguf"),
        ("a/b", ["adapter_model.safetensors", "heads.safetensors"], HEADS, "heads.safetensors"),
    ],
)
def test_the_one_file(repo: str, names: list[str], role: str, expected: str | None) -> None:
    assert chosen(repo, names, role) == [expected or names[0]]
    assert chosen(repo, names[::-1], role) == [expected or names[0]]


@pytest.mark.parametrize(
    "names", [[*PARTS, "mtp-X.gguf"], [PARTS[1], "README.md", PARTS[0], "MTP/X-F16.gguf"]]
)
def test_a_base_in_parts(names: list[str]) -> None:
    assert chosen("a/b", names, BASE) == PARTS


@pytest.mark.parametrize(
    ("repo", "names", "role", "count", "proposal"),
    [
        ("u/gemma-4-GGUF", [*UNSLOTH, *UNSLOTH_MTP], HEADS, 2, UNSLOTH_MTP[1]),
        ("u/gemma-4-GGUF", [*UNSLOTH, "mtp-E4B.gguf", *UNSLOTH_MTP], HEADS, 3, UNSLOTH_MTP[1]),
        ("u/gemma-4-GGUF", [*UNSLOTH, "mtp-E4B.gguf", *UNSLOTH_MTP], BASE, 13, UNSLOTH_BASES[-2]),
        ("AtomicChat/gemma-4-E4B-it-assistant-GGUF", ATOMIC, HEADS, 4, ATOMIC[0]),
        ("a/b", [*GOOGLE, *IK], HEADS, 2, IK[1]),
        ("a/b", ["X-F16.gguf", "X-UD-Q6_K_XL.gguf", "X-Q8_0.gguf"], BASE, 3, "X-Q8_0.gguf"),
        ("a/b-assistant", ["X-Q4_K_M.gguf", "X-BF16.gguf"], HEADS, 2, "X-BF16.gguf"),
        ("a/b", [*PARTS, "X-IQ4_XS.gguf"], BASE, 2, PARTS[0]),
        ("a/b", ["a.litertlm", "b.litertlm"], PACKAGE, 2, "a.litertlm"),
    ],
)
def test_several(repo: str, names: list[str], role: str, count: int, proposal: str) -> None:
    message = refused(repo, names, role)
    assert message.startswith(f"hf://{repo}: holds {count} files that could be the {role}; ")
    assert proposed(message) == f"hf://{repo}/{proposal}"
    found = message.partition("found: ")[2].split(", ")
    assert found[0] == proposal
    assert len(found) == min(count, 13)
    others = UNSLOTH_BASES if role == HEADS else ["MTP", "mtp-"]
    assert not [name for name in others if name in message]


def test_drafters_are_not_cut_off() -> None:
    """However many bases and drafters there are, the proposal and its reason stay in the line."""
    drafters = [f"MTP/{'x' * 60}-{n:03}-MTP.gguf" for n in range(100)]
    names = [*UNSLOTH, *drafters, "MTP/y-Q8_0-MTP.gguf"]
    message = refused("a/b", names, HEADS)
    assert proposed(message) == "hf://a/b/MTP/y-Q8_0-MTP.gguf"
    assert message.endswith("and 89 more")


@pytest.mark.parametrize(
    ("repo", "names", "role", "words"),
    [
        ("u/gemma-4-GGUF", UNSLOTH, HEADS, "its .gguf files are not named as drafters: gemma-4-"),
        ("u/g", GOOGLE, HEADS, f"its .gguf files are not named as drafters: {GOOGLE[0]}; "),
        ("a/b", ATOMIC, BASE, f"its .gguf files are named as drafters: {ATOMIC[0]}, "),
        ("a/b", ["X-mtp.gguf"], BASE, "its .gguf files are named as drafters: X-mtp.gguf; "),
        (
            "a/legal-assistant-GGUF",
            ["X-Q8_0.gguf"],
            BASE,
            "its own name says that its .gguf files are drafters: X-Q8_0.gguf; ",
        ),
    ],
)
def test_none(repo: str, names: list[str], role: str, words: str) -> None:
    message = refused(repo, names, role)
    assert message.startswith(f"hf://{repo}: holds {LOOKED_FOR[role]}; {words}")
    assert message.endswith(f"; if one of them is the {role}, name it: hf://{repo}/FILE")


@pytest.mark.parametrize("role", ROLES)
def test_nothing_to_choose_from(role: str) -> None:
    names = ["README.md", "mmproj-F16.gguf", "pytorch_model.bin", ".hidden.gguf"]
    assert refused("a/b", names, role) == f"hf://a/b: holds {LOOKED_FOR[role]}"
    assert set(PREFERRED_TYPES) < set(ROLES)


@pytest.mark.parametrize(
    ("repo", "names", "expected"),
    [
        ("google/gemma-4-E2B-it-assistant", [], True),
        ("google/gemma-4-E2B-it-assistant", ["gemma-4-E2B-it-assistant-F16.gguf"], True),
        ("a/my-heads", ["X-Q8_0.gguf"], True),
        ("google/gemma-4-E2B-it", ["MTP/X-Q8_0-MTP.gguf"], False),
    ],
)
def test_a_checkpoint_with_drafters(repo: str, names: list[str], expected: bool) -> None:
    names = ["config.json", "model.safetensors", *names]
    assert is_checkpoint(Reference(repo), names, HEADS) is expected
    assert is_checkpoint(Reference(repo), names, BASE)
    assert is_checkpoint(Reference(repo), names, CHECKPOINT)


@pytest.mark.parametrize("source", ["a/b", "hf://a/b/x/mtp_drafter.safetensors"])
def test_what_is_read_next_to_loose_heads_is_fetched(hub: Hub, source: str) -> None:
    needed = {"x/mtp_drafter.safetensors", "x/config.json", "x/tokenizer.model"}
    needed.add("x/Section3_SP_Tokenizer.spiece")
    for name in (*needed, "config.json", "x/y/tokenizer.json", "x/tokenizer.py", "X-Q8_0.gguf"):
        hub.put("a/b", name, name.encode())
    assert local_path(source, HEADS).name == "mtp_drafter.safetensors"
    assert hub.fetched == needed
    assert set(FILES) < set(NEXT_TO_LOOSE)
    hub.seen.clear()
    assert local_path("hf://a/b/X-Q8_0.gguf", BASE).name == "X-Q8_0.gguf"
    assert hub.fetched == {"X-Q8_0.gguf"}


def publish(halves: tuple[Path, Path], put: Callable[[str, bytes], None]) -> None:
    """What a publisher's repository holds: `halves` under usual names, and what goes with them."""
    base, heads = (path.read_bytes() for path in halves)
    put("config.json", b'{"model_type": "gemma4"}')
    put("gemma-4-E2B-it-Q8_0.gguf", base)
    put("MTP/gemma-4-E2B-it-Q8_0-MTP.gguf", heads)
    put("mmproj-BF16.gguf", b"encoders")
    put("imatrix_unsloth.gguf", b"matrix")


def write_into(folder: Path) -> Callable[[str, bytes], None]:
    def put(name: str, data: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return put


def as_merged(path: Path) -> dict[str, object]:
    """The tensors' names and the recorded origin of a merged file."""
    file = read_gguf(path)
    keys = {name: key.value for name, key in file.by_name.items() if name.startswith("mtp.")}
    return {"tensors": [ref.name for ref in file.tensors]} | {
        name: keys.get(name) for name in ("mtp.source.name", "mtp.source.repository")
    }


def test_one_repository_is_base_and_heads(
    hub: Hub, tmp_path: Path, halves: tuple[Path, Path]
) -> None:
    publish(halves, lambda name, data: hub.put("u/gemma-4-E2B-it-GGUF", name, data))
    repo = "u/gemma-4-E2B-it-GGUF"
    result = run("convert", "--base", repo, "--heads", repo, "-o", "out.gguf")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[:2] == [
        f"note: {repo}: using gemma-4-E2B-it-Q8_0.gguf",
        f"note: {repo}: using MTP/gemma-4-E2B-it-Q8_0-MTP.gguf",
    ]
    assert hub.fetched == {"gemma-4-E2B-it-Q8_0.gguf", "MTP/gemma-4-E2B-it-Q8_0-MTP.gguf"}
    assert as_merged(tmp_path / "out.gguf")["mtp.source.repository"] == repo
    quiet = run("convert", "--base", repo, "--heads", repo, "-o", "out.gguf", "--force", "-q")
    assert (quiet.exit_code, quiet.stderr, quiet.stdout) == (0, "", "")


def test_a_folder_is_searched_like_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halves: tuple[Path, Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("mtp-models")
    publish(halves, write_into(folder))
    result = run("convert", "--base", folder, "--heads", folder, "-o", folder)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[:2] == [
        "note: mtp-models: using gemma-4-E2B-it-Q8_0.gguf",
        "note: mtp-models: using MTP/gemma-4-E2B-it-Q8_0-MTP.gguf",
    ]
    out = folder / "gemma-4-E2B-it-Q8_0-mtp.gguf"
    first = as_merged(out)
    # The output is named as it is in many folders; the choice stays the same.
    again = run("convert", "--base", folder, "--heads", folder, "-o", folder, "--force", "-q")
    assert (again.exit_code, again.stderr) == (0, "")
    assert as_merged(out) == first
    assert local_path(folder / "MTP", HEADS) == folder / "MTP" / "gemma-4-E2B-it-Q8_0-MTP.gguf"


def test_attach_takes_heads_of_a_folder(tmp_path: Path, halves: tuple[Path, Path]) -> None:
    folder = tmp_path / "models"
    publish(halves, write_into(folder))
    out = tmp_path / "out.gguf"
    base = folder / "gemma-4-E2B-it-Q8_0.gguf"
    result = run("attach", base, "--heads", folder, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert out.read_bytes().startswith(base.read_bytes())
    # In a folder nothing is changed in place.
    refusal = run("attach", folder, "--heads", folder, "--in-place")
    assert (refusal.exit_code, base.read_bytes()) == (2, halves[0].read_bytes())


def test_refusals_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put = write_into(Path("models"))
    put("notes.txt", b"")
    for role in EITHER:
        with pytest.raises(UnsupportedError) as caught:
            local_path("models", role)
        assert str(caught.value) == f"models: holds {LOOKED_FOR[role]}"
    for name in ("X-Q8_0.gguf", "X-Q4_K_M.gguf", ".cache/mtp-hidden.gguf", "a/b/mtp-deep.gguf"):
        put(name, b"GGUF")
    result = run("convert", "--base", "models", "--heads", "models", "-o", "out.gguf")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: models: holds 2 files that could be the base; name one, as in "
        "models/X-Q4_K_M.gguf; found: X-Q4_K_M.gguf, X-Q8_0.gguf\n",
    )
    with pytest.raises(UnsupportedError, match=r"not named as drafters: X-Q4_K_M\.gguf, X-Q8_"):
        local_path("models", HEADS)
    put("mtp-\x1b[2J.gguf", b"GGUF")
    assert run("convert", "--base", "models", "--heads", "models", "-o", "x").exit_code == 2
    result = run("convert", "--base", "models/X-Q8_0.gguf", "--heads", "models", "-o", "x")
    assert "\x1b" not in result.stderr
    assert r"models: using mtp-\x1b[2J.gguf" in result.stderr


def test_names_of_folders_do_not_count(tmp_path: Path) -> None:
    """People call folders what they like: a base in one called mtp is not heads."""
    folder = tmp_path / "gguf-mtp"
    write_into(folder)("gemma-4-E2B-it-Q8_0.gguf", b"GGUF")
    assert local_path(folder, BASE) == folder / "gemma-4-E2B-it-Q8_0.gguf"
    with pytest.raises(UnsupportedError, match=r"not named as drafters: gemma-4-E2B-it-Q8_0\.gguf"):
        local_path(folder, HEADS)


@pytest.mark.parametrize(
    "names",
    [
        ["config.json", "model.safetensors", "mtp-X.gguf"],
        ["drafter.safetensors", "mtp-X.gguf"],
        ["model.safetensors.index.json", "X.gguf"],
        ["adapter_config.json", "X.gguf"],
        ["config.json", "pytorch_model.bin"],
    ],
)
def test_folders_that_are_a_model_themselves(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_into(tmp_path / "m")(name, b"{}")
    for role in EITHER:
        assert local_path(tmp_path / "m", role) == tmp_path / "m"


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UnsupportedError) as caught:
        local_path(tmp_path, BASE)
    assert str(caught.value) == f"{tmp_path}: cannot open: Permission denied"


def test_inner_checkpoints_are_not_heads(tmp_path: Path) -> None:
    put = write_into(tmp_path)
    put("gemma-4-E2B-it/model.safetensors", b"a base")
    with pytest.raises(UnsupportedError) as caught:
        local_path(tmp_path, HEADS)
    assert str(caught.value) == f"{tmp_path}: holds {LOOKED_FOR[HEADS]}"


OTHER = "2" * 40


def cached(directory: Path, repo: str, *commits: str, main: str | None = None) -> Path:
    folder = directory / f"models--{repo.replace('/', '--')}"
    for commit in commits:
        (folder / "snapshots" / commit).mkdir(parents=True)
    if main is not None:
        write_into(folder)("refs/main", main.encode())
    return folder


@pytest.mark.parametrize(
    ("commits", "main", "expected"),
    [
        ((COMMIT,), None, COMMIT),
        ((COMMIT,), OTHER, COMMIT),
        ((COMMIT, OTHER), OTHER, OTHER),
        ((COMMIT, OTHER), f"{COMMIT}\n", COMMIT),
    ],
)
def test_a_folder_of_the_cache(
    tmp_path: Path, commits: tuple[str, ...], main: str | None, expected: str
) -> None:
    folder = cached(tmp_path, "google/gemma-4-E2B-it", *commits, main=main)
    for commit in commits:
        write_into(folder / "snapshots" / commit)("config.json", b"{}")
        write_into(folder / "snapshots" / commit)("model.safetensors", b"")
    for role in (*EITHER, CHECKPOINT):
        assert local_path(folder, role) == folder / "snapshots" / expected


@pytest.mark.parametrize("main", [None, "3" * 40, "../../../etc", "", "\xff"])
def test_a_folder_of_the_cache_with_several_snapshots(tmp_path: Path, main: str | None) -> None:
    folder = cached(tmp_path, "a/b", COMMIT, OTHER, main=main)
    with pytest.raises(UnsupportedError) as caught:
        local_path(folder, BASE)
    assert str(caught.value) == (
        f"{folder}: refs/main names none of the 2 snapshots; name one, as in "
        f"{folder / 'snapshots' / COMMIT}; found: {COMMIT}, {OTHER}"
    )


def test_an_empty_folder_of_the_cache(tmp_path: Path) -> None:
    folder = cached(tmp_path, "a/b")
    (folder / "snapshots").mkdir(parents=True)
    with pytest.raises(UnsupportedError, match=r"models--a--b: holds no snapshots/COMMIT; down"):
        local_path(folder, BASE)


def test_a_repository_in_the_cache_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halves: tuple[Path, Path]
) -> None:
    """In the files that are recorded, and where that decides: no file here is named as a drafter"""
    monkeypatch.chdir(tmp_path)
    folder = cached(Path(), "AtomicChat/gemma-4-E2B-it-assistant-GGUF", COMMIT)
    write_into(folder / "snapshots" / COMMIT)("gemma-4-E2B-it-Q8_0.gguf", halves[1].read_bytes())
    result = run("convert", "--base", halves[0], "--heads", folder, "-o", "out.gguf")
    assert result.exit_code == 0, result.stderr
    inner = f"snapshots/{COMMIT}/gemma-4-E2B-it-Q8_0.gguf"
    assert f"note: {folder}: using {inner}" in result.stderr.splitlines()
    source = as_merged(tmp_path / "out.gguf")["mtp.source.repository"]
    assert source == "AtomicChat/gemma-4-E2B-it-assistant-GGUF"
    with pytest.raises(UnsupportedError, match=r"its own name says that its \.gguf files are dra"):
        local_path(folder, BASE)


def test_packages_of_folders_and_repositories(hub: Hub, tmp_path: Path) -> None:
    """Drafters as GGUF, and encoders, are not taken for a package."""
    package = fixture("mixed")
    for name in ("mtp-gemma-4-E2B-it.gguf", "gemma-4-E2B-it-Q8_0.gguf", "mmproj-F16.gguf"):
        hub.put("litert/gemma-MTP", name, b"GGUF")
    hub.put("litert/gemma-MTP", "gemma-4-E2B-it.litertlm", package.read_bytes())
    assert run("extract", "litert/gemma-MTP", "-o", tmp_path / "a").exit_code == 0
    assert hub.fetched == {"gemma-4-E2B-it.litertlm"}
    folder = tmp_path / "packages"
    folder.mkdir()
    shutil.copy(package, folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(b"{}")
    result = run("extract", folder, "-o", tmp_path / "b")
    assert result.exit_code == 0, result.stderr
    names = [sorted(path.name for path in (tmp_path / out).iterdir()) for out in "ab"]
    assert names[0] == names[1]
    done = run("audit", "--litert", folder, "--hf", tmp_path / "a")
    assert done.exit_code == 0, done.stderr
