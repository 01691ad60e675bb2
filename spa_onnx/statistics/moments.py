"""First and second moments of the inputs of one linear layer.

Two classes hold them: `MomentSums` holds sums over columns, `MomentColumns` the columns themselves, which take less
memory than a matrix over all inputs when there are few of them.
"""

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

ZERO_VARIANCE_SHARE = 1e-12
"""A variance up to this share of the mean square counts as zero: the rest is rounding error."""

MIN_INPUTS_PER_COLUMN = 4
"""Columns are few if there are at least this many inputs per column."""


def are_few(columns: int, inputs: int) -> bool:
    """Return whether this many columns take less memory and time than a matrix over all inputs."""
    return MIN_INPUTS_PER_COLUMN * columns <= inputs


def centre(second: Matrix, mean: Matrix) -> NDArray[np.bool_]:
    """Turn second moments into covariances, in place, by subtracting the products of the means.

    Rows and columns of constant inputs become exactly zero.

    Args:
        second: Second moments X X' / n, float64 (blocks, inputs, inputs).
        mean: Means, float64 (blocks, inputs).

    Returns:
        Whether each input is constant, bool (blocks, inputs).
    """
    energy = np.einsum("bii->bi", second).copy()
    for matrix, vector in zip(second, mean, strict=True):
        add_square(matrix, vector, -1.0)
    constant = np.einsum("bii->bi", second) <= ZERO_VARIANCE_SHARE * energy
    for block, inputs in zip(second, constant, strict=True):
        block[inputs] = 0.0
        block[:, inputs] = 0.0
    return np.asarray(constant)


def on_disk(array: Matrix) -> Matrix:
    """Return a memory-mapped copy of the array in a temporary file.

    Raises:
        RefusedError: The folder for temporary files is full.
    """
    try:
        with TemporaryFile() as file:
            array.tofile(file)
            return np.asarray(np.memmap(file, array.dtype, "r", shape=array.shape))
    except OSError as error:
        raise RefusedError(
            f"a matrix of {array.nbytes / 1e9:.2f} GB does not fit into the folder for temporary files, "
            f"{gettempdir()} ({error}); allow more --memory, or name a larger folder in the environment variable TMPDIR"
        ) from error


class Moments(ABC):
    """Moments of the columns X (inputs, n) of one layer's input, for each of the layer's blocks."""

    __slots__ = ()

    @property
    @abstractmethod
    def total(self) -> Matrix:
        """Return the sum of the columns, float64 (blocks, inputs)."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Return the number of columns, n."""

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of the columns of both."""
        if (
            isinstance(self, MomentColumns)
            and isinstance(other, MomentColumns)
            and are_few(self.count + other.count, self.x.shape[1])
        ):
            return MomentColumns(np.concatenate([self.x, other.x], axis=2))
        first, second = self.sums(), other.sums()
        return MomentSums(first.gram + second.gram, first.total + second.total, first.count + second.count)

    @property
    def mean(self) -> Matrix:
        """Return the mean of every input, float64 (blocks, inputs)."""
        return self.total / max(self.count, 1)

    @abstractmethod
    def sums(self) -> MomentSums:
        """Return the same moments as sums over columns."""

    @abstractmethod
    def offloaded(self) -> Moments:
        """Return the same moments with matrices in temporary files.

        The files are deleted with the last reference to them.

        Raises:
            RefusedError: The folder for temporary files is full.
        """

    @abstractmethod
    def mean_square(self) -> Matrix:
        """Return the mean of the squares of every input, float64 (blocks, inputs)."""

    @abstractmethod
    def rows(self, block: int, inputs: NDArray[np.int64]) -> Matrix:
        """Return some rows of X X' / n of one block.

        Args:
            block: Number of the block.
            inputs: Input numbers of the rows, (rows,).

        Returns:
            float64 (rows, inputs).
        """

    @abstractmethod
    def energy(self, weight: Matrix) -> NDArray[np.float64]:
        """Return the mean square of each block's output W X, summed over its rows.

        Args:
            weight: W, float64 (blocks, rows, inputs).

        Returns:
            float64 (blocks,).
        """

    @abstractmethod
    def hessians(self, mean: float, damping: float) -> list[Hessian]:
        """Return a regularised second-moment matrix for each block.

        It is the covariance + mean * m m' + lambda I, where m are the means of the inputs. With fewer than SUPPORT
        columns per input, covariances are shrunk towards zero by inputs / (inputs + columns), because few columns
        make inputs look as if they could replace each other (Ledoit & Wolf, A well-conditioned estimator for
        large-dimensional covariance matrices, 2004, with a fixed share). Variances and means are not shrunk.

        Args:
            mean: Weight of the means. 1 gives second moments about zero; 0 is for layers whose bias absorbs the means.
            damping: The ridge penalty lambda as a share of the mean diagonal.
        """


@dataclass(frozen=True, slots=True)
class MomentSums(Moments):
    """Moments as sums over columns.

    Args:
        gram: Sum of x x', float64 (blocks, inputs, inputs).
        total: Sum of x, float64 (blocks, inputs).
        count: Number of columns.
    """

    gram: Matrix
    total: Matrix
    count: int

    @classmethod
    def of(cls, x: Matrix) -> MomentSums:
        """Return the sums of columns x, float64 (blocks, inputs, n)."""
        return cls(np.stack([gram(columns) for columns in x]), x.sum(axis=2), x.shape[2])

    def sums(self) -> MomentSums:
        """See `Moments`."""
        return self

    def offloaded(self) -> MomentSums:
        """See `Moments`."""
        return MomentSums(on_disk(self.gram), self.total, self.count)

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
        """Return the covariance of the inputs, float64 (blocks, inputs, inputs); exactly zero for constant inputs."""
        result = self.gram / max(self.count, 1)
        centre(result, self.mean)
        return result

    def hessian(self, *, mean: float) -> Matrix:
        """Return the matrices of `hessians` without lambda, float64 (blocks, inputs, inputs)."""
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
class MomentColumns(Moments):
    """Moments as the columns themselves.

    Args:
        x: The columns X, float64 (blocks, inputs, n).
    """

    x: Matrix

    @property
    def total(self) -> Matrix:
        """See `Moments`."""
        return np.asarray(self.x.sum(axis=2))

    @property
    def count(self) -> int:
        """See `Moments`."""
        return int(self.x.shape[2])

    def sums(self) -> MomentSums:
        """See `Moments`."""
        return MomentSums.of(self.x)

    def offloaded(self) -> MomentColumns:
        """See `Moments`. Columns stay in memory: they are smaller than the matrix."""
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
        """See `Moments`. The matrix is a diagonal plus an outer product of the columns."""
        count, means = max(self.count, 1), self.mean
        centred = self.x - means[:, :, None]
        variance = np.einsum("bin,bin->bi", centred, centred) / count
        constant = variance <= ZERO_VARIANCE_SHARE * self.mean_square()
        centred[constant], variance[constant] = 0.0, 0.0
        share = self.count / (self.count + self.x.shape[1])
        centred *= np.sqrt(share / count)
        factors = np.concatenate([centred, np.sqrt(mean) * means[:, :, None]], axis=2) if mean else centred
        return [
            Factored((1 - share) * diagonal, factor, damping)
            for diagonal, factor in zip(variance, factors, strict=True)
        ]
