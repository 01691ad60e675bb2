"""Regression data of one layer: sums over columns, or the columns themselves if there are few of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from spa_onnx.linalg.blas import Matrix, gram, product
from spa_onnx.linalg.obs import ridge_fit, ridge_fit_by_columns, squared_error
from spa_onnx.model.facts import Indices
from spa_onnx.statistics.moments import are_few, centre


class Fit(Protocol):
    """The regression problem of one block."""

    def fitted(self, start: Matrix, damping: float) -> Matrix:
        """Return the ridge fit.

        Args:
            start: Weights that the ridge penalty pulls towards, (rows, kept).
            damping: See `spa_onnx.linalg.obs.ridge_fit`.

        Returns:
            The new weights, (rows, kept).
        """

    def error(self, weight: Matrix) -> float:
        """Return the mean squared error of weights (rows, kept), less a constant.

        See `spa_onnx.linalg.obs.squared_error`.
        """


class RegressionData(ABC):
    """The targets Y (rows, n) and the repaired model's inputs Z (inputs, n) of one layer, for each of its blocks."""

    __slots__ = ()

    @property
    @abstractmethod
    def target_total(self) -> Matrix:
        """Return the sum of y, float64 (blocks, rows)."""

    @property
    @abstractmethod
    def input_total(self) -> Matrix:
        """Return the sum of z, float64 (blocks, inputs)."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Return the number of columns, n."""

    @abstractmethod
    def sums(self) -> RegressionSums:
        """Return the same data as sums over columns."""

    @abstractmethod
    def fits(self, kept: Sequence[Indices], *, centred: bool) -> list[Fit]:
        """Return the regression problem of each block.

        Args:
            kept: The input numbers that are kept, for each block.
            centred: Whether to subtract the means, for layers whose bias absorbs them.
        """

    def __add__(self, other: RegressionData) -> RegressionData:
        """Return the data of the columns of both."""
        if (
            isinstance(self, RegressionColumns)
            and isinstance(other, RegressionColumns)
            and are_few(self.count + other.count, self.z.shape[1])
        ):
            return RegressionColumns(
                np.concatenate([self.y, other.y], axis=2), np.concatenate([self.z, other.z], axis=2)
            )
        a, b = self.sums(), other.sums()
        return RegressionSums(
            a.cross + b.cross,
            a.gram + b.gram,
            a.target_total + b.target_total,
            a.input_total + b.input_total,
            a.count + b.count,
        )

    def residual(self, weight: Matrix) -> Matrix:
        """Return the sum of y - W' z, float64 (blocks, rows).

        Args:
            weight: W', float64 (blocks, rows, inputs).
        """
        return np.asarray(self.target_total - np.einsum("bri,bi->br", weight, self.input_total))


def regression_data(weight: Matrix, x: Matrix, z: Matrix, lost: Matrix | None = None) -> RegressionData:
    """Return the regression data of a layer whose targets are the dense model's outputs W X.

    What the residual input has lost is added to the targets.

    Args:
        weight: W of the dense model, float64 (blocks, rows, inputs).
        x: Columns of the dense model's input, float64 (blocks, inputs, n).
        z: Columns of the repaired model's input, float64 (blocks, inputs, n).
        lost: Change of the tensor that the output is added to: dense minus repaired, float64 (blocks, rows, n).
    """
    few = are_few(z.shape[2], z.shape[1])
    if not few and lost is None and 2 * weight.shape[1] >= weight.shape[2]:  # W (X Z') is cheaper than (W X) Z'
        cross = np.stack([product(w, product(a, b.T)) for w, a, b in zip(weight, x, z, strict=True)])
        target_total = np.einsum("bri,bi->br", weight, x.sum(axis=2))
        return RegressionSums(cross, np.stack([gram(b) for b in z]), target_total, z.sum(axis=2), z.shape[2])
    y = np.stack([product(w, a) for w, a in zip(weight, x, strict=True)])
    columns = RegressionColumns(y if lost is None else y + lost, z)
    return columns if few else columns.sums()


