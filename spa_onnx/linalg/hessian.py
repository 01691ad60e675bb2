"""The Hessian H = X X' / n + lambda I of a linear layer with input columns X (inputs, n), in two equivalent forms.

`Full` stores H as a matrix (inputs, inputs). `Factored` stores D + U U' with a diagonal D and a narrow U (inputs, k).
It suits layers that have seen far fewer columns than they have inputs: it solves systems of k unknowns (Woodbury
identity) and never builds a matrix of all inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.linalg.blas import Matrix, product, solved
from spa_onnx.linalg.obs import TINY, Surgeon, damped, refit

Blocks: TypeAlias = NDArray[np.int64]
"""The input numbers of each block, int64 (blocks, size). A block holds the inputs that one channel owns."""

WEIGHTS_PER_STEP = 2**22
"""The number of weights that `FactoredSurgeon` refits at once to compute saliencies; it bounds the memory."""


class GroupSurgeon(Protocol):
    """A linear layer from which blocks of inputs are removed step by step.

    Attributes:
        energy: Half the mean square of the output, summed over the rows.
    """

    energy: float

    def saliency(self) -> NDArray[np.float64]:
        """Return the loss that removing each channel next would add, with all other inputs refitted.

        Returns:
            float64 (channels,); zero for channels that are removed already or that the layer does not read.
        """

    def remove(self, *numbers: int) -> None:
        """Remove the blocks of these channels and refit the others."""


class Hessian(Protocol):
    """The Hessian of one linear layer."""

    def surgeon(self, weight: Matrix, blocks: Blocks, members: NDArray[np.int64], count: int) -> GroupSurgeon:
        """Return an operation that removes blocks of inputs from a weight.

        Args:
            weight: float64 (rows, inputs).
            blocks: The inputs that each channel owns.
            members: The channel of each block, ascending, int64 (blocks,).
            count: The number of channels of the group.
        """

    def refit(self, weight: Matrix, kept: NDArray[np.int64]) -> Matrix:
        """Return the best weights that use the kept inputs only, as `obs.refit` defines them.

        Args:
            weight: float64 (rows, inputs).
            kept: The kept inputs, int64 (kept,).

        Returns:
            float64 (rows, kept).
        """


@dataclass(frozen=True, slots=True)
class Full:
    """H as a matrix.

    Args:
        matrix: H without lambda, float64 (inputs, inputs).
        damping: lambda as a share of the mean diagonal of `matrix`.
    """

    matrix: Matrix
    damping: float

    def surgeon(self, weight: Matrix, blocks: Blocks, members: NDArray[np.int64], count: int) -> GroupSurgeon:
        """See `Hessian`."""
        return Surgeon(weight, self.matrix, blocks, members, count, self.damping)

    def refit(self, weight: Matrix, kept: NDArray[np.int64]) -> Matrix:
        """See `Hessian`."""
        return refit(weight, damped(self.matrix, self.damping), kept)


@dataclass(frozen=True, slots=True)
class Factored:
    """H as D + U U'.

    Args:
        diagonal: D without lambda, float64 (inputs,).
        factor: U, float64 (inputs, k).
        damping: lambda as a share of the mean diagonal of H.
    """

    diagonal: NDArray[np.float64]
    factor: Matrix
    damping: float

    def surgeon(self, weight: Matrix, blocks: Blocks, members: NDArray[np.int64], count: int) -> GroupSurgeon:
        """See `Hessian`."""
        return FactoredSurgeon(weight, self, blocks, members, count)

    def refit(self, weight: Matrix, kept: NDArray[np.int64]) -> Matrix:
        """Return W' = W_kept + W_removed U_removed M^-1 U_kept' D^-1 with M = I + U_kept' D^-1 U_kept."""
        removed = np.setdiff1d(np.arange(len(self.factor)), kept)
        spread = self.spread()[kept]
        coefficients = solved(inner(self.factor[kept], spread), product(weight[:, removed], self.factor[removed]).T).T
        return weight[:, kept] + product(coefficients, spread.T)

    def damped(self) -> NDArray[np.float64]:
        """Return D with lambda added as `obs.damped` adds it, float64 (inputs,)."""
        strength = self.damping * float(self.diagonal.sum() + np.square(self.factor).sum()) / len(self.factor)
        return self.diagonal + (strength if strength > TINY else 1.0)

    def spread(self) -> Matrix:
        """Return D^-1 U, float64 (inputs, k)."""
        return self.factor / self.damped()[:, None]


