"""The masked model that the pruned one is compared with."""

from __future__ import annotations

import numpy as np
import pytest
from damaged import bumped, change, pruned
from nets.build import net

import spa_onnx
from spa_onnx.analysis import analyse
from spa_onnx.errors import ValidationError
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model
from spa_onnx.plan.mask import mask
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.synthetic.feeds import random_feed
from spa_onnx.synthetic.working import WorkingInputs
from spa_onnx.validation.validate import validate


def test_the_masked_model_is_the_original_with_zeros_and_nothing_else():
    model, rewritten = pruned()
    before = model.proto.SerializeToString()
    masked = mask(model, rewritten.removal)
    assert model.proto.SerializeToString() == before
    after = Model.of(masked)
    for node, twin in zip(model.nodes, after.nodes, strict=True):
        assert (node.name, node.op, node.outputs) == (twin.name, twin.op, twin.outputs)
        for old, new in zip(node.inputs, twin.inputs, strict=True):
            if model.is_constant(old):
                first, second = model.constant(old), after.constant(new)
                assert first.shape == second.shape
                assert set(np.unique(first - second)[np.unique(first - second) != 0]) <= set(np.unique(first))
    assert np.count_nonzero(after.constant(after.nodes[0].inputs[1])[[1, 4]]) == 0
    assert np.count_nonzero(after.constant(after.nodes[2].inputs[1])[:, [1, 4]]) == 0


def test_a_constant_divisor_behind_other_nodes_is_not_masked():
    """It would turn the removed channels of the masked model into 0 / 0."""
    proto = net(
        "float[2,3,4,4] x",
        "float[8,3,1,1] w1, float[8,1,1] scale_d, float[4,8,1,1] w9",
        "a = Conv(x, w1) i = Identity(scale_d) r = Sqrt(i) d = Div(a, r) y = Conv(d, w9)",
    )()
    analysis = analyse(Model.of(proto))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([0, 3])}, ""))
    (masked,) = open_session(mask(analysis.model, rewritten.removal)).run({"x": np.ones((2, 3, 4, 4), np.float32)})
    assert np.isfinite(masked).all()
    assert validate(analysis.model, rewritten, WorkingInputs()).gap < 1e-5


def test_a_size_is_never_where_the_models_part():
    """It differs from that of the masked model wherever channels are gone."""
    proto = net(
        "float[2,3,4,4] x",
        "float[8,3,1,1] w1, float[4,8,1,1] w9",
        "a = Conv(x, w1) s = Shape(a) r = Reshape(a, s) y = Conv(r, w9)",
    )()
    analysis = analyse(Model.of(proto))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([0, 3])}, ""))
    change("w9", bumped)(rewritten.proto)
    with pytest.raises(ValidationError, match="pruned != masked: y, made by Conv"):
        validate(analysis.model, rewritten, WorkingInputs())


@pytest.mark.parametrize("operator", ["Log", "Reciprocal"])
def test_an_operator_that_zero_is_not_for_is_held_against_masked_readers(operator):
    """The logarithm of a masked channel is infinite, and so is a product of it with a weight of zero.

    No channel that stays reads it.
    """
    proto = net(
        "float[2,3,4,4] x",
        "float[8,3,1,1] scale_1, float[4,8,1,1] w9",
        f"p = Abs(x) a = Conv(p, scale_1) l = {operator}(a) y = Conv(l, w9)",
    )()
    analysis = analyse(Model.of(proto))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([0, 3])}, ""))
    feed = random_feed(analysis.model, {}, 0)
    assert not np.isfinite(open_session(mask(analysis.model, rewritten.removal)).run(feed)[0]).all()
    assert validate(analysis.model, rewritten, WorkingInputs()).gap < 1e-5
    change("w9", bumped)(rewritten.proto)
    with pytest.raises(ValidationError, match="pruned != masked"):
        validate(analysis.model, rewritten, WorkingInputs())


def test_before_ir_4_the_masked_model_lists_what_nothing_reads_any_more():
    proto = net(
        "float[2,3,4,4] x", "float[8,3,1,1] w1, float[4,8,1,1] w9", "a = Conv(x, w1) y = Conv(a, w9)", ir=3, opset=8
    )()
    del proto.graph.input[1:]
    analysis = analyse(Model.of(proto))
    rewritten = rewrite(analysis, Plan.removing({"w1[0]": np.asarray([0, 3])}, ""))
    assert validate(analysis.model, rewritten, WorkingInputs()).gap < 1e-5


def test_the_indices_of_a_gather_are_not_masked():
    """Index 0 instead of the removed one would copy a channel that stays.

    A product of two activations would count it.
    """
    proto = net(
        "float[2,3,4,4] x",
        "float[4,3,1,1] w1, float[16,5] w9, int64[3] order = {2, 0, 3}, int64[3] flat = {0, 3, 16}",
        """a = Conv(x, w1) g = Gather<axis=1>(a, order) r = Reshape(g, flat) p = Relu(r) t = Transpose<perm=[0,2,1]>(p)
           m = MatMul(t, p) y = MatMul(m, w9)""",
    )()
    analysis = analyse(Model.of(proto))
    (group,) = analysis.prunable()[:1]
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([1])}, ""))
    assert validate(analysis.model, rewritten, WorkingInputs()).gap < 1e-5


def test_sums_stay_masked_where_another_channel_has_no_value_at_zero():
    """The rows are summed up, which takes zeros; the logarithm of a column of zeros is not finite."""
    proto = net(
        "float[5,6] x",
        "float[6,16] w1, float[12,5] w0, float[16,3] w9, int64[1] rows = {0}",
        "p = Abs(x) a = MatMul(w0, p) b = Relu(a) c = MatMul(b, w1) d = Abs(c) s = ReduceSum<keepdims=0>(d, rows) "
        "l = Log(s) y = MatMul(l, w9)",
        "float[3] y",
    )()
    report = spa_onnx.prune(proto, 0.5, criterion="l1", repair="none").report
    assert {name for name, *_ in report.groups} == {"w0[0]", "w1[1]"}
    assert report.validation.gap < 1e-5
