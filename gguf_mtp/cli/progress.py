"""The writing verbs' progress bar."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gguf_mtp.cli.show import human_bytes
from gguf_mtp.pipeline import Progress as Advance

WIDE = 72  # columns from which a name and sizes have room beside the bar


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
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Bytes a second, in the units of the sizes beside it."""

        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text("" if rate is None else f"{human_bytes(int(rate))}/s")

    console = Console(stderr=True)
    what, size = TextColumn("{task.description}"), DownloadColumn(binary_units=True)
    columns: tuple[ProgressColumn, ...] = (what, BarColumn(), size)
    if console.width < WIDE:
        columns = (TextColumn("{task.percentage:>3.0f}%"), BarColumn(None))
    columns += (Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
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
