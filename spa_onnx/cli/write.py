"""What `prune` and `apply` do with a result: write the files, then print it."""

from __future__ import annotations

import json
from pathlib import Path

from spa_onnx.model.files import serialise, write_files
from spa_onnx.report.console import show_json, show_result
from spa_onnx.report.record import result_record
from spa_onnx.report.result import Result


def check_report(report: Path | None) -> None:
    """Raises UsageError where an HTML report is asked for that could not be made, before any work is done."""
    if report is not None:
        from spa_onnx.report.html import check_available  # noqa: PLC0415 - needs the extra `report`

        check_available()


def write_result(
    result: Result,
    model: Path,
    target: Path,
    *,
    as_json: bool,
    force: bool,
    plan: Path | None = None,
    report: Path | None = None,
    data: str | None = None,
) -> None:
    """Write all outputs or none, and print the report on stdout. force: replace files that exist. data: on which the drift was measured."""
    contents = {target: serialise(result.model, target)}
    if plan is not None:
        contents[plan] = (json.dumps(result.plan, indent=1) + "\n").encode()
    if report is not None:
        from spa_onnx.report.html import render  # noqa: PLC0415 - needs the extra `report`

        contents[report] = render(result, model, target).encode()
    write_files(contents, force=force)
    if as_json:
        show_json(result_record(result, target))
    else:
        show_result(result, model, target, data)
