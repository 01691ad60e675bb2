"""Sequences of fixed content are read as the pieces and lists that they hold."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets.build import image, net

import spa_onnx
from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import open_session
from spa_onnx.model.sequences import unroll_sequences

PLACES = "int64 first = {0}, int64 second = {1}, int64 last = {-1}"
GATED = "p = SequenceAt(s, first) q = SequenceAt(s, last) g = Sigmoid(q) z = Mul(p, g)"
CASES = {
    "chunks of given sizes": image(
        "s = SplitToSequence<axis=1>(a, parts) " + GATED, f"{PLACES}, int64[2] parts = {{4, 4}}", into=4
    ),
    "chunks of one size": image("s = SplitToSequence<axis=1>(a, four) " + GATED, PLACES + ", int64 four = {4}", into=4),
    "before opset 13": image(
        "s = SplitToSequence<axis=1>(a, parts) " + GATED, f"{PLACES}, int64[2] parts = {{4, 4}}", into=4, opset=11
    ),
    "a list is joined": image(
        "b = Conv(a, w2) r = Relu(b) s = SequenceConstruct(a, r) z = ConcatFromSequence<axis=1>(s)",
        "float[6,8,1,1] w2",
        into=14,
    ),
    "a list grows and shrinks": image(
        "r = Relu(a) e = SequenceEmpty() s = SequenceInsert(e, a) t = SequenceInsert(s, r, first) "
        "u = SequenceInsert(t, a) v = SequenceErase(u, last) z = ConcatFromSequence<axis=1>(v)",
        PLACES,
        into=16,
        outputs="float[2,4,6,6] y",
    ),
    "a list is stacked": net(
        "float[2,5,6] x",
        f"{PLACES}, float[6,8] w1, float[8,4] w9, int64[1] axis = {{1}}",
        "a = MatMul(x, w1) r = Relu(a) s = SequenceConstruct(a, r) n = SequenceLength(s) "
        "t = ConcatFromSequence<axis=1, new_axis=1>(s) u = ReduceSum<keepdims=0>(t, axis) y = MatMul(u, w9)",
    ),
    "rows one by one": net(
        "float[2,3,6] x",
        f"{PLACES}, float[6,8] w1, float[8,4] w9",
        "a = MatMul(x, w1) s = SplitToSequence<axis=1, keepdims=0>(a) p = SequenceAt(s, second) r = Relu(p) "
        "y = MatMul(r, w9)",
    ),
}


@pytest.mark.parametrize("build", CASES.values(), ids=CASES)
def test_a_model_with_sequences_of_fixed_content_loses_half_of_its_channels(build):
    report = spa_onnx.prune(build(), 0.5, criterion="l1", repair="none").report
    assert report.validation.gap is not None
    assert report.params[1] < 0.62 * report.params[0]


@pytest.mark.parametrize("build", CASES.values(), ids=CASES)
def test_unrolled_sequences_compute_the_same(build):
    proto = build()
    feed = {"x": np.random.default_rng(0).standard_normal([d.dim_value for d in shape(proto)]).astype(np.float32)}
    want = open_session(proto).run(feed)
    unroll_sequences(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert not [node.op_type for node in proto.graph.node if "Sequence" in node.op_type]
    for a, b in zip(want, open_session(proto).run(feed), strict=True):
        np.testing.assert_array_equal(a, b)


def shape(proto: onnx.ModelProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(proto.graph.input[0].type.tensor_type.shape.dim)


def test_a_position_that_depends_on_data_stays_a_sequence():
    proto = image("s = SequenceConstruct(a, a) i = Size(x) j = Mod(i, two) z = SequenceAt(s, j)", "int64 two = {2}")()
    before = [node.op_type for node in proto.graph.node]
    unroll_sequences(proto)
    assert [node.op_type for node in proto.graph.node] == before
    with pytest.raises(RefusedError, match="nothing to prune"):
        spa_onnx.prune(proto, 0.5, criterion="l1", repair="none")
