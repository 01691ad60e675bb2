"""The command `spa-onnx groups`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spa_onnx.cli import options


@click.command("groups")
@options.model_argument
@options.exclude_option
@options.width_option
@options.attention_option
@options.dim_option
@options.json_option
def command(model: Path, *, as_json: bool, dims: tuple[tuple[str, int], ...], **analysis_options: Any) -> None:
    """List the groups of channels of MODEL: those that can lose channels, and those that cannot, with the reason."""
    from spa_onnx.pipeline import inspect  # noqa: PLC0415 - slow to import, and not needed for --help
    from spa_onnx.report.groups import show_groups  # noqa: PLC0415
    from spa_onnx.report.record import groups_record  # noqa: PLC0415
    from spa_onnx.report.tables import show_json  # noqa: PLC0415

    analysis = inspect(model, dims=dict(dims), **analysis_options)
    if as_json:
        show_json(groups_record(analysis))
    else:
        show_groups(analysis, model)
