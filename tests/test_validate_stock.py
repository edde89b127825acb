"""The same harness on an unpatched library, so that users can compare before they build."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gguf_mtp.api import convert
from gguf_mtp.cli.main import main
from gguf_mtp.validate.tiers import BASE, DRAFTS, L0, L1, L3, L4, REFERENCE
from llama_programs import programs
from pair_files import Files

REFERENCE_FILE = Path(__file__).parent / "fixtures" / "gemma4-tiny" / "reference.npz"
SETTINGS = ("--n-prompts", "2", "--n-predict", "16", "--threads", "1", "--json")


@pytest.fixture(scope="module")
def stock() -> Path:
    """The directory of the unpatched library."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    return programs("stock")


def validate(library: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`gguf-mtp validate --library` in a process of its own, which has no other library."""
    environ = {k: v for k, v in os.environ.items() if k != "LLAMA_CPP_LIB_PATH"}
    words = ["validate", *arguments, "--library", library, *SETTINGS]
    command = [sys.executable, "-m", "gguf_mtp.cli.main", *map(str, words)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def held(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return {tier["tier"]: tier["holds"] for tier in json.loads(done.stdout)["tiers"]}


def test_two_files_hold_every_tier(stock: Path, files: Files) -> None:
    more = ("--against", files.base, "--reference", REFERENCE_FILE)
    l4 = ("--temperature", 0.8, "--draws", 150, "--n-max", 2)
    done = validate(stock, files.base, "--heads", files.heads, *more, *l4)
    tiers = held(done)
    assert all(tiers[tier] for tier in (L0, L1, L3, L4, DRAFTS, BASE, REFERENCE))
    data = json.loads(done.stdout)
    assert data["settings"]["library_patches"] == ""
    assert data["reference"]["head"] == "dense"
    assert data["acceptance"]["tokens_per_pass"] > 1.5


def test_a_tail_holds_too(stock: Path, files: Files, tmp_path: Path) -> None:
    both = tmp_path / "tail.gguf"
    convert(files.base, files.heads, both, layout="tail")
    tiers = held(validate(stock, both, "--against", files.base))
    assert all(tiers[tier] for tier in (L0, L1, L3, DRAFTS, BASE))
    assert tiers[L4] is None
    assert tiers[REFERENCE] is None


def test_one_file_needs_the_patches(stock: Path, files: Files) -> None:
    done = validate(stock, files.merged)
    assert done.returncode == 2
    assert "not a patched llama.cpp; run `make patch-llamacpp`" in done.stderr
    done = validate(stock, files.base, "--heads", files.with_tensors)
    assert done.returncode == 2
    assert "has an ordered head" in done.stderr


def test_a_directory_without_a_library_is_refused(files: Files, tmp_path: Path) -> None:
    done = validate(tmp_path, files.merged)
    assert done.returncode == 2
    assert f"{tmp_path} holds no libllama" in done.stderr
    words = ["validate", str(files.merged), "--library", str(tmp_path), "--exact"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert "does not go with --library" in refused.stderr
