"""The tangent of the soft cap and the gated GELU: near the exact value or upstream's bits, the same
wherever a value stands."""

import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ggml_library import Ggml, Rows, builds, load_ggml
from llamacpp.pin import PATCHES

MAX_ULP = 2.0
# Where the compiler may reorder sums, the last operations round once more each.
MAX_ULP_REORDERED = 8.0
HEADERS = PATCHES / "cpu" / "files" / "ggml" / "src" / "ggml-cpu"


@pytest.fixture(scope="module")
def ggml() -> Ggml:
    return load_ggml()


def every_size() -> npt.NDArray[np.float32]:
    """Values of both signs from every binary exponent, dense where the function bends."""
    generator = np.random.Generator(np.random.SFC64(1))
    bits = generator.integers(0, 0x7F800000, 1 << 16, dtype=np.uint32)
    dense = np.linspace(0, 12, 1 << 16, dtype=np.float32)
    values = np.concatenate([bits.view(np.float32), dense])
    return np.concatenate([values, -values])


def errors(
    found: npt.NDArray[np.float32], values: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Distances from the exact values, in units in the last place."""
    exact = np.tanh(values.astype(np.float64))
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs((found.astype(np.float64) - exact) / ulp)


def test_it_is_near_the_exact_value(ggml: Ggml) -> None:
    values = every_size()
    found = ggml.tanh(values[None])[0]
    assert errors(found, values).max() < MAX_ULP
    assert np.abs(found).max() == 1.0


@pytest.mark.parametrize(
    "options", [(), ("-funsafe-math-optimizations",), ("-ffast-math",)], ids=" ".join
)
def test_options_for_inexact_arithmetic_leave_it_near(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    """Some distributions compile everything with them: rounding by a large sum would be lost."""
    program = tmp_path / "tanh"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    source = Path(__file__).parent / "tanh_driver.cpp"
    command = [
        *compiler,
        "-O2",
        "-std=c++17",
        *options,
        f"-I{HEADERS}",
        str(source),
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    values = every_size()
    # Such programs take what is below the smallest normal number for 0.
    values = values[np.abs(values) >= np.finfo(np.float32).tiny]
    done = subprocess.run([program], input=values.tobytes(), capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.float32)
    assert errors(found, values).max() < (MAX_ULP_REORDERED if options else MAX_ULP)


def test_it_is_odd_and_keeps_what_is_no_number(ggml: Ggml) -> None:
    values = every_size()
    there, back = ggml.tanh(np.stack([values, -values]))
    assert there.tobytes() == (-back).tobytes()
    special = np.array([[np.inf, -np.inf, np.nan, 0.0, -0.0]], np.float32)
    infinite, negative, nan, zero, minus_zero = ggml.tanh(special)[0]
    assert (infinite, negative) == (1.0, -1.0)
    assert np.isnan(nan)
    assert zero == minus_zero == 0.0
    assert np.signbit(minus_zero)
    assert not np.signbit(zero)


@pytest.mark.parametrize("size", [1, 3, 7, 15, 31])
def test_a_value_does_not_depend_on_its_place(ggml: Ggml, size: int) -> None:
    """Not on the row's length either: the rest of a vector loop is computed one by one."""
    values = every_size()[::97][: 31 * 40].reshape(40, 31)
    whole = ggml.tanh(values)
    assert ggml.tanh(values[:, :size]).tobytes() == np.ascontiguousarray(whole[:, :size]).tobytes()


def gated(ggml: Ggml, rows: Rows, gates: Rows) -> Rows:
    return ggml.geglu(rows, gates)


@pytest.mark.parametrize("variant", ["exact", "avx2"])
def test_the_gated_gelu_has_upstreams_bits(variant: str) -> None:
    """For all halves and what lies between and beyond them; 31 values are no whole vectors."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    ends = np.array([10, -10], np.float32)
    beside = (np.nextafter(ends, towards) for towards in (np.float32(-20), np.float32(20)))
    values = np.concatenate([halves, every_size(), ends, *beside])
    rows = np.resize(values, (len(values) // 31 + 1, 31))
    generator = np.random.Generator(np.random.SFC64(2))
    gates = np.asarray(generator.standard_normal(rows.shape), np.float32)
    gates[gates > 2] = np.float32(np.inf)
    with builds() as run:
        found, upstream = (run(name, gated, rows, gates) for name in (variant, "stock"))
    assert np.isfinite(found).mean() > 0.5
    assert found.tobytes() == upstream.tobytes()
