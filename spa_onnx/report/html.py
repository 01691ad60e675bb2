"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spa_onnx.errors import UsageError
from spa_onnx.report.record import result_record
from spa_onnx.report.result import Result


def render(result: Result, model: Path, target: Path) -> str:
    """The page. Raises UsageError where jinja2 is not installed."""
    environment = _environment()
    record = result_record(result, target)
    return str(
        environment.get_template("report.html.j2").render(
            record=record, model=str(model), reasons=result.report.reasons()
        )
    )


def check_available() -> None:
    """Raises UsageError where the page could not be rendered, before any work is done."""
    _environment()


def _environment() -> Any:
    try:
        import jinja2  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError("--report needs jinja2; install it with: pip install 'spa-onnx[report]'") from error
    return jinja2.Environment(
        loader=jinja2.PackageLoader("spa_onnx.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
