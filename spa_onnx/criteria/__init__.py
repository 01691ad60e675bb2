"""Importance criteria: a table from name to function. To add one, see docs/new_criterion.md."""

from spa_onnx.criteria import activations, obs, perturbation, weights
from spa_onnx.criteria.evidence import Criterion, Evidence, Scores

CRITERIA: dict[str, Criterion] = {
    "obspa": obs.obspa,
    "wanda": activations.wanda,
    "activation-variance": activations.activation_variance,
    "activation-mean": activations.activation_mean,
    "perturbation": perturbation.perturbation,
    "l1": weights.l1,
    "l2": weights.l2,
    "linf": weights.linf,
    "fpgm": weights.fpgm,
    "lamp": weights.lamp,
    "bn-scale": weights.bn_scale,
    "random": weights.random,
}

LOSSES = frozenset({"obspa", "perturbation"})
"""Criteria whose scores are relative losses: they compare across groups, per cost that a channel saves."""

WITH_STATISTICS = LOSSES | {"wanda", "activation-variance", "activation-mean"}
"""Criteria that look at the inputs of products too."""

WITH_TRIALS = frozenset({"perturbation"})
"""Criteria that try masks on the model: their scores are errors of its outputs."""

OWN_REPAIR = {"obspa": "obs", "activation-variance": "mean"}
"""Criterion -> the repair that its scores take for granted."""

__all__ = ["CRITERIA", "LOSSES", "OWN_REPAIR", "WITH_STATISTICS", "WITH_TRIALS", "Criterion", "Evidence", "Scores"]
