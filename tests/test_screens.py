"""Screens as people see them, by tmux: nothing wider than the terminal, progress, no colours on
request. tools/setup.sh installs tmux; without it these tests say that they skip."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import terminal_picture
from gguf_mtp.cli.main import VERBS
from litert_fixtures import fixture
from llama_programs import programs
from screens import NoTmux, Screen

SHORT = ("--n-prompts", "2", "--n-predict", "8", "--threads", "1", "--prompts", "python")


@contextmanager
def screen(
    *arguments: object,
    columns: int = 80,
    cwd: Path | None = None,
    environ: dict[str, str] | None = None,
    program: Sequence[str] = (str(Path(sys.executable).with_name("gguf-mtp")),),
) -> Iterator[Screen]:
    """gguf-mtp, or another `program`, on a terminal of so many `columns`."""
    command = [*program, *map(str, arguments)]
    try:
        opened = Screen(command, columns, cwd=cwd, environ=environ)
    except NoTmux as error:
        pytest.skip(f"{error}: no screen can be looked at")
    with opened:
        yield opened


def shown(
    *arguments: object,
    columns: int = 80,
    cwd: Path | None = None,
    environ: dict[str, str] | None = None,
) -> str:
    """What is on the screen when the command has ended, without an error."""
    with screen(*arguments, columns=columns, cwd=cwd, environ=environ) as opened:
        code = opened.wait()
        text = opened.text()
    assert code in (0, 1), text
    return text


def too_wide(text: str, columns: int) -> list[str]:
    return [line for line in text.splitlines() if len(line) > columns]


@pytest.fixture
def pair(tmp_path: Path, target_dir: Path, drafter_dir: Path) -> Path:
    """A directory that holds the embedded pair under short names, as a user would have it."""
    (tmp_path / "base").symlink_to(target_dir)
    (tmp_path / "heads").symlink_to(drafter_dir)
    return tmp_path


CONVERT = ("convert", "--base", "base", "--heads", "heads", "-o", "tiny-mtp.gguf")


@pytest.mark.parametrize("columns", [80, 40])
def test_convert(pair: Path, columns: int) -> None:
    text = shown(*CONVERT, columns=columns, cwd=pair)
    assert " ".join(text.split()).startswith("tiny-mtp.gguf: 85 base and 40 heads tensors, 6.1 MiB")
    assert "━" not in text  # the bar goes when it is done
    if columns == 80:
        assert too_wide(text, columns) == []
        assert len(text.splitlines()) == 1


@pytest.mark.parametrize("columns", [80, 40])
def test_notes_are_wrapped_at_words(pair: Path, columns: int) -> None:
    """Loose heads: what was inferred is said in several lines, which hang together."""
    (pair / "loose").mkdir()
    weights = (pair / "heads" / "model.safetensors").resolve()
    (pair / "loose" / "model.safetensors").symlink_to(weights)
    text = shown(
        "convert", "--base", "base", "--heads", "loose", "-o", "x.gguf", columns=columns, cwd=pair
    )
    assert too_wide(text.rpartition("x.gguf:")[0], columns) == []
    first, *rest = [line for line in text.splitlines() if not line.startswith("x.gguf")]
    assert first.startswith("note: ")
    assert rest
    assert all(line.startswith("      ") for line in rest if not line.startswith(("note: ", "MiB")))


def test_doctor() -> None:
    for columns in (80, 40):
        text = shown("doctor", columns=columns)
        body = [line for line in text.splitlines() if not line.startswith(("next: ", "        --"))]
        assert too_wide("\n".join(body), columns) == []
        states = [line.split()[0] for line in body if not line.startswith(" ")]
        assert {"ok"} <= set(states) <= {"ok", "warn", "missing"}


def test_validate(pair: Path) -> None:
    environ = {"LLAMA_CPP_LIB_PATH": str(programs("default"))}
    shown(*CONVERT, "--outtype", "f32", "--heads-type", "f32", cwd=pair)
    command = ("validate", "tiny-mtp.gguf", "--backend", "cpu", *SHORT)
    text = shown(*command, cwd=pair, environ=environ)
    assert too_wide(text, 80) == []
    for tier in ("L0", "L1", "L2", "drafts-exact"):
        assert any(line.startswith(tier) and "holds" in line for line in text.splitlines()), text
    plain = shown(*command, cwd=pair, environ=environ | {"NO_COLOR": "1"})
    assert [line.split()[:2] for line in plain.splitlines()][:6] == [
        line.split()[:2] for line in text.splitlines()
    ][:6]


HELP = """
import sys
from gguf_mtp.cli.main import VERBS, main
for arguments in ([], *([verb] for verb in VERBS)):
    main([*arguments, "--help"], prog_name="gguf-mtp", standalone_mode=False)
