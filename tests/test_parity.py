"""Equality with llama.cpp's converter, against the hashes in ``parity.json``.

``tools/record_parity.py`` makes the record, by running the pinned converter itself; its --show
prints what a case should have become, row by row.
"""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import tiny
from gguf_mtp.api import convert, split
from gguf_mtp.drafters.assistant import assistant_from_checkpoint
from gguf_mtp.drafters.carried import CARRIED
from gguf_mtp.drafters.ordered_head import COUNT_KEY, NAMES
from gguf_mtp.gemma4.target import target_half
from gguf_mtp.plan import plan
from gguf_mtp.provenance import SOURCE, TARGET
from gguf_mtp.readers.checkpoint import read_checkpoint
from gguf_mtp.readers.gguf import GgufFile, read_gguf
from gguf_mtp.writer import write_gguf
from parity_cases import OUTTYPES, ROLES, Case, cases, prepare, sizes

RECORD: dict[str, Any] = json.loads((Path(__file__).parent / "parity.json").read_text())
Checkpoints = dict[Any, Path]


def digest(data: bytes | memoryview) -> str:
    return sha256(data).hexdigest()[:32]


def digest_rows(rows: list[list[Any]]) -> list[Any]:
    return [len(rows), digest(json.dumps(rows).encode())]


def keys_of(gguf: GgufFile) -> list[list[Any]]:
    return [[key.name, key.type.name, digest(key.raw)] for key in gguf.keys]


def tensors_of(gguf: GgufFile) -> list[list[Any]]:
    data = memoryview(gguf.path.read_bytes())
    return [
        [ref.name, ref.dtype, list(ref.shape)[::-1], digest(data[ref.offset :][: ref.nbytes])]
        for ref in gguf.tensors
    ]


def heads_type(case: Case) -> str:
    """ "auto" means Q8_0 for heads; upstream's own "auto" keeps 16-bit floats, else makes F16."""
    if case.outtype != "auto":
        return case.outtype
    return {"f32": "f16"}.get(case.dtype, case.dtype)


def convert_alone(case: Case, checkpoint: Path, out: Path) -> None:
    """Write the model of `case` as a GGUF, a drafter without what upstream drops."""
    if case.role == "target":
        half = target_half(read_checkpoint(checkpoint), case.outtype)
    else:
        half = assistant_from_checkpoint(read_checkpoint(checkpoint), heads_type(case), []).half
    tensors = tuple(tensor for tensor in half.tensors if tensor.name not in NAMES)
    write_gguf(plan(half.keys, tensors), out)


def convert_and_split(case: Case, checkpoint: Path, partner: Path, out: Path) -> None:
    """The half that `case` is about, out of a merged file."""
    merged = out.with_name("merged.gguf")
    if case.role == "target":
        convert(checkpoint, partner, merged, outtype=case.outtype)
        split(merged, out, None)
    else:
        convert(partner, checkpoint, merged, heads_type=heads_type(case))
        split(merged, None, out)


def check(case: Case, out: Path) -> None:
    """`out` is what was recorded of `case`, byte for byte where it is a target.

    What is only written differently has the keys and tensors of the plain case, in any order.
    """
    own, gguf = RECORD[case.name], read_gguf(out)
    keys, tensors = keys_of(gguf), tensors_of(gguf)
    if case.written:
        plain = RECORD[case.plain.name]
        assert digest_rows(keys[: plain["keys"][0]]) == plain["keys"]
        assert digest_rows(sorted(tensors))[1] == plain["sorted"]
    if "error" in own:
        assert case.written
        return
    assert digest_rows(keys[: own["keys"][0]]) == own["keys"]
    assert digest_rows(tensors) == own["tensors"]
    if case.role == "target":
        assert digest(out.read_bytes()) == own["file"]
        return
    # What upstream drops and what it does not know comes last, and disturbs nothing.
    for name, _, _ in keys[own["keys"][0] :]:
        assert name.startswith((COUNT_KEY.rpartition(".")[0], CARRIED, SOURCE, TARGET))


def test_record_is_complete() -> None:
    assert sorted(RECORD) == sorted(case.name for case in cases())


