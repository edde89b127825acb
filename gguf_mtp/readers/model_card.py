"""The front matter of a checkpoint's README.md: YAML of plain data, bounded in size and depth.

Source: the Hugging Face hub's notes on model cards; gguf-py ``gguf/metadata.py`` (what of a card
counts, and the two repairs).
"""

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from gguf_mtp.errors import FormatError
from gguf_mtp.readers.strict_json import read_small

MAX_CARD_BYTES = 1 << 20
# Google's are under 2 KiB. PyYAML takes a second for this much.
MAX_FRONT_BYTES = 1 << 16
MAX_DEPTH = 16
FENCE = "---"


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain data only, nested sixteen deep at most, and nothing that stands for something else."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            # A few lines of aliases unfold to more than any memory holds.
            raise yaml.YAMLError(
                f"alias in line {self.peek_event().start_mark.line + 2}: aliases are not read"
            )
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_card(path: Path) -> dict[str, Any]:
    """The front matter of the model card at `path`; empty where there is neither.

    Raises FormatError for one that is not YAML of plain data, or too large. Callers go on without
    the card.
    """
    if not path.exists():
        return {}
    try:
        lines = read_small(path, MAX_CARD_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}") from None
    if not lines or lines[0] != FENCE:
        return {}
    end = lines.index(FENCE, 1) if FENCE in lines[1:] else len(lines)
    front = "\n".join(lines[1:end]) + "\n"
    if len(front) > MAX_FRONT_BYTES:
        raise FormatError(
            f"{path}: front matter of {len(front)} characters, at most {MAX_FRONT_BYTES} are read"
        )
    # As gguf-py: Norway is no boolean, and tabs are no reason to fail.
    front = front.replace("- no\n", '- "no"\n').replace("\t", "  ")
    try:
        data = yaml.load(front, Loader=_PlainLoader)
    # PyYAML's own constructors fail on odd dates and numbers, also with TypeError and the like.
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        message = " ".join(str(error).split())
        raise FormatError(f"{path}: unusable front matter: {message}") from None
    return data if isinstance(data, dict) else {}
