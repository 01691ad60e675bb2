"""The checkers themselves: each kind of damage is caught, and noise hides nothing.

The first tensor that differs is named.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from damaged import bumped, change, pruned
from nets.build import net
from onnx import helper

from spa_onnx.analysis import analyse
from spa_onnx.errors import RefusedError, ValidationError
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import Rewritten, rewrite
from spa_onnx.synthetic.feeds import random_feed
from spa_onnx.synthetic.working import WorkingInputs
from spa_onnx.validation.validate import Verdict, validate

if TYPE_CHECKING:
    from collections.abc import Callable


def damaged(damage: Callable[[onnx.ModelProto], object]) -> tuple[Model, Rewritten]:
    model, rewritten = pruned()
    damage(rewritten.proto)
    return model, rewritten


def test_a_sound_result_passes_with_a_small_gap_and_no_notes():
    model, rewritten = pruned()
    verdict = validate(model, rewritten, WorkingInputs({"N": 2}))
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
        validate(model, rewritten, WorkingInputs({"N": 2}))
    assert caught.value.exit_code == 3
    assert f"--exclude 'make_{first}'" in str(caught.value)


def test_the_channels_of_another_plan_are_caught():
    """The right shapes, but one channel was kept in the place of another."""
    model, rewritten = pruned()
    analysis = analyse(model)
    other = rewrite(analysis, Plan.removing({"w1[0]": np.asarray([1, 5]), "w2[0]": np.asarray([0, 2, 7])}, ""))
    with pytest.raises(ValidationError, match="pruned != masked: a,"):
        validate(model, replace(rewritten, proto=other.proto), WorkingInputs({"N": 2}))


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
        validate(model, rewritten, WorkingInputs({"N": 2}))


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
        validate(model, rewritten, WorkingInputs({"N": 2}))
    assert "\n" not in str(caught.value)


def test_a_comparison_without_inputs_on_which_the_original_runs_is_no_comparison(monkeypatch):
    model, rewritten = pruned()
    monkeypatch.setattr("spa_onnx.synthetic.working.random_feed", lambda *_: {"x": np.zeros((2, 5, 4, 4), np.float32)})
    with pytest.raises(ValidationError, match="the original runs on none of"):
        validate(model, rewritten, WorkingInputs({"N": 2}))


def test_what_the_checker_holds_against_the_original_already_is_only_a_note():
    model, rewritten = pruned()
    for proto in (model.proto, rewritten.proto):
        proto.graph.node[1].attribute.append(helper.make_attribute("invented", 1))
    verdict = None
    try:
        verdict = validate(model, rewritten, WorkingInputs({"N": 2}))
    except ValidationError as error:  # an onnxruntime that rejects unknown attributes, which is its right
        assert "onnxruntime" in str(error)  # noqa: PT017
    assert verdict is None or any("rejects the original too" in note for note in verdict.notes)


def test_without_comparison_the_verdict_says_so():
    model, rewritten = damaged(change("w1", bumped))
    verdict = validate(model, rewritten, WorkingInputs({"N": 2}), repaired=True)
    assert verdict.gap is None
    assert "repaired" in verdict.notes[0]
    verdict = validate(model, replace(rewritten, inexact=("norm",)), WorkingInputs({"N": 2}))
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
    validate(analysis.model, rewritten, WorkingInputs({"N": 2}))
    change("w2", lambda w: -w)(rewritten.proto)
    with pytest.raises(ValidationError, match="pruned != masked: b,"):
        validate(analysis.model, rewritten, WorkingInputs({"N": 2}))


def verdict_of(nodes: str, outputs: str = "float[N,4,4,4] y") -> Verdict:
    """Validation of a plan for a net whose channels `p` are cut."""
    analysis = analyse(Model.of(net("float[N,3,4,4] x", "float[8,3,1,1] w1, float[4,8,1,1] w2", nodes, outputs)()))
    return validate(
        analysis.model,
        rewrite(analysis, Plan.removing({"w1[0]": np.asarray([1, 4])}, "")),
        WorkingInputs(analysis.model.inference.dims),
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
    """Numbers below 50 that index a table of 44, behind a product."""
    proto = net(
        "int64[2,3] ids",
        "float[44,8] w1, float[8,4] w2, int64 one = {1}",
        "i = Mul(ids, one) e = Gather(w1, i) r = Relu(e) y = MatMul(r, w2)",
    )()
    analysis = analyse(Model.of(proto))
    rewritten = rewrite(analysis, Plan.removing({"w1[1]": np.asarray([1, 4])}, ""))
    assert {runs(analysis.model, seed) for seed in range(4)} == {True, False}
    assert validate(analysis.model, rewritten, WorkingInputs()).gap < 1e-5


def runs(model: Model, seed: int) -> bool:
    try:
        open_session(model.proto).run(random_feed(model, {}, seed))
    except RefusedError:
        return False
    return True
