"""`make bench` at a size that runs in seconds: the files, the figures, the report."""

import hashlib
import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import cells, measure, models, report
from bench.blocks import CHUNK_BYTES, SCALES, random_chunks
from bench.measure import Load, Machine, Section
from bench.models import BenchPair, bench_pair
from bench.programs import NOTHING_DRAFTED, BenchError, DraftStatistics, draft_statistics, server
from bench.shapes import PAIRS
from gguf_mtp import api
from gguf_mtp.gemma4.config import FULL, SLIDING
from gguf_mtp.ggml import TYPES
from gguf_mtp.readers.gguf import read_gguf
from llama_programs import programs

LINE = (
    "0.05.1 I spec common_specu: statistics        draft-mtp: #calls(b,g,a) =    1     25     24, "
    "#gen drafts =     25, #acc drafts =     9, #gen tokens =     72, #acc tokens =    31, "
    "#mean acc len = 1.00, #acc rate/pos = (), dur(b,g,a) = 0.006, 519.220, 0.067 ms\n"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> BenchPair:
    """A pair of real structure, small in every size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        shape = PAIRS["e2b"]
        small: dict[str, Any] = {"vocab_size": 1024, "per_layer_vocab_size": 1024, "head_dim": 64}
        small |= {"full_head_dim": 64, "heads": 2, "per_layer_input_size": 64}
        target = replace(
            shape.target,
            hidden_size=256,
            intermediate_size=256,
            layer_types=(SLIDING, FULL, SLIDING, FULL),
            kv_shared_layers=2,
            **small,
        )
        drafter = replace(
            shape.drafter, **{**small, "per_layer_input_size": 0}, intermediate_size=256
        )
        tiny = replace(shape, target=target, drafter=replace(drafter, hidden_size=512))
        tiny = replace(tiny, centroids=32, top_k=4)
        patch.setitem(PAIRS, "e2b", tiny)
        return bench_pair("e2b", "q4_0", "q8_0", lambda text: None)


def test_the_real_shapes_are_those_of_the_checkpoints() -> None:
    e2b, e4b = PAIRS["e2b"], PAIRS["e4b"]
    assert (e2b.target.n_layers, e2b.target.first_shared_layer) == (35, 15)
    assert (e4b.target.n_layers, e4b.target.first_shared_layer) == (42, 24)
    # Keys and values come from layers 13/14 and 22/23.
    assert e2b.target.layer_types[13:15] == e4b.target.layer_types[22:24] == (SLIDING, FULL)
    assert [e2b.target.feed_forward(layer) for layer in (14, 15)] == [6144, 12288]
    tensors = [slot.tensor for slot in models._drafter_plan(e2b, "f16").slots]
    # The published drafter: 50 tensors, of which scales and ordering are no parameters.
    assert len(tensors) == 50 + 1  # rope_freqs
    skipped = ("rope_freqs.weight", "masked_embd_ordering")
    parameters = sum(
        prod(tensor.shape)
        for tensor in tensors
        if tensor.name not in skipped and not tensor.name.endswith("layer_output_scale.weight")
    )
    assert parameters == 77_731_328


def test_the_files_of_a_pair_belong_together(pair: BenchPair) -> None:
    merged, base = read_gguf(pair.merged), read_gguf(pair.base)
    assert [t.name for t in base.tensors] == [
        t.name for t in merged.tensors if not t.name.startswith("mtp.")
    ]
    kinds = {t.name: t.dtype for t in merged.tensors}
    assert kinds["token_embd.weight"] == "Q6_K"
    assert kinds["blk.0.ffn_up.weight"] == "Q4_0"
    assert kinds["mtp.token_embd.weight"] == "Q8_0"
    assert kinds["mtp.masked_embd_ordering"] == "I32"
    plan = api.plan_convert(pair.base, pair.drafter)
    assert plan.total_bytes == pair.merged.stat().st_size


def test_a_cached_pair_is_not_written_again(pair: BenchPair) -> None:
    stamps = [path.stat().st_mtime_ns for path in (pair.base, pair.drafter, pair.merged)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(pair.base.parents[3]))
        again = bench_pair("e2b", "q4_0", "q8_0", lambda text: pytest.fail(text))
    assert again == pair
    assert stamps == [path.stat().st_mtime_ns for path in (pair.base, pair.drafter, pair.merged)]


def test_the_table_of_one_row_a_token_takes_no_room(pair: BenchPair) -> None:
    hole = next(t for t in read_gguf(pair.base).tensors if t.name == models.HOLE)
    with pair.base.open("rb") as file:
        file.seek(hole.offset)
        assert file.read(hole.nbytes) == bytes(hole.nbytes)


@pytest.mark.parametrize("name", [*SCALES, "F16", "BF16", "F32"])
def test_random_weights_are_the_same_everywhere_and_whole_blocks(name: str) -> None:
    kind = TYPES[name]
    nbytes = (CHUNK_BYTES // kind.block_bytes + 3) * kind.block_bytes
    chunks = [list(random_chunks(kind, nbytes, seed)) for seed in (1, 1, 2)]
    assert [len(chunk) % kind.block_bytes for chunk in chunks[0]] == [0, 0]
    assert sum(map(len, chunks[0])) == nbytes
    digests = [hashlib.sha256(b"".join(c.tobytes() for c in part)).digest() for part in chunks]
    assert digests[0] == digests[1] != digests[2]


def test_statistics_are_read_from_the_last_line() -> None:
    earlier = LINE.replace("#gen tokens =     72", "#gen tokens =      2")
    found = draft_statistics(earlier + LINE)
    assert found == DraftStatistics(2, rounds=24, drafted=72, accepted=31, draft_ms=519.22)
    assert found.since(draft_statistics(earlier)).drafted == 70
    assert draft_statistics("nothing") == NOTHING_DRAFTED


def test_synthetic_acceptance_is_a_chance_per_draft() -> None:
    rates = [float(rate) for rate in cells.synthetic_rates(2 / 3, 3).split(",")]
    assert rates == pytest.approx([2 / 3, 4 / 9, 8 / 27], abs=1e-6)
    assert 1 + sum(rates) == pytest.approx(2.4074, abs=1e-4)


def test_a_cell_whose_flag_the_build_lacks_is_left_out(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text(f"#!/bin/sh\necho '{cells.ONE_GRAPH}'\n")
    program.chmod(0o755)
    machine = Machine({cells.STOCK: tmp_path, cells.PATCHED: tmp_path}, 1)
    said: list[str] = []
    found = measure.available(cells.quick(cells.CELLS), machine, said.append)
    assert "patched, one graph, n=3" in [cell.label for cell in found]
    assert said == [f"left out: patched, auto depth (this build has no {cells.AUTO_DEPTH})"]


def test_a_server_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho '0.1 E no such model'; echo later; exit 3\n")
    program.chmod(0o755)
    with (
        pytest.raises(BenchError, match=r"ended with 3: 0\.1 E no such model$"),
        server(program, [], ()),
    ):
        pass


def test_decoding_is_measured_cell_by_cell(pair: BenchPair) -> None:
    bin_dir = programs("default")
    machine = Machine({cells.STOCK: bin_dir, cells.PATCHED: bin_dir}, 1)
    wanted = ("no MTP", "patched, one graph, n=3", "patched, auto depth")
    chosen = [cell for cell in cells.CELLS if cell.label in wanted]
    load = Load((tuple(range(400, 420)),), 48, 2 / 3)
    order: list[str] = []
    found = measure.decoding("t", "t", pair, chosen, load, machine, 2, order.append)
    speed, draft, rounds, length = found
    assert [text.split(",")[-1] for text in order] == [" 1 of 2"] * 3 + [" 2 of 2"] * 3
    assert {label: len(values) for label, values in speed.samples.items()} == {
        cell.label: 2 for cell in chosen
    }
    assert length.samples["no MTP"] == [1.0, 1.0]
    assert all(1.2 < value <= 4 for value in length.samples["patched, one graph, n=3"])
    assert len(draft.samples["patched, one graph, n=3"]) == 2
    assert all(value > 0 for section in found for v in section.samples.values() for value in v)
    assert rounds.unit == "ms"


def test_the_report(tmp_path: Path) -> None:
    section = Section("s", "speed", "tokens/s", True, "a", {"a": [10.0, 20.0], "b": [15.0, 20.0]})
    assert report.ratios(section, "b") == [1.5, 1.0]
    slower = replace(section, higher_is_better=False)
    assert report.ratios(slower, "b") == [pytest.approx(2 / 3), 1.0]

    console = Console(width=120, record=True)
    report.show([section, Section("e", "empty", "ms", False, "")], console)
    shown = console.export_text()
    assert "empty" not in shown
    assert shown.splitlines()[-2].split() == ["b", "17.5", "15.0-20.0", "1.25", "1.00-1.50"]

    about = {"machine": report.describe_machine(Machine({}, 2), "cpu")}
    path = tmp_path / "out" / "bench.json"
    report.write_json([section], about, path)
    assert report.read_json(path) == (about, [section])
    assert json.loads(path.read_text())["machine"]["threads"] == 2


def test_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    section = Section("s", "speed", "tokens/s", True, "a", {"a": [10.0, 20.0], "stock": [15.0]})
    about = {"machine": report.describe_machine(Machine({}, 2), "cpu")}
    report.plot([section], about, tmp_path / "bench.svg")
    assert (
        "speed" in (tmp_path / "bench.svg").read_text() or (tmp_path / "bench.svg").stat().st_size
    )
