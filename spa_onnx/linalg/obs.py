"""Optimal Brain Surgeon for linear layers Y = W X: the loss of removing inputs, and the best weights without them.

H = X X' / n + lambda I over the input columns X (inputs, n). All arrays are float64. Hassibi & Stork, Second order
derivatives for network pruning (1993), describe the method for single weights. This module applies it to blocks of
inputs, as SPA does (section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa_onnx.linalg.blas import Matrix, eliminate, inverted, product, solved

DAMPING = 0.01
"""lambda as a share of the mean diagonal of H."""


@dataclass(frozen=True, slots=True)
class Regularisation:
    """How strongly statistics from samples are regularised before they are used for real inputs.

    Args:
        mean: The weight of the squared input means in H for a layer with a bias. With 0 the bias absorbs the means,
            which is right if real inputs have the same means. With 1 the means count like the covariance, which allows
            for real means that differ by as much as the means themselves.
        damping: lambda as a share of the mean diagonal of H. A larger share gives more weight to inputs that hardly
            vary in the samples.
        biased_damping: The same for a layer with a bias.
    """

    mean: float = 1.0
    damping: float = DAMPING
    biased_damping: float = DAMPING

    def of(self, *, biased: bool) -> tuple[float, float]:
        """Return (weight of the means, lambda as a share of the mean diagonal) for a layer with or without a bias."""
        return (self.mean, self.biased_damping) if biased else (1.0, self.damping)


CALIBRATED = Regularisation(mean=0.0, biased_damping=10 * DAMPING)
"""For calibration data. A covariance is smaller than the second moments, and few samples determine it less well."""

SYNTHETIC = Regularisation()
"""For synthetic samples that excite inner layers as real samples do."""

UNCERTAIN = Regularisation(damping=3.0, biased_damping=3.0)
"""For synthetic samples that may excite inner layers in another way than real samples do."""

SUPPORT = 8
"""Columns per input from which on a fit is expected to generalise."""

SPARSE = 0.75
"""`Surgeon` shrinks its matrices when less than this share of their inputs is kept."""

TINY = 1e-100
"""The threshold below which lambda counts as zero: a weight divided by lambda might overflow."""


def damped(gram: Matrix, damping: float = DAMPING) -> Matrix:
    """Return a Gram matrix with lambda added to its diagonal; a matrix of zeros becomes the identity.

    Args:
        gram: float64 (inputs, inputs).
        damping: lambda as a share of the mean diagonal.

    Returns:
        float64 (inputs, inputs).
    """
    strength = damping * float(np.trace(gram)) / len(gram)
    result = np.array(gram, dtype=np.float64)
    result.flat[:: len(gram) + 1] += strength if strength > TINY else 1.0
    return result


def saliency(weight: Matrix, inverse: Matrix, blocks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the loss that removing each block of inputs adds if all other inputs are refitted.

    The loss of block S is 1/2 sum_rows w_S ([H^-1]_SS)^-1 w_S', in units of the squared output.

    Args:
        weight: float64 (rows, inputs).
        inverse: H^-1 or its lower triangle, float64 (inputs, inputs).
        blocks: The input numbers of each block, int64 (blocks, size).

    Returns:
        float64 (blocks,).
    """
    rows, columns = blocks[:, :, None], blocks[:, None, :]
    inner = np.linalg.inv(inverse[np.maximum(rows, columns), np.minimum(rows, columns)])
    w = weight.T[blocks]
    return np.asarray(0.5 * np.einsum("bst,bst->b", inner, w @ w.transpose(0, 2, 1)), dtype=np.float64)


def ridge_fit(target: Matrix, gram: Matrix, start: Matrix, damping: float = DAMPING) -> Matrix:
    """Return the ridge fit of outputs Y to inputs Z: argmin over W' of ||Y - W' Z||^2 / n + lambda ||W' - W||^2.

    Args:
        target: Y Z' / n, float64 (rows, inputs).
        gram: Z Z' / n, float64 (inputs, inputs).
        start: W, float64 (rows, inputs). The fit stays close to it in the directions that Z does not determine.
        damping: lambda, the ridge penalty, as a share of the mean diagonal of Z Z' / n.

    Returns:
        float64 (rows, inputs).
    """
    strength = damping * float(np.trace(gram)) / len(gram)
    if strength <= TINY:
        return start
    return np.asarray(solved(damped(gram, damping), (target + strength * start).T).T)


