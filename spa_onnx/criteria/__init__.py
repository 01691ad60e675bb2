"""Importance criteria: a table from name to function. To add one, see docs/new_criterion.md."""

from spa_onnx.criteria import obs, weights
from spa_onnx.criteria.evidence import Criterion, Evidence, Scores

CRITERIA: dict[str, Criterion] = {
    "obspa": obs.obspa,
    "l1": weights.l1,
    "l2": weights.l2,
    "linf": weights.linf,
    "fpgm": weights.fpgm,
    "lamp": weights.lamp,
    "bn-scale": weights.bn_scale,
    "random": weights.random,
}

WITH_STATISTICS = frozenset({"obspa"})
"""Criteria that look at the inputs of products too. Their scores are losses, compared per multiply-accumulate saved."""

__all__ = ["CRITERIA", "WITH_STATISTICS", "Criterion", "Evidence", "Scores"]
