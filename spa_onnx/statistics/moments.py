"""What is known of the inputs of one product: sums over its columns that can be added up, or the columns themselves where they are few."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from tempfile import TemporaryFile, gettempdir

import numpy as np
from numpy.typing import NDArray

from spa_onnx.errors import RefusedError
from spa_onnx.linalg.blas import Matrix, add_square, gram, product
from spa_onnx.linalg.hessian import Factored, Full, Hessian
from spa_onnx.linalg.obs import SUPPORT

ROUNDING = 1e-12
"""A variance below this share of the mean square is what rounding leaves of zero."""

FEW = 4
"""Columns are few where there are at least so many times as many inputs."""


def are_few(columns: int, inputs: int) -> bool:
    """Whether so many columns take less room, and less time, than a matrix of all inputs."""
    return FEW * columns <= inputs


def centre(second: Matrix, mean: Matrix) -> NDArray[np.bool_]:
    """Take the means out of second moments, in place: X X' / n becomes the covariance, exactly zero for inputs that are constant.

    second: float64 (blocks, inputs, inputs). mean: (blocks, inputs). Returns which inputs are constant, (blocks, inputs).
    """
    energy = np.einsum("bii->bi", second).copy()
    for matrix, vector in zip(second, mean, strict=True):
        add_square(matrix, vector, -1.0)
    constant = np.einsum("bii->bi", second) <= ROUNDING * energy
    for block, inputs in zip(second, constant, strict=True):
        block[inputs] = 0.0
        block[:, inputs] = 0.0
    return np.asarray(constant)


def on_disk(array: Matrix) -> Matrix:
    """The array in a temporary file, from which it is read page by page. Raises RefusedError where there is no room for it."""
    try:
        with TemporaryFile() as file:
            array.tofile(file)
            return np.asarray(np.memmap(file, array.dtype, "r", shape=array.shape))
    except OSError as error:
        raise RefusedError(
            f"a matrix of {array.nbytes / 1e9:.2f} GB does not fit into the folder for temporary files, {gettempdir()} ({error}); allow "
            "more --memory, or name a larger folder in the environment variable TMPDIR"
        ) from error


class Moments(ABC):
    """What columns X (inputs, n) of one layer's input show, for each of its products side by side."""

    __slots__ = ()

    @property
    @abstractmethod
    def total(self) -> Matrix:
        """Sum of the columns, float64 (blocks, inputs)."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many columns there were."""

    def __add__(self, other: Moments) -> Moments:
        """What the columns of both show."""
        if (
            isinstance(self, Columns)
            and isinstance(other, Columns)
            and are_few(self.count + other.count, self.x.shape[1])
        ):
            return Columns(np.concatenate([self.x, other.x], axis=2))
        first, second = self.sums(), other.sums()
        return Sums(first.gram + second.gram, first.total + second.total, first.count + second.count)

    @property
    def mean(self) -> Matrix:
        """Mean of every input, (blocks, inputs)."""
        return self.total / max(self.count, 1)

    @abstractmethod
    def sums(self) -> Sums:
        """The same with all sums at hand."""

    @abstractmethod
    def stored(self) -> Moments:
        """The same with matrices in temporary files, which go when nothing refers to them. Raises RefusedError where these do not fit."""

    @abstractmethod
    def mean_square(self) -> Matrix:
        """Mean of the squares of every input, float64 (blocks, inputs)."""

    @abstractmethod
    def rows(self, block: int, inputs: NDArray[np.int64]) -> Matrix:
        """Rows of X X' / n of one product, float64 (as many as are asked for, inputs)."""

    @abstractmethod
    def energy(self, weight: Matrix) -> NDArray[np.float64]:
        """Mean square of each product's output W X, summed over its rows, float64 (blocks,). weight: (blocks, rows, inputs)."""

    @abstractmethod
    def hessians(self, mean: float, damping: float) -> list[Hessian]:
        """What inputs have in common, as far as so many columns tell, for each product: covariance + mean m m' + lambda I.

        mean: 1 where the means m count like all else (the matrix is that about zero), 0 where a bias takes them up. damping: lambda as a
        share of the mean diagonal. With fewer than SUPPORT columns per input, covariances are drawn towards zero by inputs / (inputs +
        columns): few columns make inputs look as if they could replace each other (Ledoit & Wolf, A well-conditioned estimator for
        large-dimensional covariance matrices, 2004, with a fixed share). Variances and means stay.
        """


