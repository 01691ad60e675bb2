"""D-optimal subsets: of many samples, those whose outputs span the most.

Samples with similar outputs carry the same information about the weights. Samples are chosen one after the other, each
time the one whose outputs the earlier ones predict worst (Fedorov, Theory of optimal experiments, 1972).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spa_onnx.execution.session import Feed, open_session
from spa_onnx.linalg.blas import Matrix, pivots, product
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model, has_free_batch

EQUAL_SHARE = 0.1
"""The share of the variance of outputs below which samples count as equal."""

ENTRIES = 1024
"""The maximum number of entries of an output that are compared, the same ones for each sample."""


def d_optimal_subset(model: Model, drawn: Sequence[Feed], count: int, seed: int) -> list[Feed]:
    """Return as many samples as `count` of the drawn feeds hold, in batches of their size and in the order drawn.

    If the batch has a fixed size, whole feeds are chosen.

    Args:
        model: The model.
        drawn: The feeds.
        count: The number of feeds to return.
        seed: The seed of the entries that are compared.

    Raises:
        RefusedError: onnxruntime does not run the model on the feeds.
    """
    sizes = {len(array) if array.ndim else 1 for feed in drawn for array in feed.values()}
    rows = sizes.pop() if has_free_batch(model) and len(sizes) == 1 else 1
    session = open_session(model.proto, optimise=True)
    seen = [[_some(output, rows, seed) for output in session.run(feed)] for feed in drawn]
    chosen = np.sort(d_optimal_rows(_joined(seen, rows), count * rows))
    if rows == 1:
        return [drawn[number] for number in chosen]
    joined = {name: np.concatenate([feed[name] for feed in drawn])[chosen] for name in drawn[0]}
    return [
        {name: array[first : first + rows] for name, array in joined.items()} for first in range(0, count * rows, rows)
    ]


def d_optimal_rows(outputs: Matrix, count: int) -> NDArray[np.int64]:
    """Return the rows from which the others can be predicted best, the most informative first.

    Each row has the largest variance that the rows before it leave. They are the pivots of the Cholesky factorisation
    of
    the rows' covariance plus EQUAL_SHARE.

    Args:
        outputs: float64 (samples, entries), centred.
        count: The number of rows.

    Returns:
        int64 (count,).
    """
    common = product(outputs, outputs.T)
    return pivots(common + EQUAL_SHARE * np.mean(np.diag(common)) * np.eye(len(common)))[:count]


def _some(output: Array, rows: int, seed: int) -> Matrix:
    """Return some entries of every sample, always the same ones, (rows, entries).

    None are returned if the output has no axis of samples.
    """
    if not output.size or output.dtype.kind not in "fiu" or (rows > 1 and output.shape[:1] != (rows,)):
        return np.zeros((rows, 0))
    values = output.reshape(rows, -1)
    some = (
        np.random.default_rng(seed).integers(values.shape[1], size=ENTRIES)
        if values.shape[1] > ENTRIES
        else slice(None)
    )
    return values[:, some].astype(np.float64)


def _joined(seen: Sequence[Sequence[Matrix]], rows: int) -> Matrix:
    """Return the outputs of every sample, each output with the same weight, float64 (samples, entries)."""
    outputs = (np.concatenate(parts) for parts in zip(*seen, strict=True) if len({part.shape for part in parts}) == 1)
    return np.concatenate([np.zeros((len(seen) * rows, 0)), *map(_scaled, outputs)], axis=1)


def _scaled(values: Matrix) -> Matrix:
    """Return the centred columns with total variance one.

    Rows that are not finite are zero and carry no information.
    """
    usable = np.isfinite(values).all(axis=1)
    centred = np.zeros_like(values)
    if usable.any():
        centred[usable] = values[usable] - values[usable].mean(axis=0)
    energy = np.square(centred).sum() / len(values)
    return centred / np.sqrt(energy) if energy > 0 else centred
