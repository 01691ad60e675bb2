"""Layer-wise repair: refit kept weights so that each layer's output stays close. Values change, shapes do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from spa_onnx.layers import LayerKey, LinearLayer, count_uses
from spa_onnx.linalg.blas import Matrix
from spa_onnx.linalg.obs import CALIBRATED, Regularisation
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.plan.removal import Removal
from spa_onnx.statistics.moments import Moments

REPAIRS = ("obs", "mean", "none")
"""Names of repairs.

"obs" refits kept weights and biases. "mean" only adds to biases what the removed inputs contributed on average. "none"
changes nothing.
"""


def refit_layers(
    model: Model,
    layers: Sequence[LinearLayer],
    statistics: Mapping[LayerKey, Moments],
    removal: Removal,
    *,
    regularisation: Regularisation = CALIBRATED,
    refits: bool = True,
) -> dict[str, Array]:
    """Refit every layer that loses inputs.

    The new weights are argmin ||W X - W' X_kept||^2 over the collected columns X. A bias absorbs the change of the
    mean. A weight that several layers share is refitted for all of them together. Quantised weights are refitted in
    float and stored with their old quantisation steps.

    Args:
        model: The dense model.
        layers: The layers to consider.
        statistics: Key of a layer -> moments of its input.
        removal: What is removed.
        regularisation: Weight of the means and ridge penalty.
        refits: False to keep weights and only correct biases (FLAP's compensation, An et al. 2024).

    Returns:
        Constant -> new value in the original's shape.
    """
    users_of: dict[str, list[LinearLayer]] = defaultdict(list)
    for layer in layers:
        if layer.axis in removal and layer.key in statistics:
            users_of[layer.weight].append(layer)
    values: dict[str, Array] = {}
    for name, users in users_of.items():
        weight = model.weight(name)
        if weight is not None and _is_refittable(model, name, users):
            moments = sum((statistics[user.key] for user in users[1:]), statistics[users[0].key])
            values |= _refit_weight(model, users, weight, moments, removal, regularisation if refits else None)
    return values


def _refit_weight(
    model: Model,
    users: Sequence[LinearLayer],
    weight: Array,
    moments: Moments,
    removal: Removal,
    regularisation: Regularisation | None,
) -> dict[str, Array]:
    """Return the new values of a weight and its bias. regularisation: None to keep the weight."""
    layer = users[0]
    old = layer.matrix(weight)
    corrects_bias = bool(layer.bias) and len(users) == 1
    hessians = moments.hessians(*regularisation.of(biased=corrects_bias)) if regularisation else []
    new = np.zeros_like(old)
    for block in range(len(old)):
        columns = kept_columns(layer, removal, block)
        new[block][:, columns] = hessians[block].refit(old[block], columns) if hessians else old[block][:, columns]
    if not np.isfinite(new).all():
        return {}
    values: dict[str, Array] = {}
    if regularisation:
        stored = in_range(model, layer.weight, layer.tensor(new, weight))
        if stored is None:  # the bias has to match the old weight
            return {}
        values[layer.weight] = stored
    if corrects_bias:
        _correct_bias(model, layer, old - new, moments, values)
    return values


def _is_refittable(model: Model, name: str, users: Sequence[LinearLayer]) -> bool:
    """Return whether only these layers read the weight, all of them in the same way."""
    reads_alike = len({(user.axis, user.blocks, user.scale) for user in users}) == 1
    return name not in model.source and count_uses(model, name) == len(users) and reads_alike


def kept_columns(layer: LinearLayer, removal: Removal, block: int) -> np.ndarray:
    """Return the input numbers of a block that are kept."""
    stays = removal.stays(layer.axis)
    kept = np.flatnonzero(np.broadcast_to(stays, (layer.blocks, stays.shape[-1]))[block])
    return (kept[:, None] * layer.window + np.arange(layer.window)).ravel()


def in_range(model: Model, name: str, numbers: Array) -> Array | None:
    """Return numbers in the stored form of a constant, None if its type cannot hold them."""
    with np.errstate(over="ignore"):
        stored = model.stored(name, numbers)
    return stored if np.isfinite(stored).all() else None


def _correct_bias(model: Model, layer: LinearLayer, lost: Matrix, moments: Moments, values: dict[str, Array]) -> None:
    """Add (W - W') mean to the bias. lost: W - W', (blocks, rows, inputs)."""
    bias = model.weight(layer.bias)
    if bias is not None:
        shift = np.einsum("bri,bi->br", lost, moments.mean).ravel()
        stored = in_range(model, layer.bias, bias.astype(np.float64) + shift.reshape(bias.shape))
        if stored is not None:
            values[layer.bias] = stored
