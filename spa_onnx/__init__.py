"""Structural pruning of ONNX models. `spa_onnx.prune("model.onnx", ratio=0.4)` returns a `Result`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spa_onnx.errors import SpaError
    from spa_onnx.pipeline import apply_plan, prune
    from spa_onnx.plan.plan import Plan, read_plan
    from spa_onnx.report.result import Report, Result
    from spa_onnx.scoring import CRITERIA

# onnxruntime 1.32 reports usage to its vendor unless this is set before it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["CRITERIA", "Plan", "Report", "Result", "SpaError", "apply_plan", "prune", "read_plan"]

_MODULES = {
    "CRITERIA": "spa_onnx.scoring",
    "SpaError": "spa_onnx.errors",
    "Plan": "spa_onnx.plan.plan",
    "read_plan": "spa_onnx.plan.plan",
    **dict.fromkeys(("Report", "Result"), "spa_onnx.report.result"),
    **dict.fromkeys(("apply_plan", "prune"), "spa_onnx.pipeline"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `spa-onnx --help` starts fast."""
    if name not in _MODULES:
        raise AttributeError(f"module 'spa_onnx' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(_MODULES[name]), name)
