"""Models that draw random numbers are compared with fixed numbers in their place."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from nets.build import image, net
from packaging.version import Version

import spa_onnx
from spa_onnx.execution.session import open_session
from spa_onnx.validation.noise import without_noise

IF = "g = ReduceMax<keepdims=0>(x) c = Greater(g, low) z = If(c) "
NOISE = {
    "normal": image("r = RandomNormalLike(a) s = Mul(r, strength) z = Add(a, s)", "float[8,1,1] strength"),
    "normal, before CastLike": image("r = RandomNormalLike(a) z = Add(a, r)", opset=14),
    "uniform": image("r = RandomUniformLike<low=0.5, high=1.5>(a) z = Mul(a, r) s = Relu(z)", ""),
    "of another type": image("r = RandomNormalLike<dtype=11>(a) c = Cast<to=1>(r) z = Add(a, c)"),
    "in the shape of booleans": image(
        "m = Greater(a, low) r = RandomNormalLike<dtype=1>(m) z = Mul(a, r)", "float low = {0}"
    ),
    "of a given shape": image("r = RandomNormal<shape=[2,8,1,1]>() z = Add(a, r)"),
    "uniform of a given shape": image("r = RandomUniform<shape=[8,6,6], low=-1.0, dtype=1>() z = Mul(a, r)"),
    "by probabilities": image("p = Sigmoid(a) r = Bernoulli(p) z = Mul(a, r)"),
    "by probabilities, as booleans": image("p = Sigmoid(a) r = Bernoulli<dtype=9>(p) c = Cast<to=1>(r) z = Mul(a, c)"),
    "in a branch": image(
        IF + "<then_branch = yes () => (float[2,8,6,6] p) { r = RandomNormalLike(a) p = Add(a, r) }, "
        "else_branch = no () => (float[2,8,6,6] q) { n = RandomUniformLike(a) q = Mul(a, n) }>",
        "float low = {0}",
    ),
}
CLASSES = net(
    "float[5,6] x",
    "float[6,16] w1, float[16,7] w9",
    "a = MatMul(x, w1) r = Relu(a) s = MatMul(r, w9) y = Multinomial<sample_size=3, dtype=7>(s)",
    "int64[5,3] y",
)


def runs(proto: onnx.ModelProto) -> list[np.ndarray]:
    """Return the first output of two runs of one session for a fixed input; a new session starts with the same seed."""
    sizes = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    session = open_session(proto)
    return [session.run({"x": x})[0] for _ in range(2)]


def noisy(name):
    """A net that draws random numbers."""
    if name == "in a branch" and Version(onnxruntime.__version__) < Version("1.23"):
        pytest.skip("onnxruntime before 1.23 crashes when it inlines such a branch")
    return NOISE.get(name, CLASSES)()


@pytest.mark.parametrize("name", NOISE)
def test_a_model_with_noise_loses_channels_and_is_compared(name):
    report = spa_onnx.prune(noisy(name), 0.5, criterion="l1", repair="none").report
    assert report.validation.gap is not None
    assert report.validation.gap < 1e-5
    assert report.groups == (("w1[0]", 8, 4),)
    assert any("random numbers" in note for note in report.validation.notes)


def test_drawn_classes_are_compared_as_the_likeliest_ones():
    report = spa_onnx.prune(CLASSES(), 0.5, criterion="l1", repair="none").report
    assert report.groups == (("w1[1]", 16, 8),)
    drawn, _ = runs(without_noise(CLASSES()))
    scores = onnx.ModelProto()
    scores.CopyFrom(CLASSES())
    scores.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [5, 7]))
    np.testing.assert_array_equal(drawn, np.repeat(runs(scores)[0].argmax(1)[:, None], 3, axis=1))
    assert drawn.dtype == np.int64


@pytest.mark.parametrize("name", [*NOISE, "classes"])
def test_without_noise_two_runs_are_alike(name):
    proto = without_noise(noisy(name))
    onnx.checker.check_model(proto, full_check=True)
    np.testing.assert_array_equal(*runs(proto))
    first, second = runs(noisy(name))
    assert (first != second).any()


@pytest.mark.parametrize("build", [NOISE["normal"], NOISE["of a given shape"], NOISE["uniform of a given shape"]])
def test_fixed_numbers_are_not_zero_so_that_what_multiplies_them_is_compared(build):
    proto = without_noise(build())
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, None))
    values = np.unique(runs(proto)[0])
    assert len(values) == 1
    assert 0.3 < values[0] < 1


def test_a_model_without_noise_is_not_copied_and_has_no_note():
    proto = image("z = Relu(a)")()
    assert without_noise(proto) is proto
    assert spa_onnx.prune(proto, 0.5, criterion="l1", repair="none").report.validation.notes == ()
