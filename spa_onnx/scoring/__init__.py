"""Importance criteria: how much each channel of a group matters. Importing this package fills the table."""

from spa_onnx.scoring import obs  # isort: skip - the default comes first in lists of names
from spa_onnx.scoring import activations, perturbation, weights
from spa_onnx.scoring.registry import CRITERIA, Criterion, criterion

__all__ = ["CRITERIA", "Criterion", "activations", "criterion", "obs", "perturbation", "weights"]
