"""What the writing verbs share: signals turned into exit codes, and a progress bar."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click

from gguf_mtp.pipeline import Progress as Advance


class Terminated(BaseException):
    """SIGTERM arrived; not an Exception, so that only cleaning up stands in its way."""


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Within, SIGINT and SIGTERM unwind the stack (temporary files go) and exit with 130, 143."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, terminate),
        signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
    }
    try:
        yield
    except Terminated:
        click.echo("error: terminated", err=True)
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        click.echo("error: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar(label: str, total: int, *, quiet: bool) -> Iterator[Advance | None]:
    """A bar of bytes, rate and time left on a terminal's stderr; elsewhere nothing."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    # Imported here: it takes a good part of the time that appending heads does.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda nbytes: bar.update(task, advance=nbytes)


@contextmanager
def step_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar of steps on a terminal's stderr, told what is done, how far, and of how much."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total
        )
