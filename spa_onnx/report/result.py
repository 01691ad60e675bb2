"""The result of pruning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from spa_onnx.selection.propose import Selection
from spa_onnx.validation.drift import Drift
from spa_onnx.validation.validate import Verdict


@dataclass(frozen=True, slots=True)
class Report:
    """What pruning did. Pairs are (before, after).

    Args:
        params: The number of weights.
        macs: Multiply-accumulates at batch 1.
        bytes: The size of the file.
        latency: Median milliseconds in onnxruntime; None where it was not measured.
        groups: (name, channels, removed channels) of each group that lost some.
        pinned: (name, channels, why, cause) of each group with weights that cannot lose channels.
        inexact: Nodes that compute a statistic over an axis that lost channels.
        validation: The result of the checks; None where they were switched off.
        drift: How far the outputs moved; None where nothing was run.
        seconds: CouplingStep -> seconds.
        repair: What was done to the kept weights; empty for nothing.
        notes: What did not go as asked, one sentence each.
        selection: How the channels were selected; None for a plan that was read.
    """

    params: tuple[int, int]
    macs: tuple[int, int]
    bytes: tuple[int, int]
    latency: tuple[float, float] | None
    groups: tuple[tuple[str, int, int], ...]
    pinned: tuple[tuple[str, int, str, str], ...]
    inexact: tuple[str, ...]
    validation: Verdict | None
    drift: Drift | None
    seconds: Mapping[str, float]
    repair: str = ""
    notes: tuple[str, ...] = ()
    selection: Selection | None = None

    def reasons(self) -> list[tuple[str, int]]:
        """Return the reasons for pins with the number of groups that they hold, the most frequent first."""
        return Counter(cause for *_, cause in self.pinned).most_common()


@dataclass(frozen=True, slots=True)
class Result:
    """What `spa_onnx.prune` returns.

    Args:
        model: The pruned model.
        plan: The content of the plan file.
        report: What changed.
    """

    model: onnx.ModelProto
    plan: Mapping[str, Any]
    report: Report
