"""What a saved report says of its making: the command, the versions, the machine."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gguf_mtp import __version__

# Where results go has no part in what they are.
SEPARATORS = [sep for sep in (os.sep, os.altsep) if sep]
OUTPUTS = {"as_json", "as_badge", "html", "output", "verbose"}


def made(ctx: click.Context) -> dict[str, Any]:
    """Facts of the running command for a report's "made" key."""
    return {
        "gguf_mtp": __version__,
        "command": command_line(ctx),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
    }


def command_line(ctx: click.Context) -> str:
    """The command as it was given, without its outputs; of paths only the names.

    A report is shown to others, who need the file's name and not the user's folders.
    """
    words = ["gguf-mtp", ctx.info_name or ""]
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name in OUTPUTS or ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = ctx.params[name]
        if isinstance(parameter, click.Argument):
            words.append(_word(value))
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(parameter.opts[-1])
        elif parameter.multiple:
            words += [word for item in value for word in (parameter.opts[-1], _word(item))]
        else:
            words += [parameter.opts[-1], _word(value)]
    return shlex.join(words)


def _word(value: Any) -> str:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str):
        return Path(value).name if any(sep in value for sep in SEPARATORS) else value
    return ",".join(sorted(value)) if isinstance(value, Iterable) else str(value)
