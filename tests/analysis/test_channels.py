"""Connected indices get the same label."""

import networkx as nx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_onnx.analysis import channels

LINKS = st.integers(1, 60).flatmap(
    lambda total: st.tuples(
        st.just(total), st.lists(st.tuples(st.integers(0, total - 1), st.integers(0, total - 1)), min_size=1)
    )
)


@settings(deadline=None)
@given(LINKS)
def test_labels_are_those_of_connected_components(drawn):
    total, pairs = drawn
    left, right = (np.asarray([pair[side] for pair in pairs])[:, None] for side in (0, 1))
    labels = channels._label(total, [(left, right)])
    graph = nx.Graph()
    graph.add_edges_from(pairs)
    graph.add_nodes_from(range(total))
    assert sorted(map(sorted, nx.connected_components(graph))) == sorted(
        np.flatnonzero(labels == k).tolist() for k in range(labels.max() + 1)
    )


def test_all_that_one_channel_owns_is_connected():
    labels = channels._label(8, [(np.asarray([[0, 1], [2, 3]]), np.asarray([[4], [5]]))])
    assert labels.tolist() == [0, 0, 1, 1, 0, 1, 2, 3]


def test_a_long_path_in_any_order_takes_few_rounds(monkeypatch):
    """One pass per link would be quadratic: a hundred thousand layers in a row are one path."""
    order = np.random.default_rng(0).permutation(100_000)
    rounds = []
    lowest = np.minimum

    class Counted:
        at = staticmethod(lambda *given: (rounds.append(1), lowest.at(*given)))

        def __call__(self, *given):
            return lowest(*given)

    monkeypatch.setattr(channels.np, "minimum", Counted())
    assert (channels._connected(len(order), order[:-1], order[1:]) == 0).all()
    assert len(rounds) < 20