def inner(factor: Matrix, spread: Matrix) -> Matrix:
    """Return I + U' D^-1 U.

    Args:
        factor: U, float64 (inputs, k).
        spread: D^-1 U, float64 (inputs, k).

    Returns:
        float64 (k, k).
    """
    return np.eye(factor.shape[1]) + product(factor.T, spread)


class FactoredSurgeon:
    """The counterpart of `obs.Surgeon` for H = D + U U'. It gives the same results from systems of k unknowns.

    K are the kept inputs, M = I + U_K' D_K^-1 U_K, and R is the sum of W_S U_S over the removed blocks S. Then
    H_K^-1 = D_K^-1 - D_K^-1 U_K M^-1 U_K' D_K^-1, and the refitted weights are W_K + R M^-1 U_K' D_K^-1.

    Args:
        weight: W, float64 (rows, inputs).
        hessian: H.
        blocks: The inputs that each channel owns.
        members: The channel of each block, ascending, int64 (blocks,).
        count: The number of channels of the group.
    """

    def __init__(
        self, weight: Matrix, hessian: Factored, blocks: Blocks, members: NDArray[np.int64], count: int
    ) -> None:
        self._weight_t = np.ascontiguousarray(weight.T)  # the weights of one input are contiguous
        self._factor, self._spread = hessian.factor, hessian.spread()
        self._diagonal = hessian.damped()
        self._blocks, self._members, self._count = blocks, members, count
        self._removed_sum = np.zeros((len(weight), hessian.factor.shape[1]))  # R
        squares = np.square(weight).sum(axis=0) @ hessian.diagonal + np.square(product(weight, hessian.factor)).sum()
        self.energy = 0.5 * float(squares)

    def saliency(self) -> NDArray[np.float64]:
        """See `GroupSurgeon`."""
        losses = np.zeros(self._count)
        kept = self._blocks.ravel()
        inverse = solved(inner(self._factor[kept], self._spread[kept]), np.eye(self._factor.shape[1]))
        coefficients = product(self._removed_sum, inverse)
        step = max(1, WEIGHTS_PER_STEP // (self._weight_t.shape[1] * self._blocks.shape[1]))
        for first in range(0, len(self._blocks), step):
            part = slice(first, first + step)
            losses[self._members[part]] = self._losses(self._blocks[part], inverse, coefficients)
        return losses

    def remove(self, *numbers: int) -> None:
        """See `GroupSurgeon`."""
        is_removed = np.isin(self._members, numbers)
        removed = self._blocks[is_removed].ravel()
        self._removed_sum += product(self._weight_t[removed].T, self._factor[removed])
        self._members, self._blocks = self._members[~is_removed], self._blocks[~is_removed]

    def _losses(self, blocks: Blocks, inner_inverse: Matrix, coefficients: Matrix) -> NDArray[np.float64]:
        """Return 1/2 sum over rows of w_S ([H^-1]_SS)^-1 w_S' for each block S, float64 (blocks,).

        Args:
            blocks: The blocks S.
            inner_inverse: M^-1.
            coefficients: R M^-1.
        """
        spread = self._spread[blocks.ravel()]
        weight = (self._weight_t[blocks.ravel()] + product(spread, coefficients.T)).reshape(*blocks.shape, -1)
        correction = product(spread, inner_inverse).reshape(*blocks.shape, -1)
        inverse = -correction @ spread.reshape(correction.shape).transpose(0, 2, 1)
        np.einsum("bii->bi", inverse)[...] += 1 / self._diagonal[blocks]
        if blocks.shape[1] == 1:
            return np.asarray(0.5 * np.einsum("bsr,bsr->b", weight, weight) / inverse[:, 0, 0], dtype=np.float64)
        return np.asarray(
            0.5 * np.einsum("bst,bst->b", np.linalg.inv(inverse), weight @ weight.transpose(0, 2, 1)), dtype=np.float64
        )
