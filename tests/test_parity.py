"""Equality with llama.cpp's converter, against the hashes in ``parity.json``.

``tools/record_parity.py`` makes the record, by running the pinned converter itself.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import tiny
from gguf_mtp.api import convert, split
from gguf_mtp.drafters.carried import CARRIED
from gguf_mtp.drafters.ordered_head import COUNT_KEY
from gguf_mtp.provenance import SOURCE, TARGET
from gguf_mtp.readers.gguf import GgufFile, read_gguf
from parity_cases import Case, cases, prepare

RECORD: dict[str, Any] = json.loads((Path(__file__).parent / "parity.json").read_text())


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()[:32]


def convert_and_split(case: Case, tmp_path: Path) -> Path:
    """The half that `case` is about, out of a merged file."""
    checkpoint = prepare(case, tmp_path / case.name)
    out = tmp_path / "half.gguf"
    merged = tmp_path / "merged.gguf"
    partner = Case("drafter" if case.role == "target" else "target", case.source, "bf16", "auto")
    other = prepare(partner, tmp_path / "partner")
    if case.role == "target":
        convert(checkpoint, other, merged, outtype=case.outtype)
        split(merged, out, None)
    else:
        # "auto" means Q8_0 for heads; upstream's own "auto" keeps the 16-bit floats.
        heads_type = "bf16" if case.outtype == "auto" else case.outtype
        convert(other, checkpoint, merged, heads_type=heads_type)
        split(merged, None, out)
    return out


def keys_of(gguf: GgufFile) -> list[list[str]]:
    return [[key.name, key.type.name, digest(key.raw)] for key in gguf.keys]


def tensors_of(gguf: GgufFile) -> list[list[Any]]:
    data = gguf.path.read_bytes()
    return [
        [ref.name, ref.dtype, list(ref.shape)[::-1], digest(data[ref.offset :][: ref.nbytes])]
        for ref in gguf.tensors
    ]


def test_record_is_complete() -> None:
    assert sorted(RECORD) == sorted(case.name for case in cases())


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_equals_upstream(case: Case, tmp_path: Path) -> None:
    recorded = RECORD[case.name]
    half = read_gguf(convert_and_split(case, tmp_path))
    keys = keys_of(half)
    assert tensors_of(half) == recorded["tensors"]
    assert keys[: len(recorded["keys"])] == recorded["keys"]
    if case.role == "target":
        assert digest(half.path.read_bytes()) == recorded["file"]
        return
    # What upstream drops and what it does not know comes last, and disturbs nothing.
    for name, _, _ in keys[len(recorded["keys"]) :]:
        assert name.startswith((COUNT_KEY.rpartition(".")[0], CARRIED, SOURCE, TARGET))


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
