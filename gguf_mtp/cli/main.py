"""Entry point of ``gguf-mtp``: the verb group, and errors as one line with exit code 2."""

import errno
import importlib
import io
import os
import shutil
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import click
from click.shell_completion import CompletionItem

from gguf_mtp import __version__
from gguf_mtp.cli.signals import exit_on_signals
from gguf_mtp.errors import GgufMtpError

# By task. A verb's `command` is in the module of its name, loaded on use: `inspect` must not pay
# for the runtime, nor `--help` for all of them.
VERBS = {
    "convert": "Merge a base and its MTP heads into one GGUF.",
    "attach": "Put heads behind a base GGUF's own bytes.",
    "detach": "Take attached heads off again.",
    "split": "Take a merged file apart: base and heads.",
    "inspect": "Show what a GGUF or .litertlm package holds.",
    "verify": "Compare a file with its manifest of SHA-256s.",
    "run": "Answer a prompt, drafting with the heads.",
    "validate": "Prove that MTP changes nothing in the text.",
    "bench": "Measure what MTP gains, and how deep to draft.",
    "report": "Show what validate or bench found, as a page.",
    "card": "Write the model card for publishing a file.",
    "extract": "Take the drafter out of a .litertlm package.",
    "audit": "Compare a package's drafter with a checkpoint.",
    "doctor": "Say what this machine has, and what fits on it.",
    "completion": "Make your shell complete all this.",
}


class NarrowHelp(click.HelpFormatter):
    """Help for narrow terminals too: click's own has 50 columns at least, half of them blank."""

    def __init__(
        self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None
    ) -> None:
        columns = shutil.get_terminal_size().columns
        super().__init__(indent_increment, width or (columns if columns < 52 else None), max_width)

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        super().write_dl(rows, col_max if self.width > 60 else 12, col_spacing)


class VerbContext(click.Context):
    formatter_class = NarrowHelp


class VerbGroup(click.Group):
    """A group whose verbs are imported when they are named."""

    context_class = VerbContext

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"gguf_mtp.cli.{cmd_name}").command
        command.context_class = VerbContext
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = get_close_matches(args[0], VERBS, n=1)
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if not near:
                raise
            message = f"{error.message} Did you mean {near[0]}?"
            raise click.UsageError(message, ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        verbs = [
            CompletionItem(name, help=summary)
            for name, summary in VERBS.items()
            if name.startswith(incomplete)
        ]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Names of files and text of models may have what a terminal's encoding has not.
            sys.stdout.reconfigure(errors="backslashreplace")
        with exit_on_signals():
            try:
                return super().invoke(ctx)
            except GgufMtpError as error:
                click.echo(f"error: {error}", err=True)
                ctx.exit(2)
            except MemoryError:
                click.echo("error: out of memory", err=True)
                ctx.exit(2)
            except OSError as error:
                if error.errno == errno.EPIPE:  # nobody reads on: click ends quietly
                    raise
                where = error.filename or ("stdout" if _stdout_fails() else None)
                if where is None:
                    raise
                click.echo(f"error: {GgufMtpError(f'{where}: {error.strerror}')}", err=True)
                ctx.exit(2)


def _stdout_fails() -> bool:
    """Whether nothing can be written there; if so it is given up, as Python would try once more."""
    try:
        print(flush=True)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return True
    return False


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gguf-mtp")
def main() -> None:
    """Gemma 4 and its multi-token-prediction heads in one GGUF.

    Exit codes: 0 done or holds, 1 a finding, 2 could not do it.

    \b
    Example:
      gguf-mtp doctor
      gguf-mtp convert --base google/gemma-4-E2B-it \\
        --heads google/gemma-4-E2B-it-assistant -o .
    """


if __name__ == "__main__":
    sys.exit(main())
