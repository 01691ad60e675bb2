"""Optimal Brain Surgeon for products Y = W X: what removing inputs costs, and the best weights without them.

H = X X' / n + lambda I over the columns X (inputs, n); all in float64. Hassibi & Stork, Second order derivatives for network
pruning (1993), there for one weight; here for blocks of inputs, as in SPA (section 4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

DAMPING = 0.01
"""lambda as a share of the mean diagonal of H."""

TINY = 1e-100
"""Below this, lambda is as good as zero: its inverse times a weight might overflow."""


def damped(gram: Matrix, damping: float = DAMPING) -> Matrix:
    """H with lambda added to its diagonal: (inputs, inputs). A matrix of zeros becomes the identity."""
    strength = damping * float(np.trace(gram)) / len(gram)
    return gram + (strength if strength > TINY else 1.0) * np.eye(len(gram))


def saliency(weight: Matrix, inverse: Matrix, blocks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Loss added by removing each block of inputs when all others are refitted, float64 (blocks,).

    weight: (rows, inputs). inverse: (inputs, inputs), the inverse of H. blocks: (blocks, size), input numbers.
    Returns 1/2 sum_rows w_S ([H^-1]_SS)^-1 w_S' in units of the squared output.
    """
    inner = inverse[blocks[:, :, None], blocks[:, None, :]]
    w = weight[:, blocks].transpose(1, 2, 0)
    return np.asarray(0.5 * np.einsum("bsr,bsr->b", w, np.linalg.solve(inner, w)), dtype=np.float64)


def refit(weight: Matrix, gram: Matrix, kept: NDArray[np.int64]) -> Matrix:
    """The best weights that use the kept inputs only: argmin ||W X - W' X_kept||^2, (rows, kept). gram: H, damped or not."""
    return np.asarray(np.linalg.solve(gram[np.ix_(kept, kept)], gram[kept] @ weight.T).T, dtype=np.float64)


class Surgeon:
    """One product while its inputs are removed one block after the other.

    Keeps W and H^-1 of what is left, so that the next saliency counts those already gone.
    """

    def __init__(self, weight: Matrix, gram: Matrix, blocks: NDArray[np.int64]) -> None:
        self._gram = damped(gram)
        self._inverse: Matrix = np.linalg.inv(self._gram).astype(np.float64)
        self._weight = weight.copy()
        self._blocks = blocks
        self.energy = 0.5 * float(np.einsum("ri,ij,rj->", weight, gram, weight))

    def saliency(self) -> NDArray[np.float64]:
        """Loss added by removing each block next; meaningless for blocks already gone."""
        return saliency(self._weight, self._inverse, self._blocks)

    def remove(self, number: int) -> None:
        """Remove a block: refit the others and take it out of H^-1."""
        gone = self._blocks[number]
        pivot = np.linalg.solve(self._inverse[np.ix_(gone, gone)], self._inverse[gone])
        self._weight -= self._weight[:, gone] @ pivot
        self._inverse -= self._inverse[:, gone] @ pivot
        self._weight[:, gone] = 0.0
        self._inverse[gone, gone] = 1.0  # keeps the blocks that are gone solvable
