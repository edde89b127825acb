"""Signals as exit codes."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click

# What ends the process, and how that is said. Windows has no SIGHUP, and a SIGBREAK.
ENDINGS: dict[signal.Signals, str] = {
    getattr(signal, name): said
    for name, said in (
        ("SIGINT", "interrupted"),
        ("SIGTERM", "terminated"),
        ("SIGHUP", "hung up"),
        ("SIGBREAK", "interrupted"),
    )
    if hasattr(signal, name)
}


class Ended(BaseException):
    """A signal arrived; not an Exception, so that only cleaning up stands in its way."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Within, SIGINT, SIGTERM and SIGHUP unwind the stack (temporary files go) and exit with 128
    and their number. One that is ignored (nohup) stays so; after the first all are, as an
    impatient second Ctrl-C would break into the cleaning up that the first one began."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    before = {
        number: handler
        for number in ENDINGS
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    try:
        for number in before:
            signal.signal(number, end)
        yield
    except Ended as ended:
        # They stay ignored: some cleaning up is Python's own, at its end.
        before.clear()
        click.echo(f"error: {ENDINGS[ended.number]}", err=True)
        sys.exit(128 + ended.number)
    except KeyboardInterrupt:  # where a verb has taken Ctrl-C for itself
        click.echo(f"error: {ENDINGS[signal.SIGINT]}", err=True)
        sys.exit(128 + signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
