"""Which backends are validated, what lies where, and the comparison with the CPU's logits."""

import dataclasses
import io
from pathlib import Path

import gguf
import numpy as np
import pytest

from _validate_helpers import library_under_test, require_patches
from backend_runs import run_verb
from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import ContextOptions, ModelOptions
from gguf_mtp.runtime.library import Device, Library
from gguf_mtp.runtime.pair import open_pair
from gguf_mtp.runtime.placement import KV_CACHE, placement, require_on_devices
from gguf_mtp.runtime.targets import Target, choose_targets, left_out
from gguf_mtp.validate.acceptance import Proportion
from gguf_mtp.validate.backends import not_tested
from gguf_mtp.validate.cross import (
    BLOCKS,
    F32,
    HALF,
    Comparison,
    CpuLogits,
    Passage,
    divergence,
    tolerance,
)

# --- which backends and devices ---------------------------------------------------------------


def device(name: str, backend: str) -> Device:
    return Device(name, f"a {backend}", backend == "cpu", backend, 1)


class FakeLibrary(Library):
    """Devices and backends as they are told, and nothing else of a library."""

    def __init__(self, built: tuple[str, ...], *devices: Device) -> None:
        self.built, self.found, self.directory = built, devices, Path("/lib")

    def devices(self) -> list[Device]:
        return [*self.found, device("CPU", "cpu")]

    def backends(self) -> list[str]:
        return [*self.built, "rpc", "cpu"]


TWO = FakeLibrary(
    ("cuda", "vulkan"),
    device("CUDA0", "cuda"),
    device("CUDA1", "cuda"),
    device("Vulkan0", "vulkan"),
)


@pytest.mark.parametrize(
    ("backend", "named", "expected"),
    [
        (None, None, ["cpu", "vulkan Vulkan0", "cuda CUDA0 CUDA1"]),
        ("all", None, ["cpu", "vulkan Vulkan0", "cuda CUDA0 CUDA1"]),
        ("cuda", None, ["cuda CUDA0 CUDA1"]),
        ("cpu", None, ["cpu"]),
        (None, "cpu", ["cpu"]),
        (None, "cuda1", ["cuda CUDA1"]),
        ("cuda", "CUDA1, cuda0", ["cuda CUDA1 CUDA0"]),
    ],
)
def test_backends_become_devices(
    backend: str | None, named: str | None, expected: list[str]
) -> None:
    targets = choose_targets(TWO, backend, named)
    assert [" ".join((t.backend, *t.devices)) for t in targets] == expected


@pytest.mark.parametrize(
    ("backend", "named", "message"),
    [
        ("metal", None, r"built without metal; run `make patch-llamacpp BACKEND=metal`"),
        ("rpc", None, r"rpc backend finds no device .* --rpc HOST:PORT"),
        (None, "Vulkan1", r"no device 'vulkan1'; the library has: CUDA0 \(cuda\), "),
        ("vulkan", "CUDA0", r"no device 'cuda0' of vulkan; "),
        (None, "CUDA0,Vulkan0", r"no device 'cuda0,vulkan0'; "),
        ("cuda", "cpu", r"no device 'cpu' of cuda"),
    ],
)
def test_what_is_not_there_is_refused(backend: str | None, named: str | None, message: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=message):
        choose_targets(TWO, backend, named)


def test_a_backend_without_a_device_fails_where_all_are_asked_for() -> None:
    bare = FakeLibrary(("vulkan",))
    assert [t.backend for t in choose_targets(bare, None, None)] == ["cpu"]
    with pytest.raises(RuntimeUnavailable, match=r"vulkan .* GGML_VK_VISIBLE_DEVICES=0"):
        choose_targets(bare, "all", None)


