"""Look-alikes of published files: every base with every drafter of its size, merged in both
layouts, taken apart again, and run."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import lookalikes
import tiny
from demo import same_text
from gguf_mtp.api import attach, convert, detach, plan_convert, split
from gguf_mtp.cli.main import main
from gguf_mtp.errors import PairingError, UnsupportedError
from gguf_mtp.keyvalue import KeyValue
from gguf_mtp.model import Half, half_from_gguf
from gguf_mtp.readers.gguf import read_gguf
from llama_programs import programs, speculative_simple
from lookalike_runs import BASE_ALONE, N_PLAIN
from lookalikes import STAND_INS, write_half
from pair_files import Files
from released_facts import FACTS, ITEMS, VALUE_TYPES, Facts, all_facts, read_facts

LAYERS = {"E2B": 35, "E4B": 42, "12B": 48, "26B-A4B": 30, "31B": 60}
# Keys that have the model's width or vocabulary in them, which is small in a look-alike.
OWN_VALUES = ("gemma4", "tokenizer.")
# A drafter of a fork that stores it under the base's architecture.
REFUSED = "drafter-tq3-E2B"
ENCODERS = "base-ollama-E4B-april"
BASES, DRAFTERS = all_facts("base"), all_facts("drafter")
PAIRS = [
    (base.name, drafter.name)
    for base in BASES
    for drafter in DRAFTERS
    if base.size == drafter.size and drafter.name != REFUSED
]
pairs = pytest.mark.parametrize(
    ("base", "drafter"), PAIRS, ids=[f"{base}+{drafter}" for base, drafter in PAIRS]
)
Write = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Look-alikes by name, each written once. Do not write to them."""
    root = tmp_path_factory.mktemp("lookalikes")

    def write(name: str) -> Path:
        path = root / f"{name}.gguf"
        return path if path.exists() else write_half(lookalikes.lookalike(name), path)

    return write


# ------------------------------------------------------------------------------ the table of facts


@pytest.mark.parametrize("path", sorted(FACTS.glob("*.json")), ids=lambda path: path.stem)
def test_facts_are_of_one_schema(path: Path) -> None:
    facts = read_facts(path.stem)
    assert path.stem.startswith(f"{facts.role}-")
    assert facts.role in ("base", "drafter")
    assert facts.size in (*tiny.SIZES, None)
    assert facts.sources
    assert all(facts.sources)
    assert (facts.n_keys is None) == (facts.unprinted_keys is None)
    assert facts.key_order in lookalikes.KEY_ORDERS
    assert set(facts.token_types) == {"<eos>", "<|video|>"}
    assert set(facts.token_types.values()) <= {None, lookalikes.NORMAL, lookalikes.CONTROL}
    for key in facts.keys:
        items = ITEMS.fullmatch(key.kind)
        assert (items[1] if items else key.kind) in VALUE_TYPES
    if facts.tensor_types is not None:
        assert sum(facts.tensor_types.values()) == facts.n_tensors
    if facts.like is not None:
        assert read_facts(facts.like).architecture == facts.architecture


def test_every_size_has_bases_and_drafters() -> None:
    counts = Counter((facts.role, facts.size) for facts in all_facts())
    assert all(counts["base", size] >= 3 for size in tiny.SIZES)
    assert all(counts["drafter", size] >= 3 for size in tiny.SIZES)
    assert len(PAIRS) == 72


@pytest.mark.parametrize("facts", all_facts(), ids=lambda facts: facts.name)
def test_a_lookalike_has_what_was_printed(facts: Facts, written: Write) -> None:
    file = read_gguf(written(facts.name))
    keys = {key.name: key for key in file.keys}
    kinds = {name: kind for kind, name in VALUE_TYPES.items()}
    for printed in facts.keys:
        key = keys[printed.name]
        kind = kinds[key.type] if key.item_type is None else f"arr[{kinds[key.item_type]}]"
        assert kind == printed.kind, printed.name
        if printed.value is not None and not printed.name.startswith(OWN_VALUES):
            assert key.value == pytest.approx(printed.value), printed.name
    order = [key.name for key in facts.keys if key.name in keys]
    if facts.all_keys:
        assert list(keys) == order
    elif facts.key_order == "alphabetical":
        assert list(keys) == sorted(keys)
    assert not set(facts.without) & set(keys)
    if facts.n_keys is not None:
        assert len(keys) == facts.n_keys - (facts.unprinted_keys or 0)
    if facts.n_tensors is not None:
        assert len(file.tensors) == facts.n_tensors
    if facts.tensor_types is not None:
        expected: Counter[str] = Counter()
        for name, count in facts.tensor_types.items():
            expected[STAND_INS.get(name, name)] += count
        assert Counter(tensor.dtype for tensor in file.tensors) == expected


