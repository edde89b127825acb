"""Outputs in parts: sizes, keys, and that llama.cpp loads them together."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gguf_mtp.api import convert, plan_convert, prepare, split, write_prepared
from gguf_mtp.cli.main import main
from gguf_mtp.errors import OutputError, UnsupportedError
from gguf_mtp.output import OutputFile
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.parts import read_gguf_parts
from gguf_mtp.shards import cut_to_parts, parse_size
from llama_programs import programs, speculative_simple


def test_sizes() -> None:
    assert [parse_size(text) for text in ("700", "5K", "2m", "4G")] == [
        700,
        5000,
        2_000_000,
        4_000_000_000,
    ]
    for text in ("", "0", "-1", "4GB", "1.5G", "G"):
        with pytest.raises(ValueError, match="is not a size"):
            parse_size(text)


@pytest.mark.parametrize("limit", [60_000, 150_000, 700_000])
def test_parts_hold_what_the_whole_holds(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, tiny_merged: Path, limit: int
) -> None:
    out = tmp_path / "m.gguf"
    done = convert(tiny_target, tiny_drafter, out, split_max_size=limit)
    paths = [output.path for output in done.outputs]
    assert sorted(tmp_path.iterdir()) == paths
    if limit > tiny_merged.stat().st_size:
        assert out.read_bytes() == tiny_merged.read_bytes()
        return
    count = len(paths)
    assert paths[0].name == f"m-00001-of-{count:05}.gguf"
    for at, path in enumerate(paths):
        part = read_gguf(path)
        assert path.stat().st_size <= limit or len(part.tensors) == 1
        own = {key.name: (key.type.name, key.value) for key in part.keys if "split." in key.name}
        assert own == {
            "split.no": ("UINT16", at),
            "split.count": ("UINT16", count),
            "split.tensors.count": ("INT32", 114),
        }
        assert at == 0 or len(part.keys) == 3
    split(paths[1], tmp_path / "b.gguf", tmp_path / "h.gguf")
    convert(tmp_path / "b.gguf", tmp_path / "h.gguf", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == tiny_merged.read_bytes()
    assert read_gguf_parts(paths[0]).keys == read_gguf(tiny_merged).keys


def test_a_tail_is_not_cut(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    plan = plan_convert(tiny_target, tiny_drafter, layout="tail")
    with pytest.raises(UnsupportedError, match="the tail layout is one file"):
        cut_to_parts(plan, 100_000)
    with pytest.raises(UnsupportedError, match="the tail layout is one file"):
        convert(
            tiny_target, tiny_drafter, tmp_path / "m.gguf", layout="tail", split_max_size=1 << 40
        )


def test_nothing_is_left_when_a_later_part_fails(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = OutputFile.finish, 0

    def third_fails(output: OutputFile) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OutputError("no more")
        real(output)

    monkeypatch.setattr(OutputFile, "finish", third_fails)
    with pytest.raises(OutputError, match="no more"):
        convert(tiny_target, tiny_drafter, tmp_path / "m.gguf", split_max_size=100_000)
    assert list(tmp_path.iterdir()) == []


def test_the_option(tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    common = ["convert", "--base", str(tiny_target), "--heads", str(tiny_drafter)]
    common += ["-o", str(tmp_path / "m.gguf"), "--split-max-size"]
    planned = json.loads(CliRunner().invoke(main, [*common, "200K", "--dry-run", "--json"]).stdout)
    assert list(tmp_path.iterdir()) == []
    result = CliRunner().invoke(main, [*common, "200K"])
    assert result.exit_code == 0
    assert f"and {len(planned['files']) - 1} more parts: 85 base and 29 heads" in result.stdout
    assert sorted(map(str, tmp_path.iterdir())) == planned["files"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == planned["bytes"]
    result = CliRunner().invoke(main, [*common, "4X"])
    assert (result.exit_code, "'4X' is not a size" in result.stderr) == (2, True)


def test_llama_cpp_finds_the_parts_in_a_repository(
    tmp_path: Path, target_dir: Path, drafter_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names that `convert` gives them, in the cache as a download leaves it."""
    commit = "0" * 40
    repository = tmp_path / "models--me--p"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    prepared = prepare(target_dir, drafter_dir, outtype="q8_0")
    out = prepared.output_path(snapshot)
    done = write_prepared(prepared, out, split_max_size=1_000_000)
    assert len(done.outputs) > 3
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    texts = [
        speculative_simple(programs("exact"), *model, prompt="def f(", n_predict=24)
        for model in (("-hf", "me/p:Q8_0", "--offline"), ("-m", done.outputs[0].path))
    ]
    assert texts[0].text == texts[1].text
    assert texts[0].figure("n_accept") > 0


def test_llama_cpp_runs_the_parts(
    tmp_path: Path, target_dir: Path, drafter_dir: Path, merged_f32: Path
) -> None:
    out = tmp_path / "m.gguf"
    done = convert(
        target_dir, drafter_dir, out, split_max_size=4_000_000, outtype="f32", heads_type="f32"
    )
    assert len(done.outputs) > 3
    texts = [
        speculative_simple(programs("exact"), "-m", path, prompt="def f(", n_predict=24)
        for path in (done.outputs[0].path, merged_f32)
    ]
    assert texts[0].text == texts[1].text
    assert texts[0].figure("n_accept") == texts[1].figure("n_accept") > 0
