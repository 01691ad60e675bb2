"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

WIDEST = 60
"""Lists of names of at least this many characters are not shown beside the option; its help has to show them."""

F = TypeVar("F", bound=Callable[..., Any])


class Name(click.ParamType):  # type: ignore[type-arg]
    """A name from a table. The table is imported when the option is used or its help is shown.

    Args:
        table: The table as `module:TABLE`.
    """

    name = "name"

    def __init__(self, table: str) -> None:
        self._module, self._table = table.split(":")

    def names(self) -> list[str]:
        """Return the names of the table."""
        return list(getattr(import_module(self._module), self._table))

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the names as `[a|b]` if they are short enough, else `NAME`."""
        del param, ctx
        listed = "[" + "|".join(self.names()) + "]"
        return listed if len(listed) < WIDEST else "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check that the name is in the table."""
        if value not in self.names():
            self.fail(f"{value!r} is not one of {', '.join(self.names())}.", param, ctx)
        return value


class NameOption(click.Option):
    """An option whose value is a name from a table.

    Args:
        facts: Returns the values of the fields in the help text, by name. The field `{names}` is always filled in.
    """

    def __init__(self, *args: Any, facts: Callable[[], Mapping[str, str]] = dict, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._facts = facts

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the help with its fields filled in."""
        record = super().get_help_record(ctx)
        if record is None or not isinstance(self.type, Name):
            return record
        return record[0], record[1].format(names=", ".join(self.type.names()), **self._facts())


def criterion_facts() -> dict[str, str]:
    """Return the fields of help texts that are about criteria: `losses` and `repairs`."""
    from spa_onnx.scoring import CRITERIA  # noqa: PLC0415 - only needed for the help

    repairs = [f"{entry.repair} for {name}" for name, entry in CRITERIA.items() if entry.repair != "none"]
    return {
        "losses": " and ".join(name for name, entry in CRITERIA.items() if entry.loss),
        "repairs": ", ".join(repairs),
    }


class Dimension(click.ParamType):  # type: ignore[type-arg]
    """A symbolic dimension and its size, as NAME=SIZE."""

    name = "NAME=SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Return (name, size), split at the last equals sign."""
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
    help="Size of a symbolic dimension, for analysis and for trial runs. Repeatable.",
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
    help="Also prune axes that a norm or mean runs over (a transformer's width). The result is not exact.",
)


attention_option = click.option(
    "--attention",
    type=Name("spa_onnx.analysis:ATTENTION"),
    default="heads",
    show_default=True,
    help="What attention loses: whole heads, indices inside each head, or nothing.",
)


data_option = click.option(
    "--data",
    metavar="SOURCE",
    help="Calibration data: .npz or .npy (arrays named like the inputs, or x; labels y; FILE.npz:NAME picks one), "
    "a folder or zip of images, a folder with test_data_set_*/input_*.pb, or module:factory. "
    "Default: synthetic samples.",
)
test_data_option = click.option(
    "--test-data",
    metavar="SOURCE",
    help="Samples to measure quality on, as for --data. Default: a share of --data that is held out.",
)
preprocess_option = click.option(
    "--preprocess",
    metavar="HOW",
    help="How images and uint8 arrays become input values: imagenet, tf, unit or raw, then any of mean=, std=, scale=, "
    "layout=nchw|nhwc, order=rgb|bgr, size=, labels=name|folder, first=; separated by commas.",
)


memory_option = click.option(
    "--memory",
    default="2.5GB",
    show_default=True,
    metavar="SIZE",
    help="The most memory that statistics may take while they are collected. "
    "With less, samples run through the model more often.",
)


providers_option = click.option(
    "--providers",
    default="CPUExecutionProvider",
    show_default=True,
    metavar="NAMES",
    callback=lambda _ctx, _param, value: tuple(name.strip() for name in value.split(",")),
    help="Execution providers of onnxruntime, separated by commas, the preferred one first.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Threads of a run in onnxruntime; 0 for one per core.",
)


def existing(source: str | None) -> tuple[Path, ...]:
    """Return the path of a source of samples if it is a file, so that no output replaces it."""
    return (Path(source),) if source is not None and Path(source).is_file() else ()


def default_output(model: Path) -> Path:
    """Return `model.pruned.onnx` for `model.onnx`."""
    return model.with_suffix(".pruned.onnx") if model.suffix == ".onnx" else model.parent / f"{model.name}.pruned.onnx"


def one_output(model: Path, positional: Path | None, option: Path | None) -> Path:
    """Return the path of the output.

    Args:
        model: The file of the model, for the default.
        positional: The output as an argument.
        option: The output as an option.

    Raises:
        click.UsageError: The argument and the option differ.
    """
    if positional is not None and option is not None and positional != option:
        raise click.UsageError(f"two outputs, {positional} and {option}; give one")
    return positional or option or default_output(model)