@pytest.mark.parametrize("facts", all_facts(), ids=lambda facts: facts.name)
def test_a_lookalike_has_the_printed_special_tokens(facts: Facts, written: Write) -> None:
    keys = {key.name: key.value for key in read_gguf(written(facts.name)).keys}
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    drafter = facts.role == "drafter"
    for text, default in (("<eos>", 3), ("<|video|>", 1 if drafter else 3)):
        stated = facts.token_types[text]
        assert types[tokens.index(text)] == (default if stated is None else stated)
    printed = {key.name: key.value for key in facts.keys}
    eos = printed.get("tokenizer.ggml.eos_token_id")
    if eos is not None:
        assert tokens[keys["tokenizer.ggml.eos_token_id"]] == {1: "<eos>", 106: "<turn|>"}[eos]
    assert ("tokenizer.chat_template" in keys) == (not drafter)
    arch = facts.architecture
    assert keys[f"{arch}.block_count"] == (4 if drafter else LAYERS[str(facts.size)])


def test_a_lookalike_is_the_same_every_time(written: Write, tmp_path: Path) -> None:
    for name in ("base-unsloth-E2B-Q4_K_M", "drafter-ik-E2B-cafkafk"):
        again = write_half(lookalikes.lookalike(name), tmp_path / name)
        assert again.read_bytes() == written(name).read_bytes()


# --------------------------------------------------------------------------- merged and taken apart


def own_keys(half: Half) -> list[KeyValue]:
    """The keys of a file less the provenance that merging adds."""
    return [key for key in half.keys if not key.name.startswith("mtp.")]


