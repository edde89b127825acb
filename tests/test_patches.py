"""The patch series: well-formed, applies without fuzz, all or nothing, harmless when repeated."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import rebase_patches
from llamacpp import rebase, series
from llamacpp.pin import PATCHES, PINNED, SECOND, SetupError, Source
from llamacpp.source import fetch_sdist

DEP3_FIELDS = (
    "Description",
    "Why-not-upstream",
    "Drop-when",
    "Origin",
    "Forwarded",
    "Last-Update",
)


FOLDERS = series.folders()
EVERY_PATCH = [
    *series.series(),
    *(path for version in series.versions() for path in PATCHES.glob(f"*/{version}/*.patch")),
]


def upstream_files(source: Source, root: Path) -> Path:
    """The upstream files that the series touches, as a source package has them."""
    wanted = [f"{source.tree}/{path}" for path in series.touched()]
    subprocess.run(["tar", "xzf", str(fetch_sdist(source)), "-C", str(root), *wanted], check=True)
    return root / source.tree


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return upstream_files(PINNED, tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def second_tree(tmp_path: Path) -> Path:
    return upstream_files(SECOND, tmp_path)


@pytest.fixture
def tree(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "llama.cpp"))


def contents(tree: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(tree): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def git(tree: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True)


def test_every_patch_is_listed_once_and_every_listed_one_exists() -> None:
    listed = series.series()
    assert sorted(listed) == sorted(PATCHES.glob("*/*.patch"))
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_a_version_only_replaces_patches_of_the_series(folder: Path) -> None:
    listed = {path.name for path in series.series(folder)}
    for version in series.versions(folder):
        own = {path.name for path in folder.glob(f"{version}/*.patch")}
        assert own <= listed
        replaced = series.series(folder, version)
        assert {p.name for p in replaced if p.parent.name == version} == own


def test_the_series_change_different_files() -> None:
    files = [
        path for folder in FOLDERS for path in (*series.touched(folder), *series.overlay(folder))
    ]
    assert len(files) == len(set(files))
    assert set(files) == {*series.touched(), *series.overlay()}


def test_the_kernels_are_not_named_for_what_they_were_made_for() -> None:
    """They serve every model, so that nothing that llama.cpp's build sees of them says MTP."""
    cpu = PATCHES / "cpu"
    files = series.overlay(cpu)
    assert len(files) > 0
    hunks = [line for path in series.series(cpu) for line in path.read_text().split("\n---\n")[1:]]
    texts = [*hunks, *map(str, files), *(path.read_text() for path in files.values())]
    assert not [text for text in texts if "mtp" in text.lower()]


@pytest.mark.parametrize("patch", EVERY_PATCH, ids=lambda p: str(p.relative_to(PATCHES)))
def test_a_patch_says_what_it_does_and_when_it_can_go(patch: Path) -> None:
    header = patch.read_text().split("\n---\n", 1)[0]
    for field in DEP3_FIELDS:
        assert re.search(rf"^{field}: \S", header, re.MULTILINE), f"{patch.name}: no {field}"


@pytest.mark.parametrize("patch", EVERY_PATCH, ids=lambda p: str(p.relative_to(PATCHES)))
def test_hunks_are_call_sites_only(patch: Path) -> None:
    lines = patch.read_text().splitlines()
    added = [line for line in lines if line.startswith("+") and not line.startswith("+++")]
    assert len(added) < 120


def test_applies_and_then_again_without_change(tree: Path) -> None:
    before = contents(tree)
    assert series.apply(tree) == series.APPLIED
    patched = contents(tree)
    assert set(patched) - set(before) == set(series.overlay())
    assert all(patched[path] != before[path] for path in series.touched())
    stamps = {path: (tree / path).stat().st_mtime_ns for path in patched}

    assert series.apply(tree) == series.ALREADY
    assert contents(tree) == patched
    assert {path: (tree / path).stat().st_mtime_ns for path in patched} == stamps


@pytest.mark.parametrize("source", [PINNED, SECOND], ids=lambda s: s.commit)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_a_series_applies_without_the_other(folder: Path, source: Source, tmp_path: Path) -> None:
    tree = upstream_files(source, tmp_path)
    before = contents(tree)
    assert series.apply(tree, folder) == series.APPLIED
    patched = contents(tree)
    changed = {path for path in patched if patched[path] != before.get(path)}
    assert changed == {*series.touched(folder), *series.overlay(folder)}
    assert series.apply(tree, folder) == series.ALREADY
    assert contents(tree) == patched


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_the_other_series_can_follow(folder: Path, tree: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(tree, tmp_path / "both"))
    assert series.apply(both) == series.APPLIED
    assert series.apply(tree, folder) == series.APPLIED
    assert series.apply(tree) == series.APPLIED
    assert contents(tree) == contents(both)


def test_where_one_series_does_not_fit_neither_is_applied(tree: Path) -> None:
    path = tree / series.touched(PATCHES / "mtp")[0]
    path.write_text("another\n")
    before = contents(tree)
    with pytest.raises(SetupError, match=r"mtp/0001-one-file\.patch does not apply"):
        series.apply(tree)
    assert contents(tree) == before


def test_applies_to_the_second_version_too(second_tree: Path) -> None:
    assert rebase_patches.main([str(second_tree)]) == 0
    assert series.apply(second_tree) == series.APPLIED
    patched = contents(second_tree)
    assert series.apply(second_tree) == series.ALREADY
    assert contents(second_tree) == patched
    server = (second_tree / "tools/server/server-context.cpp").read_text()
    assert "common_speculative_set_sampler(" in server


