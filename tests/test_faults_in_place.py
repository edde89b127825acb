"""attach and detach in place, the only writing into a file that somebody has: whatever happens,
the base's own bytes are there, still load, and come back."""

import errno
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_cases import Inputs, make_inputs
from faults import STEPS, Action, FaultServer, Kind, Run
from gguf_mtp.errors import FormatError
from gguf_mtp.ggml import type_by_id
from gguf_mtp.model import Tensor, half_from_gguf, read_tensor
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.source import TensorRef
from gguf_mtp.readers.tail import read_footer
from gguf_mtp.tail import read_tail
from llama_programs import programs, speculative_simple

DECISIVE = STEPS & ~Kind.WRITE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    with FaultServer(tmp_path_factory.mktemp("faults")) as started:
        yield started


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


class InPlace:
    """A file to attach heads to, to replace them in, or to take them off, again and again."""

    def __init__(self, server: FaultServer, inputs: Inputs, verb: str, root: Path) -> None:
        self.server, self.inputs = server, inputs
        self.file = root / "model.gguf"
        self.base, self.tail = inputs.base.read_bytes(), inputs.tail.read_bytes()
        self.attach = ["attach", self.file, "--heads", inputs.heads, "--in-place", "-q"]
        self.detach = ["detach", self.file, "-q"]
        self.before, self.after, self.command = {
            "attach": (self.base, self.tail, self.attach),
            "replace": (self.tail, self.tail, [*self.attach, "--replace-heads"]),
            "detach": (self.tail, self.base, self.detach),
        }[verb]

    def run(self, **fault: object) -> Run:
        self.file.write_bytes(self.before)
        directory = self.file.parent
        return self.server.run(self.command, directory, **fault)  # type: ignore[arg-type]

    def check(self) -> None:
        """The base is whole, our reader says what there is, and it can be repaired both ways."""
        found = self.file.read_bytes()
        assert found[: len(self.base)] == self.base
        footer = read_footer(self.file)
        if footer is None:
            assert found == self.base
        elif footer.pending:
            assert footer.base_bytes == len(self.base)
            assert read_gguf(self.file, window=footer.base_window).tensors
            with pytest.raises(FormatError, match="attaching heads was interrupted"):
                read_tail(self.file)
        else:
            assert found == self.tail
        whole = footer is not None and not footer.pending
        replace = ["--replace-heads"] if whole else []
        assert self.server.run([*self.attach, *replace], self.file.parent).code == 0
        assert self.file.read_bytes() == self.tail
        self.file.write_bytes(found)
        if footer is not None:
            assert self.server.run(self.detach, self.file.parent).code == 0
        assert self.file.read_bytes() == self.base


@pytest.fixture(params=["attach", "replace", "detach"])
def place(
    request: pytest.FixtureRequest, server: FaultServer, inputs: Inputs, tmp_path: Path
) -> InPlace:
    return InPlace(server, inputs, request.param, tmp_path)


def test_killed_before_any_step(place: InPlace) -> None:
    clean = place.run()
    assert clean.code == 0
    assert place.file.read_bytes() == place.after
    for at in clean.numbers(STEPS, 3, DECISIVE):
        assert place.run(action=Action.KILL, at=at).code == -signal.SIGKILL
        place.check()


def test_killed_in_the_middle_of_a_write(place: InPlace) -> None:
    """Any but the first: the pending footer lies within one sector, which is written at once."""
    footer = read_footer(place.inputs.tail)
    assert footer is not None
    assert footer.pending_offset // 512 == (footer.pending_offset + 71) // 512
    clean = place.run()
    for at in clean.numbers(Kind.WRITE, 3)[1:]:
        run = place.run(action=Action.SHORT_KILL, kinds=Kind.WRITE, at=at, argument=9)
        assert run.code == -signal.SIGKILL
        place.check()


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.SYNC, Kind.TRUNCATE, Kind.READ, Kind.CLOSE])
def test_a_call_fails(place: InPlace, kind: Kind) -> None:
    clean = place.run()
    for at in clean.numbers(kind, 2):
        run = place.run(action=Action.FAIL, kinds=kind, at=at, argument=errno.EIO)
        assert run.code == 2 or kind is Kind.CLOSE, run.stderr
        assert run.code == 0 or re.fullmatch(r"error: [^\n]+\n", run.stderr), run.stderr
        place.check()


def test_nothing_can_be_written_any_more(place: InPlace) -> None:
    """Not even the cutting back that a failure is answered with."""
    kinds = Kind.WRITE | Kind.TRUNCATE | Kind.SYNC
    for at in place.run().numbers(kinds, 3):
        run = place.run(action=Action.FAIL_ON, kinds=kinds, at=at, argument=errno.EIO)
        assert run.code == 2
        assert re.fullmatch(r"error: [^\n]+\n", run.stderr), run.stderr
        place.check()


