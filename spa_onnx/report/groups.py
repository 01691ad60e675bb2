"""Print the groups of a model, and why channels are removed together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.markup import escape

from spa_onnx.analysis.explain import CouplingStep, Explanation, pin_at_end
from spa_onnx.analysis.groups import Analysis, Group
from spa_onnx.model.facts import Axis
from spa_onnx.report.console import MOST_REASONS
from spa_onnx.report.tables import columns, count_text, fact_rows, print_table, stdout_console

DEEPEST = 20
"""The largest indentation of `explain`, in characters."""


def show_groups(analysis: Analysis, model: Path) -> None:
    """Print the tables of `groups`.

    Args:
        analysis: The analysis of the model.
        model: The file of the model.
    """
    console = stdout_console()
    prunable, pinned = analysis.prunable(), analysis.pinned()
    console.print(f"{escape(str(model))}: {count_text(len(prunable), 'group')} can lose channels", soft_wrap=True)
    if prunable:
        table = columns("group", "channels", "weights", "axes")
        for group in prunable:
            table.add_row(
                escape(group.name),
                str(group.size),
                str(len(list(group.weights(analysis.model)))),
                str(len(group.owner)),
            )
        print_table(console, table)
    console.print(f"\n{count_text(len(pinned), 'group')} with weights cannot")
    if pinned:
        table = columns("group", "channels", "weights", last="why")
        for group in pinned:
            table.add_row(
                escape(group.name), str(group.size), str(len(list(group.weights(analysis.model)))), escape(group.pinned)
            )
        print_table(console, table)
        reasons = Counter(group.cause for group in pinned).most_common(MOST_REASONS)
        if reasons[0][1] > 1:
            console.print("\nmost frequent reasons")
            print_table(console, fact_rows((f"{times} x", why) for why, times in reasons))
    positions = sum(
        group.owner[axis].shape[-1] > 1 for group in analysis.positions() for axis in group.weights(analysis.model)
    )
    if positions:
        console.print(
            f"\n{count_text(positions, 'axis of a weight', 'axes of weights')} hold positions, "
            "as the height of a kernel, and not channels"
        )


def show_explanation(analysis: Analysis, axis: Axis, explanations: Sequence[Explanation]) -> None:
    """Print the output of `explain`.

    Args:
        analysis: The analysis of the model.
        axis: The axis to explain.
        explanations: One explanation for each group that owns indices of the axis.
    """
    console = stdout_console()
    if not explanations:
        console.print(f"{escape(str(axis))} belongs to no group: its indices are not cut by any rule", soft_wrap=True)
    for explanation in explanations:
        group, steps = explanation.group, explanation.steps
        state = "cannot be cut" if group.pinned else "can be cut" + (", together with" if steps else "")
        channels = f"{count_text(group.size, 'channel')}{_parts(group)} that {state}"
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
