"""Channel shuffles: what is left of a grid, and where there is none."""

import numpy as np
import pytest
from nets.build import image

from spa_onnx.analysis.shuffle import aligned_shapes, chains
from spa_onnx.model.model import Model

SHUFFLE = image(
    "r = Reshape(a, apart) t = Transpose<perm=[0,2,1,3,4]>(r) z = Reshape(t, back)",
    "int64[5] apart = {2, 2, 4, 6, 6}, int64[4] back = {2, 8, 6, 6}",
)


@pytest.mark.parametrize(
    ("kept", "grid"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], (2, 4)),
        ([0, 2, 4, 6], (2, 2)),
        ([4, 5, 6, 7], (1, 4)),
        ([1, 5], (2, 1)),
        ([0, 1, 2, 3, 4], None),
        ([0, 5], None),
        ([0, 1, 2, 4, 5, 7], None),
    ],
)
def test_a_shuffle_stays_where_what_is_left_is_a_grid(kept, grid):
    (chain,) = chains(Model.of(SHUFFLE()))
    shapes = aligned_shapes(chain, (2, 8, 6, 6), {1: np.asarray(kept)})
    wanted = None if grid is None else {"r": (2, *grid, 6, 6), "t": (2, *grid[::-1], 6, 6), "z": (2, len(kept), 6, 6)}
    assert shapes == wanted
