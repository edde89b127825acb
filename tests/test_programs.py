"""The patched programs on one merged file, against two files, against none, against stock.

Texts are compared on the `exact` build at F32, whose kernels do not depend on the batch width, so
that equality is a claim about the code and not about near-ties.
"""

import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import same_text
from gguf_mtp import api
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.validate.prompts import Prompt, load_prompts
from hung import HUNG
from llama_programs import GREEDY, THREADS, Server, programs, server, speculative_simple
from pair_files import Files

PROMPTS = load_prompts(["python"])
N_PREDICT = 64
USES_HEADS = "drafting with the MTP heads inside"


@pytest.fixture(scope="module")
def plain_server(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("plain") / "log"
    with server(programs("exact"), "-m", files.base, log=log) as running:
        yield running


@pytest.fixture(scope="module")
def mtp_server(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("mtp") / "log"
    with server(programs("exact"), "-m", files.merged, log=log) as running:
        yield running
    assert USES_HEADS in log.read_text()


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: p.id)
def test_speculative_simple_gives_one_text(files: Files, prompt: Prompt) -> None:
    exact = programs("exact")
    two = ("-m", files.base, "-md", files.heads, "--spec-type", "draft-mtp")
    one_file = speculative_simple(exact, "-m", files.merged, prompt=prompt.text)
    two_files = speculative_simple(exact, *two, prompt=prompt.text)
    plain = speculative_simple(exact, "-m", files.merged, "--spec-type", "none", prompt=prompt.text)

    assert USES_HEADS in one_file.log
    assert one_file.figure("n_accept") > 0
    assert USES_HEADS not in plain.log
    assert plain.figure("n_drafted") == 0
    assert same_text(one_file.text, plain.text)
    assert same_text(two_files.text, plain.text)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: p.id)
def test_server_gives_one_text(plain_server: Server, mtp_server: Server, prompt: Prompt) -> None:
    plain = plain_server.complete(prompt.text, N_PREDICT)
    mtp = mtp_server.complete(prompt.text, N_PREDICT)
    assert mtp["tokens"] == plain["tokens"]
    assert len(mtp["tokens"]) > 1
    assert mtp["timings"]["draft_n_accepted"] > 0
    assert "draft_n" not in plain["timings"]


def test_server_gives_the_text_of_speculative_simple(mtp_server: Server, files: Files) -> None:
    prompt = PROMPTS[0].text
    served = prompt + mtp_server.complete(prompt, N_PREDICT)["content"]
    alone = speculative_simple(programs("exact"), "-m", files.merged, prompt=prompt)
    assert same_text(served.strip(), alone.text.removeprefix("<bos>").strip())


def test_server_turns_it_off_on_request(files: Files, tmp_path: Path) -> None:
    log = tmp_path / "log"
    exact = programs("exact")
    with server(exact, "-m", files.merged, "--spec-type", "none", log=log) as running:
        answer = running.complete(PROMPTS[0].text, 16)
    assert "draft_n" not in answer["timings"]
    assert USES_HEADS not in log.read_text()


def cli_answer(*arguments: str | Path, prompt: str) -> tuple[str, str]:
    """What llama-cli answers to one message, and its log."""
    # fmt: off
    command = [str(programs("exact") / "llama-cli"), *map(str, arguments), *THREADS, *GREEDY,
               "-c", "1024", "-n", str(N_PREDICT), "--ignore-eos", "--single-turn", "--simple-io",
               "--no-show-timings", "-lv", "4", "-p", prompt]
    # fmt: on
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=HUNG,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    banner, _, answer = result.stdout.partition("available commands:")
    assert banner
    return answer, result.stderr


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: p.id)
def test_cli_gives_one_text(files: Files, prompt: Prompt) -> None:
    mtp, mtp_log = cli_answer("-m", files.merged, prompt=prompt.text)
    off, off_log = cli_answer("-m", files.merged, "--spec-type", "none", prompt=prompt.text)
    assert mtp == off
    assert mtp.split(prompt.text)[-1].strip().removesuffix("Exiting...").strip()
    assert USES_HEADS in mtp_log
    assert USES_HEADS not in off_log


@pytest.mark.parametrize("prompt", PROMPTS[:6], ids=lambda p: p.id)
def test_split_halves_run_on_an_unpatched_build(files: Files, prompt: Prompt) -> None:
    halves = ("-m", files.base, "-md", files.heads, "--spec-type", "draft-mtp")
    # Step by step, as upstream does: drafts in one graph do not run past the tokens asked for.
    steps = (*halves, "--no-spec-draft-one-graph")
    ours = speculative_simple(programs("exact"), *steps, prompt=prompt.text)
    stock = speculative_simple(programs("stock"), *halves, prompt=prompt.text)
    assert same_text(stock.text, ours.text)
    assert stock.figure("n_accept") == ours.figure("n_accept") > 0


