"""Which operators make something else of zero: held against onnxruntime, and against the law."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from law import violation
from nets import NETS
from nets.build import net

from spa_onnx.errors import RefusedError
from spa_onnx.execution import session as runtime
from spa_onnx.operators import RULES, zeros
from spa_onnx.operators.elementwise import UNARY
from spa_onnx.pipeline import inspect


def run_on_zeros(operator: str) -> np.ndarray | None:
    """What it makes of zeros, by the newest operator set in which onnxruntime has a kernel for floats; None where none has."""
    attributes = "<to=1>" if operator == "Cast" else ""
    for opset in (24, 22, 20):
        proto = net("float[2,3] x", "float[3] w", f"y = {operator}{attributes}(x)", "float[2,3] y", opset=opset)()
        with contextlib.suppress(RefusedError):
            return runtime.run(runtime.session(proto), {"x": np.zeros((2, 3), np.float32)})[0]
    return None


@pytest.mark.parametrize("operator", [name for name in UNARY if "." not in name])
def test_an_operator_keeps_zero_exactly_if_the_table_says_so(operator):
    made = run_on_zeros(operator)
    if made is None:
        pytest.skip("takes no floats, or onnxruntime has no kernel")
    assert (operator in zeros.ENDS) == bool(made.any())


def test_the_table_names_operators_that_have_a_rule():
    assert set(zeros.KEEPS) | set(zeros.ENDS) <= set(RULES)
    assert not set(zeros.KEEPS) & set(zeros.ENDS)


def test_a_table_that_takes_an_exponential_for_zero_breaks_the_law(monkeypatch):
    name = "linear_attention_exp"
    assert violation(NETS[name](), 0) == ""
    monkeypatch.setattr(zeros, "ENDS", ())
    assert "differs" in violation(NETS[name](), 0)


@pytest.mark.parametrize("norm", ["BatchNormalization(a, s, t, m, v)", "InstanceNormalization(a, s, t)"])
def test_what_a_norm_leaves_of_channels_that_go_may_be_summed_over(norm):
    """The scale and the bias go with the channel, so both factors of the product hold zeros there."""
    proto = net(
        "float[2,3,5] x",
        "float[8,3,1] w1, float[8,3,1] w2, float[8] s, float[8] t, float[8] m, float[8] v = {1, 2, 3, 4, 5, 6, 7, 8}, float[5,4] w3",
        f"a = Conv(x, w1) n = {norm} b = Conv(x, w2) e = Exp(b) c = Transpose<perm=[0,2,1]>(n) d = MatMul(c, e) y = MatMul(d, w3)",
        "float[2,5,4] y",
    )()
    assert {group.name for group in inspect(proto).prunable()} == {"w1[0]"}
    assert violation(proto, 0) == ""
