"""The checkers themselves: each kind of damage is caught, and noise hides nothing.

The first tensor that differs is named.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from nets.build import net
from onnx import helper, numpy_helper

from spa_onnx.analysis import analyse
from spa_onnx.errors import RefusedError, ValidationError
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model
from spa_onnx.plan.mask import mask
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import Rewritten, rewrite
from spa_onnx.synthetic.feeds import random_feed
from spa_onnx.validation.masked import TOLERANCE, difference
from spa_onnx.validation.validate import Verdict, validate

if TYPE_CHECKING:
    from collections.abc import Callable

three = net(
    "float[N,3,4,4] x",
    "float[8,3,1,1] w1, float[8] b1, float[8,8,1,1] w2, float[8] b2, float[4,8,1,1] w3, float[4] b3",
    "a = Conv(x, w1, b1) p = Relu(a) b = Conv(p, w2, b2) q = Relu(b) y = Conv(q, w3, b3)",
)


def pruned() -> tuple[Model, Rewritten]:
    proto = three()
    for node in proto.graph.node:
        node.name = f"make_{node.output[0]}"
    analysis = analyse(Model.of(proto))
    return analysis.model, rewrite(
        analysis, Plan.removing({"w1[0]": np.asarray([1, 4]), "w2[0]": np.asarray([0, 2, 7])}, "")
    )


def damaged(damage: Callable[[onnx.ModelProto], object]) -> tuple[Model, Rewritten]:
    model, rewritten = pruned()
    damage(rewritten.proto)
    return model, rewritten


def change(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    """Damage that changes the values of one initializer."""

    def damage(proto: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
        tensor.CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(function(np.array(numpy_helper.to_array(tensor)))), name)
        )

    return damage


def bumped(array: np.ndarray) -> np.ndarray:
    """One weight differs by a tenth of the largest."""
    array.flat[3] += 0.1 * np.abs(array).max()
    return array


def test_a_sound_result_passes_with_a_small_gap_and_no_notes():
    model, rewritten = pruned()
    verdict = validate(model, rewritten, {"N": 2})
    assert verdict.gap < 1e-5
    assert verdict.seeds >= 2
    assert verdict.notes == ()


@pytest.mark.parametrize(
    ("name", "function", "first"),
    [
        ("w1", bumped, "a"),
        ("b1", bumped, "a"),
        ("w2", bumped, "b"),
        ("w3", bumped, "y"),
        ("w1", lambda w: w[[1, 0, 2, 3, 4, 5]], "a"),
        ("w2", lambda w: w[:, [0, 1, 2, 3, 5, 4]], "b"),
        ("b2", lambda b: b[::-1], "b"),
        ("w3", np.zeros_like, "y"),
        ("w2", lambda w: w * np.float32(1.01), "b"),
        ("b2", lambda b: b * np.nan, "b"),
    ],
)
def test_wrong_values_are_caught_and_the_first_tensor_that_differs_is_named(name, function, first):
    model, rewritten = damaged(change(name, function))
    with pytest.raises(
        ValidationError, match=rf"pruned != masked: {first}, made by Conv 'make_{first}', differs first"
    ) as caught:
        validate(model, rewritten, {"N": 2})
    assert caught.value.exit_code == 3
    assert f"--exclude 'make_{first}'" in str(caught.value)


def test_the_channels_of_another_plan_are_caught():
    """The right shapes, but one channel was kept in the place of another."""
    model, rewritten = pruned()
    analysis = analyse(model)
    other = rewrite(analysis, Plan.removing({"w1[0]": np.asarray([1, 5]), "w2[0]": np.asarray([0, 2, 7])}, ""))
    with pytest.raises(ValidationError, match="pruned != masked: a,"):
        validate(model, replace(rewritten, proto=other.proto), {"N": 2})


def rename_output(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "z"


def rename_input(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = proto.graph.input[0].name = "image"


def change_input_type(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(0, helper.make_node("Cast", ["x"], ["x32"], to=1))
    proto.graph.node[1].input[0] = "x32"
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def fix_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def add_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("q", 1, ["N", 5, 4, 4]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename_output, r"graph outputs changed from \['y'\] to \['z'\]"),
        (rename_input, r"graph inputs changed from \['x'\] to \['image'\]"),
        (change_input_type, "graph inputs changed"),
        (fix_batch, "graph inputs changed"),
        (add_output, r"graph outputs changed from \['y'\] to \['y', 'q'\]"),
    ],
)
def test_a_changed_interface_is_caught(damage, message):
    model, rewritten = damaged(damage)
    with pytest.raises(ValidationError, match=message):
        validate(model, rewritten, {"N": 2})


def unsort(proto: onnx.ModelProto) -> None:
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[::-1])


def misfit_at_run_time(proto: onnx.ModelProto) -> None:
    """The checker of onnx cannot see it.

    A Reshape of the input, whose batch is not known, to a fixed shape that does not fit.
    """
    shape = helper.make_node("Constant", [], ["shape"], value=helper.make_tensor("shape", 7, [4], [5, 3, 4, 4]))
    proto.graph.node.insert(0, helper.make_node("Reshape", ["x", "shape"], ["r"]))
    proto.graph.node.insert(0, shape)
    proto.graph.node[2].input[0] = "r"


def unknown_operator(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("nowhere", 1))
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "Invented", "nowhere"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unsort, "onnx.checker rejects the pruned model: Nodes in a graph must be topologically sorted"),
        (change("w2", lambda w: w[:, :-1]), "the pruned model"),
        (misfit_at_run_time, "the pruned model does not run"),
        (unknown_operator, "onnxruntime cannot run the pruned model"),
        (
            lambda proto: proto.graph.initializer.remove(proto.graph.initializer[0]),
            "onnx.checker rejects the pruned model",
        ),
    ],
)
def test_a_model_that_is_not_valid_or_does_not_run_is_caught(damage, message):
    model, rewritten = damaged(damage)
    with pytest.raises(ValidationError, match=message) as caught:
        validate(model, rewritten, {"N": 2})
    assert "\n" not in str(caught.value)


def test_a_comparison_without_inputs_on_which_the_original_runs_is_no_comparison(monkeypatch):
    model, rewritten = pruned()
    monkeypatch.setattr(
        "spa_onnx.validation.validate.random_feed", lambda *_: {"x": np.zeros((2, 5, 4, 4), np.float32)}
    )
    with pytest.raises(ValidationError, match="the original runs on none of"):
        validate(model, rewritten, {"N": 2})


def test_what_the_checker_holds_against_the_original_already_is_only_a_note():
    model, rewritten = pruned()
    for proto in (model.proto, rewritten.proto):
        proto.graph.node[1].attribute.append(helper.make_attribute("invented", 1))
    verdict = None
    try:
        verdict = validate(model, rewritten, {"N": 2})
    except ValidationError as error:  # an onnxruntime that rejects unknown attributes, which is its right
        assert "onnxruntime" in str(error)  # noqa: PT017
    assert verdict is None or any("rejects the original too" in note for note in verdict.notes)


# --- noise ----------------------------------------------------------------------------------------------------------


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
    assert validate(analysis.model, rewritten, {}).gap is not None


def test_the_tolerance_for_noise_does_not_hide_a_real_error():
    analysis = analyse(Model.of(near_cancellation()))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([1, 4])}, ""))
    change("w9", lambda w: w[:, ::-1] * 100)(rewritten.proto)
    with pytest.raises(ValidationError, match="pruned != masked"):
        validate(analysis.model, rewritten, {})


def test_a_difference_just_above_the_tolerance_is_caught_in_a_model_without_noise():
    model, rewritten = pruned()
    change("w3", lambda w: w * np.float32(1 + 0.5 * TOLERANCE["float32"]))(rewritten.proto)
    assert validate(model, rewritten, {"N": 2}).gap == pytest.approx(0.5 * TOLERANCE["float32"], rel=0.1)
    change("w3", lambda w: w * np.float32(1 + 2 * TOLERANCE["float32"]))(rewritten.proto)
    with pytest.raises(ValidationError, match="pruned != masked"):
        validate(model, rewritten, {"N": 2})


def test_without_comparison_the_verdict_says_so():
    model, rewritten = damaged(change("w1", bumped))
    verdict = validate(model, rewritten, {"N": 2}, repaired=True)
    assert verdict.gap is None
    assert "repaired" in verdict.notes[0]
    verdict = validate(model, replace(rewritten, inexact=("norm",)), {"N": 2})
    assert verdict.gap is None
    assert "1 node" in verdict.notes[0]


def test_a_model_that_returns_only_classes_is_compared_too():
    proto = net(
        "float[N,3,4,4] x",
        "float[8,3,1,1] w1, float[5,8,1,1] w2",
        "a = Conv(x, w1) p = Relu(a) b = Conv(p, w2) y = ArgMax<axis=1>(b)",
    )()
    analysis = analyse(Model.of(proto))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([1, 4])}, ""))
    validate(analysis.model, rewritten, {"N": 2})
    change("w2", lambda w: -w)(rewritten.proto)
    with pytest.raises(ValidationError, match="pruned != masked: b,"):
        validate(analysis.model, rewritten, {"N": 2})


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
    verdict = validate(model, rewritten, {})
    assert verdict.gap > TOLERANCE["float32"]
    assert any("float64" in note for note in verdict.notes)


def test_what_parts_in_float64_too_is_a_fault(rounded):
    model, rewritten = rounded
    change("w9", bumped)(rewritten.proto)
    with pytest.raises(ValidationError, match="pruned != masked"):
        validate(model, rewritten, {})


def test_what_cannot_be_computed_in_float64_is_a_fault(rounded, monkeypatch):
    def refuse(*_, **__):
        raise RefusedError("no")

    monkeypatch.setattr("spa_onnx.execution.float64.Float64.open", refuse)
    with pytest.raises(ValidationError, match="pruned != masked"):
        validate(*rounded, {})


# --- difference -----------------------------------------------------------------------------------------------------

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


# --- masking --------------------------------------------------------------------------------------------------------


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
    assert validate(analysis.model, rewritten, {}).gap < 1e-5


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
        validate(analysis.model, rewritten, {})


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
    assert validate(analysis.model, rewritten, {}).gap < 1e-5
    change("w9", bumped)(rewritten.proto)
    with pytest.raises(ValidationError, match="pruned != masked"):
        validate(analysis.model, rewritten, {})


def test_before_ir_4_the_masked_model_lists_what_nothing_reads_any_more():
    proto = net(
        "float[2,3,4,4] x", "float[8,3,1,1] w1, float[4,8,1,1] w9", "a = Conv(x, w1) y = Conv(a, w9)", ir=3, opset=8
    )()
    del proto.graph.input[1:]
    analysis = analyse(Model.of(proto))
    rewritten = rewrite(analysis, Plan.removing({"w1[0]": np.asarray([0, 3])}, ""))
    assert validate(analysis.model, rewritten, {}).gap < 1e-5


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
    assert validate(analysis.model, rewritten, {}).gap < 1e-5


# --- what cannot be compared ----------------------------------------------------------------------------------------


def verdict_of(nodes: str, outputs: str = "float[N,4,4,4] y") -> Verdict:
    """Validation of a plan for a net whose channels `p` are cut."""
    analysis = analyse(Model.of(net("float[N,3,4,4] x", "float[8,3,1,1] w1, float[4,8,1,1] w2", nodes, outputs)()))
    return validate(
        analysis.model,
        rewrite(analysis, Plan.removing({"w1[0]": np.asarray([1, 4])}, "")),
        analysis.model.inference.dims,
    )


def test_outputs_that_are_not_numbers_anywhere_are_not_said_to_agree():
    verdict = verdict_of("p = Conv(x, w1) q = Conv(p, w2) e = Exp(q) n = Neg(e) y = Log(n)")
    assert verdict.gap is None
    assert verdict.notes == ("y could not be compared: it holds no finite number on any random input",)


def test_one_output_that_is_not_a_number_leaves_the_others_compared():
    verdict = verdict_of(
        "p = Conv(x, w1) q = Conv(p, w2) y = Relu(q) e = Exp(q) n = Neg(e) z = Log(n)",
        "float[N,4,4,4] y, float[N,4,4,4] z",
    )
    assert verdict.gap is not None
    assert verdict.notes == ("z could not be compared: it holds no finite number on any random input",)


def test_an_output_with_some_numbers_is_compared():
    verdict = verdict_of("p = Conv(x, w1) q = Conv(p, w2) y = Log(q)")
    assert verdict.gap is not None
    assert verdict.notes == ()


def test_inputs_on_which_the_original_does_not_run_are_passed_over():
    """Numbers below 50 that index a table of 44, behind a subtraction."""
    proto = net(
        "int64[2,3] ids",
        "float[44,8] w1, float[8,4] w2, int64 none = {0}",
        "i = Sub(ids, none) e = Gather(w1, i) r = Relu(e) y = MatMul(r, w2)",
    )()
    analysis = analyse(Model.of(proto))
    rewritten = rewrite(analysis, Plan.removing({"w1[1]": np.asarray([1, 4])}, ""))
    assert {runs(analysis.model, seed) for seed in range(4)} == {True, False}
    assert validate(analysis.model, rewritten, {}).gap < 1e-5


def runs(model: Model, seed: int) -> bool:
    try:
        open_session(model.proto).run(random_feed(model, {}, seed))
    except RefusedError:
        return False
    return True
