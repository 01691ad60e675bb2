"""Print results on stdout, as tables or as JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from spa_onnx.analysis.explain import CouplingStep, Explanation, pin_at_end
from spa_onnx.analysis.groups import Analysis, Group
from spa_onnx.model.facts import Axis
from spa_onnx.report.result import Report, Result
from spa_onnx.validation.compare import Comparison
from spa_onnx.validation.drift import Drift

WIDTH = 120
"""The width of the output, in characters, if stdout is not a terminal and COLUMNS is not set."""

MOST_REASONS = 3
"""The number of reasons for pins that are listed."""

MOST_NAMES = 3
"""The number of inexact nodes that are named."""

DEEPEST = 20
"""The largest indentation of `explain`, in characters."""

SLOWER = 1.1
"""A latency ratio above this is reported: odd channel counts can cost more time than they save."""


class _Output(Console):
    """A console that ignores a closed pipe, as with `| head -1`."""

    def on_broken_pipe(self) -> None:
        """Discard all further output."""
        self.quiet = True
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open until the process ends


def _console() -> Console:
    """Return a console on stdout."""
    console = _Output(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    return console


def _print(console: Console, table: Table) -> None:
    """Print a table, without trailing spaces if stdout is not a terminal."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as lines:
        console.print(table)
    console.print(Text("\n".join(line.rstrip() for line in lines.get().splitlines())), soft_wrap=True)


def show_json(record: Any) -> None:
    """Print a record as JSON. NaN and infinities become null, because JSON cannot represent them."""
    text = json.dumps(_finite(record), indent=1, allow_nan=False)
    _console().out(text, highlight=False)


