"""Dense linear algebra in float64, all of it by scipy's BLAS and LAPACK.

numpy brings a BLAS of its own, and the threads of each wait actively for a while after a call: calls to both in turn take the processors
from one another. scipy is slow to import and not needed for criteria on weights, so each function imports it when it is called.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
"""One matrix, or one for each of the products side by side: (blocks, ...)."""


def product(left: Matrix, right: Matrix) -> Matrix:
    """The matrix product of (rows, inner) and (inner, columns)."""
    if not (left.size and right.size):  # BLAS refuses arrays without elements
        return np.zeros((len(left), right.shape[1]))
    from scipy.linalg import blas  # noqa: PLC0415 - slow to import

    (b, turn_b), (a, turn_a) = _turned(right), _turned(left)
    return np.asarray(blas.dgemm(1.0, b, a, trans_a=turn_b, trans_b=turn_a).T)


def _turned(matrix: Matrix) -> tuple[Matrix, bool]:
    """(array, whether BLAS is to transpose it), which together are the transposed matrix, in the order of elements that saves a copy."""
    return (matrix.T, False) if matrix.flags.c_contiguous else (matrix, True)


def add_gram(gram: Matrix, columns: Matrix) -> Matrix:
    """Add X X' to a Gram matrix, in place; only its upper triangle counts.

    gram: (inputs, inputs), as Fortran orders it. columns: X, (inputs, n).
    """
    if not columns.size:  # BLAS refuses arrays without elements
        return gram
    from scipy.linalg import blas  # noqa: PLC0415 - slow to import

    turned, turn = _turned(columns)
    return np.asarray(blas.dsyrk(1.0, turned, beta=1.0, c=gram, trans=not turn, overwrite_c=1))


def gram(columns: Matrix) -> Matrix:
    """X X', (inputs, inputs). columns: X, (inputs, n)."""
    half = add_gram(np.zeros((len(columns), len(columns)), order="F"), columns)
    half.flat[:: len(half) + 1] /= 2
    return np.asarray(half + half.T)


def add_square(matrix: Matrix, vector: Matrix, factor: float) -> None:
    """Add factor v v' to a symmetric matrix, in place: (inputs, inputs) and (inputs,)."""
    from scipy.linalg import blas  # noqa: PLC0415 - slow to import

    laid_out = matrix if matrix.flags.f_contiguous else matrix.T  # its transpose is the same matrix
    added = blas.dger(factor, vector, vector, a=laid_out, overwrite_a=1)
    if not np.may_share_memory(added, matrix):  # BLAS has added to a copy, since it cannot work on such a layout
        matrix[:] = added


def pivots(matrix: Matrix) -> NDArray[np.int64]:
    """The order in which a Cholesky factorisation takes the rows of a positive semidefinite matrix, int64 (rows,).

    Each is the one with the largest diagonal element that those before leave. matrix: (rows, rows).
    """
    from scipy.linalg import lapack  # noqa: PLC0415 - slow to import

    _, order, _, _ = lapack.dpstrf(matrix.T, lower=1)
    return np.asarray(order, dtype=np.int64) - 1


def inverted(hessian: Matrix, *, overwrite: bool = False) -> Matrix:
    """The lower triangle of H^-1, by the Cholesky factor of H; by elimination where rounding has made H indefinite.

    hessian: H, symmetric, (inputs, inputs). overwrite: whether it may be. Returns (inputs, inputs), as Fortran orders it; what stands above
    the diagonal counts for nothing.
    """
    from scipy.linalg import lapack  # noqa: PLC0415 - slow to import

    held = hessian if overwrite else np.array(hessian)
    diagonal = np.diag(held).copy()
    factor, failed = lapack.dpotrf(
        held.T, lower=1, clean=0, overwrite_a=1
    )  # symmetric, and already as LAPACK lays matrices out
    if failed:
        half = np.tril(held, -1)  # LAPACK has left this triangle as it was
        return np.asfortranarray(np.linalg.inv(half + half.T + np.diag(diagonal)))
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    return np.asarray(inverse, dtype=np.float64)


def eliminate(inverse: Matrix, weight: Matrix, gone: NDArray[np.int64]) -> None:
    """Take inputs out of H^-1, and out of W while the others make up for them: H^-1 - B P^-1 B' and W - W_S P^-1 B', in place.

    inverse: the lower triangle of H^-1, (inputs, inputs). weight: W, (rows, inputs). Both as Fortran orders them. gone: S, the inputs that
    go; B are their columns of H^-1, and P is where these cross. What stands at S is about zero afterwards.
    """
    if not gone.size:  # BLAS refuses arrays without elements
        return
    from scipy.linalg import blas, lapack  # noqa: PLC0415 - slow to import

    across = inverse[:, gone]
    for place, number in enumerate(gone.tolist()):  # what stands above the diagonal
        across[:number, place] = inverse[number, :number]
    factor, failed = lapack.dpotrf(across[gone], lower=1)
    if failed:  # rounding has made it indefinite: a root of its pseudo-inverse
        values, vectors = np.linalg.eigh(across[gone])
        usable = values > len(values) * np.finfo(float).eps * values.max(initial=0.0)
        root = vectors[:, usable] / np.sqrt(values[usable])
        spread, lost = product(across, root), product(weight[:, gone], root)
    else:
        spread = blas.dtrsm(1.0, factor, across, side=1, lower=1, trans_a=1, overwrite_b=1)
        lost = blas.dtrsm(1.0, factor, weight[:, gone], side=1, lower=1, trans_a=1, overwrite_b=1)
    blas.dsyrk(-1.0, spread, beta=1.0, c=inverse, lower=1, overwrite_c=1)
    blas.dgemm(-1.0, lost, spread, beta=1.0, c=weight, trans_b=1, overwrite_c=1)


def solved(hessian: Matrix, right: Matrix) -> Matrix:
    """H^-1 times the columns on the right, by the Cholesky factor; of the best solutions the smallest where H is singular.

    hessian: H, (inputs, inputs). right: (inputs, columns).
    """
    if not right.size:  # LAPACK refuses arrays without elements
        return np.zeros(right.shape)
    from scipy.linalg import lapack  # noqa: PLC0415 - slow to import

    _, solution, failed = lapack.dposv(hessian.T, right, lower=1)  # transposed as above
    return np.asarray(np.linalg.lstsq(hessian, right, rcond=None)[0] if failed else solution, dtype=np.float64)
