"""New values for the weights that survive, so that outputs stay close. Values change, shapes never."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from spa_onnx.layers import LayerKey, LinearLayer, count_uses
from spa_onnx.linalg.obs import CALIBRATED, Regularisation
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.plan.removal import Removal
from spa_onnx.statistics.moments import Moments

REPAIRS = ("obs", "mean", "none")
"""Refit the surviving weights and biases; or only let biases take up what the removed inputs contributed on average; or nothing."""


def refit_layers(
    model: Model,
    found: Sequence[LinearLayer],
    statistics: Mapping[LayerKey, Moments],
    removal: Removal,
    *,
    regularisation: Regularisation = CALIBRATED,
    refits: bool = True,
) -> dict[str, Array]:
    """Refit every product that loses inputs: constant -> new value in the original's shape.

    The kept columns become argmin ||W X - W' X_kept||^2 over the collected columns X; where a bias is added it takes up the means. A
    weight that several products share is refitted for all of them together. Quantised weights are refitted in float and stored in the
    steps that they had. regularisation: how far the statistics hold for real samples. refits: False to leave weights as they are and only correct
    the biases (FLAP's compensation, An et al. 2024).
    """
    sharing: dict[str, list[LinearLayer]] = defaultdict(list)
    for layer in found:
        if layer.axis in removal and layer.key in statistics:
            sharing[layer.weight].append(layer)
    values: dict[str, Array] = {}
    for name, users in sharing.items():
        weight = model.weight(name)
        alike = len({(user.axis, user.blocks, user.scale) for user in users}) == 1
        if (
            weight is None or name in model.source or count_uses(model, name) != len(users) or not alike
        ):  # it stays for others' sake
            continue
        first = users[0]
        moments = sum((statistics[user.key] for user in users[1:]), statistics[first.key])
        old = first.matrix(weight)
        centred = bool(first.bias) and len(users) == 1
        mean, damping = regularisation.of(biased=centred)
        hessians = moments.hessians(mean, damping) if refits else []
        new = np.zeros_like(old)
        for block in range(len(old)):
            columns = kept_columns(first, removal, block)
            new[block][:, columns] = hessians[block].refit(old[block], columns) if refits else old[block][:, columns]
        if not np.isfinite(new).all():
            continue
        if refits:
            fitted = in_range(model, name, first.tensor(new, weight))
            if fitted is None:  # the old weight stays, and so does its bias
                continue
            values[name] = fitted
        if centred:
            _refit_bias(model, first, old - new, moments, values)
    return values


def kept_columns(layer: LinearLayer, removal: Removal, block: int) -> np.ndarray:
    """The inputs that stay of one of the products side by side."""
    stays = removal.stays(layer.axis)
    kept = np.flatnonzero(np.broadcast_to(stays, (layer.blocks, stays.shape[-1]))[block])
    return (kept[:, None] * layer.window + np.arange(layer.window)).ravel()


def in_range(model: Model, name: str, numbers: Array) -> Array | None:
    """New numbers in the form of the constant that holds the old ones; None where its type cannot hold them."""
    with np.errstate(over="ignore"):
        stored = model.stored(name, numbers)
    return stored if np.isfinite(stored).all() else None


def _refit_bias(model: Model, layer: LinearLayer, lost: np.ndarray, moments: Moments, values: dict[str, Array]) -> None:
    """Add (W - W') mean to the bias: what the removed inputs contributed on average."""
    bias = model.weight(layer.bias)
    if bias is not None:
        shift = np.einsum("bri,bi->br", lost, moments.mean).ravel()
        moved = in_range(model, layer.bias, bias.astype(np.float64) + shift.reshape(bias.shape))
        if moved is not None:
            values[layer.bias] = moved
