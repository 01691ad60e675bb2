"""Importance criteria: scores of the channels of a group. Importing this package registers all criteria."""

from spa_onnx.scoring import obs  # isort: skip - the default comes first in lists of names
from spa_onnx.scoring import activations, perturbation, weights
from spa_onnx.scoring.registry import CRITERIA, Criterion, criterion

__all__ = ["CRITERIA", "Criterion", "activations", "criterion", "obs", "perturbation", "weights"]
