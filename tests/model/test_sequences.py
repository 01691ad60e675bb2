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
from spa_onnx.model.subgraphs import operators

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
    "pieces of pieces of unequal size": net(
        "float[2,3,6,6] x",
        f"{PLACES}, float[18,3,1,1] w1, float[4,4,1,1] w9, int64 ten = {{10}}, int64 four = {{4}}",
        "a = Conv(x, w1) s = SplitToSequence<axis=1>(a, ten) p = SequenceAt(s, first) "
        "t = SplitToSequence<axis=1>(p, four) q = SequenceAt(t, first) r = SequenceAt(t, second) z = Mul(q, r) "
        "y = Conv(z, w9)",
    ),
    "queries, keys and values of a computed shape": net(
        "float[N,5,12] x",
        f"{PLACES}, float[12,48] w1, float[16,4] w9, int64[2] front = {{0, 1}}, int64[3] apart = {{3, 2, 8}}, "
        "int64[1] joined = {16}",
        "m = MatMul(x, w1) n = Shape(x) f = Gather(n, front) c = Concat<axis=0>(f, apart) h = Reshape(m, c) "
        "p = Transpose<perm=[2,0,3,1,4]>(h) s = SplitToSequence<axis=0, keepdims=0>(p) q = SequenceAt(s, first) "
        "k = SequenceAt(s, second) v = SequenceAt(s, last) t = Transpose<perm=[0,1,3,2]>(k) d = MatMul(q, t) "
        "e = Softmax(d) o = MatMul(e, v) b = Transpose<perm=[0,2,1,3]>(o) g = Concat<axis=0>(f, joined) "
        "z = Reshape(b, g) y = MatMul(z, w9)",
    ),
    "in a branch": net(
        "float[2,6] x",
        f"{PLACES}, float[6,16] w1, float[8,4] w9, int64 eight = {{8}}, float low = {{0.0}}",
        "m = MatMul(x, w1) s = SplitToSequence<axis=1>(m, eight) g = ReduceMax<keepdims=0>(x) c = Greater(g, low) "
        "z = If(c) <then_branch = yes () => (float[2,8] p) "
        "{ t = SplitToSequence<axis=1>(m, eight) q = SequenceAt(t, first) p = Relu(q) }, "
        "else_branch = no () => (float[2,8] r) { r = SequenceAt(s, second) }> y = MatMul(z, w9)",
        "float[2,4] y",
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
    feed = {"x": np.random.default_rng(0).standard_normal([d.dim_value or 2 for d in shape(proto)]).astype(np.float32)}
    want = open_session(proto).run(feed)
    unroll_sequences(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert not [node.op_type for node in operators(proto.graph) if "Sequence" in node.op_type]
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


def test_what_reads_a_sequence_at_a_fixed_position_is_unrolled_beside_what_does_not():
    proto = net(
        "float[2,3,4,4] x, int64 place",
        f"{PLACES}, float[18,3,1,1] w1, float[4,2,1,1] w9, int64 ten = {{10}}, int64 two = {{2}}",
        "a = Conv(x, w1) s = SplitToSequence<axis=1>(a, ten) p = SequenceAt(s, first) q = SequenceAt(s, last) "
        "t = SplitToSequence<axis=1>(p, two) u = SequenceAt(t, first) v = SequenceAt(t, place) w = Mul(u, v) "
        "o = SplitToSequence<axis=1>(q, two) e = SequenceAt(o, second) d = Add(w, e) y = Conv(d, w9)",
    )()
    unroll_sequences(proto)
    onnx.checker.check_model(proto, full_check=True)
    left = [node.output[0] for node in proto.graph.node if "Sequence" in node.op_type]
    assert left == ["t", "v"]


def test_recorded_types_of_sequences_go_with_them():
    proto = onnx.shape_inference.infer_shapes(CASES["chunks of one size"]())
    assert "s" in {value.name for value in proto.graph.value_info}
    unroll_sequences(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert {value.name for value in proto.graph.value_info} <= {n for node in proto.graph.node for n in node.output}
