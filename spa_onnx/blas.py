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
    """Add X X' to a Gram matrix, in place; only one of its triangles counts.

    gram: (inputs, inputs), as Fortran orders it. columns: X, (inputs, n), as C does.
    """
    from scipy.linalg import blas  # noqa: PLC0415 - slow to import

    return np.asarray(blas.dsyrk(1.0, columns.T, beta=1.0, c=gram, trans=1, overwrite_c=1))


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


def inverted(hessian: Matrix) -> Matrix:
    """H^-1 of a positive definite H, (inputs, inputs), by its Cholesky factor; by elimination where rounding has made it indefinite."""
    from scipy.linalg import lapack  # noqa: PLC0415 - slow to import

    factor, failed = lapack.dpotrf(hessian.T, lower=1)  # symmetric, and already as LAPACK lays matrices out
    if failed:
        return np.asarray(np.linalg.inv(hessian), dtype=np.float64)
    half, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)  # the other half is zero
    inverse = half + half.T
    inverse.flat[:: len(inverse) + 1] /= 2
    return np.asarray(inverse, dtype=np.float64)


def solved(hessian: Matrix, right: Matrix) -> Matrix:
    """H^-1 times the columns on the right, by the Cholesky factor; of the best solutions the smallest where H is singular.

    hessian: H, (inputs, inputs). right: (inputs, columns).
    """
    if not right.size:  # LAPACK refuses arrays without elements
        return np.zeros(right.shape)
    from scipy.linalg import lapack  # noqa: PLC0415 - slow to import

    _, solution, failed = lapack.dposv(hessian.T, right, lower=1)  # transposed as above
    return np.asarray(np.linalg.lstsq(hessian, right, rcond=None)[0] if failed else solution, dtype=np.float64)