def test_what_was_left_out_is_told_with_its_reason() -> None:
    bare = FakeLibrary(("vulkan",))
    reasons = left_out(bare, choose_targets(bare, None, None))
    assert reasons == {
        "metal": "not in this llama.cpp",
        "vulkan": "no device here",
        "cuda": "not in this llama.cpp",
        "rpc": "no server named",
    }
    assert not_tested(reasons) == (
        "not tested: metal, cuda (not in this llama.cpp); vulkan (no device here); "
        "rpc (no server named)"
    )
    assert left_out(TWO, [Target("cuda", ("CUDA0",))])["vulkan"] == "not asked for"


@pytest.mark.parametrize("verb", ["validate", "run", "bench"])
@pytest.mark.parametrize("backend", ["metal", "cuda"])
def test_a_backend_that_was_never_built_is_one_line_and_exit_2(
    merged_f32: Path, verb: str, backend: str
) -> None:
    words = ("import os",) if verb == "run" else ()
    done = run_verb(verb, merged_f32, *words, "--backend", backend)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{backend} backend; run `make patch-llamacpp BACKEND={backend}`" in done.stderr
    assert done.stderr.count("\n") == 1


# --- where things lie -------------------------------------------------------------------------


def test_placement_is_read_from_a_log() -> None:
    log = [
        "load_tensors:   CPU_Mapped model buffer size =     2.62 MiB",
        "load_tensors:      Vulkan0 model buffer size =     9.76 MiB",
        "llama_kv_cache:    Vulkan0 KV buffer size =     0.08 MiB",
        "llama_kv_cache:    Vulkan0 KV buffer size =     0.16 MiB",
        "llama_context: n_ctx = 256",
    ]
    assert placement(log, "model") == {"CPU_Mapped": 2.62, "Vulkan0": 9.76}
    assert placement(log, "KV") == {"Vulkan0": pytest.approx(0.24)}
    assert placement(log, "compute") == {}


def a_comparison(**changes: object) -> Comparison:
    there = {"Vulkan0": 1.0}
    good = Comparison(
        rows=2, worst=0.0, mean=0.0, tolerance=F32, largest_difference=0.0,
        same_best=Proportion(2, 2), same_drafts=Proportion(2, 2), weights=there | {"CPU": 1.0},
        heads_weights=there, kv_cache=there, compute=there | {"CPU": 1.0}, divergences=(),
        prompts=1,
    )  # fmt: skip
    return dataclasses.replace(good, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "place", "message"),
    [
        ("base's weights", {"CPU": 1.0}, r"did not go to Vulkan0 but to: CPU \(1.00 MiB\)"),
        ("heads' weights", {"CPU_Mapped": 1.0}, r"heads' weights did not go to Vulkan0"),
        (KV_CACHE, {"CPU": 1.0}, r"KV cache did not go to Vulkan0"),
        (KV_CACHE, {"Vulkan0": 1.0, "CPU": 1.0}, r"part of the KV cache is not on Vulkan0"),
        ("compute buffers", {"Vulkan_Host": 1.0}, r"compute buffers did not go"),
        ("compute buffers", {}, r"compute buffers did not go to Vulkan0 but to: nowhere"),
    ],
)
def test_what_fell_back_to_the_cpu_is_refused(
    part: str, place: dict[str, float], message: str
) -> None:
    there = {"Vulkan0": 1.0}
    good = {"base's weights": there | {"CPU": 1.0}, "heads' weights": there, KV_CACHE: there}
    good["compute buffers"] = there | {"CPU": 1.0}
    require_on_devices("vulkan0", good)
    require_on_devices("CUDA0, Vulkan0", good)
    with pytest.raises(RuntimeUnavailable, match=message):
        require_on_devices("Vulkan0", good | {part: place})


# --- comparing logits -------------------------------------------------------------------------


def test_divergence_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 50)).astype(np.float32)
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum() for x in (a, b))
    assert divergence(a, b) == pytest.approx(float(np.sum(p * np.log(p / q))), rel=1e-9)
    assert divergence(a, a + 5) == pytest.approx(0, abs=1e-12)
    assert np.isnan(divergence(a, np.where(b > 1, np.nan, b)))


