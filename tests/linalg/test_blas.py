"""Dense linear algebra: the same for every layout in memory."""

from __future__ import annotations

import numpy as np
import pytest

from spa_onnx.linalg.blas import add_gram, add_square, eliminate, inverted, product, solved

LAYOUTS = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "strided": lambda matrix: np.repeat(np.repeat(matrix, 2, axis=0), 2, axis=1)[::2, ::2],
    "one of several": lambda matrix: np.stack([matrix, matrix])[1],
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


def positive(size, seed=0):
    """A positive definite matrix."""
    columns = np.random.default_rng(seed).standard_normal((size, 3 * size))
    return columns @ columns.T


def whole(triangle):
    """The symmetric matrix of which this is the lower triangle."""
    return np.tril(triangle) + np.tril(triangle, -1).T


def test_a_square_is_added_in_place(layout):
    matrix, vector = layout(positive(5)), np.arange(5.0)
    add_square(matrix, vector, -2.0)
    np.testing.assert_allclose(matrix, positive(5) - 2 * np.outer(vector, vector), atol=1e-12)


def test_products_inverses_and_solutions(layout):
    left, right = np.random.default_rng(1).standard_normal((4, 5)), np.random.default_rng(2).standard_normal((5, 3))
    np.testing.assert_allclose(product(layout(left), layout(right)), left @ right, atol=1e-12)
    np.testing.assert_allclose(positive(5) @ solved(layout(positive(5)), layout(right)), right, atol=1e-9)


def test_one_triangle_of_a_gram_matrix_is_added():
    columns, gram = np.random.default_rng(3).standard_normal((5, 9)), np.asfortranarray(positive(5))
    before = gram.copy()
    assert np.shares_memory(add_gram(gram, columns), gram)
    np.testing.assert_allclose(np.triu(gram), np.triu(before + columns @ columns.T), atol=1e-12)


MATRICES = {"definite": positive(30), "diagonal": np.diag([1.0, -2.0, 3.0]), "indefinite": np.array([[1.0, 2], [2, 1]])}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", MATRICES)
def test_an_inverse_is_one(layout, name, overwrite):
    matrix = MATRICES[name]
    given = layout(matrix.copy())
    inverse = whole(inverted(given, overwrite=overwrite))
    np.testing.assert_allclose(inverse @ matrix, np.eye(len(matrix)), atol=1e-9)
    assert overwrite or np.array_equal(given, matrix)


@pytest.mark.parametrize("gone", [[], [0], [6], [3, 1], [*range(6, -1, -1)]])
def test_what_is_eliminated_is_as_if_it_had_never_been_there(gone):
    """The inverse is that of what is left of H, and the weights are the best without those inputs."""
    hessian, weight = positive(7), np.random.default_rng(4).standard_normal((3, 7))
    inverse, left = inverted(hessian), np.asfortranarray(weight)
    eliminate(inverse, left, np.array(gone, np.int64))
    kept = np.setdiff1d(np.arange(7), gone)
    np.testing.assert_allclose(
        whole(inverse)[np.ix_(kept, kept)], np.linalg.inv(hessian[np.ix_(kept, kept)]), atol=1e-9
    )
    best = np.linalg.solve(hessian[np.ix_(kept, kept)], hessian[kept] @ weight.T).T
    np.testing.assert_allclose(left[:, kept], best, atol=1e-9)
    assert np.abs(np.delete(whole(inverse), kept, axis=0)).max(initial=0) < 1e-9
    assert np.abs(np.delete(left, kept, axis=1)).max(initial=0) < 1e-9


def test_copies_of_an_input_go_together_where_rounding_leaves_no_factor():
    """H^-1 of two inputs that stand for each other may be indefinite by a rounding error."""
    inverse, weight = (
        np.asfortranarray([[1.0, 0, 0], [1.0, 1 - 1e-15, 0], [0.5, 0.5, 2]]),
        np.asfortranarray([[1.0, 1.0, 1.0]]),
    )
    eliminate(inverse, weight, np.array([0, 1]))
    np.testing.assert_allclose(whole(inverse), np.diag([0, 0, 1.75]), atol=1e-9)
    np.testing.assert_allclose(weight, [[0, 0, 0.5]], atol=1e-9)
