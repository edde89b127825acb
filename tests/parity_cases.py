"""The conversions whose equality with llama.cpp's converter is recorded in ``parity.json``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tiny

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "gemma4-tiny"


@dataclass(frozen=True)
class Case:
    """`role` is target or drafter; `source` a kind of tiny checkpoint, ``tokenizer`` for one whose
    tokenizer is written otherwise, or ``fixture``, the trained pair."""

    role: str
    source: str
    dtype: str
    outtype: str
    shards: int = 1

    @property
    def name(self) -> str:
        return f"{self.source}-{self.dtype}-{self.role}-{self.outtype}"


def cases() -> Iterator[Case]:
    for outtype in ("f32", "f16", "bf16", "q8_0", "auto"):
        for role in ("target", "drafter"):
            yield Case(role, "fixture", "bf16", outtype)
            yield Case(role, "e2b", "bf16", outtype)
        yield Case("target", "e2b", "f32", outtype, shards=3)
        yield Case("target", "e2b", "f16", outtype)
    for source in ("dense", "moe"):
        for outtype in ("bf16", "q8_0"):
            yield Case("target", source, "bf16", outtype)
    for outtype in ("f32", "q8_0"):
        yield Case("drafter", "dense", "bf16", outtype)
    yield Case("target", "tokenizer", "bf16", "bf16")


def prepare(case: Case, directory: Path) -> Path:
    """The checkpoint of `case`; tiny ones are written to a directory of the case's name, as the
    directory's name is part of the result."""
    if case.source == "fixture":
        return FIXTURE / case.role
    if case.source == "tokenizer":
        writer = tiny.write_target if case.role == "target" else tiny.write_drafter
        tiny.vary_tokenizer(writer(directory))
        return directory
    kind = next(kind for kind in tiny.KINDS if kind.name == case.source)
    if case.role == "drafter":
        return tiny.write_drafter(directory, kind, case.dtype)
    return tiny.write_target(directory, kind, case.dtype, shards=case.shards)