def test_a_signal_at_any_step(place: InPlace) -> None:
    for at in place.run().numbers(STEPS | Kind.READ, 3, Kind.TRUNCATE):
        kinds = STEPS | Kind.READ
        run = place.run(action=Action.SIGNAL, kinds=kinds, at=at, argument=signal.SIGTERM)
        assert (run.code, run.stderr) == (143, "error: terminated\n")
        assert place.file.read_bytes() in (place.base, place.before, place.after)
        place.check()


def test_a_second_ctrl_c_while_cleaning_up(place: InPlace) -> None:
    kinds = STEPS | Kind.READ
    for at in place.run().numbers(kinds, 3, Kind.TRUNCATE):
        run = place.run(action=Action.SIGNAL_ON, kinds=kinds, at=at, argument=signal.SIGINT)
        assert (run.code, run.stderr) == (130, "error: interrupted\n")
        assert place.file.read_bytes() in (place.base, place.before, place.after)


def test_each_step_is_on_the_medium_before_the_next(place: InPlace) -> None:
    """Pending footer, heads, and the cut that makes them count."""
    calls = place.run().calls
    steps = [call.name for call in calls if call.path == place.file and call.kind & STEPS]
    short = [name for at, name in enumerate(steps) if at == 0 or steps[at - 1] != name]
    attached = ["write", "fsync", "write", "fsync", "ftruncate", "fsync"]
    cut = ["ftruncate", "fsync"]
    expected = {"attach": attached, "replace": [*cut, *attached], "detach": cut}
    verb = place.command[0] if place.before != place.after else "replace"
    assert short == expected[str(verb)]
    writes = [call for call in calls if call.name == "write" and call.path == place.file]
    assert all(call.offset >= len(place.base) for call in writes)


@pytest.mark.parametrize("state", ["pending", "half", "whole"])
def test_stock_llama_cpp_loads_what_is_left(
    server: FaultServer, inputs: Inputs, tmp_path: Path, state: str
) -> None:
    place = InPlace(server, inputs, "attach", tmp_path)
    clean = place.run()
    if state != "whole":
        at = 3 if state == "pending" else clean.count(STEPS) - 2
        assert place.run(action=Action.KILL, at=at).code == -signal.SIGKILL
        footer = read_footer(place.file)
        assert footer is not None
        assert footer.pending
    drafter = ("-md", inputs.heads, "--spec-type", "draft-mtp")
    texts = [
        speculative_simple(programs("stock"), "-m", file, *drafter, prompt="a", n_predict=8).text
        for file in (inputs.base, place.file)
    ]
    assert texts[0] == texts[1] != ""


def test_a_base_of_20_gb_in_1_gib_of_address_space(
    server: FaultServer, inputs: Inputs, tmp_path: Path
) -> None:
    """Its last tensor is a hole, of a type whose size only the file tells; heads are appended to it
    and come off again."""
    half = half_from_gguf(read_gguf(inputs.base))
    path, copy = tmp_path / "huge.gguf", tmp_path / "heads.gguf"
    name, number = "output.weight", type_by_id(255)
    shape = half.tensor_by_name["token_embd.weight"].shape
    span = TensorRef(name, number.name, shape, path, 0, 20 * 10**9)
    hole = Tensor(name, number, shape, span, verbatim=True)
    layout = plan(half.keys, (*half.tensors, hole))
    with path.open("wb") as file:
        file.write(layout.header({}))
        for slot in layout.slots[:-1]:
            file.seek(slot.offset)
            file.write(read_tensor(slot.tensor))
        file.truncate(layout.total_bytes)
    size = layout.total_bytes
    limits = {"RLIMIT_AS": 1 << 30}
    attach = ["attach", path, "--heads", inputs.heads, "--in-place", "-q"]
    done = server.run(attach, tmp_path, limits=limits)
    assert (done.code, done.stderr) == (0, "")
    footer = read_footer(path)
    assert footer is not None
    assert footer.heads_offset >= 20 * 10**9
    done = server.run(["split", path, "--heads-out", copy, "-q"], tmp_path, limits=limits)
    assert (done.code, done.stderr) == (0, "")
    assert copy.read_bytes() == inputs.heads.read_bytes()
    done = server.run(["detach", path, "-q"], tmp_path, limits=limits)
    assert (done.code, done.stderr) == (0, "")
    assert path.stat().st_size == size
