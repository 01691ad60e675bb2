"""Results as plain data, for --json and the HTML report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from spa_onnx.analysis.explain import Explanation, pin_at_end
from spa_onnx.analysis.groups import Analysis
from spa_onnx.report.result import Result
from spa_onnx.selection.propose import Selection
from spa_onnx.validation.compare import Comparison


def result_record(result: Result, target: Path) -> dict[str, Any]:
    """Return the output of `prune --json` and `apply --json`. Pairs are [before, after].

    Args:
        result: The result.
        target: The file of the pruned model.
    """
    report = result.report
    return {
        "output": str(target),
        "params": list(report.params),
        "macs": list(report.macs),
        "bytes": list(report.bytes),
        "latency_ms": None if report.latency is None else list(report.latency),
        "groups": [{"name": name, "channels": size, "removed": removed} for name, size, removed in report.groups],
        "selection": None if report.selection is None else _selection_record(report.selection),
        "pinned": [{"name": name, "channels": size, "why": why} for name, size, why, _ in report.pinned],
        "inexact": list(report.inexact),
        "repair": report.repair,
        "notes": list(report.notes),
        "validation": "skipped" if report.validation is None else asdict(report.validation),
        "drift": None if report.drift is None else asdict(report.drift),
        "collapsed": report.drift.collapsed if report.drift else "",
        "unknown": report.unknown,
        "seconds": dict(report.seconds),
        "total_seconds": sum(report.seconds.values()),
        "settings": dict(result.plan["settings"]),
    }


def _selection_record(selection: Selection) -> dict[str, Any]:
    """Return how the channels were selected: why no more are removed, what was spent, and the weights of groups."""
    return {
        "stopped": selection.stopped,
        "limits": [asdict(spent) for spent in selection.spent],
        "groups": {
            name: {"saved_per_channel": cost, "sensitivity": selection.sensitivities.get(name)}
            for name, cost in selection.costs.items()
        },
    }


def groups_record(analysis: Analysis) -> list[dict[str, Any]]:
    """Return the output of `groups --json`: prunable groups, pinned groups, then axes of weights with positions."""
    prunable = {group.name for group in analysis.prunable()}
    return [
        {
            "name": group.name,
            "channels": group.size,
            "parts": group.parts,
            "prunable": group.name in prunable,
            "why": group.pinned,
            "axes": [str(axis) for axis in group.owner],
        }
        for group in (*analysis.prunable(), *analysis.pinned(), *analysis.positions())
    ]


def explanation_record(analysis: Analysis, explanation: Explanation) -> dict[str, Any]:
    """Return the output of `explain --json` for one group on the axis."""
    return {
        "axis": str(explanation.axis),
        "group": explanation.group.name,
        "channels": explanation.group.size,
        "indices": explanation.indices,
        "pinned": pin_at_end(analysis, explanation) if explanation.group.pinned else "",
        "steps": [{"from": str(s.near), "to": str(s.far), "why": s.why, "depth": s.depth} for s in explanation.steps],
    }


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """Return the output of `compare --json`; pairs are [original, pruned]."""
    return {
        "params": list(comparison.params),
        "macs": list(comparison.macs),
        "bytes": list(comparison.bytes),
        "latency_ms": list(comparison.latency),
        "drift": asdict(comparison.drift),
        "collapsed": comparison.drift.collapsed,
    }
