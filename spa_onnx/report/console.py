"""Tables on stdout, and JSON."""

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
"""Columns where stdout is not a terminal and COLUMNS is not set."""

MOST_REASONS = 3
MOST_NAMES = 3
DEEPEST = 20
"""Columns by which `explain` indents at most."""

SLOWER = 1.1
"""A latency ratio above this is no noise: odd channel counts can cost more time than they save."""


class _Output(Console):
    """A reader that has seen enough (`| head -1`) is no failure."""

    def on_broken_pipe(self) -> None:
        """Drop what follows."""
        self.quiet = True
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open until the process ends


def _console() -> Console:
    console = _Output(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    return console


def _print(console: Console, table: Table) -> None:
    """Without the spaces that fill up each line of a table, where it goes to a file."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as lines:
        console.print(table)
    console.print(Text("\n".join(line.rstrip() for line in lines.get().splitlines())), soft_wrap=True)


def show_json(record: Any) -> None:
    """One JSON value; figures that are not finite become null, which JSON has a word for."""
    text = json.dumps(_finite(record), indent=1, allow_nan=False)
    _console().out(text, highlight=False)


def _finite(record: Any) -> Any:
    if isinstance(record, dict):
        return {name: _finite(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def _count(value: float) -> str:
    """1234567 as 1.23 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:g} "


def _milliseconds(value: float) -> str:
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def _some(number: int, what: str, many: str = "") -> str:
    return f"{number} {what}" if number == 1 else f"{number} {many or what + 's'}"


def _columns(first: str, *numbers: str, last: str = "") -> Table:
    """An empty table without lines; names are never cut short, but continue on the next line."""
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
    table = _columns("", "before", "after", "ratio")
    rows = [("parameters", params, _count), ("MACs", macs, _count), ("file size", size, lambda v: _count(v) + "B")]
    for name, pair, show in rows:
        table.add_row(
            name, show(pair[0]).strip(), show(pair[1]).strip(), f"{pair[1] / pair[0]:.3f}" if pair[0] else "-"
        )
    if latency is None:
        table.add_row("latency", "-", "-", "-")
    else:
        table.add_row("latency", _milliseconds(latency[0]), _milliseconds(latency[1]), f"{latency[1] / latency[0]:.3f}")
    return table


def _facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Words on the left, sentences on the right, which continue below themselves."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name.ljust(len("parameters")), escape(text))  # versions of rich differ in what a min_width counts
    return table


def _latency_row(latency: tuple[float, float] | None) -> Iterator[tuple[str, str]]:
    if latency is not None and latency[1] > SLOWER * latency[0]:
        yield "", "slower than before: onnxruntime is fastest with round channel counts, try --multiple 8"


def _drift_text(moved: Drift, data: str | None) -> str:
    parts = [f"relative output error {moved.error:.3g}"]
    if moved.agreement is not None:
        parts.append(f"top-1 agreement {100 * moved.agreement:.1f} %")
    if moved.accuracy is not None:
        parts.append(f"accuracy {100 * moved.accuracy[0]:.2f} % -> {100 * moved.accuracy[1]:.2f} %")
    where = (
        f"{_some(moved.samples, 'sample')} of {data}"
        if data
        else f"{_some(moved.samples, 'random sample')}; --data gives real ones"
    )
    return f"{', '.join(parts)} (on {where})"


def show_result(result: Result, model: Path, target: Path, data: str | None = None) -> None:
    """The table that `prune` and `apply` print."""
    report, console = result.report, _console()
    console.print(f"{escape(str(model))} -> {escape(str(target))}", soft_wrap=True)
    _print(console, _costs(report.params, report.macs, report.bytes, report.latency))
    _print(console, _facts([*_latency_row(report.latency), *_result_rows(report, data)]))