def test_what_upstream_refuses() -> None:
    """Errors are on record only where the documents say so."""
    refused = {name: entry["error"] for name, entry in RECORD.items() if "error" in entry}
    assert sorted(refused) == [
        "12B-bare-bf16-drafter-bf16",
        "12B-bare-bf16-target-bf16",
        "12B-headless-bf16-target-bf16",
        "12B-text_only-bf16-target-bf16",
        "E4B-headless-bf16-target-bf16",
    ]
    assert all("moe_intermediate_size" in refused[name] for name in refused if "bare" in name)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Checkpoints of the real sizes, each written once."""
    written: Checkpoints = {}

    def get(case: Case) -> Path:
        key = (case.role, case.source, case.dtype, case.variant)
        if key not in written:
            written[key] = prepare(case, tmp_path_factory.mktemp("checkpoint"))
        return written[key]

    return get


@pytest.mark.parametrize(
    "case", [case for case in cases() if case.source in tiny.SIZES], ids=lambda case: case.name
)
def test_every_size_equals_upstream(case: Case, tmp_path: Path, checkpoints: Any) -> None:
    out = tmp_path / "alone.gguf"
    convert_alone(case, checkpoints(case), out)
    check(case, out)


@pytest.mark.parametrize(
    "case", [case for case in cases() if case.source not in tiny.SIZES], ids=lambda case: case.name
)
def test_merged_and_split_equals_upstream(case: Case, tmp_path: Path) -> None:
    partner = replace(case, role="drafter" if case.role == "target" else "target", dtype="bf16")
    checkpoint, other = prepare(case, tmp_path), prepare(partner, tmp_path / "partner")
    out = tmp_path / "half.gguf"
    convert_and_split(case, checkpoint, other, out)
    check(case, out)


@pytest.mark.parametrize("size", tiny.SIZES)
@pytest.mark.parametrize("role", ["target", "drafter"])
def test_every_size_merged_and_split(
    size: str, role: str, tmp_path: Path, checkpoints: Any
) -> None:
    case = Case(role, size, "bf16", "q8_0")
    partner = replace(case, role="drafter" if role == "target" else "target")
    out = tmp_path / "half.gguf"
    convert_and_split(case, checkpoints(case), checkpoints(partner), out)
    check(case, out)


def test_ordered_head_equals_the_checkpoint(tmp_path: Path) -> None:
    target = tiny.write_target(tmp_path / "target")
    drafter = tiny.write_drafter(tmp_path / "drafter")
    convert(target, drafter, tmp_path / "merged.gguf", heads_type="f32")
    gguf = read_gguf(tmp_path / "merged.gguf")
    data = gguf.path.read_bytes()
    stored = {ref.name: data[ref.offset :][: ref.nbytes] for ref in gguf.tensors}
    ordering = memoryview(tiny.ordering()).cast("q").tolist()
    assert memoryview(stored["mtp.masked_embd_ordering"]).cast("i").tolist() == ordering
    shape = (tiny.CENTROIDS, tiny.DRAFTER_HIDDEN)
    centroids = tiny.noise("masked_embedding.centroids.weight", shape, "BF16")
    # BF16 widened to F32 is two zero bytes before each value.
    assert stored["mtp.masked_embd_centroids.weight"][2::4] == centroids[::2]
    assert stored["mtp.masked_embd_centroids.weight"][3::4] == centroids[1::2]
    assert not any(stored["mtp.masked_embd_centroids.weight"][0::4])
    # Stored row i is canonical row ordering[i].
    embedding = (tiny.VOCAB_SIZE, tiny.DRAFTER_HIDDEN)
    canonical = tiny.noise("model.embed_tokens.weight", embedding, "BF16")
    rows = stored["mtp.token_embd.weight"]
    width = tiny.DRAFTER_HIDDEN
    for at, token in enumerate(ordering):
        stored_row = rows[4 * width * at : 4 * width * (at + 1)]
        assert stored_row[2::4] == canonical[2 * width * token : 2 * width * (token + 1)][::2]


def test_the_documented_table_is_what_is_tested() -> None:
    """Every size and source of docs/conversion.md has its cases, and the other way round."""
    text = (Path(__file__).parent.parent / "docs" / "conversion.md").read_text(encoding="utf-8")
    table = text.partition("| size | source |")[2].partition("\n\n")[0].splitlines()
    types, _, *rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in table)
    documented = {
        f"{size}-{source.split()[1].rstrip(',')}-{role}-{outtype}"
        for size, source, *cells in rows
        for outtype, cell in zip(types, cells, strict=True)
        for role in ROLES
        if source.startswith("HF ") and outtype in OUTTYPES and cell in ("P", "M", "R")
    }
    assert documented == {case.name for case in sizes()}
