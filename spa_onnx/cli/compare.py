"""The command `spa-onnx compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spa_onnx.cli import options


@click.command(
    "compare",
    help="Compare PRUNED with its ORIGINAL: size, speed, output error and, with labels, accuracy. "
    "Gates make it a CI step.",
)
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@options.data_option
@options.preprocess_option
@click.option("--max-error", type=float, help="Gate: relative output error at most this.")
@click.option("--min-agreement", type=float, help="Gate: share of equal top-1 choices at least this.")
@click.option(
    "--max-accuracy-drop", type=float, metavar="POINTS", help="Gate: accuracy lost, in percentage points, at most this."
)
@click.option("--max-params", type=float, metavar="RATIO", help="Gate: parameters kept at most this share.")
@click.option("--max-macs", type=float, metavar="RATIO", help="Gate: multiply-accumulates kept at most this share.")
@click.option("--max-bytes", type=float, metavar="RATIO", help="Gate: file size kept at most this share.")
@click.option("--max-latency", type=float, metavar="RATIO", help="Gate: latency in onnxruntime at most this share.")
@options.dim_option
@options.providers_option
@options.threads_option
@options.json_option
def command(
    original: Path, pruned: Path, *, as_json: bool, providers: tuple[str, ...], threads: int, **option_values: Any
) -> None:
    """Compare a pruned model with its original."""
    # slow to import, and not needed for --help
    from spa_onnx.execution.session import onnxruntime_with, running_on  # noqa: PLC0415
    from spa_onnx.report.console import show_comparison  # noqa: PLC0415
    from spa_onnx.report.progress import progress  # noqa: PLC0415
    from spa_onnx.report.record import comparison_record  # noqa: PLC0415
    from spa_onnx.report.tables import show_json  # noqa: PLC0415
    from spa_onnx.validation.compare import check_gates, compare  # noqa: PLC0415

    with progress(("compare",)) as show, running_on(onnxruntime_with(providers, threads)):
        show("compare")
        data, preprocess, dims = (option_values.pop(name) for name in ("data", "preprocess", "dims"))
        comparison = compare(original, pruned, data=data, preprocess=preprocess, dims=dict(dims))
    if as_json:
        show_json(comparison_record(comparison))
    else:
        show_comparison(comparison, original, pruned, data)
    check_gates(comparison, option_values)