def test_a_changed_overlay_file_is_put_right(tree: Path) -> None:
    series.apply(tree)
    patched = contents(tree)
    for path in series.overlay():
        (tree / path).write_text("an older version\n")
    assert series.apply(tree) == series.ALREADY
    assert contents(tree) == patched


def test_another_version_is_refused_and_left_as_it_was(tree: Path) -> None:
    # A file that only the last patches touch: an earlier one would name itself.
    last = series.touched()[-1]
    patch = next(p for p in series.series() if f"+++ b/{last}\n" in p.read_text())
    lines = (tree / last).read_text().splitlines(keepends=True)
    (tree / last).write_text("".join(f"// moved\n{line}" for line in lines))
    before = contents(tree)
    with pytest.raises(SetupError, match=rf"{patch.name} does not apply"):
        series.apply(tree)
    assert contents(tree) == before


def test_a_tree_edited_after_patching_is_refused(tree: Path) -> None:
    series.apply(tree)
    path = tree / "src/llama-arch.cpp"
    path.write_text(path.read_text().replace("LLM_TENSOR_MASKED_EMBD_ROWS", "OTHER"))
    before = contents(tree)
    with pytest.raises(SetupError, match=r"was patched before.*llama-arch\.cpp"):
        series.apply(tree)
    assert contents(tree) == before


def test_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"not the llama\.cpp tree"):
        series.apply(tmp_path)


def test_a_git_checkout_with_changes_of_its_own_is_refused(tree: Path) -> None:
    (tree / "notes.txt").write_text("one\n")
    git(tree, "init")
    git(tree, "add", "-A")
    git(tree, "commit", "-m", "upstream")
    (tree / "notes.txt").write_text("two\n")
    before = contents(tree)
    with pytest.raises(SetupError, match=r"1 changed file\(s\), first notes\.txt"):
        series.apply(tree)
    assert contents(tree) == before

    git(tree, "checkout", "notes.txt")
    assert series.apply(tree) == series.APPLIED
    assert series.apply(tree) == series.ALREADY


def test_the_digest_follows_patches_and_files(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(PATCHES, tmp_path / "patches"))
    assert series.digest(copy) == series.digest()
    for path in [*series.series(copy), *series.overlay(copy).values()]:
        before = series.digest(copy)
        path.write_text(path.read_text() + "\n")
        assert series.digest(copy) != before


def states(results: list[rebase.PatchResult]) -> set[str]:
    return {hunk.state for result in results for hunk in result.hunks}


def rewritten(tree: Path, out: Path) -> Path:
    """The series that the tool writes for `tree`."""
    rebase_patches.main([str(tree), "--out", str(out)])
    return out


def test_the_pinned_tree_needs_no_rebasing(tree: Path, tmp_path: Path) -> None:
    assert states(rebase.rebase_series(tree, PATCHES)) == {rebase.APPLIES}
    written = series.series(rewritten(tree, tmp_path / "new"))
    for patch, original in zip(written, series.series(), strict=True):
        hunks = [hunks for _, _, hunks in rebase.parse(patch)[1]]
        assert hunks == [hunks for _, _, hunks in rebase.parse(original)[1]]


def test_lines_further_up_are_an_offset(tree: Path, tmp_path: Path) -> None:
    path = tree / series.touched()[0]
    path.write_text("// new\n" * 5 + path.read_text())
    before = contents(tree)
    assert states(rebase.rebase_series(tree, PATCHES)) == {rebase.APPLIES, rebase.OFFSET}
    assert contents(tree) == before
    assert series.apply(tree, rewritten(tree, tmp_path / "new")) == series.APPLIED


def test_changed_context_is_rewritten(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tree / "src/llama-arch.h"
    text = path.read_text()
    path.write_text(text.replace("    LLM_TENSOR_MASKED_EMBD_CENTROIDS,\n", "    LLM_OTHER,\n"))
    assert path.read_text() != text
    with pytest.raises(SetupError, match=r"does not apply"):
        series.apply(tree)
    assert rebase_patches.main([str(tree), "--out", str(tmp_path / "new")]) == 1
    shown = [line for line in capsys.readouterr().out.splitlines() if rebase.MOVED in line]
    assert len(shown) == 1
    assert "src/llama-arch.h" in shown[0]
    assert "1 line(s) above and 0 below" in shown[0]
    assert series.apply(tree, tmp_path / "new") == series.APPLIED
    patched = path.read_text()
    for own in ("ROWS", "TABLE"):
        patched = patched.replace(f"    LLM_TENSOR_MASKED_EMBD_{own},\n", "")
    assert patched == text.replace("    LLM_TENSOR_MASKED_EMBD_CENTROIDS,\n", "    LLM_OTHER,\n")


def test_a_removed_line_that_is_gone_fails(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tree / "src/llama-quant.cpp"
    path.write_text(path.read_text().replace("fname_inp, splits", "renamed, splits"))
    assert rebase_patches.main([str(tree)]) == 2
    shown = [line for line in capsys.readouterr().out.splitlines() if rebase.FAILS in line]
    assert len(shown) == 1
    assert re.search(r"src/llama-quant\.cpp:\d+: fails: nearest are lines \d+-\d+, \d+%", shown[0])


def test_a_tree_without_the_files_fails_in_every_hunk(tmp_path: Path) -> None:
    assert states(rebase.rebase_series(tmp_path, PATCHES)) == {rebase.FAILS}