def _result_rows(report: Report, data: str | None) -> Iterator[tuple[str, str]]:
    removed, channels = sum(r for *_, r in report.groups), sum(size for _, size, _ in report.groups)
    if report.latency is None:
        yield "", "latency was not measured"
    yield "groups", f"{len(report.groups)} pruned, {removed} of {_some(channels, 'channel')} removed"
    reasons = report.reasons()
    yield "pinned", _some(len(report.pinned), "group") + (" cannot lose channels:" if reasons else "")
    for why, times in reasons[:MOST_REASONS]:
        yield "", f"{times} x {why}"
    if len(reasons) > MOST_REASONS:
        yield "", f"{sum(times for _, times in reasons[MOST_REASONS:])} x other reasons, see spa-onnx groups"
    if report.inexact:
        names = ", ".join(report.inexact[:MOST_NAMES]) + (", ..." if len(report.inexact) > MOST_NAMES else "")
        yield "inexact", f"{_some(len(report.inexact), 'node')} over an axis that lost channels: {names}"
    yield from _words(report)
    if report.drift is not None:
        yield "drift", _drift_text(report.drift, data)
    verdict = report.validation
    if verdict is None:
        yield "validation", "skipped (--no-validate): the result was never run"
    elif verdict.gap is None:
        yield "validation", "valid, and runs in onnxruntime"
    else:
        yield (
            "validation",
            f"pruned == masked: largest relative difference {verdict.gap:.2g} on {verdict.seeds} random inputs",
        )
    for note in verdict.notes if verdict else ():
        yield "", note


def _words(report: Report) -> Iterator[tuple[str, str]]:
    if report.repair:
        yield "repair", report.repair
    for note in report.notes:
        yield "note", note


def show_groups(analysis: Analysis, model: Path) -> None:
    """The table that `groups` prints."""
    console = _console()
    prunable, pinned = analysis.prunable(), analysis.pinned()
    console.print(f"{escape(str(model))}: {_some(len(prunable), 'group')} can lose channels", soft_wrap=True)
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
    console.print(f"\n{_some(len(pinned), 'group')} with weights cannot")
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
    places = sum(
        group.owner[axis].shape[-1] > 1 for group in analysis.positions() for axis in group.weights(analysis.model)
    )
    if places:
        console.print(
            f"\n{_some(places, 'axis of a weight', 'axes of weights')} hold positions, as the height of a kernel, and not channels"
        )


def show_explanation(analysis: Analysis, axis: Axis, found: Sequence[Explanation]) -> None:
    """What `explain` prints."""
    console = _console()
    if not found:
        console.print(f"{escape(str(axis))} belongs to no group: its indices are not cut by any rule", soft_wrap=True)
    for one in found:
        state = "cannot be cut" if one.group.pinned else "can be cut" + (", together with" if one.steps else "")
        what = f"{one.indices} of its indices are {_some(one.group.size, 'channel')}{_parts(one.group)} that {state}"
        console.print(f"[bold]{escape(str(axis))}[/bold]: {what}", soft_wrap=True)
        for indent, forks, step in _tree(axis, one.steps):
            room = " " * min(2 * indent, DEEPEST)
            console.print(f"{room}{'+' if forks else ' '} [bold]{escape(str(step.far))}[/bold]", soft_wrap=True)
            console.print(f"{room}      {escape(step.why)}", soft_wrap=True)
        if one.group.pinned:
            console.print(f"  stopped: {escape(pin_at_end(analysis, one))}", soft_wrap=True)


def _parts(group: Group) -> str:
    """What parts ask of a group."""
    return f", as many from each of {group.parts} parts," if group.parts > 1 else ""


def _tree(axis: Axis, steps: Sequence[CouplingStep]) -> Iterator[tuple[int, bool, CouplingStep]]:
    """(indent, whether the chain forks before it, step): each step below the one that it goes on from."""
    onward: dict[Axis, list[CouplingStep]] = defaultdict(list)
    for step in steps:
        onward[step.near].append(step)
    waiting = [(1, len(onward[axis]) > 1, step) for step in reversed(onward[axis])]
    while waiting:
        indent, forks, step = waiting.pop()
        yield indent, forks, step
        after = onward[step.far]
        waiting += [(indent + (len(after) > 1), len(after) > 1, further) for further in reversed(after)]


def show_comparison(comparison: Comparison, original: Path, pruned: Path, data: str | None = None) -> None:
    """The table that `compare` prints."""
    console = _console()
    console.print(f"{escape(str(original))} -> {escape(str(pruned))}", soft_wrap=True)
    _print(console, _costs(comparison.params, comparison.macs, comparison.bytes, comparison.latency))
    _print(console, _facts([*_latency_row(comparison.latency), ("drift", _drift_text(comparison.drift, data))]))
