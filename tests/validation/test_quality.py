"""Figures that say what they were measured on: held-out samples, outputs that do not saturate, answers and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from nets.build import Build, net

import spa_onnx
from spa_onnx.analysis import analyse
from spa_onnx.errors import GateError, RefusedError, ValidationError
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.synthetic.working import WorkingInputs
from spa_onnx.validation.compare import check_gates, compare
from spa_onnx.validation.compared import Compared, Kind, compared_outputs, with_outputs
from spa_onnx.validation.drift import Evaluated, drift
from spa_onnx.validation.validate import validate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MLP = "a = Gemm(x, w1) b = Relu(a) c = Gemm(b, w2, b2) "
WEIGHTS = "float[16,64] w1, float[64,8] w2, float[8] b2"


def ending(nodes: str, outputs: str = "float[N,8] y", weights: str = WEIGHTS) -> Build:
    """A perceptron whose last nodes make y of c."""
    return net("float[N,16] x", weights, MLP + nodes, outputs)


SATURATED = {
    "probabilities of 0 and 1": ending("d = Mul(c, far) y = Softmax(d)", weights=WEIGHTS + ", float far = {1e4}"),
    "gates of 0 and 1": ending("d = Mul(c, far) y = Sigmoid(d)", weights=WEIGHTS + ", float far = {1e4}"),
    "clipped values": ending("y = Clip(c, low, high)", weights=WEIGHTS + ", float low = {-1e-6}, float high = {1e-6}"),
    "truth values": ending("y = Greater(c, b2)", "bool[N,8] y"),
    "classes": ending("y = ArgMax<axis=1, keepdims=0>(c)", "int64[N] y"),
}


def fed(build: Build, samples: int = 200) -> dict[str, np.ndarray]:
    """Samples for a net with the input x."""
    sizes = [dim.dim_value for dim in build().graph.input[0].type.tensor_type.shape.dim][1:]
    return {"x": np.random.default_rng(0).standard_normal((samples, *sizes)).astype(np.float32)}


def cut(build: Build, ratio: float = 0.5, **options: object):
    """What l1 without repair leaves of a net."""
    return spa_onnx.prune(build(), ratio, criterion="l1", repair="none", **options)


@pytest.mark.parametrize("build", SATURATED.values(), ids=SATURATED)
def test_what_was_lost_shows_where_outputs_are_saturated(build):
    found = cut(build, 0.9, data=fed(build)).report.drift
    assert found.error > 0.1


@pytest.mark.parametrize("build", SATURATED.values(), ids=SATURATED)
def test_a_wrong_cut_is_found_where_outputs_are_saturated(build):
    analysis = analyse(Model.of(build()))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.arange(0, 64, 2)}, ""))
    assert validate(analysis.model, rewritten, WorkingInputs({"N": 2})).gap < 1e-5
    weight = next(tensor for tensor in rewritten.proto.graph.initializer if tensor.name == "w2")
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * np.float32(1.01)).tobytes()
    with pytest.raises(ValidationError, match="pruned != masked"):
        validate(analysis.model, rewritten, WorkingInputs({"N": 2}))


KINDS = {
    "logits": (ending("y = Identity(c)"), Kind.SCORES),
    "probabilities": (ending("y = Softmax(c)"), Kind.SCORES),
    "classes": (SATURATED["classes"], Kind.CLASSES),
    "actions": (ending("y = Tanh(c)"), Kind.NUMBERS),
    "several labels": (ending("y = Sigmoid(c)"), Kind.NUMBERS),
    "one number": (
        net("float[N,16] x", "float[16,64] w1, float[64,1] w2", "a = Gemm(x, w1) b = Relu(a) y = Gemm(b, w2)"),
        Kind.NUMBERS,
    ),
    "landmarks": (net("float[N,16] x", WEIGHTS, MLP + "landmarks = Identity(c)", "float[N,8] landmarks"), Kind.NUMBERS),
    "an image": (
        net("float[N,3,8,8] x", "float[8,3,1,1] w1, float[3,8,1,1] w2", "a = Conv(x, w1) b = Relu(a) y = Conv(b, w2)"),
        Kind.NUMBERS,
    ),
    "tokens": (
        net(
            "int64[N,L] ids",
            "float[20,8] t, float[8,16] w, float[16,20] v",
            "a = Gather(t, ids) b = MatMul(a, w) c = Relu(b) y = MatMul(c, v)",
        ),
        Kind.SCORES,
    ),
}


@pytest.mark.parametrize(("build", "kind"), KINDS.values(), ids=KINDS)
def test_what_an_output_holds_decides_how_it_is_compared(build, kind):
    proto = build()
    (compared,) = compared_outputs(Model.of(proto), proto)
    assert compared.kind is kind
    found = cut(build, data=None if "ids" in proto.graph.input[0].name else fed(build)).report.drift
    assert (found.agreement is None) == (kind is Kind.NUMBERS)
    assert np.isfinite(found.error)


def test_classes_are_not_subtracted():
    """Equal answers are counted; the error is that of the logits, and not of the numbers of classes."""
    proto, x = SATURATED["classes"](), fed(SATURATED["classes"])
    result = spa_onnx.prune(proto, 0.3, criterion="l1", repair="none", data=x)
    before, after = (open_session(with_outputs(model, ["c"])).run(x) for model in (proto, result.model))
    found = result.report.drift
    assert found.error == pytest.approx(np.linalg.norm(before[1] - after[1]) / np.linalg.norm(before[1]), rel=1e-4)
    assert found.agreement == pytest.approx((before[0] == after[0]).mean())


BACKBONE = "float[8,3,3,3] w1, float[6,8,1,1] w2, int64[2] flat = {6, -1}"
DETECTED = (
    "a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv(b, w2) d = Reshape(c, flat) t = Transpose<perm=[1,0]>(d) "
)
DETECTORS = {
    "NonZero": net(
        "float[1,3,8,8] x",
        BACKBONE + ", int64 four = {4}, float nil = {0}",
        DETECTED + "s = Gather<axis=1>(t, four) h = Greater(s, nil) f = Cast<to=1>(h) n = NonZero(f) "
        "r = Transpose<perm=[1,0]>(n) y = GatherND(t, r)",
        "float[found,6] y",
    ),
    "Compress": net(
        "float[1,3,8,8] x",
        BACKBONE + ", int64 four = {4}, float nil = {0}",
        DETECTED + "s = Gather<axis=1>(t, four) h = Greater(s, nil) y = Compress<axis=0>(t, h)",
        "float[found,6] y",
    ),
    "NonMaxSuppression": net(
        "float[1,3,8,8] x",
        BACKBONE + ", int64[4] starts = {0, 0, 0, 0}, int64[1] zero = {0}, int64[1] four = {4}, int64[1] five = {5}, "
        "int64[1] one = {1}, int64 most = {9}, float over = {0.5}, int64[1] batch = {0}",
        DETECTED + "b4 = Slice(t, zero, four, one) boxes = Unsqueeze(b4, batch) s1 = Slice(d, four, five, zero) "
        "scores = Unsqueeze(s1, batch) y = NonMaxSuppression(boxes, scores, most, over)",
        "int64[found,3] y",
    ),
}


@pytest.mark.parametrize("given", [False, True], ids=["made up", "given"])
@pytest.mark.parametrize("build", DETECTORS.values(), ids=DETECTORS)
def test_detectors_with_any_number_of_rows_are_cut_and_compared(build, given):
    result = cut(build, data=fed(build, 20) if given else None)
    assert result.report.params[1] < 0.65 * result.report.params[0]
    assert result.report.validation.gap is not None
    assert result.report.drift.error > 0


def test_quality_is_measured_on_samples_that_nothing_was_fitted_to():
    build = KINDS["logits"][0]
    report = spa_onnx.prune(build(), 0.5, data=fed(build, 500)).report
    assert (report.drift.samples, report.drift.measured_on) == (244, "held-out")
    assert "256 given samples" in report.repair
    report = spa_onnx.prune(build(), 0.5, data=fed(build, 40)).report
    assert (report.drift.samples, report.drift.measured_on) == (20, "held-out")
    assert cut(build, data=fed(build, 40)).report.drift.samples == 40  # nothing was fitted


def test_test_data_are_measured_on_and_all_data_fitted_to():
    build = KINDS["logits"][0]
    report = spa_onnx.prune(build(), 0.5, data=fed(build, 40), test_data=fed(build, 33)).report
    assert (report.drift.samples, report.drift.measured_on) == (33, "held-out")
    assert "40 given samples" in report.repair


def test_one_sample_says_nothing():
    build = KINDS["logits"][0]
    report = spa_onnx.prune(build(), 0.5, data=fed(build, 1)).report
    assert report.drift is None
    assert "one sample" in report.unknown
    assert any("too few" in note for note in report.notes)


def test_few_and_alike_samples_are_said():
    build = KINDS["logits"][0]
    assert any("few" in note for note in cut(build, data=fed(build, 5)).report.drift.notes)
    alike = {"x": np.repeat(fed(build, 1)["x"], 50, axis=0)}
    assert any("alike" in note for note in cut(build, data=alike).report.drift.notes)
    assert cut(build, data=fed(build)).report.drift.notes == ()


def test_without_data_the_figure_is_on_synthetic_samples():
    assert cut(KINDS["logits"][0]).report.drift.measured_on == "synthetic"


def test_a_result_near_chance_has_collapsed():
    build = ending("y = Identity(c)")
    assert "chance" in cut(build, 0.97, data=fed(build)).report.drift.collapsed
    assert cut(build, 0.1, data=fed(build)).report.drift.collapsed == ""


class Answers:
    """A session that returns what it is given as x, after a change."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self._change = change

    def run(self, feed: dict[str, np.ndarray], names: Sequence[str], *, release: bool) -> list[np.ndarray]:
        assert release
        return [self._change(feed["x"]) for _ in names]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (np.ones_like, "same output"),
        (lambda x: np.where(x > 0, np.nan, x), "not finite"),
        (lambda x: x[:, ::-1], "chance"),
        (lambda x: x * 1.1, ""),
    ],
    ids=["constant", "not a number", "other answers", "larger"],
)
def test_why_a_result_has_collapsed_is_said(change, why):
    samples = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    pair = Answers(lambda x: x), Answers(change)
    found = drift(*pair, (Compared("y", "y", Kind.SCORES),), Evaluated([{"x": samples}])).collapsed
    assert why in found
    assert bool(found) == bool(why)


def test_labels_that_the_original_does_not_know_pass_no_gate(tmp_path):
    build = KINDS["logits"][0]
    for name, proto in (("old", build()), ("new", cut(build, 0.2).model)):
        (tmp_path / f"{name}.onnx").write_bytes(proto.SerializeToString())
    data = fed(build) | {"y": np.random.default_rng(1).integers(0, 8, 200)}
    comparison = compare(tmp_path / "old.onnx", tmp_path / "new.onnx", data=data)
    assert any("near chance" in note for note in comparison.drift.notes)
    with pytest.raises(GateError, match="near chance"):
        check_gates(comparison, {"max_accuracy_drop": 50.0})


def test_agreement_without_data_passes_no_gate(tmp_path):
    build = KINDS["logits"][0]
    for name, proto in (("old", build()), ("new", build())):
        (tmp_path / f"{name}.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(GateError, match="--data"):
        check_gates(compare(tmp_path / "old.onnx", tmp_path / "new.onnx"), {"min_agreement": 0.5})


def test_a_model_that_the_given_samples_do_not_fit_is_refused():
    build = KINDS["tokens"][0]
    with pytest.raises(RefusedError, match="onnxruntime cannot run"):
        cut(build, data={"ids": np.full((4, 3), 99)})
