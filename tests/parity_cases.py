"""The conversions whose equality with llama.cpp's converter is recorded in ``parity.json``."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import tiny
import variants

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "gemma4-tiny"
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")
ROLES = ("target", "drafter")


@dataclass(frozen=True)
class Case:
    """`role` is target or drafter; `source` a kind of tiny checkpoint, one of the real sizes, or
    ``fixture``, the trained pair; `variant` another way of writing it (see `variants`). What is
    only `written` differently must come out as the plain case does."""

    role: str
    source: str
    dtype: str
    outtype: str
    shards: int = 1
    variant: str = ""
    written: bool = False

    @property
    def name(self) -> str:
        parts = (self.source, self.variant, self.dtype, self.role, self.outtype)
        return "-".join(part for part in parts if part)

    @property
    def plain(self) -> "Case":
        return replace(self, variant="", written=False)


def cases() -> Iterator[Case]:
    for outtype in OUTTYPES:
        for role in ROLES:
            yield Case(role, "fixture", "bf16", outtype)
            yield Case(role, "e2b", "bf16", outtype)
        yield Case("target", "e2b", "f32", outtype, shards=3)
        yield Case("target", "e2b", "f16", outtype)
    for source in ("dense", "moe"):
        for outtype in ("bf16", "q8_0"):
            yield Case("target", source, "bf16", outtype)
    for outtype in ("f32", "q8_0"):
        yield Case("drafter", "dense", "bf16", outtype)
    yield Case("target", "e2b", "bf16", "bf16", variant="tokenizer")
    yield from sizes()
    yield from variations()


def sizes() -> Iterator[Case]:
    """Every size from every number type to every other."""
    for size in tiny.SIZES:
        for dtype in tiny.DTYPES:
            for outtype in OUTTYPES:
                for role in ROLES:
                    yield Case(role, size, dtype, outtype)


def variations() -> Iterator[Case]:
    """The same written differently, and things that only some checkpoints have."""
    for role in ROLES:
        for size in tiny.SIZES:
            yield Case(role, size, "bf16", "bf16", variant="google", written=True)
        yield Case(role, "12B", "bf16", "bf16", variant="bare", written=True)
    for size, variant in (
        ("12B", "text_only"),
        ("31B", "text_only"),
        ("E4B", "headless"),
        ("12B", "headless"),
        ("E2B", "older"),
    ):
        yield Case("target", size, "bf16", "bf16", variant=variant, written=True)
    for dtype in tiny.DTYPES:
        for outtype in OUTTYPES:
            yield Case("target", "E2B", dtype, outtype, variant="extremes")
    for variant in (
        "untied",
        "surplus",
        "plain_directory",
        "template_in_settings",
        "template_in_json",
        "templates_in_settings",
        "templates_in_files",
    ):
        yield Case("target", "E2B", "bf16", "q8_0", variant=variant)


def prepare(case: Case, parent: Path) -> Path:
    """The checkpoint of `case`, in a new directory below `parent` or the trained pair's own; the
    directory's name is part of the result."""
    if case.source == "fixture":
        return FIXTURE / case.role
    if case.source in tiny.SIZES:
        suffix = "" if case.role == "target" else "-assistant"
        path = parent / f"gemma-4-{case.source}-it{suffix}"
        tiny.write_structure(path, case.source, case.role, case.dtype)
    else:
        path = parent / case.name
        kind = next(kind for kind in tiny.KINDS if kind.name == case.source)
        if case.role == "drafter":
            tiny.write_drafter(path, kind, case.dtype)
        else:
            tiny.write_target(path, kind, case.dtype, shards=case.shards)
    if case.variant:
        variants.edit(path, case.variant)
    return path
