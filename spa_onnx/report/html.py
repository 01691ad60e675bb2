"""The report as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spa_onnx.errors import UsageError
from spa_onnx.report.record import result_record
from spa_onnx.report.result import Result


def render(result: Result, model: Path, target: Path) -> str:
    """Return the report as HTML.

    Args:
        result: The result.
        model: The file of the original.
        target: The file of the pruned model.

    Raises:
        UsageError: jinja2 is not installed.
    """
    environment = _environment()
    record = result_record(result, target)
    return str(
        environment.get_template("report.html.j2").render(
            record=record, model=str(model), reasons=result.report.reasons()
        )
    )


def check_available() -> None:
    """Check that `render` can work.

    Raises:
        UsageError: jinja2 is not installed.
    """
    _environment()


def _environment() -> Any:
    """Return the environment of jinja2 with our templates."""
    try:
        import jinja2  # noqa: PLC0415 - needs the extra `report`
    except ImportError as error:
        raise UsageError("--report needs jinja2; install it with: pip install 'spa-onnx[report]'") from error
    return jinja2.Environment(
        loader=jinja2.PackageLoader("spa_onnx.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
