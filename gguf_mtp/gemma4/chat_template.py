"""Chat templates as ``tokenizer.chat_template*`` keys: opaque text, never rendered here.

Source: llama.cpp ``gguf-py/gguf/vocab.py`` (which file wins), ``gguf_writer.py``
(``add_chat_template``); transformers 5.22 ``tokenization_utils_base.py`` (how they are saved).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf_mtp.errors import FormatError, brief
from gguf_mtp.keyvalue import KeyValue, string, strings
from gguf_mtp.readers.checkpoint import Checkpoint
from gguf_mtp.readers.strict_json import read_small

MAX_BYTES = 1 << 24
KEY = "tokenizer.chat_template"
DEFAULT = "default"


def chat_template_keys(checkpoint: Checkpoint, settings: dict[str, Any]) -> list[KeyValue]:
    """The keys of a checkpoint's template or templates; `settings` is tokenizer_config.json.

    Its ``chat_template`` wins, even if null, over chat_template.jinja and that over
    chat_template.json. Raises FormatError for anything but text.
    """
    path = checkpoint.path
    if "chat_template" in settings:
        return _keys(path / "tokenizer_config.json", settings["chat_template"])
    beside = path / "chat_template.jinja"
    if not beside.exists():
        older = checkpoint.json("chat_template.json") or {}
        return _keys(path / "chat_template.json", older.get("chat_template"))
    template = _read(beside)
    # By name: the file system's own order differs from machine to machine.
    others = sorted((path / "additional_chat_templates").glob("*.jinja"))
    if not others:
        return _keys(beside, template)
    named = [{"name": other.stem, "template": _read(other)} for other in others]
    return _keys(beside, [{"name": DEFAULT, "template": template}, *named])


def _read(path: Path) -> str:
    try:
        text = read_small(path, MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}") from None
    # Python's text mode, which llama.cpp's converter reads it in, translates line ends.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _keys(where: Path, value: Any) -> list[KeyValue]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [string(KEY, value)]
    if not isinstance(value, list):
        raise FormatError(f"{where}: chat_template is {brief(value)}, expected text or a list")
    templates = dict(_named(where, value))
    default = templates.pop(DEFAULT, None)
    keys = [string(f"{KEY}.{name}", text) for name, text in templates.items()]
    if templates:
        keys.append(strings(f"{KEY}s", list(templates)))
    return [*keys, string(KEY, default)] if default is not None else keys


def _named(where: Path, choices: list[Any]) -> Iterator[tuple[str, str]]:
    """The templates of a list with their names, in which other characters become ``_``."""
    for choice in choices:
        name = choice.get("name") if isinstance(choice, dict) else None
        text = choice.get("template") if isinstance(choice, dict) else None
        if not isinstance(name, str) or not name or not isinstance(text, str) or not text:
            raise FormatError(
                f"{where}: chat_template holds {brief(choice)}, expected a name and a text"
            )
        yield re.sub("[^a-zA-Z0-9]", "_", name), text
