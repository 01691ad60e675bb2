"""Dense linear algebra: the same for every layout in memory."""

from __future__ import annotations

import numpy as np
import pytest

from spa_onnx.blas import add_gram, add_square, inverted, product, solved

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


def test_a_square_is_added_in_place(layout):
    matrix, vector = layout(positive(5)), np.arange(5.0)
    add_square(matrix, vector, -2.0)
    np.testing.assert_allclose(matrix, positive(5) - 2 * np.outer(vector, vector), atol=1e-12)


def test_products_inverses_and_solutions(layout):
    left, right = np.random.default_rng(1).standard_normal((4, 5)), np.random.default_rng(2).standard_normal((5, 3))
    np.testing.assert_allclose(product(layout(left), layout(right)), left @ right, atol=1e-12)
    np.testing.assert_allclose(inverted(layout(positive(5))) @ positive(5), np.eye(5), atol=1e-9)
    np.testing.assert_allclose(positive(5) @ solved(layout(positive(5)), layout(right)), right, atol=1e-9)


def test_one_triangle_of_a_gram_matrix_is_added():
    columns, gram = np.random.default_rng(3).standard_normal((5, 9)), np.asfortranarray(positive(5))
    before = gram.copy()
    assert np.shares_memory(add_gram(gram, columns), gram)
    np.testing.assert_allclose(np.triu(gram), np.triu(before + columns @ columns.T), atol=1e-12)
