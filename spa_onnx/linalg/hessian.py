"""H = X X' / n + lambda I over the columns X of a product's inputs, in two forms that give the same answers.

As a matrix (inputs, inputs); or, where columns are few beside the inputs, as D + U U' with a diagonal D and narrow U, of which no matrix of
all inputs is ever made: what is solved then are systems of as many unknowns as U has columns (Woodbury).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.linalg.blas import Matrix, product, solved
from spa_onnx.linalg.obs import TINY, Surgeon, damped, refit

Blocks: TypeAlias = NDArray[np.int64]
"""Input numbers of each block, (blocks, size)."""

AT_ONCE = 2**22
"""Numbers of weights that are refitted at a time to see what blocks cost."""


class Operation(Protocol):
    """One product while blocks of its inputs are removed. energy: half the mean square of its output, summed over its rows."""

    energy: float

    def saliency(self) -> NDArray[np.float64]:
        """Loss added by removing each block next, float64 (blocks,); zero for blocks already gone."""

    def remove(self, *numbers: int) -> None:
        """Remove blocks, and refit the others."""


class Hessian(Protocol):
    """What the inputs of one product have in common."""

    def surgeon(self, weight: Matrix, blocks: Blocks, members: NDArray[np.int64], count: int) -> Operation:
        """weight: (rows, inputs). blocks: what each channel owns. members: the channel of each, ascending, of `count` channels."""

    def refit(self, weight: Matrix, kept: NDArray[np.int64]) -> Matrix:
        """The best weights that use the kept inputs only, (rows, kept), as `obs.refit` defines them."""


@dataclass(frozen=True, slots=True)
class Full:
    """H as a matrix. matrix: without lambda, (inputs, inputs). damping: lambda as a share of its mean diagonal."""

    matrix: Matrix
    damping: float

    def surgeon(self, weight: Matrix, blocks: Blocks, members: NDArray[np.int64], count: int) -> Operation:
        """See `Hessian`."""
        return Surgeon(weight, self.matrix, blocks, members, count, self.damping)

    def refit(self, weight: Matrix, kept: NDArray[np.int64]) -> Matrix:
        """See `Hessian`."""
        return refit(weight, damped(self.matrix, self.damping), kept)


@dataclass(frozen=True, slots=True)
class Factored:
    """H as D + U U'. diagonal: D without lambda, (inputs,). factor: U, (inputs, k). damping: lambda as a share of H's mean diagonal."""

    diagonal: NDArray[np.float64]
    factor: Matrix
    damping: float

    def surgeon(self, weight: Matrix, blocks: Blocks, members: NDArray[np.int64], count: int) -> Operation:
        """See `Hessian`."""
        return NarrowSurgeon(weight, self, blocks, members, count)

    def refit(self, weight: Matrix, kept: NDArray[np.int64]) -> Matrix:
        """See `Hessian`: W' = W_kept + W_gone U_gone M^-1 U_kept' D^-1 with M = I + U_kept' D^-1 U_kept."""
        gone = np.setdiff1d(np.arange(len(self.factor)), kept)
        spread = self.spread()[kept]
        taken_up = solved(inner(self.factor[kept], spread), product(weight[:, gone], self.factor[gone]).T).T
        return weight[:, kept] + product(taken_up, spread.T)

    def damped(self) -> NDArray[np.float64]:
        """D with lambda, (inputs,): as `obs.damped`."""
        strength = self.damping * float(self.diagonal.sum() + np.square(self.factor).sum()) / len(self.factor)
        return self.diagonal + (strength if strength > TINY else 1.0)

    def spread(self) -> Matrix:
        """D^-1 U, (inputs, k)."""
        return self.factor / self.damped()[:, None]


def inner(factor: Matrix, spread: Matrix) -> Matrix:
    """I + U' D^-1 U, (k, k)."""
    return np.eye(factor.shape[1]) + product(factor.T, spread)


class NarrowSurgeon:
    """`obs.Surgeon` for H = D + U U': the same answers from systems of as many unknowns as U has columns.

    Of the inputs K that are left, with M = I + U_K' D_K^-1 U_K and R the sum of W_S U_S over the blocks S that are gone:
    H_K^-1 = D_K^-1 - D_K^-1 U_K M^-1 U_K' D_K^-1, and the refitted weights are W_K + R M^-1 U_K' D_K^-1.
    """

    def __init__(
        self, weight: Matrix, hessian: Factored, blocks: Blocks, members: NDArray[np.int64], count: int
    ) -> None:
        self._turned, self._factor = (
            np.ascontiguousarray(weight.T),
            hessian.factor,
        )  # so that what a block reads lies together
        self._diagonal, self._spread = hessian.damped(), hessian.spread()
        self._blocks, self._left, self._count = blocks, members, count
        self._handed_on = np.zeros((len(weight), hessian.factor.shape[1]))
        squares = np.square(weight).sum(axis=0) @ hessian.diagonal + np.square(product(weight, hessian.factor)).sum()
        self.energy = 0.5 * float(squares)

    def saliency(self) -> NDArray[np.float64]:
        """See `Operation`."""
        losses = np.zeros(self._count)
        kept = self._blocks.ravel()
        middle = solved(inner(self._factor[kept], self._spread[kept]), np.eye(self._factor.shape[1]))
        back = product(self._handed_on, middle)
        step = max(1, AT_ONCE // (self._turned.shape[1] * self._blocks.shape[1]))
        for first in range(0, len(self._blocks), step):
            some = slice(first, first + step)
            losses[self._left[some]] = self._losses(self._blocks[some], middle, back)
        return losses

    def remove(self, *numbers: int) -> None:
        """See `Operation`."""
        going = np.isin(self._left, numbers)
        gone = self._blocks[going].ravel()
        self._handed_on += product(self._turned[gone].T, self._factor[gone])
        self._left, self._blocks = self._left[~going], self._blocks[~going]

    def _losses(self, blocks: Blocks, middle: Matrix, back: Matrix) -> NDArray[np.float64]:
        """1/2 sum over rows of w_S ([H^-1]_SS)^-1 w_S' for each block S, float64 (blocks,). middle: M^-1. back: R M^-1."""
        spread = self._spread[blocks.ravel()]
        weight = (self._turned[blocks.ravel()] + product(spread, back.T)).reshape(*blocks.shape, -1)
        known = product(spread, middle).reshape(*blocks.shape, -1)
        inverse = -known @ spread.reshape(known.shape).transpose(0, 2, 1)
        np.einsum("bii->bi", inverse)[...] += 1 / self._diagonal[blocks]
        if blocks.shape[1] == 1:
            return np.asarray(0.5 * np.einsum("bsr,bsr->b", weight, weight) / inverse[:, 0, 0], dtype=np.float64)
        return np.asarray(
            0.5 * np.einsum("bst,bst->b", np.linalg.inv(inverse), weight @ weight.transpose(0, 2, 1)), dtype=np.float64
        )
