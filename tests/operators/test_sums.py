"""Sums over an axis are exact where what is removed is zero in the masked model, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import net

import spa_onnx
from spa_onnx.errors import RefusedError

TABLES = "float[200,64] u, float[300,64] v, int64[1] one = {1}, int64[1] two = {2}"
IDS = "int64[N] i, int64[N] j"
LOOKED_UP = "a = Gather(u, i) b = Gather(v, j) "
SUMS = {
    "dot product": net(IDS, TABLES, LOOKED_UP + "m = Mul(a, b) y = ReduceSum<keepdims=1>(m, one)"),
    "cosine of embeddings": net(
        IDS,
        TABLES,
        LOOKED_UP + "p = ReduceL2<axes=[1]>(a) q = ReduceL2<axes=[1]>(b) c = Div(a, p) d = Div(b, q) m = Mul(c, d) "
        "y = ReduceSum(m, one)",
    ),
    "factorisation machine": net(
        "int64[N,3] i",
        "float[200,64] u, int64[1] one = {1}",
        "a = Gather(u, i) s = ReduceSum<keepdims=0>(a, one) t = Mul(s, s) q = Mul(a, a) "
        "r = ReduceSum<keepdims=0>(q, one) d = Sub(t, r) y = ReduceSum(d, one)",
    ),
    "distance": net(IDS, TABLES, LOOKED_UP + "d = Sub(a, b) s = ReduceSumSquare<axes=[1]>(d) y = Sqrt(s)"),
    "absolute values": net(IDS, TABLES, LOOKED_UP + "d = Sub(a, b) y = ReduceL1<axes=[1]>(d)"),
    "normalised embeddings": net(
        IDS,
        TABLES,
        LOOKED_UP + "c = LpNormalization<axis=1>(a) d = LpNormalization<axis=-1, p=1>(b) m = Mul(c, d) "
        "y = ReduceSum(m, one)",
    ),
    "embeddings over their clipped norm": net(
        IDS,
        TABLES + ", float tiny = {0.000001}",
        LOOKED_UP + "n = ReduceL2<axes=[1]>(a) p = Clip(n, tiny) s = Shape(a) q = Expand(p, s) c = Div(a, q) "
        "m = Mul(c, b) y = ReduceSum(m, one)",
    ),
    "squares as a power": net(
        IDS, TABLES + ", float square = {2.0}", LOOKED_UP + "d = Sub(a, b) p = Pow(d, square) y = ReduceSum(p, one)"
    ),
    "quotients": net(
        IDS,
        TABLES + ", float[64] scale, float three = {3.0}",
        LOOKED_UP
        + "s = Identity(scale) d = Div(a, s) e = Abs(b) f = Add(e, three) g = Div(d, f) y = ReduceSum(g, one)",
    ),
    "two layers with demodulated weights": net(
        "float[1,3,8,8] x, float[1,12] z",
        "float[16,3,3,3] w0, float[12,16] s1, float[1,20,16,3,3] m1, float[12,20] s2, float[1,24,20,3,3] m2, "
        "float[4,24,1,1] w9, int64[5] t1 = {1, 1, 16, 1, 1}, int64[5] t2 = {1, 1, 20, 1, 1}, "
        "int64[4] r1 = {-1, 16, 3, 3}, int64[4] r2 = {-1, 20, 3, 3}, float tiny = {0.00001}, int64[3] axes = {2, 3, 4}",
        "a0 = Conv<pads=[1,1,1,1]>(x, w0) b0 = LeakyRelu(a0) "
        "u1 = MatMul(z, s1) v1 = Reshape(u1, t1) k1 = Mul(m1, v1) q1 = Mul(k1, k1) d1 = ReduceSum(q1, axes) "
        "e1 = Add(d1, tiny) f1 = Sqrt(e1) g1 = Div(k1, f1) h1 = Reshape(g1, r1) a1 = Conv<pads=[1,1,1,1]>(b0, h1) "
        "b1 = LeakyRelu(a1) u2 = MatMul(z, s2) v2 = Reshape(u2, t2) k2 = Mul(m2, v2) q2 = Mul(k2, k2) "
        "d2 = ReduceSum(q2, axes) e2 = Add(d2, tiny) f2 = Sqrt(e2) g2 = Div(k2, f2) h2 = Reshape(g2, r2) "
        "a2 = Conv<pads=[1,1,1,1]>(b1, h2) y = Conv(a2, w9)",
    ),
    "demodulated weight": net(
        "float[2,16,6,6] x, float[1,16,1,1] style",
        "float[24,16,3,3] k, float[5,24,1,1] w9",
        "w = Mul(k, style) s = ReduceSumSquare<axes=[1,2,3]>(w) r = Sqrt(s) d = Div(w, r) c = Conv(x, d) e = Relu(c) "
        "y = Conv(e, w9)",
    ),
}


@pytest.mark.parametrize("build", SUMS.values(), ids=SUMS)
def test_a_sum_over_zeros_loses_half_and_computes_the_masked_function(build):
    report = spa_onnx.prune(build(), 0.5, criterion="l1", repair="none").report
    assert report.inexact == ()
    assert report.validation.gap is not None
    assert report.params[1] <= 0.55 * report.params[0]


@pytest.mark.parametrize(
    "nodes",
    [
        "e = Sigmoid(a) y = ReduceSum(e, one)",
        "e = Exp(a) y = ReduceL2<axes=[1]>(e)",
        "e = Cos(a) n = LpNormalization<axis=1>(e) y = ReduceSum(n, one)",
        "e = Pow(a, none) y = ReduceSum(e, one)",
        "q = Mul(a, a) e = Pow(q, below) y = ReduceSum(e, one)",
        "q = Mul(a, a) e = Pow(a, q) y = ReduceSum(e, one)",
        "q = Abs(a) e = Div(a, q) y = ReduceSum(e, one)",
        "y = ReduceMean<axes=[1]>(a)",
        "y = ReduceMax<axes=[1]>(a)",
        "y = ReduceLogSumExp<axes=[1]>(a)",
    ],
)
def test_a_statistic_that_removed_channels_change_is_pruned_with_width_only(nodes):
    proto = net("int64[N] i", TABLES + ", float none = {0.0}, float below = {-2.0}", "a = Gather(u, i) " + nodes)()
    with pytest.raises(RefusedError, match="nothing to prune"):
        spa_onnx.prune(proto, 0.5, criterion="l1", repair="none")
    assert spa_onnx.prune(proto, 0.5, criterion="l1", repair="none", width=True).report.inexact


def test_a_weight_read_as_it_is_loses_rows_that_a_sum_runs_over():
    """The rows of a constant are zero where they are masked, whatever reads them."""
    proto = net(
        "float[N,6] x",
        "float[6,8] w, float[8] g, int64[1] last = {1}",
        "a = MatMul(x, w) b = Mul(a, g) y = ReduceSum(b, last)",
    )()
    result = spa_onnx.prune(proto, 0.5, criterion="l1", repair="none")
    assert result.report.params == (56, 28)
    assert np.isfinite(result.report.validation.gap)
