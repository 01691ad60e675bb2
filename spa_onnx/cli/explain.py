"""The command `spa-onnx explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spa_onnx.cli import options


@click.command("explain")
@options.model_argument
@click.argument("axis", metavar="TENSOR[AXIS]")
@options.exclude_option
@options.width_option
@options.attention_option
@options.dim_option
@options.json_option
def command(
    model: Path, axis: str, *, as_json: bool, dims: tuple[tuple[str, int], ...], **analysis_options: Any
) -> None:
    """Print why channels of an axis are removed together with others, or why they cannot be removed.

    For example: spa-onnx explain model.onnx 'conv1.weight[0]'
    """
    from spa_onnx.analysis.explain import explain, parse_axis  # noqa: PLC0415 - slow to import, and not needed for --help
    from spa_onnx.pipeline import inspect  # noqa: PLC0415
    from spa_onnx.report.groups import show_explanation  # noqa: PLC0415
    from spa_onnx.report.record import explanation_record  # noqa: PLC0415
    from spa_onnx.report.tables import show_json  # noqa: PLC0415

    analysis = inspect(model, dims=dict(dims), **analysis_options)
    parsed_axis = parse_axis(axis, analysis)
    explanations = list(explain(analysis, parsed_axis))
    if as_json:
        show_json([explanation_record(analysis, explanation) for explanation in explanations])
    else:
        show_explanation(analysis, parsed_axis, explanations)
