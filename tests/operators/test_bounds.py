"""Integer inputs: the exclusive upper bound that each operator sets for them, and random feeds that keep to it."""

from __future__ import annotations

import pytest
from nets.build import net
from runtimes import runs

from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model
from spa_onnx.operators import OPERATORS, knowledge
from spa_onnx.synthetic.feeds import random_feed

MS = {"domains": ', "com.microsoft": 1'}
EMBED = "y, n = com.microsoft.EmbedLayerNormalization(i, s, word, place, part, scale, bias, , p)"

CASES = {
    "rows of a table": ("int64[2] i", "float[5,4] t", "y = Gather(t, i)", {}, {"i": 5}),
    "columns of a table": ("int64[2] i", "float[5,4] t", "y = Gather<axis=1>(t, i)", {}, {"i": 4}),
    "tables of an embedding": (
        "int32[2,3] i, int32[2,3] s, int32[2,3] p",
        "float[9,8] word, float[7,8] place, float[2,8] part, float[8] scale, float[8] bias",
        EMBED,
        MS,
        {"i": 9, "s": 2, "p": 7},
    ),
    "a cache of two axes": (
        "float[2,9] c, float[2,3] u, int64[2] i",
        "float[1] unread",
        "y = TensorScatter<axis=1>(c, u, i)",
        {"opset": 24, "ir": 12},
        {"i": 7},
    ),
    "a cache": (
        "float[2,4,9,5] c, float[2,4,2,5] u, int64[2] i",
        "float[1] unread",
        "y = TensorScatter(c, u, i)",
        {"opset": 24, "ir": 12},
        {"i": 8},
    ),
    "lengths of sequences": (
        "float[6,2,3] x, int32[2] n",
        "float[1,16,3] w, float[1,16,4] r",
        "y = LSTM<hidden_size=4>(x, w, r, , n)",
        {},
        {"n": 6},
    ),
    "lengths of sequences, batch first": (
        "float[2,6,3] x, int32[2] n",
        "float[1,16,3] w, float[1,16,4] r",
        "y = LSTM<hidden_size=4, layout=1>(x, w, r, , n)",
        {},
        {"n": 6},
    ),
    "lengths of keys": (
        "float[2,4,5,8] q, float[2,4,6,8] k, float[2,4,6,8] v, int64[2] n",
        "float[1] unread",
        "y = Attention(q, k, v, , , , n)",
        {"opset": 24, "ir": 12},
        {"n": 6},
    ),
}
"""(graph inputs, weights, node, options of the net, input -> bound)."""


def build(case: str):
    inputs, weights, node, options, expected = CASES[case]
    return net(inputs, weights, node, **options)(), expected


@pytest.mark.parametrize("case", CASES)
def test_an_integer_input_is_bounded_by_what_it_indexes(case):
    proto, expected = build(case)
    model = Model.of(proto)
    (node,) = model.nodes
    bounds = knowledge(node.op).bounds
    assert {node.inputs[slot]: bounds[slot](node, model) for slot in bounds if node.input(slot)} == expected


@pytest.mark.parametrize("case", CASES)
def test_random_feeds_keep_to_the_bound(case):
    proto, expected = build(case)
    model = Model.of(proto)
    feeds = [random_feed(model, model.inference.dims, seed) for seed in range(40)]
    for name, bound in expected.items():
        drawn = {int(value) for feed in feeds for value in feed[name].ravel()}
        assert drawn == set(range(bound))
    if runs(proto) and "layout" not in CASES[case][2]:
        open_session(proto).run(feeds[0])


def test_every_operator_that_bounds_an_input_has_a_case():
    bounding = {name for name, operator in OPERATORS.items() if operator.bounds}
    assert bounding - {Model.of(build(case)[0]).nodes[0].op for case in CASES} <= {"GRU", "RNN"}
