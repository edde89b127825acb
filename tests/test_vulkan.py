"""Vulkan on Mesa's software driver: everything runs there, and where it does not, that is said."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from backend_runs import (
    clean_environment,
    report_of,
    run_validate,
    run_verb,
    verdicts,
    vulkan_environment,
)
from demo import same_text
from hung import HUNG
from llama_programs import FIXED_DEPTH, GREEDY, THREADS, programs

pytestmark = pytest.mark.vulkan

# The driver takes a second for a dozen tokens of a prompt: a few tokens, decoded by all tiers.
SHORT = ("--n-predict", "8", "--n-max", "2", "--threads", "1", "--json")
HELD = ("L0", "L1", "L3", "drafts-exact", "cross-backend")
PROMPT = "import os\n"
PLAIN = ("-fa", "off", "-ctk", "f32", "-ctv", "f32")
STEPS = "--no-spec-draft-one-graph"


@pytest.fixture(scope="module")
def driver() -> dict[str, str]:
    """The environment for a build that must be there."""
    programs("vulkan")
    return vulkan_environment()


@pytest.fixture(scope="module")
def one_line(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Options that take one short prompt."""
    path = tmp_path_factory.mktemp("prompts") / "line.jsonl"
    path.write_text(json.dumps({"id": "line", "text": "import os\n"}) + "\n")
    return "--prompts", str(path)


def test_tiers_hold(driver: dict[str, str], merged_f32: Path, one_line: tuple[str, str]) -> None:
    settings = ("--kv-type", "f32", "--flash-attn", "off")
    done = run_validate(
        merged_f32, "--backend", "vulkan", *settings, *one_line, *SHORT, environ=driver
    )
    report = report_of(done)
    assert report["settings"]["library_backend"] == "vulkan"
    assert "llvmpipe" in report["settings"]["device"]
    held = verdicts(report)
    assert all(held[tier] for tier in HELD), held
    cross = report["cross_backend"]
    # Nothing but the token embeddings, which llama.cpp keeps with the CPU, lies elsewhere.
    assert list(cross["kv_cache"]) == ["Vulkan0"]
    assert cross["weights"]["Vulkan0"] > 0.6 * sum(cross["weights"].values())
    assert list(cross["heads_weights"]) == ["Vulkan0"]


def test_without_the_variable_it_is_not_the_cpu_that_is_called_vulkan(
    driver: dict[str, str], merged_f32: Path
) -> None:
    """ggml passes over the software driver; everything would run on the CPU, and hold."""
    environ = {k: v for k, v in driver.items() if k != "GGML_VK_VISIBLE_DEVICES"}
    validations = [("validate", "--backend", asked) for asked in ("vulkan", "all")]
    runs = [("run", "import os", "--backend", "vulkan"), ("bench", "--backend", "vulkan")]
    for verb, *words in (*validations, *runs):
        done = run_verb(verb, merged_f32, *words, environ=environ)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "error: the vulkan backend finds no device on this machine; "
            "GGML_VK_VISIBLE_DEVICES=0 lets it take a software driver\n"
        )


def test_run_and_bench_take_the_device(
    driver: dict[str, str], merged_f32: Path, one_line: tuple[str, str]
) -> None:
    """By the backend's name or the device's; the text is the CPU's, F32 throughout."""
    settings = ("--kv-type", "f32", "--flash-attn", "off", "--threads", "1", "--json")
    words = (merged_f32, PROMPT, "--raw", "-n", "6", "--ctx", "256", "--n-max", "2", *settings)
    texts = {
        where: report_of(run_verb("run", *words, "--device", where, environ=environ))["text"]
        for where, environ in (("cpu", clean_environment()), ("Vulkan0", driver))
    }
    assert texts["cpu"] == texts["Vulkan0"] != ""
    few = ("--n-max", "1", "--n-predict", "3", "--repetitions", "1", "--ctx", "256")
    on = ("--backend", "vulkan", *one_line)
    found = report_of(run_verb("bench", merged_f32, *on, *few, *settings, environ=driver))
    assert "llvmpipe" in found["settings"]["device"]
    assert [depth["n"] for depth in found["depths"]] == [0, 1]


def test_a_library_without_vulkan_says_how_to_build_one(merged_f32: Path) -> None:
    environ = clean_environment() | {"LLAMA_CPP_LIB_PATH": str(programs("exact"))}
    done = run_validate(merged_f32, "--backend", "vulkan", *SHORT, environ=environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "built without vulkan; run `python tools/patch_llamacpp.py --variant vulkan`" in done.stderr
    )
    assert done.stderr.count("\n") == 1


def speculate(environ: dict[str, str], variant: str, *arguments: str | Path) -> tuple[str, str]:
    """Run llama-speculative-simple with every node's device in its log; gives text and log."""
    # fmt: off
    command = [str(programs(variant) / "llama-speculative-simple"), *map(str, arguments), *THREADS,
               *GREEDY, "-c", "256", "-n", "8", "-p", PROMPT, "-v", *PLAIN]
    # fmt: on
    done = subprocess.run(
        command,
        env=environ | FIXED_DEPTH | {"GGML_SCHED_DEBUG": "2"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=HUNG,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stderr[-1500:]}"
    return done.stdout.strip(), done.stderr


def nodes_of(log: str) -> list[tuple[str, str]]:
    """Operation and device of every node the scheduler's log names."""
    return re.findall(r"node # *\d+ \( *(\w+)\): +.{20} \([^)]*\) \[ *(\w+)", log)


def require_on_vulkan(log: str) -> None:
    """Fail where a node of any graph, the drafter's too, is not on the device."""
    assert "ggml_vulkan: Found 1 Vulkan devices" in log
    nodes = nodes_of(log)
    elsewhere = {operation for operation, device in nodes if not device.startswith("Vulka")}
    # Rows of the token embeddings are taken where those lie, with the CPU.
    assert elsewhere <= {"GET_ROWS"}, elsewhere
    assert {"MUL_MAT_ID", "SET_ROWS", "TOP_K"} <= {
        operation for operation, _ in nodes
    }  # the heads'


@pytest.mark.parametrize("how", [(), (STEPS,)], ids=["in one graph", "step by step"])
def test_the_programs_draft(driver: dict[str, str], merged_f32: Path, how: tuple[str, ...]) -> None:
    text, log = speculate(driver, "vulkan", "-m", merged_f32, *how)
    require_on_vulkan(log)
    assert ("tokens are drafted in one graph of 1 splits" in log) == (how == ())
    expected, _ = speculate(clean_environment(), "default", "-m", merged_f32, *how)
    assert same_text(text, expected)  # F32 throughout: the text of the CPU
