"""What a product gets after repair, and what it is to make of that: sums over columns, or the columns themselves where they are few."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spa_onnx.linalg.blas import Matrix, gram, product
from spa_onnx.linalg.obs import missed, ridge_fit, ridge_fit_by_columns
from spa_onnx.statistics.moments import are_few, centre

Indices = NDArray[np.int64]


class Fit(Protocol):
    """What one product's new weights have to fit."""

    def fitted(self, start: Matrix, damping: float) -> Matrix:
        """The best weights near those at the start, (rows, kept) both. damping: as in `obs.ridge_fit`."""

    def error(self, weight: Matrix) -> float:
        """What weights (rows, kept) miss by, but for what all weights miss: `obs.missed`."""


class RegressionData(ABC):
    """Columns Z (inputs, n) of the repaired model's input and the outputs Y (rows, n) that are wanted there, per block. count: n.

    wanted, repaired: sums of y and z, float64 (blocks, rows) and (blocks, inputs).
    """

    __slots__ = ()

    @property
    @abstractmethod
    def wanted(self) -> Matrix:
        """Sum of y, float64 (blocks, rows)."""

    @property
    @abstractmethod
    def repaired(self) -> Matrix:
        """Sum of z, float64 (blocks, inputs)."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many columns there were."""

    @abstractmethod
    def sums(self) -> RegressionSums:
        """The same with all sums at hand."""

    @abstractmethod
    def fits(self, kept: Sequence[Indices], *, centred: bool) -> list[Fit]:
        """What each block has to fit. kept: its inputs that stay. centred: about the means, where a bias takes those up."""

    def __add__(self, other: RegressionData) -> RegressionData:
        """What all columns show."""
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
            a.target + b.target, a.gram + b.gram, a.wanted + b.wanted, a.repaired + b.repaired, a.count + b.count
        )

    def lost(self, weight: Matrix) -> Matrix:
        """Sum of y - W' z, float64 (blocks, rows). weight: W', (blocks, rows, inputs)."""
        return np.asarray(self.wanted - np.einsum("bri,bi->br", weight, self.repaired))


def regression_data(weight: Matrix, x: Matrix, z: Matrix, lost: Matrix | None = None) -> RegressionData:
    """What is known where what the dense model computes is wanted, and what its output is added to has lost.

    weight: W of the dense model, float64 (blocks, rows, inputs). x, z: columns of both models, (blocks, inputs, n). lost: (blocks, rows,
    n).
    """
    few = are_few(z.shape[2], z.shape[1])
    if not few and lost is None and 2 * weight.shape[1] >= weight.shape[2]:  # multiplies less than W X does
        target = np.stack([product(w, product(a, b.T)) for w, a, b in zip(weight, x, z, strict=True)])
        wanted = np.einsum("bri,bi->br", weight, x.sum(axis=2))
        return RegressionSums(target, np.stack([gram(b) for b in z]), wanted, z.sum(axis=2), z.shape[2])
    y = np.stack([product(w, a) for w, a in zip(weight, x, strict=True)])
    columns = RegressionColumns(y if lost is None else y + lost, z)
    return columns if few else columns.sums()


class RegressionCollector:
    """What is known of a product whose columns come in pieces: as many as it has inputs are added up at a time.

    weight: as for `regression_data`.
    """

    def __init__(self, weight: Matrix) -> None:
        self._weight = weight
        self._pieces: list[tuple[Matrix, ...]] = []
        self._pairs: RegressionData | None = None

    def add(self, *piece: Matrix) -> None:
        """Take x, z and, if the product has a partner, what that has lost: columns as for `regression_data`."""
        if piece[0].shape[2]:
            self._pieces.append(piece)
            if sum(x.shape[2] for x, *_ in self._pieces) >= self._weight.shape[2]:
                self._add_up()

    def pairs(self) -> RegressionData | None:
        """What all pieces show; None where there were no columns."""
        self._add_up()
        return self._pairs

    def _add_up(self) -> None:
        if self._pieces:
            parts = zip(*self._pieces, strict=True)
            some = regression_data(
                self._weight, *(part[0] if len(part) == 1 else np.concatenate(part, axis=2) for part in parts)
            )
            self._pairs = some if self._pairs is None else self._pairs + some
            self._pieces.clear()


