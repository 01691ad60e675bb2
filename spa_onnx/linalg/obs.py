"""Optimal Brain Surgeon for products Y = W X: what removing inputs costs, and the best weights without them.

H = X X' / n + lambda I over the columns X (inputs, n); all in float64. Hassibi & Stork, Second order derivatives for network
pruning (1993), there for one weight; here for blocks of inputs, as in SPA (section 4).
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
    """How far what samples show of inputs holds for real ones.

    mean: how much means count where a bias takes them up: nothing where real means are the same, like all else where they may be off by
    as much as they are. damping: lambda as a share of the mean diagonal of H; the larger, the more do inputs count that samples hardly
    stir. biased_damping: the same where a bias takes up the means.
    """

    mean: float = 1.0
    damping: float = DAMPING
    biased_damping: float = DAMPING

    def of(self, *, biased: bool) -> tuple[float, float]:
        """(how much means count, lambda as a share of the mean diagonal) for a product with or without a bias."""
        return (self.mean, self.biased_damping) if biased else (1.0, self.damping)


CALIBRATED = Regularisation(mean=0.0, biased_damping=10 * DAMPING)
"""In given samples. About the means less is left, of which a few samples say less."""

SYNTHETIC = Regularisation()
"""In samples that are made up, where inner layers are stirred as by real ones."""

UNCERTAIN = Regularisation(damping=3.0, biased_damping=3.0)
"""In samples that are made up, where nothing sees to that."""

SUPPORT = 8
"""Columns per input from which on a fit is taken to hold for others too."""

SPARSE = 0.75
"""Matrices are made smaller when less than this share of their inputs is left."""

TINY = 1e-100
"""Below this, lambda is as good as zero: its inverse times a weight might overflow."""


def damped(gram: Matrix, damping: float = DAMPING) -> Matrix:
    """H with lambda added to its diagonal: (inputs, inputs). A matrix of zeros becomes the identity."""
    strength = damping * float(np.trace(gram)) / len(gram)
    result = np.array(gram, dtype=np.float64)
    result.flat[:: len(gram) + 1] += strength if strength > TINY else 1.0
    return result


def saliency(weight: Matrix, inverse: Matrix, blocks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Loss added by removing each block of inputs when all others are refitted, float64 (blocks,).

    weight: (rows, inputs). inverse: (inputs, inputs), the inverse of H or its lower triangle. blocks: (blocks, size), input numbers.
    Returns 1/2 sum_rows w_S ([H^-1]_SS)^-1 w_S' in units of the squared output.
    """
    rows, columns = blocks[:, :, None], blocks[:, None, :]
    inner = np.linalg.inv(inverse[np.maximum(rows, columns), np.minimum(rows, columns)])
    w = weight.T[blocks]
    return np.asarray(0.5 * np.einsum("bst,bst->b", inner, w @ w.transpose(0, 2, 1)), dtype=np.float64)


def ridge_fit(target: Matrix, gram: Matrix, start: Matrix, damping: float = DAMPING) -> Matrix:
    """Weights that map inputs Z to given outputs Y: argmin ||Y - W' Z||^2 / n + lambda ||W' - W||^2, (rows, inputs).

    target: Y Z' / n, (rows, inputs). gram: Z Z' / n. start: W, which decides where Z says little. damping: lambda as a share of the mean
    diagonal of Z Z' / n.
    """
    strength = damping * float(np.trace(gram)) / len(gram)
    if strength <= TINY:
        return start
    return np.asarray(solved(damped(gram, damping), (target + strength * start).T).T)


def ridge_fit_by_columns(outputs: Matrix, columns: Matrix, start: Matrix, damping: float = DAMPING) -> Matrix:
    """`ridge_fit` where columns are few beside the inputs: W + (Y - W Z) (Z' Z + n lambda I)^-1 Z', (rows, inputs).

    outputs: Y, (rows, n). columns: Z, (inputs, n). start, damping: as there.
    """
    strength = damping * float(np.square(columns).sum()) / columns.size
    if strength <= TINY:
        return start
    inner = product(columns.T, columns)
    inner.flat[:: len(inner) + 1] += columns.shape[1] * strength
    left = outputs - product(start, columns)
    return np.asarray(start + product(solved(inner, left.T).T, columns.T))


def missed(weight: Matrix, target: Matrix, gram: Matrix) -> float:
    """||Y - W' Z||^2 / n less ||Y||^2 / n, which no weight changes, in units of the squared output.

    weight: W', (rows, inputs). target: Y Z' / n, (rows, inputs). gram: Z Z' / n, (inputs, inputs).
    """
    return float(np.sum((product(weight, gram) - 2 * target) * weight))


def refit(weight: Matrix, gram: Matrix, kept: NDArray[np.int64]) -> Matrix:
    """The best weights that use the kept inputs only: argmin ||W X - W' X_kept||^2, (rows, kept). gram: H, damped or not.

    W' = W_kept + W_gone H_gone,kept (H_kept,kept)^-1: the kept inputs take up what they have in common with those that are gone.
    """
    gone = np.setdiff1d(np.arange(len(gram)), kept)
    rows = gram[kept]
    shared = product(rows.take(gone, axis=1), weight[:, gone].T)
    return np.asarray(weight[:, kept] + solved(rows.take(kept, axis=1), shared).T)


class Surgeon:
    """One product while blocks of its inputs are removed.

    Keeps W and H^-1 of what is left, so that the next saliency counts those already gone. members: the channel of each block, in
    ascending order, where the product reads only some of `count` channels. damping: lambda as a share of the mean diagonal of H.
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
        self._left = np.arange(len(blocks)) if members is None else members
        self._count = count or len(blocks)

    def saliency(self) -> NDArray[np.float64]:
        """Loss added by removing each block next, float64 (blocks,); zero for blocks already gone."""
        losses = np.zeros(self._count)
        losses[self._left] = saliency(self._weight, self._inverse, self._blocks)
        return losses

    def remove(self, *numbers: int) -> None:
        """Remove blocks: refit the others, and take them out of W and H^-1."""
        going = np.isin(self._left, numbers)
        eliminate(self._inverse, self._weight, self._blocks[going].ravel())
        self._left, self._blocks = self._left[~going], self._blocks[~going]
        if self._blocks.size < SPARSE * len(self._inverse):
            self._close_ranks()

    def _close_ranks(self) -> None:
        """Forget the inputs that are gone."""
        kept = np.sort(self._blocks, axis=None)
        self._inverse = (
            self._inverse.T.take(kept, axis=0).take(kept, axis=1).T
        )  # column by column, as they lie in memory
        self._weight = self._weight.T.take(kept, axis=0).T
        self._blocks = np.searchsorted(kept, self._blocks)
