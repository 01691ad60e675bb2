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
    "demodulated weight": net(
        "float[2,16,6,6] x, float[1,16,1,1] style",
        "float[24,16,3,3] k, float[16,3,1,1] w0, float[5,24,1,1] w9, int64[3] rest = {1, 2, 3}",
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
        "y = ReduceMean<axes=[1]>(a)",
        "y = ReduceMax<axes=[1]>(a)",
        "y = ReduceLogSumExp<axes=[1]>(a)",
    ],
)
def test_a_statistic_that_removed_channels_change_is_pruned_with_width_only(nodes):
    proto = net("int64[N] i", TABLES, "a = Gather(u, i) " + nodes)()
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
