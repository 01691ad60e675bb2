"""Options that several commands share, and what they need to be fast: tables are imported when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

WIDEST = 60
"""A list of names that is longer does not fit beside its option; the help names them."""

F = TypeVar("F", bound=Callable[..., Any])


class Name(click.ParamType):  # type: ignore[type-arg]
    """A name from a table, `module:TABLE`, imported when the option is used or its help is shown."""

    name = "name"

    def __init__(self, table: str) -> None:
        self._module, self._table = table.split(":")

    def names(self) -> list[str]:
        """What can be chosen."""
        return list(getattr(import_module(self._module), self._table))

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The names, for the help."""
        del param, ctx
        listed = "[" + "|".join(self.names()) + "]"
        return listed if len(listed) < WIDEST else "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check that the name is in the table."""
        if value not in self.names():
            self.fail(f"{value!r} is not one of {', '.join(self.names())}.", param, ctx)
        return value


class Dimension(click.ParamType):  # type: ignore[type-arg]
    """NAME=SIZE."""

    name = "NAME=SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Split at the last equals sign."""
        if isinstance(value, tuple):
            return value
        name, _, size = str(value).rpartition("=")
        if not name or not size.isdigit() or int(size) < 1:
            self.fail(f"{value!r} is not NAME=SIZE with a positive size, for example batch=1.", param, ctx)
        return name, int(size)


model_argument = click.argument("model", type=click.Path(path_type=Path))
force_option = click.option("--force", is_flag=True, help="Replace outputs that exist.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of a table.")
dim_option = click.option(
    "--dim",
    "dims",
    type=Dimension(),
    multiple=True,
    metavar="NAME=SIZE",
    help="Size of a symbolic dimension, to analyse and to try with.",
)
validate_option = click.option(
    "--no-validate", is_flag=True, help="Skip all checks in onnxruntime (for huge models); the result says so."
)
exclude_option = click.option(
    "--exclude",
    multiple=True,
    metavar="REGEX",
    help="Nodes and tensors whose name matches keep all their channels. Repeatable.",
)
width_option = click.option(
    "--width",
    is_flag=True,
    help="Also cut axes that a norm or mean runs over (a transformer's width): possible, but not exact.",
)


attention_option = click.option(
    "--attention",
    type=Name("spa_onnx.analysis:ATTENTION"),
    default="heads",
    show_default=True,
    help="What attention loses: whole heads, indices inside every head, or nothing.",
)


data_option = click.option(
    "--data",
    metavar="SOURCE",
    help="Samples: .npz or .npy (arrays named like the inputs, or x; labels y; FILE.npz:NAME picks one), a folder or zip of images, a "
    "folder with test_data_set_*/input_*.pb, or module:factory. Default: samples are made up.",
)
preprocess_option = click.option(
    "--preprocess",
    metavar="HOW",
    help="From pixels to values, for images and uint8 arrays: imagenet, tf or raw, then any of mean=, std=, scale=, "
    "layout=nchw|nhwc, order=rgb|bgr, size=, labels=name|folder, first=; separated by commas.",
)


memory_option = click.option(
    "--memory",
    default="2.5GB",
    show_default=True,
    metavar="SIZE",
    help="What statistics may take while they are collected: with less, fewer layers are looked at in one pass.",
)


def existing(source: str | None) -> tuple[Path, ...]:
    """The path of a source of samples, where it is a file: outputs must not replace it."""
    return (Path(source),) if source is not None and Path(source).is_file() else ()


def default_output(model: Path) -> Path:
    """`model.onnx` -> `model.pruned.onnx`."""
    return model.with_suffix(".pruned.onnx") if model.suffix == ".onnx" else model.parent / f"{model.name}.pruned.onnx"


def one_output(model: Path, positional: Path | None, option: Path | None) -> Path:
    """OUTPUT may be given either way, but once."""
    if positional is not None and option is not None and positional != option:
        raise click.UsageError(f"two outputs, {positional} and {option}; give one")
    return positional or option or default_output(model)


@contextmanager
def progress(steps: tuple[str, ...]) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr over named steps; silent where stderr is not a terminal. What onnxruntime warns of is not shown."""
    from rich.console import Console  # noqa: PLC0415 - not for --help
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    from spa_onnx.execution import session as runtime  # noqa: PLC0415

    runtime.default_severity.set(runtime.FATAL)
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: None  # noqa: ARG005 - where a bar is only disabled, rich before 14.3 prints an empty line
        return
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(steps[0], total=len(steps))

        def advance(step: str) -> None:
            bar.update(task, description=step, completed=steps.index(step) if step in steps else 0)

        yield advance
