"""llama.cpp's RPC: the devices of another machine, here of a server on this one."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from _validate_helpers import library_under_test
from backend_runs import report_of, rpc_server, run_validate, run_verb, verdicts
from gguf_mtp.errors import RuntimeUnavailable

SHORT = ("--n-prompts", "2", "--n-predict", "24", "--threads", "1", "--json")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with rpc_server(tmp_path_factory.mktemp("rpc") / "server.log") as at:
        yield at


def test_tiers_hold_on_a_server(endpoint: str, merged_f32: Path) -> None:
    """The server computes with the CPU's own kernels: its logits are the CPU's to the bit."""
    report = report_of(run_validate(merged_f32, "--rpc", endpoint, "--backend", "rpc", *SHORT))
    assert report["backend"] == "rpc"
    assert endpoint in report["settings"]["device"]
    held = verdicts(report)
    assert all(held[tier] for tier in ("L0", "L1", "L3", "drafts-exact", "cross-backend")), held
    cross = report["cross_backend"]
    assert (cross["worst"], cross["largest_difference"]) == (0, 0)
    assert cross["same_drafts"] == {"hits": 32, "total": 32}
    assert list(cross["kv_cache"]) == [f"RPC0[{endpoint}]"]


def test_every_backend_with_a_device_runs_by_default(endpoint: str, merged_f32: Path) -> None:
    both = report_of(run_validate(merged_f32, "--rpc", endpoint, *SHORT))
    assert both["schema"] == "gguf-mtp.validate-backends/1"
    assert [each["backend"] for each in both["backends"]] == ["cpu", "rpc"]
    assert both["not_tested"]["cuda"] == "not in this llama.cpp"
    assert both["backends"][0]["cross_backend"] is None
    assert both["backends"][1]["cross_backend"]["holds"]
    assert both["holds"]


RUN = ("--raw", "-n", "12", "--ctx", "128", "--threads", "1", "--json")


def test_run_generates_on_a_server(endpoint: str, merged_f32: Path) -> None:
    """By the backend's name and by the device's: the CPU's own text."""
    texts = []
    for where in (("--device", "cpu"), ("--backend", "rpc"), ("--device", "rpc0")):
        server = () if where[1] == "cpu" else ("--rpc", endpoint)
        found = report_of(run_verb("run", merged_f32, "import os\n", *where, *server, *RUN))
        assert found["statistics"]["drafted"] > 0
        texts.append(found["text"])
    assert len(texts[0]) > 0
    assert texts[1:] == texts[:1] * 2


def test_bench_measures_a_server(endpoint: str, merged_f32: Path) -> None:
    words = ("--n-prompts", "1", "--n-predict", "8", "--n-max", "1", "--repetitions", "1", "--json")
    done = run_verb("bench", merged_f32, "--rpc", endpoint, "--backend", "rpc", *words)
    found = report_of(done)
    assert endpoint in found["settings"]["device"]
    assert found["made"]["command"].count("--rpc") == 1


@pytest.mark.parametrize("verb", ["validate", "run", "bench"])
def test_nobody_at_the_endpoint_is_one_line_and_exit_2(verb: str, merged_f32: Path) -> None:
    words = ("import os",) if verb == "run" else ()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound and not listening: refused for sure
        at = f"127.0.0.1:{probe.getsockname()[1]}"
        done = run_verb(verb, merged_f32, *words, "--rpc", at, "--backend", "rpc")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: no RPC server answers at {at}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("endpoint", ["50052", ":50052", "localhost:", "localhost:x"])
def test_an_endpoint_is_host_and_port(endpoint: str) -> None:
    library = library_under_test()
    with pytest.raises(RuntimeUnavailable, match="is not HOST:PORT"):
        library.add_rpc_server(endpoint)


def test_a_port_out_of_range_is_refused() -> None:
    with pytest.raises(RuntimeUnavailable, match="no RPC server answers at localhost:65536"):
        library_under_test().add_rpc_server("localhost:65536")
