"""Dense linear algebra in float64, computed with the BLAS and LAPACK of scipy.

numpy has a BLAS of its own. The threads of a BLAS spin for a while after each call, so alternating calls to both
compete for the processors. Each function imports scipy when it is called, because the import is slow and criteria on
weights do not need it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
"""One matrix, or a stack with one matrix for each block of a linear layer: (blocks, ...)."""


def product(left: Matrix, right: Matrix) -> Matrix:
    """Return the matrix product.

    Args:
        left: float64 (rows, inner).
        right: float64 (inner, columns).

    Returns:
        float64 (rows, columns).
    """
    if not (left.size and right.size):  # BLAS refuses arrays without elements
        return np.zeros((len(left), right.shape[1]))
    from scipy.linalg import blas  # noqa: PLC0415 - slow to import

    (b, transpose_b), (a, transpose_a) = _transposed(right), _transposed(left)
    return np.asarray(blas.dgemm(1.0, b, a, trans_a=transpose_b, trans_b=transpose_a).T)


def _transposed(matrix: Matrix) -> tuple[Matrix, bool]:
    """Return the transposed matrix as (array, whether BLAS transposes it), in the memory order that saves a copy."""
    return (matrix.T, False) if matrix.flags.c_contiguous else (matrix, True)


def add_gram(gram: Matrix, columns: Matrix) -> Matrix:
    """Add X X' to a Gram matrix in place.

    Args:
        gram: float64 (inputs, inputs), in Fortran order. Only its upper triangle is read and written.
        columns: X, float64 (inputs, n).

    Returns:
        The same array.
    """
    if not columns.size:  # BLAS refuses arrays without elements
        return gram
    from scipy.linalg import blas  # noqa: PLC0415 - slow to import

    array, transpose = _transposed(columns)
    return np.asarray(blas.dsyrk(1.0, array, beta=1.0, c=gram, trans=not transpose, overwrite_c=1))


def gram(columns: Matrix) -> Matrix:
    """Return the Gram matrix X X'.

    Args:
        columns: X, float64 (inputs, n).

    Returns:
        float64 (inputs, inputs), both triangles filled.
    """
    upper = add_gram(np.zeros((len(columns), len(columns)), order="F"), columns)
    upper.flat[:: len(upper) + 1] /= 2  # the sum below counts the diagonal twice
    return np.asarray(upper + upper.T)


def add_square(matrix: Matrix, vector: Matrix, factor: float) -> None:
    """Add factor * v v' to a symmetric matrix in place.

    Args:
        matrix: float64 (inputs, inputs).
        vector: v, float64 (inputs,).
        factor: The factor.
    """
    from scipy.linalg import blas  # noqa: PLC0415 - slow to import

    fortran = matrix if matrix.flags.f_contiguous else matrix.T  # a symmetric matrix equals its transpose
    result = blas.dger(factor, vector, vector, a=fortran, overwrite_a=1)
    if not np.may_share_memory(result, matrix):  # BLAS works on a copy if the matrix is not contiguous
        matrix[:] = result


def pivots(matrix: Matrix) -> NDArray[np.int64]:
    """Return the pivot order of the Cholesky factorisation of a positive semidefinite matrix.

    Each pivot is the row with the largest diagonal element after the elimination of the rows before it.

    Args:
        matrix: float64 (rows, rows).

    Returns:
        Row numbers, int64 (rows,).
    """
    from scipy.linalg import lapack  # noqa: PLC0415 - slow to import

    _, order, _, _ = lapack.dpstrf(matrix.T, lower=1)
    return np.asarray(order, dtype=np.int64) - 1


def inverted(hessian: Matrix, *, overwrite: bool = False) -> Matrix:
    """Return the lower triangle of H^-1.

    The Cholesky factor of H gives the inverse. If rounding has made H indefinite, LU factorisation does.

    Args:
        hessian: H, symmetric, float64 (inputs, inputs).
        overwrite: Whether the function may overwrite `hessian`.

    Returns:
        float64 (inputs, inputs), in Fortran order. The elements above the diagonal are undefined.
    """
    from scipy.linalg import lapack  # noqa: PLC0415 - slow to import

    matrix = hessian if overwrite else np.array(hessian)
    diagonal = np.diag(matrix).copy()
    # H is symmetric, so its transpose is H in the Fortran order that LAPACK needs
    factor, failed = lapack.dpotrf(matrix.T, lower=1, clean=0, overwrite_a=1)
    if failed:
        lower = np.tril(matrix, -1)  # LAPACK has not written to this triangle
        return np.asfortranarray(np.linalg.inv(lower + lower.T + np.diag(diagonal)))
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    return np.asarray(inverse, dtype=np.float64)


def eliminate(inverse: Matrix, weight: Matrix, removed: NDArray[np.int64]) -> None:
    """Remove inputs S from H^-1 and refit W on the kept inputs, in place.

    H^-1 becomes H^-1 - B P^-1 B' and W becomes W - W_S P^-1 B', where B = (H^-1)[:, S] and P = (H^-1)[S, S]. The rows
    and columns S of the results are zero up to rounding.

    Args:
        inverse: The lower triangle of H^-1, float64 (inputs, inputs), in Fortran order.
        weight: W, float64 (rows, inputs), in Fortran order.
        removed: S, the removed inputs, int64.
    """
    if not removed.size:  # BLAS refuses arrays without elements
        return
    from scipy.linalg import blas, lapack  # noqa: PLC0415 - slow to import

    across = inverse[:, removed]  # B
    for place, number in enumerate(removed.tolist()):  # only the lower triangle of H^-1 is valid
        across[:number, place] = inverse[number, :number]
    factor, failed = lapack.dpotrf(across[removed], lower=1)
    if failed:  # rounding has made P indefinite, so a root of its pseudo-inverse replaces the Cholesky factor
        values, vectors = np.linalg.eigh(across[removed])
        usable = values > len(values) * np.finfo(float).eps * values.max(initial=0.0)
        root = vectors[:, usable] / np.sqrt(values[usable])
        across_root, weight_root = product(across, root), product(weight[:, removed], root)
    else:
        across_root = blas.dtrsm(1.0, factor, across, side=1, lower=1, trans_a=1, overwrite_b=1)
        weight_root = blas.dtrsm(1.0, factor, weight[:, removed], side=1, lower=1, trans_a=1, overwrite_b=1)
    blas.dsyrk(-1.0, across_root, beta=1.0, c=inverse, lower=1, overwrite_c=1)
    blas.dgemm(-1.0, weight_root, across_root, beta=1.0, c=weight, trans_b=1, overwrite_c=1)


def solved(hessian: Matrix, right: Matrix) -> Matrix:
    """Return the solution X of H X = R.

    The Cholesky factor of H gives the solution. If H is singular, the result is the least-squares solution of minimum
    norm.

    Args:
        hessian: H, symmetric, float64 (inputs, inputs).
        right: R, float64 (inputs, columns).

    Returns:
        float64 (inputs, columns).
    """
    if not right.size:  # LAPACK refuses arrays without elements
        return np.zeros(right.shape)
    from scipy.linalg import lapack  # noqa: PLC0415 - slow to import

    _, solution, failed = lapack.dposv(hessian.T, right, lower=1)  # in Fortran order, as in `inverted`
    return np.asarray(np.linalg.lstsq(hessian, right, rcond=None)[0] if failed else solution, dtype=np.float64)
