"""Entry point of ``gguf-mtp``: the verb group, and errors as one line with exit code 2."""

import errno
import importlib
import io
import os
import sys
from contextlib import suppress
from typing import Any

import click

from gguf_mtp import __version__
from gguf_mtp.cli.signals import exit_on_signals
from gguf_mtp.errors import GgufMtpError

# Verb -> module that defines `command`. Loaded on use: `inspect` must not pay for the runtime.
VERBS = {
    "audit": "gguf_mtp.cli.audit",
    "bench": "gguf_mtp.cli.bench",
    "card": "gguf_mtp.cli.card",
    "completion": "gguf_mtp.cli.completion",
    "convert": "gguf_mtp.cli.convert",
    "attach": "gguf_mtp.cli.attach",
    "detach": "gguf_mtp.cli.detach",
    "doctor": "gguf_mtp.cli.doctor",
    "extract": "gguf_mtp.cli.extract",
    "inspect": "gguf_mtp.cli.inspect",
    "report": "gguf_mtp.cli.report",
    "run": "gguf_mtp.cli.run",
    "split": "gguf_mtp.cli.split",
    "verify": "gguf_mtp.cli.verify",
    "validate": "gguf_mtp.cli.validate",
}


class VerbGroup(click.Group):
    """A group whose verbs are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(VERBS[cmd_name]).command
        return command

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
                # Files have errors of their own kind: what has no name here is stdout.
                where = error.filename or _give_up_stdout()
                click.echo(f"error: {GgufMtpError(f'{where}: {error.strerror}')}", err=True)
                ctx.exit(2)


def _give_up_stdout() -> str:
    """Python would complain of what cannot be written again at its end; the name to give it."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    return "stdout"


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gguf-mtp")
def main() -> None:
    """Gemma 4 and its multi-token-prediction heads in one GGUF.

    Exit codes: 0 done or holds, 1 a finding, 2 could not do it.

    \b
    Example:
      gguf-mtp doctor
      gguf-mtp convert --base google/gemma-4-E2B-it --heads google/gemma-4-E2B-it-assistant -o .
    """


if __name__ == "__main__":
    sys.exit(main())