def test_an_unpatched_build_refuses_the_merged_file(files: Files) -> None:
    command = [str(programs("stock") / "llama-speculative-simple"), "-m", str(files.merged)]
    result = subprocess.run([*command, "-p", "x"], capture_output=True, text=True, errors="replace")
    assert result.returncode != 0
    assert "wrong number of tensors" in result.stderr


@pytest.mark.parametrize("prompt", PROMPTS[:6], ids=lambda p: p.id)
def test_rows_in_token_order_draft_the_same(files: Files, prompt: Prompt) -> None:
    exact = programs("exact")
    two = ("-m", files.base, "-md", files.with_tensors, "--spec-type", "draft-mtp")
    sorted_rows = speculative_simple(exact, "-m", files.merged, prompt=prompt.text)
    token_order = speculative_simple(exact, *two, prompt=prompt.text)
    assert token_order.text == sorted_rows.text
    for name in ("n_drafted", "n_accept"):
        assert token_order.figure(name) == sorted_rows.figure(name)


def test_an_explicit_drafter_wins(files: Files) -> None:
    arguments = ("-m", files.merged, "-md", files.heads, "--spec-type", "draft-mtp")
    run = speculative_simple(programs("exact"), *arguments, prompt=PROMPTS[0].text)
    assert USES_HEADS not in run.log
    assert run.figure("n_accept") > 0


def load_error(path: str) -> str:
    """The log of a program that must not be able to load `path`."""
    command = [str(programs("exact") / "llama-speculative-simple"), "-m", path, "-p", "x"]
    for _ in range(10):
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        assert result.returncode != 0
        # Upstream's program may end before its logger has written its error lines.
        if re.search(r"^\S+ E ", result.stderr, re.MULTILINE):
            break
    return result.stderr


def test_asking_a_plain_file_for_heads_is_an_error(files: Files) -> None:
    assert re.search(r"carries no MTP heads", load_error(f"{files.base}#mtp"))


def test_another_format_version_is_refused(files: Files, tmp_path: Path) -> None:
    data = bytearray(files.merged.read_bytes())
    key = b"mtp.format.version"
    at = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key)
    assert data[at : at + 8] == struct.pack("<II", 4, 1)  # u32, version 1
    data[at + 4] = 2
    newer = tmp_path / "newer.gguf"
    newer.write_bytes(data)
    assert "mtp.format.version: expected u32 1" in load_error(str(newer))


def test_a_file_whose_name_ends_like_a_fragment_is_itself(files: Files, tmp_path: Path) -> None:
    odd = tmp_path / "base#mtp"
    odd.write_bytes(files.base.read_bytes())
    run = speculative_simple(
        programs("exact"), "-m", odd, "--spec-type", "none", prompt=PROMPTS[0].text, n_predict=8
    )
    assert run.text


def test_quantize_reads_the_file_that_is_named(files: Files, tmp_path: Path) -> None:
    """Not one beside it whose name ends like a part's."""
    source, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    source.write_bytes(files.merged.read_bytes())
    for part in ("#all", "#mtp"):
        Path(f"{source}{part}").write_bytes(files.base.read_bytes())
    command = [str(programs("default") / "llama-quantize"), str(source), str(out), "COPY", "1"]
    subprocess.run(command, check=True, capture_output=True)
    names = {tensor.name for tensor in read_gguf(out).tensors}
    assert names == {tensor.name for tensor in read_gguf(files.merged).tensors}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_quantize_keeps_the_heads(files: Files, kind: str, tmp_path: Path) -> None:
    """Also the check that quantized kernels run at verify width 4 (the gcc 12 + AMX trap)."""
    default = programs("default")
    merged, alone, base = (tmp_path / f"{name}.gguf" for name in ("merged", "alone", "base"))
    for source, out in [(files.merged, merged), (files.base, alone)]:
        command = [str(default / "llama-quantize"), str(source), str(out), kind, "1"]
        subprocess.run(command, check=True, capture_output=True)

    heads = {t.name: t for t in read_gguf(merged).tensors if t.name.startswith("mtp.")}
    before = {t.name: t for t in read_gguf(files.merged).tensors if t.name.startswith("mtp.")}
    assert heads.keys() == before.keys()
    for name, tensor in heads.items():
        assert (tensor.dtype, tensor.shape) == (before[name].dtype, before[name].shape)
        assert stored(tensor.file, tensor.offset, tensor.nbytes) == stored(
            before[name].file, before[name].offset, before[name].nbytes
        )
    api.split(merged, base, None)
    assert base.read_bytes() == alone.read_bytes()

    run = speculative_simple(
        default, "-m", merged, "--spec-draft-n-max", "3", prompt=PROMPTS[0].text
    )
    assert run.figure("n_accept") > 0


def stored(path: Path, offset: int, nbytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(nbytes)
