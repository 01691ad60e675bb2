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
    """What pruning changed. Pairs are (before, after).

    Args:
        params: The number of parameters.
        macs: Multiply-accumulates at batch 1.
        bytes: The size of the file, in bytes.
        latency: Median milliseconds per run in onnxruntime; None if it was not measured.
        groups: (name, number of channels, number of removed channels) of each group that lost channels.
        pinned: (name, number of channels, why, cause) of each group that has weights and cannot lose channels. The
            cause is the reason without its place in the model.
        inexact: The nodes that compute a norm or mean over an axis that lost channels.
        validation: The result of the checks; None if they were switched off.
        drift: How far the outputs differ from those of the original; None if it was not measured.
        seconds: Step of the pipeline -> seconds.
        repair: A description of the repair of the kept weights; empty if there was none.
        notes: Deviations from the request, one sentence each.
        selection: How the channels were selected; None for a saved plan.
        unknown: Why the drift was not measured although the models were run.
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
    unknown: str = ""

    def reasons(self) -> list[tuple[str, int]]:
        """Return the causes of pins, each with its number of groups, the most frequent first."""
        return Counter(cause for *_, cause in self.pinned).most_common()


@dataclass(frozen=True, slots=True)
class Result:
    """The result of `spa_onnx.prune` and `spa_onnx.apply_plan`.

    Args:
        model: The pruned model.
        plan: The content of the plan file.
        report: What pruning changed.
    """

    model: onnx.ModelProto
    plan: Mapping[str, Any]
    report: Report
