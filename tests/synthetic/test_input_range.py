"""Made-up pictures are as bright as the network wants them."""

import numpy as np
import pytest
from nets.build import net
from onnx import numpy_helper

from spa_onnx.execution.session import open_session
from spa_onnx.pipeline import inspect
from spa_onnx.synthetic.generate import generate_samples
from spa_onnx.synthetic.images import HALF_WIDTH, between, pictures
from spa_onnx.synthetic.input_range import input_ranges
from spa_onnx.synthetic.working import working_inputs

CONVOLUTION = "float[16,3,3,3] w1, float[16] b1, float[4,16,1,1] w2"
LAYERS = "b = Relu(a) y = Conv(b, w2)"
CONV = net("float[N,3,12,12] x", CONVOLUTION, f"a = Conv(x, w1, b1) {LAYERS}")
MATMUL = net(
    "float[N,1,8,6] x",
    "float[6,16] w1, float[16] b1, float[16,3] w2",
    "m = MatMul(x, w1) a = Add(m, b1) b = Relu(a) y = MatMul(b, w2)",
)
GIVEN_PIXELS = net("uint8[N,3,12,12] x", CONVOLUTION, f"c = Cast<to=1>(x) a = Conv(c, w1, b1) {LAYERS}")
CENTRED = net(
    "float[N,3,12,12] x",
    f"{CONVOLUTION}, float half = {{127.5}}, float one = {{1}}",
    f"s = Div(x, half) c = Sub(s, one) a = Conv(c, w1, b1) {LAYERS}",
)
WITH_STATE = net(
    "float[N,3,12,12] x, float[N,3,12,12] state", CONVOLUTION, f"c = Add(x, state) a = Conv(c, w1, b1) {LAYERS}"
)
NORMALISED = net(
    "float[N,3,12,12] x",
    "float[16,3,3,3] w1, float[16] b1, float[16] g, float[16] v, float[4,16,1,1] w2",
    f"c = Conv(x, w1) a = BatchNormalization(c, g, b1, b1, v) {LAYERS}",
)


def trained_on(build, values):
    """The net as training leaves it on inputs of this mean and deviation.

    Its normalisation is folded into its first weights.
    """
    mean, deviation = values
    proto = build()
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    w = numpy_helper.to_array(stored["w1"]) / deviation
    rows = w.reshape(16, -1).sum(axis=1) if w.shape[0] == 16 else w.sum(axis=0)
    b = np.random.default_rng(5).choice([-1.0, 1.0], 16) - rows * mean
    stored["w1"].CopyFrom(numpy_helper.from_array(w.astype(np.float32), "w1"))
    stored["b1"].CopyFrom(numpy_helper.from_array(b.astype(np.float32), "b1"))
    return proto


def synthetic(proto):
    model = inspect(proto).model
    dims = working_inputs(model, open_session(proto), {})
    return np.concatenate([feed["x"] for feed in generate_samples(model, dims, 16, 8, 0).feeds])


PIXELS, UNIT, STANDARD = (110.0, 64.0), (0.45, 0.25), (0.0, 1.0)


@pytest.mark.parametrize("build", [CONV, MATMUL], ids=["Conv", "MatMul"])
@pytest.mark.parametrize(
    ("values", "bright"), [(PIXELS, True), (UNIT, False), (STANDARD, False)], ids=["pixels", "unit", "standard"]
)
def test_networks_that_were_trained_on_pixels_get_pixels(build, values, bright):
    x = synthetic(trained_on(build, values))
    if bright:
        assert 0 <= x.min() < 60
        assert 190 < x.max() <= 255
    else:
        assert -HALF_WIDTH <= x.min() < 0 < x.max() <= HALF_WIDTH


def test_what_the_graph_does_to_pixels_itself_counts():
    """It makes them what the first weights, which look as of any other network, were trained on."""
    assert synthetic(trained_on(CENTRED, STANDARD)).max() > 190


def test_a_state_that_meets_other_tensors_is_no_picture():
    """Nothing runs to find that out: a language model has two of them in each layer."""
    proto = trained_on(WITH_STATE, PIXELS)
    x, state = (np.random.default_rng(0).normal(size=(8, 3, 12, 12)).astype(np.float32) for _ in "xs")
    model = inspect(proto).model
    assert input_ranges(model, ["x", "state"], {"x": x, "state": state}) == {}


def test_inputs_of_bytes_are_pixels_already():
    x = synthetic(trained_on(GIVEN_PIXELS, PIXELS))
    assert x.dtype == np.uint8
    assert x.min() < 60
    assert x.max() > 190


@pytest.mark.parametrize("values", [PIXELS, STANDARD])
def test_normalisation_that_is_stored_needs_no_guess(values):
    assert synthetic(trained_on(NORMALISED, values)).max() <= HALF_WIDTH


@pytest.mark.parametrize("weights", [0.0, np.nan], ids=["zero", "nan"])
def test_weights_that_say_nothing_leave_pictures_as_they_are(weights):
    proto = CONV()
    (w,) = (tensor for tensor in proto.graph.initializer if tensor.name == "w1")
    w.CopyFrom(numpy_helper.from_array(np.full((16, 3, 3, 3), weights, np.float32), "w1"))
    model = inspect(proto).model
    x = pictures(8, (3, 12, 12), np.random.default_rng(0)).astype(np.float32)
    assert input_ranges(model, "x", {"x": x}) == {}


@pytest.mark.parametrize(
    ("operands", "ends"),
    [("s, u", (-50.0, 77.5)), ("s, i", (-50.0, 77.5)), ("s", (0.0, 127.5)), ("t, u", None)],
    ids=["uint8", "int8", "no zero point", "a scale for each channel"],
)
def test_what_a_quantised_input_does_not_clip_says_how_bright(operands, ends):
    scales = "float s = {0.5}, float[3] t = {0.5, 0.5, 0.5}, uint8 u = {100}, int8 i = {-28}"
    quantised = f"q = QuantizeLinear(x, {operands}) c = DequantizeLinear(q, {operands})"
    if operands == "t, u":
        scales, quantised = (
            scales.replace("uint8 u = {100}", "uint8[3] u = {9, 9, 9}"),
            quantised.replace("Linear(", "Linear<axis=1>("),
        )
    build = net("float[N,3,12,12] x", f"{CONVOLUTION}, {scales}", f"{quantised} a = Conv(c, w1, b1) {LAYERS}")
    x = pictures(8, (3, 12, 12), np.random.default_rng(0)).astype(np.float32)
    assert input_ranges(inspect(build()).model, "x", {"x": x}) == ({"x": ends} if ends else {})


def test_values_keep_their_order():
    x = np.array([-HALF_WIDTH, 0.0, HALF_WIDTH])
    assert between(x, 0.0, 255.0) == pytest.approx([0.0, 127.5, 255.0])
