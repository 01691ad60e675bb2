"""D-optimal subsets: the samples whose outputs span the largest volume.

Samples with similar outputs carry the same information about the weights. Samples are chosen one by one: the next is
the one whose outputs are predicted worst from those chosen before (Fedorov, Theory of optimal experiments, 1972).
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
"""Samples count as equal if their outputs differ by less than this share of the variance."""

ENTRIES = 1024
"""The maximum number of entries of an output that are compared, the same ones for each sample."""


def d_optimal_subset(model: Model, drawn: Sequence[Feed], count: int, seed: int) -> list[Feed]:
    """Choose samples from feeds. Batches keep their size, and samples keep their order.

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
    batch = sizes.pop() if has_free_batch(model) and len(sizes) == 1 else 1
    session = open_session(model.proto, optimise=True)
    outputs = [[_compared_entries(output, batch, seed) for output in session.run(feed)] for feed in drawn]
    chosen = np.sort(d_optimal_rows(_join_outputs(outputs, batch), count * batch))
    if batch == 1:
        # copies, because the samples may be parts of one array
        return [{name: array.copy() for name, array in drawn[number].items()} for number in chosen]
    return [
        {
            name: np.stack([drawn[number // batch][name][number % batch] for number in chosen[first : first + batch]])
            for name in drawn[0]
        }
        for first in range(0, count * batch, batch)
    ]


def d_optimal_rows(outputs: Matrix, count: int) -> NDArray[np.int64]:
    """Return the rows from which the others can be predicted best, the most informative first.

    Each row has the largest variance that remains given the rows before it. They are the pivots of the Cholesky
    factorisation of outputs @ outputs.T + EQUAL_SHARE * mean(diagonal) * I.

    Args:
        outputs: float64 (samples, entries), centred.
        count: The number of rows.

    Returns:
        int64 (count,).
    """
    covariance = product(outputs, outputs.T)
    return pivots(covariance + EQUAL_SHARE * np.mean(np.diag(covariance)) * np.eye(len(covariance)))[:count]


def _compared_entries(output: Array, batch: int, seed: int) -> Matrix:
    """Return at most ENTRIES entries of every sample, the same for all, float64 (batch, entries).

    The result is (batch, 0) if the output has no axis for samples.
    """
    if not output.size or output.dtype.kind not in "fiu" or (batch > 1 and output.shape[:1] != (batch,)):
        return np.zeros((batch, 0))
    values = output.reshape(batch, -1)
    entries = (
        np.random.default_rng(seed).integers(values.shape[1], size=ENTRIES)
        if values.shape[1] > ENTRIES
        else slice(None)
    )
    return values[:, entries].astype(np.float64)


def _join_outputs(entries: Sequence[Sequence[Matrix]], batch: int) -> Matrix:
    """Return the entries of every sample, each output with the same weight, float64 (samples, entries)."""
    outputs = (
        np.concatenate(parts) for parts in zip(*entries, strict=True) if len({part.shape for part in parts}) == 1
    )
    return np.concatenate([np.zeros((len(entries) * batch, 0)), *map(_scaled, outputs)], axis=1)


def _scaled(values: Matrix) -> Matrix:
    """Return the centred columns with total variance one; rows that are not finite become zero."""
    usable = np.isfinite(values).all(axis=1)
    centred = np.zeros_like(values)
    if usable.any():
        centred[usable] = values[usable] - values[usable].mean(axis=0)
    variance = np.square(centred).sum() / len(values)
    return centred / np.sqrt(variance) if variance > 0 else centred