@dataclass(frozen=True, slots=True)
class Sums(Moments):
    """gram: sum of x x', float64 (blocks, inputs, inputs)."""

    gram: Matrix
    total: Matrix
    count: int

    @classmethod
    def of(cls, x: Matrix) -> Sums:
        """The sums of these columns, float64 (blocks, inputs, n)."""
        return cls(np.stack([gram(columns) for columns in x]), x.sum(axis=2), x.shape[2])

    def sums(self) -> Sums:
        """See `Moments`."""
        return self

    def stored(self) -> Sums:
        """See `Moments`."""
        return Sums(on_disk(self.gram), self.total, self.count)

    def mean_square(self) -> Matrix:
        """See `Moments`."""
        return np.asarray(np.einsum("bii->bi", self.gram) / max(self.count, 1), dtype=np.float64)

    def rows(self, block: int, inputs: NDArray[np.int64]) -> Matrix:
        """See `Moments`."""
        return np.asarray(self.gram[block][inputs] / max(self.count, 1))

    def energy(self, weight: Matrix) -> NDArray[np.float64]:
        """See `Moments`."""
        sums = [float(np.sum(product(rows, inner) * rows)) for rows, inner in zip(weight, self.gram, strict=True)]
        return np.asarray(sums) / max(self.count, 1)

    def covariance(self) -> Matrix:
        """Gram matrix of the centred columns over their number, (blocks, inputs, inputs); exactly zero for constant inputs."""
        result = self.gram / max(self.count, 1)
        centre(result, self.mean)
        return result

    def hessian(self, *, mean: float) -> Matrix:
        """The matrices of `hessians` without lambda, (blocks, inputs, inputs)."""
        inputs = self.gram.shape[1]
        enough = self.count >= SUPPORT * inputs
        if enough and mean == 1:
            return self.gram / self.count
        result = self.covariance()
        if not enough:
            variances = np.einsum("bii->bi", result).copy()
            result *= self.count / (self.count + inputs)
            for block, variance in zip(result, variances, strict=True):
                np.fill_diagonal(block, variance)
        for matrix, vector in zip(result, self.mean, strict=True):
            add_square(matrix, vector, mean)
        return result

    def hessians(self, mean: float, damping: float) -> list[Hessian]:
        """See `Moments`."""
        return [Full(matrix, damping) for matrix in self.hessian(mean=mean)]


@dataclass(frozen=True, slots=True)
class Columns(Moments):
    """x: the columns X, float64 (blocks, inputs, n)."""

    x: Matrix

    @property
    def total(self) -> Matrix:
        """See `Moments`."""
        return np.asarray(self.x.sum(axis=2))

    @property
    def count(self) -> int:
        """See `Moments`."""
        return int(self.x.shape[2])

    def sums(self) -> Sums:
        """See `Moments`."""
        return Sums.of(self.x)

    def stored(self) -> Columns:
        """See `Moments`: they are small beside a matrix."""
        return self

    def mean_square(self) -> Matrix:
        """See `Moments`."""
        return np.asarray(np.einsum("bin,bin->bi", self.x, self.x) / max(self.count, 1), dtype=np.float64)

    def rows(self, block: int, inputs: NDArray[np.int64]) -> Matrix:
        """See `Moments`."""
        return product(self.x[block][inputs], self.x[block].T) / max(self.count, 1)

    def energy(self, weight: Matrix) -> NDArray[np.float64]:
        """See `Moments`."""
        sums = [float(np.square(product(rows, columns)).sum()) for rows, columns in zip(weight, self.x, strict=True)]
        return np.asarray(sums) / max(self.count, 1)

    def hessians(self, mean: float, damping: float) -> list[Hessian]:
        """See `Moments`: all but the diagonal of a covariance that is drawn towards zero is an outer product of columns."""
        count, middle = max(self.count, 1), self.mean
        centred = self.x - middle[:, :, None]
        variance = np.einsum("bin,bin->bi", centred, centred) / count
        constant = variance <= ROUNDING * self.mean_square()
        centred[constant], variance[constant] = 0.0, 0.0
        share = self.count / (self.count + self.x.shape[1])
        centred *= np.sqrt(share / count)
        factors = np.concatenate([centred, np.sqrt(mean) * middle[:, :, None]], axis=2) if mean else centred
        return [Factored((1 - share) * rest, factor, damping) for rest, factor in zip(variance, factors, strict=True)]
