"""One line of Markdown that says on a model card what was proved."""

from __future__ import annotations

import re
from typing import Any

from gguf_mtp.errors import FormatError, brief
from gguf_mtp.report import common
from gguf_mtp.report.node import Node
from gguf_mtp.report.page import unpack
from gguf_mtp.report.validation import SCHEMA


def badges(document: dict[str, Any], where: str = "report") -> list[str]:
    """Return the line for a saved validation, or one for each backend's part of it.

    Plain Markdown: a card needs no host for it. Raises FormatError for another document.
    """
    return [badge_of(node) for node in unpack([(where, document)])]


def badge_of(node: Node) -> str:
    """Return the line for one backend's validation."""
    if node.text("schema") != SCHEMA:
        raise FormatError(
            f"{node.where}.schema: found {brief(node.text('schema'))}, expected {SCHEMA}"
        )
    tiers = node.children("tiers")
    held = [t.text("tier") for t in tiers if t.maybe_flag("holds")]
    broken = [t.text("tier") for t in tiers if t.maybe_flag("holds") is False]
    prompts = node.children("prompts")
    tokens = sum(p.integer("output_tokens") for p in prompts)
    settings, made = node.child("settings"), node.maybe_child("made")
    version = "" if made is None else f" {made.text('gguf_mtp')}"
    parts = [f"by gguf-mtp{version}"]
    where = f"{common.counted(len(prompts), 'prompt')}, {common.counted(tokens, 'token')}"
    parts.append(f"{' '.join(held) or 'nothing'} hold on {where}")
    if broken:
        parts.append(f"{' '.join(broken)} break")
    rate = node.child("acceptance").maybe_number("tokens_per_pass")
    if rate is not None:
        parts.append(f"{rate:.2f} tokens a pass at n_max {settings.integer('n_max')}")
    parts.append(f"{settings.text('quantization')} on {settings.text('device')}")
    files = common.files(node)
    if files:
        parts.append(f"sha256 {files[0]['sha256'][:16]}")
    verdict = "verified" if node.flag("holds") else "NOT verified"
    return f"**MTP {verdict}** {' · '.join(map(_plain, parts))}"


def _plain(text: str) -> str:
    """Text that Markdown and HTML take as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&])", r"\\\1", " ".join(text.split()))