"""


@pytest.mark.parametrize("columns", [80, 40])
def test_help(columns: int) -> None:
    """Of every verb: at 80 columns all of it fits, at 40 all but examples, which are to be copied,
    and lists of choices."""
    with screen(columns=columns, program=[sys.executable, "-c", HELP]) as opened:
        assert opened.wait() == 0
        text = opened.text()
    assert text.count("Usage: gguf-mtp") == len(VERBS) + 1
    if columns == 40:
        text = text.replace("\\\n", "")
        kept = (
            "    gguf-mtp",
            "      --",
            "  --",
            "  L",
            "  drafts",
            "  base-",
            "  cross",
            "  refer",
            "  sampled",
        )
        text = "\n".join(line for line in text.splitlines() if not line.startswith(kept))
    assert too_wide(text, columns) == []


def test_tables_leave_out_columns_and_say_so(pair: Path) -> None:
    """A verdict that does not fit the screen is none; pipes get all (test_litert_extract.py)."""
    package = fixture("trained")
    text = shown("audit", "--litert", package, "--hf", "heads", cwd=pair)
    assert too_wide(text, 80) == []
    assert "model.norm.weight                                     -  equal" in text.splitlines()
    assert "(not shown on so narrow a terminal: relative, max error, checkpoint, package)" in text
    shown(*CONVERT, cwd=pair)
    for arguments in (("inspect", package), ("inspect", "tiny-mtp.gguf")):
        text = shown(*arguments, cwd=pair)
        assert too_wide(text, 80) == []
    assert "blk.0.attn_q.weight                   BF16  256, 128      65,536" in text.splitlines()


BAR = """
import sys, time
from gguf_mtp.cli.progress import progress_bar
with progress_bar(sys.argv[1], 16_000_000_000, quiet=False) as advance:
    for _ in range(10):
        time.sleep(0.05)
        advance(800_000_000)
    open(sys.argv[2], "w").close()
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(80, ("━", "7.5/14.9 GiB", "GiB/s")), (40, ("━", "50%", "GiB/s"))],
)
def test_the_bar(columns: int, expected: tuple[str, ...], tmp_path: Path) -> None:
    """A long conversion half way: how far, how fast, how long still."""
    ready = tmp_path / "ready"
    program = [sys.executable, "-c", BAR]
    name = "gemma-4-26B-A4B-it-q4_k_m-mtp.gguf"
    with screen(name, ready, columns=columns, program=program) as opened:
        opened.wait_until(lambda: ready.exists() and expected[1] in opened.text())
        text = opened.text()
    (line,) = text.splitlines()
    assert len(line) <= columns
    assert all(part in line for part in expected), line
    assert re.search(r"\d:\d\d:\d\d", line), line


def test_colours(pair: Path) -> None:
    """On a terminal, but not with NO_COLOR; in no pipe (test_cli_shape.py)."""
    cases: tuple[tuple[dict[str, str], bool], ...] = (({}, True), ({"NO_COLOR": "1"}, False))
    for environ, coloured in cases:
        with screen("doctor", environ=environ) as opened:
            opened.wait()
            assert ("\x1b[32mok" in opened.text(colours=True)) == coloured


def in_svg(path: Path) -> str:
    """The text of a picture, a line of the terminal on each line."""
    root = ElementTree.parse(path).getroot()
    rows: dict[float, str] = {}
    for element in root.iter("{http://www.w3.org/2000/svg}text"):
        at = float(element.get("y", "0"))
        rows[at] = rows.get(at, "") + (element.text or "").replace("\xa0", " ")
    return "\n".join(row.rstrip() for row in rows.values())


def test_the_picture_is_what_its_script_records() -> None:
    """The commands of the script, each with an output; it is small, and fetches nothing."""
    picture = terminal_picture.PICTURE
    source = picture.read_text(encoding="utf-8")
    assert len(source) < 60_000
    assert source.count("http") == 1  # the namespace
    text = in_svg(picture)
    prompts = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    assert prompts == list(terminal_picture.COMMANDS)
    assert "85 base and 40 heads tensors" in text
    assert "drafts-exact" in text
    readme = (terminal_picture.REPO / "README.md").read_text(encoding="utf-8")
    assert f"]({picture.relative_to(terminal_picture.REPO)})" in readme[:2500]


def test_the_pictures_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(programs("default")))
    terminal_picture.prepare(tmp_path)
    convert, run, validate = terminal_picture.COMMANDS
    short = (convert, f"{run} -n 4 --threads 1", f"{validate} --n-prompts 1 --n-predict 4")
    monkeypatch.setattr(terminal_picture, "COMMANDS", short)
    try:
        shown = terminal_picture.record(tmp_path)
    except NoTmux as error:
        pytest.skip(f"{error}: no screen can be recorded")
    out = tmp_path / "picture.svg"
    out.write_text(terminal_picture.picture(shown), encoding="utf-8")
    assert [line[2:] for line in in_svg(out).splitlines() if line.startswith("$ ")] == list(short)
    assert json.dumps(in_svg(out)).count("tiny-mtp.gguf") >= 4
