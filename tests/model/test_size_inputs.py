"""Inputs that hold the size of an axis: the graph computes shapes from them as from Shape."""

from __future__ import annotations

import pytest
from nets.build import net

import spa_onnx
from spa_onnx.model.model import Model
from spa_onnx.synthetic.feeds import random_feed

SIZED = {
    "rows of a reshape": net(
        "int64 length, float[length,6] x",
        "float[6,16] w1, float[8,12] w2, float[12,3] w3, int64[1] zero = {0}, int64[2] rest = {2, 8}",
        "a = MatMul(x, w1) l = Unsqueeze(length, zero) t = Concat<axis=0>(l, rest) b = Reshape(a, t) "
        "c = MatMul(b, w2) d = Relu(c) y = MatMul(d, w3)",
        "float[length,2,3] y",
    ),
    "one element": net(
        "int64[1] length, float[length,6] x",
        "float[6,16] w1, float[16,3] w2, int64[1] last = {-1}",
        "a = MatMul(x, w1) t = Concat<axis=0>(length, last) b = Reshape(a, t) c = Relu(b) y = MatMul(c, w2)",
        "float[length,3] y",
    ),
    "a row that is repeated": net(
        "int64 length, float[length,6] x",
        "float[6,16] w1, float[16,3] w2, float[1,16] row, int64[1] zero = {0}, int64[1] wide = {16}",
        "a = MatMul(x, w1) l = Unsqueeze(length, zero) t = Concat<axis=0>(l, wide) e = Expand(row, t) b = Add(a, e) "
        "c = Relu(b) y = MatMul(c, w2)",
        "float[length,3] y",
    ),
}


@pytest.mark.parametrize("build", SIZED.values(), ids=SIZED)
def test_a_size_that_is_an_input_is_the_size_of_its_axis(build):
    proto = build()
    feed = random_feed(Model.of(proto), {"length": 7}, 0)
    assert int(feed["length"].item()) == len(feed["x"]) == 7
    report = spa_onnx.prune(proto, 0.5, criterion="l1", repair="none").report
    assert report.validation.gap is not None
    assert report.params[1] < 0.75 * report.params[0]
