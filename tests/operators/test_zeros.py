"""Which operators make something else of zero: held against onnxruntime, and against the law."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from law import violation
from nets import NETS
from nets.build import net

from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import open_session
from spa_onnx.operators import OPERATORS
from spa_onnx.operators.elementwise import unary
from spa_onnx.operators.registry import never
from spa_onnx.operators.zeros import first
from spa_onnx.pipeline import inspect


def run_on_zeros(operator: str) -> np.ndarray | None:
    """Return what the operator makes of zeros, in the newest operator set that onnxruntime runs for floats.

    None if it runs none.
    """
    attributes = "<to=1>" if operator == "Cast" else ""
    for opset in (24, 22, 20):
        proto = net("float[2,3] x", "float[3] w", f"y = {operator}{attributes}(x)", "float[2,3] y", opset=opset)()
        with contextlib.suppress(RefusedError):
            return open_session(proto).run({"x": np.zeros((2, 3), np.float32)})[0]
    return None


@pytest.mark.parametrize(
    "operator", [name for name, entry in OPERATORS.items() if entry.coupling is unary and "." not in name]
)
def test_an_operator_keeps_zero_exactly_if_the_table_says_so(operator):
    made = run_on_zeros(operator)
    if made is None:
        pytest.skip("takes no floats, or onnxruntime has no kernel")
    assert (OPERATORS[operator].zero is never) == bool(made.any())


def test_a_table_that_takes_an_exponential_for_zero_breaks_the_law(monkeypatch):
    name = "linear_attention_exp"
    assert violation(NETS[name](), 0) == ""
    monkeypatch.setitem(OPERATORS, "Exp", replace(OPERATORS["Exp"], zero=first))
    assert "differs" in violation(NETS[name](), 0)


@pytest.mark.parametrize("norm", ["BatchNormalization(a, s, t, m, v)", "InstanceNormalization(a, s, t)"])
def test_what_a_norm_leaves_of_channels_that_go_may_be_summed_over(norm):
    """The scale and the bias go with the channel, so both factors of the product hold zeros there."""
    proto = net(
        "float[2,3,5] x",
        "float[8,3,1] w1, float[8,3,1] w2, float[8] s, float[8] t, float[8] m, float[8] v = {1, 2, 3, 4, 5, 6, 7, 8}, "
        "float[5,4] w3",
        f"a = Conv(x, w1) n = {norm} b = Conv(x, w2) e = Exp(b) c = Transpose<perm=[0,2,1]>(n) d = MatMul(c, e) "
        f"y = MatMul(d, w3)",
        "float[2,5,4] y",
    )()
    assert {group.name for group in inspect(proto).prunable()} == {"w1[0]"}
    assert violation(proto, 0) == ""


FUSED = (
    'c = com.microsoft.FusedConv<activation="{}">(x, w1, b1) q = Reshape(c, s) k = Transpose<perm=[0,2,1]>(q) '
    'm = com.microsoft.FusedConv<activation="{}">(x, w2, b2) v = Reshape(m, s) d = MatMul(k, v) y = MatMul(d, w3)'
)


@pytest.mark.parametrize(
    ("activation", "pinned"), [("Sigmoid", True), ("HardSigmoid", True), ("Relu", False), ("Tanh", False)]
)
def test_a_product_over_channels_behind_a_fused_activation_is_pinned_where_zero_does_not_stay_zero(activation, pinned):
    """The products sum over what the activation makes of zero; sigmoid(0) is 0.5."""
    proto = net(
        "float[2,3,1,5] x",
        "float[8,3,1,1] w1, float[8] b1, float[8,3,1,1] w2, float[8] b2, float[5,4] w3, int64[3] s = {2, 8, 5}",
        FUSED.format(activation, activation),
        "float[2,5,4] y",
        domains=', "com.microsoft": 1',
    )()
    groups = {group.name: group for group in inspect(proto).groups}
    assert ("not zero there when masked" in groups["w1[0]"].pinned) == pinned
    if not pinned:
        assert violation(proto, 0) == ""
