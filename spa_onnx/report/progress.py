"""Progress on stderr while the steps of a command run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from spa_onnx.execution.session import FATAL, default_severity

PAUSE = 30.0
"""Seconds between two lines where stderr is no terminal. Commands that take less time print none."""


@contextmanager
def progress(steps: tuple[str, ...]) -> Iterator[Callable[[str], None]]:
    """Show the step that runs and the time on stderr, and silence the warnings of onnxruntime.

    In a terminal it is one line that moves and disappears at the end. Elsewhere, as in the log of a CI job, it is one
    line every PAUSE seconds.

    Args:
        steps: The names of the steps, in order.

    Yields:
        A function to call with the name of each step as it begins.
    """
    default_severity.set(FATAL)
    console = Console(stderr=True)
    if not console.is_terminal:
        with _lines(console) as tell:
            yield tell
        return
    columns = (SpinnerColumn(), TextColumn("{task.description:<10} step {task.completed} of {task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as line:
        task = line.add_task(steps[0], total=len(steps))

        def advance(step: str) -> None:
            """Show that a step has begun."""
            line.update(task, description=step, completed=steps.index(step) + 1 if step in steps else 1)

        yield advance


@contextmanager
def _lines(console: Console) -> Iterator[Callable[[str], None]]:
    """Print the step that runs, and the seconds so far, every PAUSE seconds."""
    current, ended, start = [""], Event(), time.monotonic()

    def tell() -> None:
        """Print a line after each pause until the command ends."""
        while not ended.wait(PAUSE):
            console.print(f"{time.monotonic() - start:.0f} s: {current[0]}", highlight=False)

    def begin(step: str) -> None:
        """Note that a step has begun."""
        current[0] = step

    Thread(target=tell, daemon=True).start()
    try:
        yield begin
    finally:
        ended.set()