@dataclass(frozen=True, slots=True)
class RegressionSums(RegressionData):
    """target: sum of y z', float64 (blocks, rows, inputs). gram: sum of z z', (blocks, inputs, inputs)."""

    target: Matrix
    gram: Matrix
    wanted: Matrix
    repaired: Matrix
    count: int

    def sums(self) -> RegressionSums:
        """See `RegressionData`."""
        return self

    def fits(self, kept: Sequence[Indices], *, centred: bool) -> list[Fit]:
        """See `RegressionData`."""
        target, inner = self.centred() if centred else (self.target / self.count, self.gram / self.count)
        return [_GramFit(t[:, left], g[np.ix_(left, left)]) for t, g, left in zip(target, inner, kept, strict=True)]

    def centred(self) -> tuple[Matrix, Matrix]:
        """(target, gram) of the columns without their means, over their number."""
        y, z = self.wanted / self.count, self.repaired / self.count
        target, inner = self.target / self.count - y[:, :, None] * z[:, None, :], self.gram / self.count
        constant = centre(inner, z)
        return np.where(constant[:, None], 0.0, target), inner


@dataclass(frozen=True, slots=True)
class _GramFit:
    """target: Y Z' / n, (rows, kept). gram: Z Z' / n, (kept, kept)."""

    target: Matrix
    gram: Matrix

    def fitted(self, start: Matrix, damping: float) -> Matrix:
        """See `Fit`."""
        return ridge_fit(self.target, self.gram, start, damping)

    def error(self, weight: Matrix) -> float:
        """See `Fit`."""
        return missed(weight, self.target, self.gram)


@dataclass(frozen=True, slots=True)
class RegressionColumns(RegressionData):
    """y: the outputs Y, float64 (blocks, rows, n). z: the columns Z, (blocks, inputs, n)."""

    y: Matrix
    z: Matrix

    @property
    def wanted(self) -> Matrix:
        """See `RegressionData`."""
        return np.asarray(self.y.sum(axis=2))

    @property
    def repaired(self) -> Matrix:
        """See `RegressionData`."""
        return np.asarray(self.z.sum(axis=2))

    @property
    def count(self) -> int:
        """See `RegressionData`."""
        return int(self.z.shape[2])

    def sums(self) -> RegressionSums:
        """See `RegressionData`."""
        target = np.stack([product(y, z.T) for y, z in zip(self.y, self.z, strict=True)])
        return RegressionSums(target, np.stack([gram(z) for z in self.z]), self.wanted, self.repaired, self.count)

    def fits(self, kept: Sequence[Indices], *, centred: bool) -> list[Fit]:
        """See `RegressionData`."""
        y, z = self.y, self.z
        if centred:
            y, z = y - y.mean(axis=2, keepdims=True), z - z.mean(axis=2, keepdims=True)
        return [_ColumnFit(outputs, columns[left]) for outputs, columns, left in zip(y, z, kept, strict=True)]


@dataclass(frozen=True, slots=True)
class _ColumnFit:
    """y: Y, (rows, n). z: Z, (kept, n)."""

    y: Matrix
    z: Matrix

    def fitted(self, start: Matrix, damping: float) -> Matrix:
        """See `Fit`."""
        return ridge_fit_by_columns(self.y, self.z, start, damping)

    def error(self, weight: Matrix) -> float:
        """See `Fit`."""
        return float((np.square(self.y - product(weight, self.z)).sum() - np.square(self.y).sum()) / self.z.shape[1])
