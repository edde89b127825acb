"""The reader of `.litertlm` packages and the models in them: strict, bounded, never surprised."""

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_mtp.drafters.litert.package import read_drafter, read_section_model
from gguf_mtp.errors import FormatError, GgufMtpError
from gguf_mtp.readers.litertlm import read_litertlm
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.readers.tflite_model import unpack_codes
from litert_bytes import BLOCK, item, package, section
from litert_fixtures import MOVED, ON_GRID, fixture

MODEL = item("model_type", "TF_LITE_MTP_Drafter")
FIXTURES = (*ON_GRID, *MOVED, "no-drafter", "npu", "trained")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_sections_of_a_package(tmp_path: Path) -> None:
    data = package([section(BLOCK, BLOCK + 5, 3, MODEL), section(2 * BLOCK, 2 * BLOCK + 1, 99)])
    file = read_litertlm(write(tmp_path / "p", data + bytes(BLOCK + 1)))
    assert file.version == (1, 5, 0)
    assert [found.kind for found in file.sections] == ["TFLiteModel", "type 99"]
    assert file.sections[0].model_type == "tf_lite_mtp_drafter"
    assert file.sections[1].model_type == ""
    assert file.find("TFLiteModel", "tf_lite_mtp_drafter") == file.sections[:1]


def test_a_header_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    data = fixture("mixed").read_bytes()
    end = int.from_bytes(data[24:32], "little")
    path = tmp_path / "cut"
    for length in range(end):
        path.write_bytes(data[:length])
        with pytest.raises(GgufMtpError):
            read_litertlm(path)


@pytest.mark.parametrize("length", [20_000, 40_000, 90_000])
def test_a_truncated_package_is_an_error(tmp_path: Path, length: int) -> None:
    cut = write(tmp_path / "cut", fixture("mixed").read_bytes()[:length])
    with pytest.raises(FormatError, match="truncated"):
        read_drafter(cut)


@pytest.mark.parametrize("name", FIXTURES)
def test_every_model_of_every_fixture_is_read(name: str) -> None:
    file = read_litertlm(fixture(name))
    with SourceFile(file.path) as source:
        for found in file.sections:
            if found.kind == "TFLiteModel":
                model = read_section_model(file, source, found)
                assert model.signatures
                assert model.graphs[0].tensors


@pytest.mark.parametrize(
    ("dtype", "raw", "expected"),
    [
        ("INT8", b"\x80\x7f", [-128, 127]),
        ("INT4", b"\x1f\x87", [-1, 1, 7, -8]),
        ("INT2", b"\xe4", [0, 1, -2, -1]),
    ],
)
def test_codes_are_signed_and_the_first_is_lowest(
    dtype: str, raw: bytes, expected: list[int]
) -> None:
    assert unpack_codes(raw, dtype, len(expected)).tolist() == expected


def outcome(path: Path) -> str:
    """The name of what came of it; any exception but this package's own passes through."""
    caught: GgufMtpError | None = None
    try:
        read_drafter(path)
    except GgufMtpError as error:
        caught = error
    if caught is None:
        return "accepted"
    assert "\n" not in str(caught)
    assert 0 < len(str(caught)) < 2000
    return type(caught).__name__


def regions(data: bytes) -> list[tuple[int, int]]:
    """The header, and what of the models is structure: for small ones, about all of it."""
    end = int.from_bytes(data[24:32], "little")
    return [(0, end), (BLOCK, len(data))]


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**64), name=st.sampled_from(["mixed", "external-weights", "float"]))
def test_damage_is_refused_or_harmless(tmp_path: Path, seed: int, name: str) -> None:
    rng = random.Random(seed)
    data = bytearray(fixture(name).read_bytes())
    places = regions(bytes(data))
    for _ in range(rng.choice((1, 1, 2, 8))):
        begin, end = rng.choice(places)
        at = rng.randrange(begin, end - 4)
        if rng.random() < 0.5:
            data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        else:
            number = rng.choice((0, 1, 4, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1))
            data[at : at + 4] = number.to_bytes(4, "little")
    path = write(tmp_path / "damaged", bytes(data))
    assert outcome(path) in ("accepted", "FormatError", "UnsupportedError")


def test_overlapping_vectors_are_not_read_for_ever(tmp_path: Path) -> None:
    """A vector of a million offsets to one table costs an error, and not a million tables."""
    data = bytearray(fixture("mixed").read_bytes())
    names = [at for at in range(BLOCK, len(data) - 8) if data[at : at + 8] == b"Drafter;"]
    assert names
    # All of the model as one name, wherever a name was.
    for at in names[:200]:
        for back in range(8, 64):
            length = int.from_bytes(data[at - back - 4 : at - back], "little")
            if 8 <= length <= 120 and length >= back:
                data[at - back - 4 : at - back] = (60_000).to_bytes(4, "little")
                break
    path = write(tmp_path / "overlapping", bytes(data))
    tracemalloc.start()
    try:
        assert outcome(path) != "accepted"
        assert tracemalloc.get_traced_memory()[1] < 8 * len(data)
    finally:
        tracemalloc.stop()


def test_memory_stays_below_the_size_of_a_large_file(tmp_path: Path) -> None:
    """Headers are read in place: a package of 4 GB, most of it a hole, is no more work."""
    small = fixture("mixed").read_bytes()
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.write(small)
        stream.truncate(1 << 32)
    tracemalloc.start()
    try:
        assert len(read_drafter(path).weights) == 34
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
