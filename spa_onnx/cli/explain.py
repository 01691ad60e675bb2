"""`spa-onnx explain`."""

from __future__ import annotations

from pathlib import Path

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
    model: Path,
    axis: str,
    *,
    exclude: tuple[str, ...],
    width: bool,
    attention: str,
    dims: tuple[tuple[str, int], ...],
    as_json: bool,
) -> None:
    """Print the chain of couplings from an axis to all that goes with it, or to the pin that stops it.

    For example: spa-onnx explain model.onnx 'conv1.weight[0]'
    """
    from spa_onnx.analysis.explain import explain, parse_axis  # noqa: PLC0415 - slow to import, and not for --help
    from spa_onnx.pipeline import inspect  # noqa: PLC0415
    from spa_onnx.report.console import show_explanation, show_json  # noqa: PLC0415
    from spa_onnx.report.record import explanation_record  # noqa: PLC0415

    analysis = inspect(model, exclude=exclude, width=width, attention=attention, dims=dict(dims))
    found = list(explain(analysis, parse_axis(axis, analysis)))
    if as_json:
        show_json([explanation_record(analysis, one) for one in found])
    else:
        show_explanation(analysis, parse_axis(axis, analysis), found)