class RegressionCollector:
    """Collects the regression data of a layer piece by piece.

    Pieces are summed up whenever they hold as many columns as the layer has inputs.

    Args:
        weight: W of the dense model, float64 (blocks, rows, inputs).
    """

    def __init__(self, weight: Matrix) -> None:
        self._weight = weight
        self._pieces: list[tuple[Matrix, ...]] = []
        self._data: RegressionData | None = None

    def add(self, *piece: Matrix) -> None:
        """Add columns.

        Args:
            piece: x, z and, if the layer has a residual input, lost; see `regression_data`.
        """
        if piece[0].shape[2]:
            self._pieces.append(piece)
            if sum(x.shape[2] for x, *_ in self._pieces) >= self._weight.shape[2]:
                self._add_up()

    def data(self) -> RegressionData | None:
        """Return the data of all pieces, None if there were no columns."""
        self._add_up()
        return self._data

    def _add_up(self) -> None:
        if self._pieces:
            arguments = zip(*self._pieces, strict=True)
            data = regression_data(
                self._weight,
                *(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2) for parts in arguments),
            )
            self._data = data if self._data is None else self._data + data
            self._pieces.clear()


@dataclass(frozen=True, slots=True)
class RegressionSums(RegressionData):
    """Regression data as sums over columns.

    Args:
        cross: Sum of y z', float64 (blocks, rows, inputs).
        gram: Sum of z z', float64 (blocks, inputs, inputs).
        target_total: Sum of y, float64 (blocks, rows).
        input_total: Sum of z, float64 (blocks, inputs).
        count: Number of columns.
    """

    cross: Matrix
    gram: Matrix
    target_total: Matrix
    input_total: Matrix
    count: int

    def sums(self) -> RegressionSums:
        """See `RegressionData`."""
        return self

    def fits(self, kept: Sequence[Indices], *, centred: bool) -> list[Fit]:
        """See `RegressionData`."""
        cross, inner = self.centred() if centred else (self.cross / self.count, self.gram / self.count)
        return [_GramFit(c[:, k], g[np.ix_(k, k)]) for c, g, k in zip(cross, inner, kept, strict=True)]

    def centred(self) -> tuple[Matrix, Matrix]:
        """Return (cross, gram) of the centred columns, divided by their number."""
        y, z = self.target_total / self.count, self.input_total / self.count
        cross, inner = self.cross / self.count - y[:, :, None] * z[:, None, :], self.gram / self.count
        constant = centre(inner, z)
        return np.where(constant[:, None], 0.0, cross), inner


@dataclass(frozen=True, slots=True)
class _GramFit:
    """A regression problem as sums. cross: Y Z' / n, (rows, kept). gram: Z Z' / n, (kept, kept)."""

    cross: Matrix
    gram: Matrix

    def fitted(self, start: Matrix, damping: float) -> Matrix:
        """See `Fit`."""
        return ridge_fit(self.cross, self.gram, start, damping)

    def error(self, weight: Matrix) -> float:
        """See `Fit`."""
        return squared_error(weight, self.cross, self.gram)


@dataclass(frozen=True, slots=True)
class RegressionColumns(RegressionData):
    """Regression data as the columns themselves.

    Args:
        y: The targets Y, float64 (blocks, rows, n).
        z: The inputs Z, float64 (blocks, inputs, n).
    """

    y: Matrix
    z: Matrix

    @property
    def target_total(self) -> Matrix:
        """See `RegressionData`."""
        return np.asarray(self.y.sum(axis=2))

    @property
    def input_total(self) -> Matrix:
        """See `RegressionData`."""
        return np.asarray(self.z.sum(axis=2))

    @property
    def count(self) -> int:
        """See `RegressionData`."""
        return int(self.z.shape[2])

    def sums(self) -> RegressionSums:
        """See `RegressionData`."""
        cross = np.stack([product(y, z.T) for y, z in zip(self.y, self.z, strict=True)])
        return RegressionSums(
            cross, np.stack([gram(z) for z in self.z]), self.target_total, self.input_total, self.count
        )

    def fits(self, kept: Sequence[Indices], *, centred: bool) -> list[Fit]:
        """See `RegressionData`."""
        y, z = self.y, self.z
        if centred:
            y, z = y - y.mean(axis=2, keepdims=True), z - z.mean(axis=2, keepdims=True)
        return [_ColumnFit(targets, inputs[k]) for targets, inputs, k in zip(y, z, kept, strict=True)]


@dataclass(frozen=True, slots=True)
class _ColumnFit:
    """A regression problem as columns. y: Y, (rows, n). z: Z, (kept, n)."""

    y: Matrix
    z: Matrix

    def fitted(self, start: Matrix, damping: float) -> Matrix:
        """See `Fit`."""
        return ridge_fit_by_columns(self.y, self.z, start, damping)

    def error(self, weight: Matrix) -> float:
        """See `Fit`."""
        return float((np.square(self.y - product(weight, self.z)).sum() - np.square(self.y).sum()) / self.z.shape[1])
