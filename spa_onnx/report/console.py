"""Print results on stdout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spa_onnx.report.result import Report, Result
from spa_onnx.report.tables import (
    columns,
    count_text,
    fact_rows,
    milliseconds_text,
    number_text,
    print_table,
    stdout_console,
)
from spa_onnx.validation.compare import Comparison
from spa_onnx.validation.drift import Drift

LONGEST_STEPS = 3
"""The number of steps whose time is printed."""

MOST_REASONS = 3
"""The number of reasons for pins that are listed."""

MOST_NAMES = 3
"""The number of inexact nodes that are named."""

SLOWER = 1.1
"""A latency ratio above this is reported: odd channel counts can cost more time than they save."""


def _costs(
    params: tuple[int, int], macs: tuple[int, int], size: tuple[int, int], latency: tuple[float, float] | None
) -> Table:
    """Return the table of costs (before, after)."""
    table = columns("", "before", "after", "ratio")
    rows = [("parameters", params, ""), ("MACs", macs, ""), ("file size", size, "B")]
    for name, (before, after), unit in rows:
        ratio = f"{after / before:.3f}" if before else "-"
        table.add_row(name, f"{number_text(before)}{unit}".strip(), f"{number_text(after)}{unit}".strip(), ratio)
    if latency is None:
        table.add_row("latency", "-", "-", "-")
    else:
        table.add_row(
            "latency", milliseconds_text(latency[0]), milliseconds_text(latency[1]), f"{latency[1] / latency[0]:.3f}"
        )
    return table


def _latency_row(latency: tuple[float, float] | None) -> Iterator[tuple[str, str]]:
    """Yield a row of advice if the pruned model is slower."""
    if latency is not None and latency[1] > SLOWER * latency[0]:
        yield "", "slower than before: onnxruntime is fastest with round channel counts, try --multiple 8"


def _drift_text(drift: Drift, data: str | None) -> str:
    """Describe a drift and the samples that it was measured on."""
    error = f"relative output error {drift.error:.3g}"
    if not data:
        samples = count_text(drift.samples, f"{drift.measured_on} sample")
        return f"unknown without --data; {error} on {samples}"
    parts = [error]
    if drift.agreement is not None:
        parts.append(f"top-1 agreement {100 * drift.agreement:.1f} %")
    if drift.accuracy is not None:
        parts.append(f"accuracy {100 * drift.accuracy[0]:.2f} % -> {100 * drift.accuracy[1]:.2f} %")
    apart = " that nothing was fitted to" if drift.measured_on == "held-out" else ""
    return f"{', '.join(parts)} (on {count_text(drift.samples, 'sample')} of {data}{apart})"


def _drift_rows(drift: Drift | None, data: str | None, unknown: str = "") -> Iterator[tuple[str, str]]:
    """Yield the rows about a drift: its figures and what limits them, or why it is unknown."""
    if unknown:
        yield "drift", f"{unknown}; give more samples, or others with --test-data"
    if drift is not None:
        yield "drift", _drift_text(drift, data)
        for note in drift.notes:
            yield "", note


def _show_collapse(console: Console, drift: Drift | None) -> None:
    """Print in a line of its own that the pruned model is of no use, if it is."""
    if drift is not None and drift.collapsed:
        console.print(f"[bold red]collapsed: {escape(drift.collapsed)}[/bold red]", soft_wrap=True)


def show_result(result: Result, model: Path, target: Path, data: str | None = None) -> None:
    """Print the table of `prune` and `apply`.

    Args:
        result: The result.
        model: The file of the original.
        target: The file of the pruned model.
        data: The name of the data that the drift was measured on; None for random inputs.
    """
    report, console = result.report, stdout_console()
    _show_collapse(console, report.drift)
    console.print(f"{escape(str(model))} -> {escape(str(target))}", soft_wrap=True)
    print_table(console, _costs(report.params, report.macs, report.bytes, report.latency))
    print_table(console, fact_rows([*_latency_row(report.latency), *_result_rows(report, data)]))


def _result_rows(report: Report, data: str | None) -> Iterator[tuple[str, str]]:
    """Yield (name, text) rows about a result."""
    removed, channels = sum(r for *_, r in report.groups), sum(size for _, size, _ in report.groups)
    if report.latency is None:
        yield "", "latency was not measured"
    yield "groups", f"{len(report.groups)} pruned, {removed} of {count_text(channels, 'channel')} removed"
    reasons = report.reasons()
    yield "pinned", count_text(len(report.pinned), "group") + (" cannot lose channels:" if reasons else "")
    for why, times in reasons[:MOST_REASONS]:
        yield "", f"{times} x {why}"
    if len(reasons) > MOST_REASONS:
        yield "", f"{sum(times for _, times in reasons[MOST_REASONS:])} x other reasons, see spa-onnx groups"
    if report.inexact:
        names = ", ".join(report.inexact[:MOST_NAMES]) + (", ..." if len(report.inexact) > MOST_NAMES else "")
        yield "inexact", f"{count_text(len(report.inexact), 'node')} over an axis that lost channels: {names}"
    yield from _repair_rows(report)
    yield from _drift_rows(report.drift, data, report.unknown)
    verdict = report.validation
    if verdict is None:
        yield "validation", "skipped (--no-validate): the result was never run"
    elif verdict.gap is None:
        yield "validation", "valid, and runs in onnxruntime"
    else:
        yield (
            "validation",
            f"pruned == masked: largest relative difference {verdict.gap:.2g} on {verdict.seeds} {verdict.inputs}",
        )
    for note in verdict.notes if verdict else ():
        yield "", note
    yield from _time_row(report.seconds)


def _time_row(seconds: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield the total time, and the steps that took most of it."""
    if seconds:
        longest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:LONGEST_STEPS]
        yield (
            "time",
            f"{sum(seconds.values()):.1f} s: " + ", ".join(f"{step} {seconds[step]:.1f} s" for step in longest),
        )


def _repair_rows(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the rows about the repair, and the notes."""
    if report.repair:
        yield "repair", report.repair
    for note in report.notes:
        yield "note", note


def show_comparison(comparison: Comparison, original: Path, pruned: Path, data: str | None = None) -> None:
    """Print the table of `compare`.

    Args:
        comparison: The comparison.
        original: The file of the original.
        pruned: The file of the pruned model.
        data: The name of the data that the drift was measured on; None for random inputs.
    """
    console = stdout_console()
    _show_collapse(console, comparison.drift)
    console.print(f"{escape(str(original))} -> {escape(str(pruned))}", soft_wrap=True)
    print_table(console, _costs(comparison.params, comparison.macs, comparison.bytes, comparison.latency))
    print_table(console, fact_rows([*_latency_row(comparison.latency), *_drift_rows(comparison.drift, data)]))
