"""Progress on stderr while the steps of a command run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from spa_onnx.execution.session import FATAL, default_severity


@contextmanager
def progress(steps: tuple[str, ...]) -> Iterator[Callable[[str], None]]:
    """Show a progress bar on stderr if it is a terminal, and silence the warnings of onnxruntime.

    Args:
        steps: The names of the steps, in order.

    Yields:
        A function to call with the name of each step as it begins.
    """
    default_severity.set(FATAL)
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: None  # noqa: ARG005 - for a disabled bar, rich before 14.3 prints an empty line
        return
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(steps[0], total=len(steps))

        def advance(step: str) -> None:
            """Show that a step has begun."""
            bar.update(task, description=step, completed=steps.index(step) if step in steps else 0)

        yield advance
