"""What pruning gives back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from spa_onnx.validation.drift import Drift
from spa_onnx.validation.validate import Verdict


@dataclass(frozen=True, slots=True)
class Report:
    """What pruning did. RegressionData are (before, after).

    params: float weights. macs: multiply-accumulates at batch 1. bytes: size of the file. latency: median milliseconds in onnxruntime,
    None where it was not measured. groups: (name, channels, removed) of those that lost channels. pinned: (name, channels, why, cause) of
    those with weights that could not. validation: None where it was switched off. repair: what was done to the surviving weights,
    empty for nothing. notes: what did not go as asked, one sentence each.
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

    def reasons(self) -> list[tuple[str, int]]:
        """Reasons for pins with the number of groups that they hold, the most frequent first."""
        return Counter(cause for *_, cause in self.pinned).most_common()


@dataclass(frozen=True, slots=True)
class Result:
    """model: the pruned model. plan: content of the plan file. report: what changed."""

    model: onnx.ModelProto
    plan: Mapping[str, Any]
    report: Report
