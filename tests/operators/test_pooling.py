"""Positions that MaxPool returns count through the whole tensor, so only an alike MaxUnpool may read pruned ones."""

from __future__ import annotations

import pytest
from nets.build import image

import spa_onnx
from spa_onnx.analysis import analyse
from spa_onnx.model.model import Model

POOL = "b, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) "
UNPOOL = "MaxUnpool<kernel_shape=[2,2], strides=[2,2]>"


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        (f"{POOL} z = {UNPOOL}(b, i)", ""),
        (f"{POOL} c = Sigmoid(b) z = {UNPOOL}(c, i)", ""),
        (
            f"{POOL} c = Conv(b, w2) d = Relu(c) z = {UNPOOL}(d, i, shape)",
            "float[8,8,1,1] w2, int64[4] shape = {2, 8, 6, 6}",
        ),
    ],
)
def test_what_is_taken_back_loses_channels(nodes, weights):
    report = spa_onnx.prune(image(nodes, weights)(), 0.5, criterion="l1", repair="none").report
    assert report.params[1] < 0.6 * report.params[0]
    assert report.validation.gap is not None


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        (f"{POOL} z = {UNPOOL}(b, i, shape)", "int64[4] shape = {2, 8, 7, 7}", "of another size"),
        (f"{POOL} j = Identity(i) z = {UNPOOL}(b, j)", "", "counted over all channels"),
        (f"{POOL} c = Cast<to=1>(i) z = Add(b, c)", "", "counted over all channels"),
        (f"b = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) c = Cast<to=7>(b) z = {UNPOOL}(b, c)", "", "no MaxPool"),
    ],
)
def test_positions_of_another_tensor_keep_all_channels(nodes, weights, reason):
    groups = {group.name: group for group in analyse(Model.of(image(nodes, weights)())).groups}
    assert reason in groups["w1[0]"].pinned
