"""Models computed in float64 are what onnxruntime computes in float32, but for its rounding."""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import net

from spa_onnx.errors import RefusedError
from spa_onnx.execution.float64 import Float64
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model
from spa_onnx.synthetic.feeds import random_feed
from spa_onnx.validation.masked import difference

BRANCHES = """c = Constant<value_floats=[0.5, 0.5]>() s = Size(x) n = Constant<value_int=0>() more = Greater(s, n)
y = If<then_branch = g () => (float[2,3] t) { w = Constant<value = float[1] {0.1}>() t = Mul(x, w) },
       else_branch = h () => (float[2,3] e) { e = Identity(x) }>(more)"""

NETS = {
    "plain": net("float[2,4,9,8] x", "float[6,4,3,2] w, float[6] b", "y = Conv(x, w, b)"),
    "padded": net("float[2,4,9,8] x", "float[6,4,3,3] w", "y = Conv<pads=[1,0,2,3], strides=[2,3]>(x, w)"),
    "dilated": net("float[2,4,9,8] x", "float[6,4,3,2] w", "y = Conv<dilations=[2,3], strides=[1,2]>(x, w)"),
    "grouped": net("float[2,4,9,8] x", "float[6,2,3,3] w", "y = Conv<group=2>(x, w)"),
    "depthwise": net("float[2,4,9,8] x", "float[4,1,3,3] w, float[4] b", "y = Conv<group=4, pads=[1,1,1,1]>(x, w, b)"),
    "automatic": net("float[2,4,9,8] x", "float[6,4,3,3] w", 'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)'),
    "automatic, low": net(
        "float[2,4,9,8] x", "float[6,4,4,3] w", 'y = Conv<auto_pad="SAME_LOWER", strides=[1,3]>(x, w)'
    ),
    "automatic, none": net("float[2,4,9,8] x", "float[6,4,3,3] w", 'y = Conv<auto_pad="VALID", strides=[2,1]>(x, w)'),
    "1-D": net("float[2,4,9] x", "float[6,4,3] w", "y = Conv<strides=[2]>(x, w)"),
    "3-D": net("float[2,4,5,6,7] x", "float[6,2,3,2,1] w", "y = Conv<group=2, pads=[1,0,0,0,1,2]>(x, w)"),
    "transposed": net("float[2,4,5,6] x", "float[4,3,3,2] w, float[3] b", "y = ConvTranspose<strides=[2,3]>(x, w, b)"),
    "transposed, grouped": net(
        "float[2,4,5,6] x",
        "float[4,3,3,3] w",
        "y = ConvTranspose<group=2, pads=[1,0,1,2], output_padding=[1,0], strides=[2,2]>(x, w)",
    ),
    "transposed, dilated": net("float[2,4,5,6] x", "float[4,3,3,3] w", "y = ConvTranspose<dilations=[2,1]>(x, w)"),
    "casts": net("float[2,3] x", "float[3,4] w", "a = MatMul(x, w) i = Cast<to=6>(a) y = Cast<to=1>(i)"),
    "branches": net("float[2,3] x", "", BRANCHES),
}


@pytest.mark.parametrize("name", NETS)
def test_it_computes_what_onnxruntime_does(name):
    proto = NETS[name]()
    feed = random_feed(Model.of(proto), {}, 0)
    (want,), (got,) = open_session(proto).run(feed), Float64().open(proto).run(feed)
    assert got.dtype == np.float64
    assert difference(want, got) < 1e-6


def test_tenths_are_those_of_the_float32_model():
    """A constant does not become another number on the way, in a nested graph or out of it."""
    proto = NETS["branches"]()
    (got,) = Float64().open(proto).run({"x": np.ones((2, 3), np.float32)})
    assert np.array_equal(got, np.full((2, 3), np.float64(np.float32(0.1))))


def test_what_the_reference_does_not_know_is_refused():
    proto = net("float[2,3] x", "", "y = com.microsoft.FastGelu(x)", domains=', "com.microsoft": 1')()
    with pytest.raises(RefusedError, match="onnx's reference implementation"):
        Float64().open(proto).run({"x": np.ones((2, 3), np.float32)})
