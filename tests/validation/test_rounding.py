"""Rounding: what it explains is tolerated, and it hides no fault."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from damaged import bumped, change, pruned
from nets.build import net
from onnx import numpy_helper

from spa_onnx.analysis import analyse
from spa_onnx.errors import RefusedError, ValidationError
from spa_onnx.model.model import Model
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import Rewritten, rewrite
from spa_onnx.synthetic.working import WorkingInputs
from spa_onnx.validation.masked import TOLERANCE, difference
from spa_onnx.validation.validate import validate

cancelling = net(
    "float[2,3,4,4] x",
    "float[8,3,1,1] w1, float[8,3,1,1] w2, float[4,8,1,1] w9",
    "a = Conv(x, w1) b = Conv(x, w2) s = Sub(a, b) t = Mul(s, s) y = Conv(t, w9)",
)


def near_cancellation() -> onnx.ModelProto:
    """Two branches that all but cancel, so that rounding is a large part of the output."""
    proto = cancelling()
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    near = numpy_helper.to_array(weights["w1"]) * np.float32(1 + 3e-7)
    weights["w2"].CopyFrom(numpy_helper.from_array(near, "w2"))
    return proto


def test_rounding_that_the_masked_model_shows_too_is_tolerated():
    analysis = analyse(Model.of(near_cancellation()))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([1, 4])}, ""))
    assert validate(analysis.model, rewritten, WorkingInputs()).gap is not None


def test_the_tolerance_for_noise_does_not_hide_a_real_error():
    analysis = analyse(Model.of(near_cancellation()))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([1, 4])}, ""))
    change("w9", lambda w: w[:, ::-1] * 100)(rewritten.proto)
    with pytest.raises(ValidationError, match="pruned != masked"):
        validate(analysis.model, rewritten, WorkingInputs())


def test_a_difference_just_above_the_tolerance_is_caught_in_a_model_without_noise():
    model, rewritten = pruned()
    change("w3", lambda w: w * np.float32(1 + 0.5 * TOLERANCE["float32"]))(rewritten.proto)
    assert validate(model, rewritten, WorkingInputs({"N": 2})).gap == pytest.approx(0.5 * TOLERANCE["float32"], rel=0.1)
    change("w3", lambda w: w * np.float32(1 + 2 * TOLERANCE["float32"]))(rewritten.proto)
    with pytest.raises(ValidationError, match="pruned != masked"):
        validate(model, rewritten, WorkingInputs({"N": 2}))


def mostly_rounding() -> onnx.ModelProto:
    """What is left when a sum, added up in halves, is subtracted from itself.

    In float32 only the last bit decides it.
    """
    proto = net(
        "float[1,3,4,4] x",
        "float[64,3,1,1] w1, float[4,64,1,1] w9, float[4,32,1,1] left, float[4,32,1,1] right, float large",
        "a = Conv(x, w1) p = Relu(a) s = Conv(p, w9) u, v = Split<axis=1>(p) l = Conv(u, left) r = Conv(v, right) "
        "t = Add(l, r) d = Sub(s, t) e = Mul(d, large) f = Round(e) y = Add(f, s)",
    )()
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    whole = numpy_helper.to_array(weights["w9"])
    for name, array in {"left": whole[:, :32], "right": whole[:, 32:], "large": np.asarray(1e7, np.float32)}.items():
        weights[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return proto


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> tuple[Model, Rewritten]:
    """With channels in reverse order the pruned model is the same but for rounding, for which there is no allowance."""
    monkeypatch.setattr("spa_onnx.validation.masked.NOISE_FACTOR", 0.0)
    analysis = analyse(Model.of(mostly_rounding()))
    rewritten = rewrite(analysis, Plan.removing({group.name: np.arange(0, 20, 2) for group in analysis.prunable()}, ""))
    old = {tensor.name: numpy_helper.to_array(tensor) for tensor in rewritten.proto.graph.initializer}
    new = {
        "w1": old["w1"][::-1],
        "w9": old["w9"][:, ::-1],
        "left": old["right"][:, ::-1],
        "right": old["left"][:, ::-1],
    }
    for name, array in new.items():
        change(name, lambda _, array=array: array)(rewritten.proto)
    return analysis.model, rewritten


def test_what_parts_in_float32_alone_is_no_fault(rounded):
    model, rewritten = rounded
    verdict = validate(model, rewritten, WorkingInputs())
    assert verdict.gap > TOLERANCE["float32"]
    assert any("float64" in note for note in verdict.notes)


def test_what_parts_in_float64_too_is_a_fault(rounded):
    model, rewritten = rounded
    change("w9", bumped)(rewritten.proto)
    with pytest.raises(ValidationError, match="pruned != masked"):
        validate(model, rewritten, WorkingInputs())


def test_what_cannot_be_computed_in_float64_is_a_fault(rounded, monkeypatch):
    def refuse(*_, **__):
        raise RefusedError("no")

    monkeypatch.setattr("spa_onnx.execution.float64.Float64.open", refuse)
    with pytest.raises(ValidationError, match="pruned != masked"):
        validate(*rounded, WorkingInputs())


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("want", "got", "expected"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], 0.0),
        ([1.0, 2.0, 4.0], [1.0, 2.5, 4.0], 0.125),
        ([1.0, -4.0], [3.0, -4.0], 0.5),
        ([0.0, 0.0], [0.0, 0.25], 0.25),
        ([1.0, NAN], [1.0, NAN], 0.0),
        ([1.0, NAN], [1.5, NAN], 0.5),
        ([1.0, 2.0], [1.0, NAN], INF),
        ([1.0, NAN], [1.0, 2.0], INF),
        ([1.0, 2.0], [1.0, INF], INF),
        ([1.0, INF], [1.0, INF], 0.0),
        ([1.0, INF], [1.0, -INF], INF),
        ([1.0, INF], [1.0, NAN], INF),
        ([NAN, NAN], [NAN, NAN], 0.0),
        ([1.0, 2.0], [1.0], INF),
        ([[1.0, 2.0]], [1.0, 2.0], INF),
        ([], [], 0.0),
    ],
)
def test_difference_is_relative_and_infinite_where_infinities_or_shapes_differ(want, got, expected):
    assert difference(np.asarray(want, np.float32), np.asarray(got, np.float32)) == pytest.approx(expected)


@pytest.mark.parametrize(("dtype", "expected"), [(np.int64, 0.5), (np.uint8, 0.5), (bool, 0.0), (np.float16, 0.5)])
def test_difference_works_in_every_type_without_wrapping_around(dtype, expected):
    assert difference(np.asarray([2, 1]).astype(dtype), np.asarray([1, 1]).astype(dtype)) == pytest.approx(expected)
    assert difference(np.asarray([200, 0], np.uint8), np.asarray([0, 200], np.uint8)) == 1.0
