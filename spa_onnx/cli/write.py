"""Write and print the result of `prune` and `apply`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from spa_onnx.model.files import serialise, write_files
from spa_onnx.report.console import show_result
from spa_onnx.report.record import result_record
from spa_onnx.report.result import Result
from spa_onnx.report.tables import show_json


def check_report(report: Path | None) -> None:
    """Check that an HTML report can be written, before any work is done.

    Args:
        report: Where the report goes; None for no report.

    Raises:
        UsageError: The extra `report` is not installed.
    """
    if report is not None:
        from spa_onnx.report.html import check_available  # noqa: PLC0415 - needs the extra `report`

        check_available()


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is written and printed.

    Args:
        target: Where the pruned model goes.
        plan: Where the plan goes; None for no plan.
        report: Where the HTML report goes; None for no report.
        force: Whether to replace files that exist.
        as_json: Whether to print JSON instead of a table.
    """

    target: Path
    plan: Path | None = None
    report: Path | None = None
    force: bool = False
    as_json: bool = False


def write_result(result: Result, model: Path, outputs: Outputs, data: str | None = None) -> None:
    """Write all outputs or none, and print the result on stdout.

    Args:
        result: The result.
        model: The file of the original.
        outputs: What is written and printed.
        data: The name of the data that the drift was measured on; None for random inputs.

    Raises:
        UsageError: An output exists already.
        RefusedError: An output cannot be written.
    """
    target, plan, report = outputs.target, outputs.plan, outputs.report
    contents = {target: serialise(result.model, target)}
    if plan is not None:
        contents[plan] = (json.dumps(result.plan, indent=1) + "\n").encode()
    if report is not None:
        from spa_onnx.report.html import render  # noqa: PLC0415 - needs the extra `report`

        contents[report] = render(result, model, target).encode()
    write_files(contents, force=outputs.force)
    if outputs.as_json:
        show_json(result_record(result, target))
    else:
        show_result(result, model, target, data)
