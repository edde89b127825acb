"""Shared fixtures: the trained pair, tiny random pairs, and merged files made from them."""

import signal
from pathlib import Path

import pytest

import tiny
from gguf_mtp.api import convert
from pair_files import Files, take_apart

# In the background or under nohup the tests ignore these, and so would the programs that they start
# and signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "gemma4-tiny"


@pytest.fixture(scope="session")
def target_dir() -> Path:
    """The trained target, a Hugging Face checkpoint directory."""
    return FIXTURE / "target"


@pytest.fixture(scope="session")
def drafter_dir() -> Path:
    """The trained drafter, a Hugging Face checkpoint directory."""
    return FIXTURE / "drafter"


def _merged(factory: pytest.TempPathFactory, name: str, outtype: str, heads_type: str) -> Path:
    out = factory.mktemp("merged") / f"{name}.gguf"
    convert(FIXTURE / "target", FIXTURE / "drafter", out, outtype=outtype, heads_type=heads_type)
    return out


@pytest.fixture(scope="session")
def merged_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained pair in one file, everything F32."""
    return _merged(tmp_path_factory, "merged-f32", "f32", "f32")


@pytest.fixture(scope="session")
def merged_auto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained pair in one file as `convert` makes it by default."""
    return _merged(tmp_path_factory, "merged-auto", "auto", "auto")


@pytest.fixture(scope="session")
def files(merged_f32: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The trained pair in F32, merged and taken apart again."""
    return take_apart(merged_f32, tmp_path_factory.mktemp("halves"))


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random multimodal E2B checkpoint. Session-wide: do not write to it."""
    return tiny.write_target(tmp_path_factory.mktemp("tiny") / "target")


@pytest.fixture(scope="session")
def tiny_drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drafter of `tiny_target`. Session-wide: do not write to it."""
    return tiny.write_drafter(tmp_path_factory.mktemp("tiny") / "drafter")


@pytest.fixture(scope="session")
def tiny_merged(
    tmp_path_factory: pytest.TempPathFactory, tiny_target: Path, tiny_drafter: Path
) -> Path:
    """The tiny pair in one file. Session-wide: do not write to it."""
    out = tmp_path_factory.mktemp("tiny") / "merged.gguf"
    convert(tiny_target, tiny_drafter, out)
    return out
