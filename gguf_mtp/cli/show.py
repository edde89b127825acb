"""How sizes, values and plans are shown to people; text from files is escaped."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_mtp.keyvalue import KeyValue, ValueType
from gguf_mtp.notes import Note
from gguf_mtp.plan import FilePlan

if TYPE_CHECKING:  # rich is imported where a table is made: most verbs print a line
    from rich.console import Console
    from rich.table import Table

MAX_SHOWN_TEXT = 100
MAX_NOTE_TEXT = 2000
MAX_SHOWN_ITEMS = 6
MAX_SHOWN_ITEM_TEXT = 24
MIN_SQUEEZED = 16  # columns of a cell that is cut to fit


def human_bytes(nbytes: int) -> str:
    """`nbytes` in binary units: ``1.5 MiB``."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{nbytes} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def printable(text: str, limit: int = MAX_SHOWN_TEXT) -> str:
    """`text` on one line, control characters as escapes, cut to `limit` characters."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def hanging(text: str, indent: int, *, err: bool = False) -> str:
    """`text` for a terminal whose cursor is at `indent`: its words on as many lines as it takes,
    all from there. For pipes and files it stays one line."""
    if not (sys.stderr if err else sys.stdout).isatty():
        return text
    width = max(shutil.get_terminal_size().columns - indent, 20)
    return f"\n{' ' * indent}".join(textwrap.wrap(text, width, break_on_hyphens=False) or [""])


def shown_value(key: KeyValue) -> str:
    """A key's value on one line; long arrays by their first items and length."""
    if key.type is not ValueType.ARRAY:
        return _shown(key.value, MAX_SHOWN_TEXT)
    items = [_shown(item, MAX_SHOWN_ITEM_TEXT) for item in key.head(MAX_SHOWN_ITEMS)]
    more = ", …" if key.count > MAX_SHOWN_ITEMS else ""
    return f"[{', '.join(items)}{more}] ({key.count})"


def _shown(value: Any, limit: int) -> str:
    if isinstance(value, str):
        return printable(value, limit)
    # As many digits as a float32 has, which nearly all floats in a GGUF are.
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as ggml writes it, the contiguous dimension first."""
    return ", ".join(str(size) for size in reversed(shape))


def name_table(title: str, names: Iterable[str], *columns: str) -> Table:
    """A table whose first column holds `names`, never shortened however narrow the terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(title, min_width=max(map(len, names), default=0), no_wrap=True)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def print_table(
    console: Console, table: Table, *, spare: Iterable[str] = (), squeezed: str = ""
) -> None:
    """`table`; where a terminal is too narrow for it, with the column `squeezed` cut, and without
    as many of the `spare` columns, in their order, as it takes, which is said. Pipes get all,
    without blanks at line ends."""
    if not console.is_terminal:
        with console.capture() as whole:
            console.print(table)
        click.echo("\n".join(line.rstrip() for line in whole.get().splitlines()))
        return
    left_out = []
    for heading in spare:
        if _least_width(table, squeezed) <= console.width:
            break
        table.columns[:] = [column for column in table.columns if column.header != heading]
        left_out.append(heading)
    for column in table.columns:
        if column.header == squeezed:
            excess = _least_width(table, squeezed) - console.width
            column.max_width = MIN_SQUEEZED - min(excess, 0)
    console.print(table)
    if left_out:
        said = f"(not shown on so narrow a terminal: {', '.join(left_out)})"
        console.print(hanging(said, 0), highlight=False)


def _least_width(table: Table, squeezed: str) -> int:
    """What `table` takes when the column `squeezed` is as narrow as it may be."""
    from rich.text import Text

    widths = [
        max(Text.from_markup(str(cell)).cell_len for cell in (column.header, *column.cells))
        for column in table.columns
        if column.header != squeezed
    ]
    if squeezed:
        widths.append(MIN_SQUEEZED)
    return sum(widths) + 2 * (len(widths) - 1)


def wide_console() -> Console:
    """A console for tables with one line to a row; wide where no terminal sets the width."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    return console if console.is_terminal else Console(soft_wrap=True, highlight=False, width=200)


def wrapping_console() -> Console:
    """A console for lines of text: wrapped at words on a terminal, whole in pipes and files."""
    from rich.console import Console

    console = Console()
    console.soft_wrap = not console.is_terminal
    return console


def print_notes(notes: Iterable[Note]) -> None:
    """One line each on stderr, so that stdout stays the result."""
    for note in notes:
        text = printable(note.message, MAX_NOTE_TEXT)
        click.echo(f"note: {hanging(text, 6, err=True)}", err=True)


def plan_rows(plan: FilePlan) -> list[dict[str, Any]]:
    """A plan's tensors for machines."""
    return [
        {
            "name": slot.tensor.name,
            "type": slot.tensor.type.name,
            "shape": list(reversed(slot.tensor.shape)),
            "offset": slot.offset,
            "bytes": slot.tensor.nbytes,
        }
        for slot in plan.slots
    ]


def print_plan(plan: FilePlan, output: Path) -> None:
    """The tensors that would be written, and the total."""
    from rich.markup import escape

    table = name_table("tensor", (slot.tensor.name for slot in plan.slots), "type", "shape")
    table.add_column("bytes", justify="right")
    for slot in plan.slots:
        tensor = slot.tensor
        table.add_row(
            escape(tensor.name), tensor.type.name, shape_text(tensor.shape), f"{tensor.nbytes:,}"
        )
    n_keys = sum(len(part.plan.keys) for part in plan.parts)
    console = wide_console()
    print_table(console, table, spare=("shape",))
    console.print(
        f"{escape(str(output))}: would hold {n_keys} keys and {len(plan.slots)} tensors, "
        f"{plan.total_bytes:,} bytes ({human_bytes(plan.total_bytes)})"
    )
