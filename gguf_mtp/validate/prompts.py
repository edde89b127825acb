"""The prompts a validation runs over: sets that ship with the package, or a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from gguf_mtp.errors import FormatError, brief
from gguf_mtp.readers.strict_json import parse_object, read_small
from gguf_mtp.runtime.bindings import Model

WINDOW = 512  # tokens, for a model without a sliding window
MAX_WINDOWS = 64
MAX_BYTES = 1 << 26  # of a file of prompts

SHIPPED = Path(__file__).parents[1] / "data" / "prompts"


@dataclass(frozen=True)
class Prompt:
    """A text to continue; `id` is unique within a validation, `source` says where it is from.

    `chat` is a user's message, to be wrapped in the model's turn markup. A text with `windows` is
    repeated, each time under a number, until it is that many sliding windows long.
    """

    id: str
    text: str
    source: str
    prompt_set: str = ""
    chat: bool = False
    windows: int = 0


def shipped_sets() -> dict[str, Path]:
    """Return the sets that ship with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.jsonl"))}


def load_prompts(names: Sequence[str] = ()) -> list[Prompt]:
    """Load prompts from shipped sets or JSON-lines files, taking turns between them.

    Each of `names` is a shipped set's name or a path; none means every shipped set. So the
    first n prompts are a fair share of all sets. Raises FormatError for a set that is not
    there, is empty, or is not JSON lines of objects with "id" and "text".
    """
    shipped = shipped_sets()
    chosen = list(names) or list(shipped)
    if not chosen:
        raise FormatError("no prompt sets are installed; name a file with --prompts")
    sets = [_load_set(name, shipped) for name in chosen]
    turns: Iterable[Prompt | None] = (p for turn in zip_longest(*sets) for p in turn)
    prompts = [prompt for prompt in turns if prompt is not None]
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise FormatError(f"prompt id {brief(prompt.id)} occurs twice")
        seen.add(prompt.id)
    return prompts


def _load_set(name: str, shipped: dict[str, Path]) -> list[Prompt]:
    path = shipped.get(name, Path(name))
    if not os.path.exists(path):
        known = ", ".join(shipped) or "none"
        raise FormatError(f"{name}: no such prompt set or file (sets: {known})")
    return parse_prompts(read_small(path, MAX_BYTES), name)


def parse_prompts(encoded: bytes, name: str) -> list[Prompt]:
    """Parse JSON lines into prompts; `name` is used in messages. Raises FormatError."""
    prompts = []
    for number, line in enumerate(encoded.split(b"\n"), start=1):
        if not line.strip():
            continue
        fields = parse_object(line, f"{name}:{number}")
        values = [fields.get("id"), fields.get("text"), fields.get("source", "")]
        if not all(isinstance(value, str) for value in values) or not values[0] or not values[1]:
            raise FormatError(f'{name}:{number}: needs strings "id" and "text"')
        chat, windows = fields.get("chat", False), fields.get("windows", 0)
        if not isinstance(chat, bool):
            raise FormatError(f'{name}:{number}: "chat" is true or false')
        if type(windows) is not int or not 0 <= windows <= MAX_WINDOWS:
            raise FormatError(f'{name}:{number}: "windows" is a number up to {MAX_WINDOWS}')
        own_id, own_text, source = values
        prompts.append(Prompt(own_id, own_text, source, Path(name).stem, chat, windows))
    if not prompts:
        raise FormatError(f"{name}: no prompts")
    return prompts


def encode(prompt: Prompt, model: Model, chat: bool = False) -> tuple[int, ...]:
    """Turn a prompt into the model's tokens; `chat` wraps every prompt in turn markup.

    Raises RuntimeUnavailable where markup is wanted that the vocabulary does not have.
    """
    tokenize = model.tokenize_turn if chat or prompt.chat else model.tokenize
    if not prompt.windows:
        return tokenize(prompt.text)
    wanted = prompt.windows * (model.n_swa or WINDOW)
    pieces: list[str] = []
    tokens: tuple[int, ...] = ()
    while len(tokens) < wanted:
        pieces.append(f"[{len(pieces) + 1}]\n{prompt.text}\n")
        tokens = tokenize("".join(pieces))
    return tokens
