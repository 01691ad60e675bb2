"""Connected indices get the same label, whichever library finds them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_onnx.analysis import channels

LINKS = st.integers(1, 40).flatmap(
    lambda total: st.tuples(st.just(total), st.lists(st.tuples(st.integers(0, total - 1), st.integers(0, total - 1)), min_size=1))
)


@settings(deadline=None)
@given(LINKS)
def test_both_ways_of_labelling_agree(drawn):
    total, pairs = drawn
    left, right = (np.asarray([pair[side] for pair in pairs])[:, None] for side in (0, 1))
    few = channels._label(total, [(left, right)])
    limit, channels.FEW = channels.FEW, -1
    try:
        many = channels._label(total, [(left, right)])
    finally:
        channels.FEW = limit
    assert ((few[:, None] == few) == (many[:, None] == many)).all()