@pytest.mark.parametrize(
    ("ftype", "kv_type", "expected"),
    [
        ("all F32", "f32", F32),
        ("all F32", "f16", HALF),
        ("F16", "f32", HALF),
        ("BF16", "f16", HALF),
        ("Q8_0", "f32", BLOCKS),
        ("all F32", "q8_0", BLOCKS),
    ],
)
def test_the_tolerance_is_that_of_what_rounds_most(
    ftype: str, kv_type: str, expected: object
) -> None:
    assert tolerance(ftype, kv_type) is expected


@pytest.mark.parametrize(("worst", "mean"), [(2e-5, 0.0), (0.0, 2e-6), (np.nan, 0.0), (0, np.nan)])
def test_beyond_the_tolerance_or_not_a_number_breaks(worst: float, mean: float) -> None:
    assert a_comparison().holds
    assert not a_comparison(worst=worst, mean=mean).holds


def perturbed(path: Path, tensor: str, factor: float, out: Path) -> Path:
    """Copy a GGUF with one F32 tensor scaled."""
    out.write_bytes(path.read_bytes())
    reader = gguf.GGUFReader(out, "r+")
    found = next(t for t in reader.tensors if t.name == tensor)
    found.data[...] *= factor
    reader.data.flush()
    return out


@pytest.fixture(scope="module")
def library() -> Library:
    found = library_under_test()
    require_patches(found)
    return found


CPU = ModelOptions(device="cpu")
TEXTS = {"long": "def fibonacci(n):\n" * 12, "short": "import"}


def compare(library: Library, merged: Path, other: Path, kv_type: str = "f32") -> Comparison:
    """Record `merged`, then compare `other` with it, both on the CPU."""
    store, sizes = io.BytesIO(), ContextOptions(n_ctx=256, kv_type=kv_type)
    with open_pair(merged=merged, library=library, options=CPU) as pair:
        passages = [Passage(name, pair.base.tokenize(text)) for name, text in TEXTS.items()]
        on_cpu = CpuLogits.record(pair, passages, sizes, store, lambda _done, _total: None)
    with open_pair(merged=other, library=library, options=CPU) as pair:
        limit = tolerance(pair.base.ftype, kv_type)
        return on_cpu.compare(pair, limit, lambda _done, _total: None)


def test_a_model_agrees_with_itself(library: Library, merged_f32: Path) -> None:
    found = compare(library, merged_f32, merged_f32)
    assert (found.worst, found.largest_difference, found.divergences) == (0, 0, ())
    assert found.same_best.hits == found.same_best.total == found.rows > 2 * 16 + 32
    assert found.same_drafts == Proportion(32, 32)
    verdict = found.verdict(claimed=True)
    assert verdict.holds
    assert (verdict.matching, verdict.tokens) == (Proportion(2, 2), found.rows)


def test_other_weights_break_the_tier(library: Library, merged_f32: Path, tmp_path: Path) -> None:
    """One layer's norm off by a twentieth: text may be the same, the logits are not."""
    other = perturbed(merged_f32, "blk.1.post_ffw_norm.weight", 1.05, tmp_path / "other.gguf")
    found = compare(library, merged_f32, other)
    assert not found.holds
    assert {d.prompt for d in found.divergences} == set(TEXTS)
    assert all(d.what.startswith("KL ") for d in found.divergences)
    verdict = found.verdict(claimed=True)
    assert (verdict.holds, verdict.matching) == (False, Proportion(0, 2))


def test_other_heads_show_in_their_drafts_alone(
    library: Library, merged_f32: Path, tmp_path: Path
) -> None:
    other = perturbed(merged_f32, "mtp.blk.0.attn_norm.weight", -1.0, tmp_path / "other-heads.gguf")
    found = compare(library, merged_f32, other)
    assert found.worst == 0
    assert found.same_drafts.hits < found.same_drafts.total