def _finite(record: Any) -> Any:
    """Return a record with None for numbers that are not finite."""
    if isinstance(record, dict):
        return {name: _finite(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def _number(value: float) -> str:
    """Format a number with a unit prefix, for example 1234567 as 1.23 M."""
    for size, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.2f}{prefix}"
    return f"{value:g} "


def _milliseconds(value: float) -> str:
    """Format a latency."""
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def _count(number: int, singular: str, plural: str = "") -> str:
    """Format a number of things, for example 2 groups."""
    return f"{number} {singular}" if number == 1 else f"{number} {plural or singular + 's'}"


def _columns(first: str, *numbers: str, last: str = "") -> Table:
    """Return an empty table without lines. Long names continue on the next line."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    if last:
        table.add_column(last, overflow="fold")
    return table


def _costs(
    params: tuple[int, int], macs: tuple[int, int], size: tuple[int, int], latency: tuple[float, float] | None
) -> Table:
    """Return the table of costs (before, after)."""
    table = _columns("", "before", "after", "ratio")
    rows = [("parameters", params, ""), ("MACs", macs, ""), ("file size", size, "B")]
    for name, (before, after), unit in rows:
        ratio = f"{after / before:.3f}" if before else "-"
        table.add_row(name, f"{_number(before)}{unit}".strip(), f"{_number(after)}{unit}".strip(), ratio)
    if latency is None:
        table.add_row("latency", "-", "-", "-")
    else:
        table.add_row("latency", _milliseconds(latency[0]), _milliseconds(latency[1]), f"{latency[1] / latency[0]:.3f}")
    return table


def _facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Return a table of (name, text) rows. Long texts continue below themselves."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name.ljust(len("parameters")), escape(text))  # versions of rich count min_width differently
    return table


def _latency_row(latency: tuple[float, float] | None) -> Iterator[tuple[str, str]]:
    """Yield a row of advice if the pruned model is slower."""
    if latency is not None and latency[1] > SLOWER * latency[0]:
        yield "", "slower than before: onnxruntime is fastest with round channel counts, try --multiple 8"


def _drift_text(drift: Drift, data: str | None) -> str:
    """Describe a drift and the samples that it was measured on."""
    error = f"relative output error {drift.error:.3g}"
    if not data:
        samples = _count(drift.samples, f"{drift.measured_on} sample")
        return f"unknown without --data; {error} on {samples}"
    parts = [error]
    if drift.agreement is not None:
        parts.append(f"top-1 agreement {100 * drift.agreement:.1f} %")
    if drift.accuracy is not None:
        parts.append(f"accuracy {100 * drift.accuracy[0]:.2f} % -> {100 * drift.accuracy[1]:.2f} %")
    apart = " that nothing was fitted to" if drift.measured_on == "held-out" else ""
    return f"{', '.join(parts)} (on {_count(drift.samples, 'sample')} of {data}{apart})"


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
    report, console = result.report, _console()
    _show_collapse(console, report.drift)
    console.print(f"{escape(str(model))} -> {escape(str(target))}", soft_wrap=True)
    _print(console, _costs(report.params, report.macs, report.bytes, report.latency))
    _print(console, _facts([*_latency_row(report.latency), *_result_rows(report, data)]))


def _result_rows(report: Report, data: str | None) -> Iterator[tuple[str, str]]:
    """Yield (name, text) rows about a result."""
    removed, channels = sum(r for *_, r in report.groups), sum(size for _, size, _ in report.groups)
    if report.latency is None:
        yield "", "latency was not measured"
    yield "groups", f"{len(report.groups)} pruned, {removed} of {_count(channels, 'channel')} removed"
    reasons = report.reasons()
    yield "pinned", _count(len(report.pinned), "group") + (" cannot lose channels:" if reasons else "")
    for why, times in reasons[:MOST_REASONS]:
        yield "", f"{times} x {why}"
    if len(reasons) > MOST_REASONS:
        yield "", f"{sum(times for _, times in reasons[MOST_REASONS:])} x other reasons, see spa-onnx groups"
    if report.inexact:
        names = ", ".join(report.inexact[:MOST_NAMES]) + (", ..." if len(report.inexact) > MOST_NAMES else "")
        yield "inexact", f"{_count(len(report.inexact), 'node')} over an axis that lost channels: {names}"
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


def _repair_rows(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the rows about the repair, and the notes."""
    if report.repair:
        yield "repair", report.repair
    for note in report.notes:
        yield "note", note


def show_groups(analysis: Analysis, model: Path) -> None:
    """Print the tables of `groups`.

    Args:
        analysis: The analysis of the model.
        model: The file of the model.
    """
    console = _console()
    prunable, pinned = analysis.prunable(), analysis.pinned()
    console.print(f"{escape(str(model))}: {_count(len(prunable), 'group')} can lose channels", soft_wrap=True)
    if prunable:
        table = _columns("group", "channels", "weights", "axes")
        for group in prunable:
            table.add_row(
                escape(group.name),
                str(group.size),
                str(len(list(group.weights(analysis.model)))),
                str(len(group.owner)),
            )
        _print(console, table)
    console.print(f"\n{_count(len(pinned), 'group')} with weights cannot")
    if pinned:
        table = _columns("group", "channels", "weights", last="why")
        for group in pinned:
            table.add_row(
                escape(group.name), str(group.size), str(len(list(group.weights(analysis.model)))), escape(group.pinned)
            )
        _print(console, table)
        reasons = Counter(group.cause for group in pinned).most_common(MOST_REASONS)
        if reasons[0][1] > 1:
            console.print("\nmost frequent reasons")
            _print(console, _facts((f"{times} x", why) for why, times in reasons))
    positions = sum(
        group.owner[axis].shape[-1] > 1 for group in analysis.positions() for axis in group.weights(analysis.model)
    )
    if positions:
        console.print(
            f"\n{_count(positions, 'axis of a weight', 'axes of weights')} hold positions, as the height of a kernel, "
            "and not channels"
        )


def show_explanation(analysis: Analysis, axis: Axis, explanations: Sequence[Explanation]) -> None:
    """Print the output of `explain`.

    Args:
        analysis: The analysis of the model.
        axis: The axis to explain.
        explanations: One explanation for each group that owns indices of the axis.
    """
    console = _console()
    if not explanations:
        console.print(f"{escape(str(axis))} belongs to no group: its indices are not cut by any rule", soft_wrap=True)
    for explanation in explanations:
        group, steps = explanation.group, explanation.steps
        state = "cannot be cut" if group.pinned else "can be cut" + (", together with" if steps else "")
        channels = f"{_count(group.size, 'channel')}{_parts(group)} that {state}"
        line = f"[bold]{escape(str(axis))}[/bold]: {explanation.indices} of its indices are {channels}"
        console.print(line, soft_wrap=True)
        for depth, forks, step in _tree(axis, steps):
            indent = " " * min(2 * depth, DEEPEST)
            console.print(f"{indent}{'+' if forks else ' '} [bold]{escape(str(step.far))}[/bold]", soft_wrap=True)
            console.print(f"{indent}      {escape(step.why)}", soft_wrap=True)
        if group.pinned:
            console.print(f"  stopped: {escape(pin_at_end(analysis, explanation))}", soft_wrap=True)


def _parts(group: Group) -> str:
    """Describe how the channels of a group in several parts are removed; empty for one part."""
    return f", as many from each of {group.parts} parts," if group.parts > 1 else ""


def _tree(axis: Axis, steps: Sequence[CouplingStep]) -> Iterator[tuple[int, bool, CouplingStep]]:
    """Yield (depth, whether the chain forks before the step, step), depth first. Only forks increase the depth."""
    steps_from: dict[Axis, list[CouplingStep]] = defaultdict(list)
    for step in steps:
        steps_from[step.near].append(step)
    stack = [(1, len(steps_from[axis]) > 1, step) for step in reversed(steps_from[axis])]
    while stack:
        depth, forks, step = stack.pop()
        yield depth, forks, step
        following = steps_from[step.far]
        forks = len(following) > 1
        stack += [(depth + forks, forks, next_step) for next_step in reversed(following)]


def show_comparison(comparison: Comparison, original: Path, pruned: Path, data: str | None = None) -> None:
    """Print the table of `compare`.

    Args:
        comparison: The comparison.
        original: The file of the original.
        pruned: The file of the pruned model.
        data: The name of the data that the drift was measured on; None for random inputs.
    """
    console = _console()
    _show_collapse(console, comparison.drift)
    console.print(f"{escape(str(original))} -> {escape(str(pruned))}", soft_wrap=True)
    _print(console, _costs(comparison.params, comparison.macs, comparison.bytes, comparison.latency))
    _print(console, _facts([*_latency_row(comparison.latency), *_drift_rows(comparison.drift, data)]))
