"""Tables, numbers and JSON on stdout."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

WIDTH = 120
"""The width of the output, in characters, if stdout is not a terminal and COLUMNS is not set."""


class _Output(Console):
    """A console that ignores a closed pipe, as with `| head -1`."""

    def on_broken_pipe(self) -> None:
        """Discard all further output."""
        self.quiet = True
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open until the process ends


def stdout_console() -> Console:
    """Return a console on stdout."""
    console = _Output(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    return console


def print_table(console: Console, table: Table) -> None:
    """Print a table, without trailing spaces if stdout is not a terminal."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as lines:
        console.print(table)
    console.print(Text("\n".join(line.rstrip() for line in lines.get().splitlines())), soft_wrap=True)


def show_json(record: Any) -> None:
    """Print a record as JSON. NaN and infinities become null, because JSON cannot represent them."""
    text = json.dumps(_finite(record), indent=1, allow_nan=False)
    stdout_console().out(text, highlight=False)


def _finite(record: Any) -> Any:
    """Return a record with None for numbers that are not finite."""
    if isinstance(record, dict):
        return {name: _finite(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def number_text(value: float) -> str:
    """Format a number with a unit prefix, for example 1234567 as 1.23 M."""
    for size, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.2f}{prefix}"
    return f"{value:g} "


def milliseconds_text(value: float) -> str:
    """Format a latency."""
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def count_text(number: int, singular: str, plural: str = "") -> str:
    """Format a number of things, for example 2 groups."""
    return f"{number} {singular}" if number == 1 else f"{number} {plural or singular + 's'}"


def columns(first: str, *numbers: str, last: str = "") -> Table:
    """Return an empty table without lines. Long names continue on the next line."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    if last:
        table.add_column(last, overflow="fold")
    return table


def fact_rows(rows: Iterable[tuple[str, str]]) -> Table:
    """Return a table of (name, text) rows. Long texts continue below themselves."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name.ljust(len("parameters")), escape(text))  # versions of rich count min_width differently
    return table
