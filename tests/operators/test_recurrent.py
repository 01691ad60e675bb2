"""Recurrent layers: what holds their hidden units, and the layout that onnxruntime cannot run."""

import numpy as np
import onnx
import pytest
from nets import NETS
from nets.build import net
from onnx.reference import ReferenceEvaluator
from packaging.version import Version

from spa_onnx.analysis import analyse
from spa_onnx.model.facts import Axis, Normalises
from spa_onnx.model.model import Model
from spa_onnx.operators import facts
from spa_onnx.plan.mask import mask
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.synthetic.feeds import random_feed

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def pinned(name):
    return {group.name: group.pinned for group in analyse(Model.of(NETS[name]())).pinned()}


def test_a_state_that_is_a_graph_input_holds_the_hidden_units_with_that_reason():
    assert pinned("lstm_state_outside")["wi[1]"] == "graph input: h0"


def test_a_state_that_is_a_graph_output_holds_the_hidden_units_with_that_reason():
    build = net(
        "float[5,2,3] x",
        "float[1,12,3] w, float[1,12,4] r, int64[1] one = {1}, float[4,2] w9",
        "h, last = GRU<hidden_size=4>(x, w, r) z = Squeeze(h, one) y = MatMul(z, w9)",
        outputs="y, last",
    )
    reasons = {group.name: group.pinned for group in analyse(Model.of(build())).pinned()}
    assert reasons["w[1]"] == "graph output: last"


def test_the_two_directions_are_no_channels_and_are_not_reported_as_pinned():
    assert set(pinned("lstm_both_directions")) == {"w1[0]", "w9[1]"}


@pytest.mark.parametrize(("state", "scaled"), [("Sin", False), ("Cos", True)])
def test_a_quantised_layer_takes_its_scale_from_hidden_units_that_do_not_start_at_zero(state, scaled):
    proto = net(
        "float[5,2,3] x, float[1,2,3] u",
        "int8[1,3,32] wi, int8[1,8,32] wr, float[1,64] b, float[1] s1 = {0.01}, int8[1] z1 = {0}, float[3,8] wu, "
        "float[1,2,8] c0",
        f"m = MatMul(u, wu) h0 = {state}(m) "
        "y = com.microsoft.DynamicQuantizeLSTM<hidden_size=8>(x, wi, wr, b, , h0, c0, , s1, z1, s1, z1)",
        outputs="float[5,1,2,8] y",
        domains=', "com.microsoft": 1',
    )()
    model = Model.of(proto)
    node = next(node for node in model.nodes if node.op.endswith("DynamicQuantizeLSTM"))
    assert any(isinstance(fact, Normalises) and fact.axis == Axis("wr", 1) for fact in facts(node, model)) is scaled


@pytest.mark.skipif(
    Version(onnx.__version__) < Version("1.23"),
    reason="onnx's reference implementation of layout=1 is wrong before 1.23",
)
@pytest.mark.parametrize("operator", GATES)
def test_with_the_batch_in_front_removing_units_equals_zeroing_them(operator):
    rows = GATES[operator] * 8
    proto = net(
        "float[2,5,3] x",
        f"float[3,6] w1, float[1,{rows},6] wi, float[1,{rows},8] wr, float[1,{2 * rows}] b, float[2,1,8] h0, "
        f"int64[1] two = {{2}}, "
        "int64[1] one = {1}, float[8,4] w8, float[8,4] w9",
        f"a = MatMul(x, w1) h, last = {operator}<hidden_size=8, layout=1>(a, wi, wr, b, , h0) s = Squeeze(h, two) "
        f"u = MatMul(s, w8) "
        "t = Squeeze(last, one) y = MatMul(t, w9)",
        outputs="float[2,5,4] u, float[2,4] y",
    )()
    analysis = analyse(Model.of(proto))
    drop = {group.name: np.arange(group.size)[1::3] for group in analysis.prunable()}
    assert sorted(len(gone) for gone in drop.values()) == [2, 3]
    cut = rewrite(analysis, Plan.removing(drop, ""))
    feed = random_feed(analysis.model, analysis.model.inference.dims, 0)
    want, got = (ReferenceEvaluator(model).run(None, feed) for model in (mask(analysis.model, cut.removal), cut.proto))
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