def ridge_fit_by_columns(outputs: Matrix, columns: Matrix, start: Matrix, damping: float = DAMPING) -> Matrix:
    """Return the same fit as `ridge_fit`, from the columns: W + (Y - W Z) (Z' Z + n lambda I)^-1 Z'.

    It solves a system of n unknowns and is faster if there are fewer columns than inputs.

    Args:
        outputs: Y, float64 (rows, n).
        columns: Z, float64 (inputs, n).
        start: W, float64 (rows, inputs), as in `ridge_fit`.
        damping: lambda, as in `ridge_fit`.

    Returns:
        float64 (rows, inputs).
    """
    strength = damping * float(np.square(columns).sum()) / columns.size
    if strength <= TINY:
        return start
    inner = product(columns.T, columns)
    inner.flat[:: len(inner) + 1] += columns.shape[1] * strength
    residual = outputs - product(start, columns)
    return np.asarray(start + product(solved(inner, residual.T).T, columns.T))


def squared_error(weight: Matrix, target: Matrix, gram: Matrix) -> float:
    """Return the squared error ||Y - W' Z||^2 / n of a weight, less the constant ||Y||^2 / n.

    Args:
        weight: W', float64 (rows, inputs).
        target: Y Z' / n, float64 (rows, inputs).
        gram: Z Z' / n, float64 (inputs, inputs).

    Returns:
        The difference in units of the squared output. It orders weights as the error does.
    """
    return float(np.sum((product(weight, gram) - 2 * target) * weight))


def refit(weight: Matrix, gram: Matrix, kept: NDArray[np.int64]) -> Matrix:
    """Return the best weights that use the kept inputs only: argmin over W' of ||W X - W' X_kept||^2.

    W' = W_kept + W_removed H_removed,kept (H_kept,kept)^-1.

    Args:
        weight: W, float64 (rows, inputs).
        gram: H, with or without lambda, float64 (inputs, inputs).
        kept: The kept inputs, int64 (kept,).

    Returns:
        float64 (rows, kept).
    """
    removed = np.setdiff1d(np.arange(len(gram)), kept)
    rows = gram[kept]
    shared = product(rows.take(removed, axis=1), weight[:, removed].T)
    return np.asarray(weight[:, kept] + solved(rows.take(kept, axis=1), shared).T)


class Surgeon:
    """A linear layer from which blocks of inputs are removed step by step.

    It keeps W and H^-1 of the kept inputs, so that each saliency takes the earlier removals into account.

    Args:
        weight: W, float64 (rows, inputs).
        gram: H without lambda, float64 (inputs, inputs).
        blocks: The input numbers of each block, int64 (blocks, size).
        members: The channel of each block, ascending; None if block k belongs to channel k.
        count: The number of channels; 0 for as many as there are blocks.
        damping: lambda as a share of the mean diagonal of H.
    """

    def __init__(
        self,
        weight: Matrix,
        gram: Matrix,
        blocks: NDArray[np.int64],
        members: NDArray[np.int64] | None = None,
        count: int = 0,
        damping: float = DAMPING,
    ) -> None:
        self.energy = 0.5 * float(np.sum(product(weight, gram) * weight))
        self._inverse = inverted(damped(gram, damping), overwrite=True)
        self._weight = np.array(weight, order="F")
        self._blocks = blocks
        self._members = np.arange(len(blocks)) if members is None else members
        self._count = count or len(blocks)

    def saliency(self) -> NDArray[np.float64]:
        """Return the loss that removing each channel next would add, with all other inputs refitted.

        Returns:
            float64 (channels,); zero for channels that are removed already or that the layer does not read.
        """
        losses = np.zeros(self._count)
        losses[self._members] = saliency(self._weight, self._inverse, self._blocks)
        return losses

    def remove(self, *numbers: int) -> None:
        """Remove the blocks of these channels from W and H^-1, and refit the others."""
        is_removed = np.isin(self._members, numbers)
        eliminate(self._inverse, self._weight, self._blocks[is_removed].ravel())
        self._members, self._blocks = self._members[~is_removed], self._blocks[~is_removed]
        if self._blocks.size < SPARSE * len(self._inverse):
            self._shrink()

    def _shrink(self) -> None:
        """Delete the removed inputs from the matrices."""
        kept = np.sort(self._blocks, axis=None)
        columns = self._inverse.T  # the arrays are in Fortran order, so rows of the transpose are contiguous
        self._inverse = columns.take(kept, axis=0).take(kept, axis=1).T
        self._weight = self._weight.T.take(kept, axis=0).T
        self._blocks = np.searchsorted(kept, self._blocks)