def contents(path: Path) -> tuple[list[KeyValue], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Keys in order; tensors by name: type, shape, bytes."""
    data, file = path.read_bytes(), read_gguf(path)
    tensors = {
        ref.name: (ref.dtype, ref.shape, data[ref.offset :][: ref.nbytes]) for ref in file.tensors
    }
    return own_keys(half_from_gguf(file)), tensors


def expected_base(base: Facts, path: Path) -> tuple[list[KeyValue], dict[str, Any]]:
    """What `split` gives back of a base: encoders are not merged."""
    keys, tensors = contents(path)
    if not base.encoders:
        return keys, tensors
    encoders = ("gemma4.vision.", "gemma4.audio.")
    return (
        [key for key in keys if not key.name.startswith(encoders)],
        {name: item for name, item in tensors.items() if not name.startswith(("v.", "a.", "mm."))},
    )


def assert_same_heads(found: Path, original: Path) -> None:
    (keys, tensors), (found_keys, found_tensors) = contents(original), contents(found)
    assert found_keys == keys
    assert found_tensors == tensors


@pairs
def test_merged_inline_and_split(base: str, drafter: str, written: Write, tmp_path: Path) -> None:
    merged, own_base, own_heads, again = (tmp_path / f"{name}.gguf" for name in "mbha")
    facts = read_facts(base), read_facts(drafter)
    convert(written(base), written(drafter), merged)
    assert_inspected(*facts, merged, "inline")
    split(merged, own_base, own_heads, dialect=str(facts[1].dialect))
    assert contents(own_base) == expected_base(facts[0], written(base))
    assert_same_heads(own_heads, written(drafter))
    merged_keys = {key.name: key for key in read_gguf(merged).keys}
    # Everything of the base's is there as it was: its EOS, token types and chat template.
    assert all(merged_keys[key.name] == key for key in contents(own_base)[0])
    convert(own_base, own_heads, again)
    assert again.read_bytes() == merged.read_bytes()


@pairs
def test_attached_and_detached(base: str, drafter: str, written: Write, tmp_path: Path) -> None:
    facts = read_facts(base), read_facts(drafter)
    file, own_base, own_heads = (tmp_path / f"{name}.gguf" for name in "fbh")
    shutil.copy(written(base), file)
    if facts[0].encoders:
        with pytest.raises(UnsupportedError, match=r"vision and audio encoders.*convert") as error:
            attach(file, written(drafter))
        assert str(file) in str(error.value)
        assert file.read_bytes() == written(base).read_bytes()
        return
    attach(file, written(drafter))
    assert_inspected(*facts, file, "tail")
    split(file, own_base, own_heads, dialect=str(facts[1].dialect))
    assert own_base.read_bytes() == written(base).read_bytes()
    assert_same_heads(own_heads, written(drafter))
    detach(file)
    assert file.read_bytes() == written(base).read_bytes()


def assert_inspected(base: Facts, drafter: Facts, path: Path, layout: str) -> None:
    result = CliRunner().invoke(main, ["inspect", "--json", str(path)])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)["summary"]
    heads = summary["heads"]
    assert (summary["architecture"], heads["architecture"]) == ("gemma4", "gemma4-assistant")
    assert (heads["layout"], heads["layers"], heads["tokenizer_shared"]) == (layout, 4, True)
    assert heads["provenance"]["source.dialect"] == drafter.dialect
    assert (summary["ordered_head"] is not None) == bool(drafter.ordered_head)
    if base.n_tensors is not None and not base.encoders:
        assert sum(summary["types"].values()) == base.n_tensors


@pytest.mark.parametrize("facts", all_facts(), ids=lambda facts: facts.name)
def test_a_file_alone_is_inspected(facts: Facts, written: Write) -> None:
    result = CliRunner().invoke(main, ["inspect", "--json", str(written(facts.name))])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)["summary"]
    tensors = read_gguf(written(facts.name)).tensors
    assert summary["architecture"] == facts.architecture
    assert summary["types"] == Counter(tensor.dtype for tensor in tensors)
    assert not summary["merged"]
    assert (summary["ordered_head"] is not None) == bool(facts.ordered_head)


# ---------------------------------------------------------------------- what is said, and refused


def notes(base: Path, drafter: Path) -> dict[str, str]:
    return {note.code: note.message for note in plan_convert(base, drafter).notes}


def test_a_difference_of_tokenizers_is_named_and_the_base_wins(written: Write) -> None:
    base = written("base-unsloth-E2B-Q4_K_M")
    said = notes(base, written("drafter-atomic-E2B-F16"))["tokenizer-differs"]
    assert "eos_token_id (base 106, heads 1)" in said
    assert "token_type (2 of 512, first at 1: base 1, heads 3)" in said


def test_heads_of_one_repository_with_its_base(written: Write) -> None:
    """Unsloth's own E4B base and drafter differ as much as two publishers' files do."""
    said = notes(written("base-unsloth-E4B-UD-Q4_K_XL"), written("drafter-unsloth-E4B"))
    assert "eos_token_id (base 106, heads 1)" in said["tokenizer-differs"]


def test_encoders_are_left_out_with_a_note(written: Write) -> None:
    said = notes(written(ENCODERS), written("drafter-unsloth-E4B"))
    assert "(1411 tensors)" in said["encoders-left-out"]
    assert "--mmproj" in said["encoders-left-out"]
    assert "model (base 'llama', heads 'gemma4')" in said["tokenizer-differs"]


def test_qat_and_other_heads_are_told_apart_by_name(written: Write) -> None:
    qat, other = written("base-google-E2B-qat-q4_0"), written("base-bartowski-E2B-Q4_K_M")
    heads = written("drafter-amaranus-E2B-qat-Q8_0")
    assert "qat-mismatch" not in notes(qat, heads)
    assert "qat-mismatch" in notes(other, heads)


@pytest.mark.parametrize("layout", ["inline", "tail"])
def test_a_drafter_under_the_base_architecture_is_refused(
    layout: str, written: Write, tmp_path: Path
) -> None:
    heads = written(REFUSED)
    for base in all_facts("base", "E2B"):
        with pytest.raises(UnsupportedError) as error:
            convert(written(base.name), heads, tmp_path / "m.gguf", layout=layout)
        said = str(error.value)
        assert said.startswith(f"{heads}: ")
        assert "'gemma4'" in said
        assert "assistant.pre_projection.weight" in said
        assert "'gemma4-assistant'" in said
        assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(("size", "other"), [("E2B", "E4B"), ("12B", "31B"), ("26B-A4B", "E2B")])
def test_another_size_is_refused(size: str, other: str, written: Write) -> None:
    for base in all_facts("base", size)[:2]:
        for drafter in all_facts("drafter", other)[:2]:
            with pytest.raises(PairingError, match=r"target hidden size|key-value heads"):
                plan_convert(written(base.name), written(drafter.name))


# --------------------------------------------------------------------------------------------- run


@pytest.fixture(params=["default", "stock"])
def library(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A patched and an unpatched build, and the directory of each."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    return request.param, programs(request.param)


def run(library: Path, *files: Path | str) -> Iterator[dict[str, Any]]:
    """What `lookalike_runs` says of each of `files`, with the library in a directory."""
    script = Path(__file__).with_name("lookalike_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), *map(str, files)],
        env=os.environ | {"LLAMA_CPP_LIB_PATH": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"after {len(said)} of {files}: {done.stderr[-2000:]}"
    assert [item["file"] for item in said] == [*map(str, files)]
    yield from said


@pytest.mark.parametrize("size", tiny.SIZES)
def test_every_pair_runs(
    size: str, library: tuple[str, Path], written: Write, tmp_path: Path
) -> None:
    """A patched library runs the inline layout, an unpatched one the tail layout; the logits are
    those of the base alone."""
    variant, directory = library
    layout = {"default": "inline", "stock": "tail"}[variant]
    chosen = [pair for pair in PAIRS if read_facts(pair[0]).size == size]
    merged = [tmp_path / f"{base}+{drafter}.gguf" for base, drafter in chosen]
    for (base, drafter), path in zip(chosen, merged, strict=True):
        convert(written(base), written(drafter), path, layout=layout)
    plain = [facts for facts in all_facts("base", size) if not facts.encoders]
    alone = run(directory, *(f"{BASE_ALONE}{written(facts.name)}" for facts in plain))
    expected = {facts.name: said["logits"] for facts, said in zip(plain, alone, strict=True)}
    for (base, _), said in zip(chosen, run(directory, *merged), strict=True):
        assert said["drafted"] > 0, said
        assert len(said["logits"]) == N_PLAIN
        # A file with encoders in it cannot be loaded alone.
        assert said["logits"] == expected.get(base, said["logits"]), said
    assert all(len(set(rows)) == N_PLAIN for rows in expected.values())
    for path in merged:
        path.unlink()


# ---------------------------------------------------------------------------- with trained weights


@pytest.fixture(scope="module")
def trained(files: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The trained pair as unsloth's base and AtomicChat's drafter of E2B are stored."""
    root = tmp_path_factory.mktemp("dressed")
    # The fixture's vocabulary has no <|video|>: another special token has its types.
    stands_for = {"<|video|>": "<|think|>"}
    halves = {
        "base-unsloth-E2B-Q4_K_M": files.base,
        "drafter-atomic-E2B-F16": files.with_tensors,
    }
    base, heads = (
        write_half(
            lookalikes.dressed(read_facts(name), plain_half(path), stands_for),
            root / f"{name}.gguf",
        )
        for name, path in halves.items()
    )
    return base, heads


def plain_half(path: Path) -> Half:
    """A file's keys and tensors less provenance, as another program would have made it."""
    half = half_from_gguf(read_gguf(path))
    return replace(half, keys=tuple(own_keys(half)))


def test_the_trained_pair_looks_like_the_published_one(trained: tuple[Path, Path]) -> None:
    base, heads = ({key.name: key.value for key in read_gguf(path).keys} for path in trained)
    tokens, eos, types = "tokens", "eos_token_id", "token_type"
    at = base[f"tokenizer.ggml.{tokens}"].index
    assert base[f"tokenizer.ggml.{eos}"] == at("<turn|>")
    assert heads[f"tokenizer.ggml.{eos}"] == at("<eos>")
    for text, ours, theirs in (("<eos>", 1, 3), ("<|think|>", 3, 1)):
        assert base[f"tokenizer.ggml.{types}"][at(text)] == ours
        assert heads[f"tokenizer.ggml.{types}"][at(text)] == theirs
    assert "tokenizer.chat_template" in base
    assert "tokenizer.chat_template" not in heads
    names = {tensor.name for tensor in read_gguf(trained[1]).tensors}
    assert {"mtp.centroids.weight", "mtp.token_ordering.weight"} <= names


def test_drafts_of_the_trained_pair_are_accepted(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    exact = programs("exact")
    convert(*trained, tmp_path / "m.gguf")
    command = ("-m", tmp_path / "m.gguf", "--spec-draft-n-max", "3")
    prompt = "def main(args):\n    "
    mtp = speculative_simple(exact, *command, prompt=prompt)
    plain = speculative_simple(exact, *command, "--spec-type", "none", prompt=prompt)
    assert mtp.figure("n_accept") > 10
    assert plain.figure("n_drafted") == 0
    assert same_text(mtp.text, plain.text)


def test_drafts_of_the_trained_pair_are_accepted_in_both_libraries(
    trained: tuple[Path, Path], library: tuple[str, Path], tmp_path: Path
) -> None:
    variant, directory = library
    merged = tmp_path / "m.gguf"
    convert(*trained, merged, layout={"default": "inline", "stock": "tail"}[variant])
    said, alone = run(directory, merged, f"{BASE_ALONE}{trained[0]}")
    assert said["accepted"] > 0
    assert said["logits"] == alone["logits"]
