"""Small networks and correlated samples to calibrate them on."""

from __future__ import annotations

import numpy as np
import onnx
from nets.build import net
from onnx import numpy_helper

from spa_onnx.data.samples import read_samples
from spa_onnx.execution.session import open_session
from spa_onnx.pipeline import inspect
from spa_onnx.statistics.calibration import Sampling, calibrate
from spa_onnx.synthetic.working import working_inputs

CONV = net(
    "float[N,3,6,6] x",
    "float[12,3,3,3] w1, float[12] b1, float[10,12,3,3] w2, float[10] b2, float[4,10,1,1] w3, float[4] b3",
    "a = Conv<pads=[1,1,1,1]>(x, w1, b1) c = Relu(a) d = Conv<pads=[1,1,1,1]>(c, w2, b2) e = Relu(d) "
    "y = Conv(e, w3, b3)",
    "float[N,4,6,6] y",
)
MLP = net(
    "float[N,6] x",
    "float[6,24] w1, float[24] b1, float[16,24] w2, float[16] b2, float[16,5] w3, float[5] b3",
    "a = MatMul(x, w1) b = Add(a, b1) c = Relu(b) d = Gemm<transB=1>(c, w2, b2) e = Relu(d) f = MatMul(e, w3) "
    "y = Add(f, b3)",
    "float[N,5] y",
)


def outputs(proto, x):
    return open_session(proto).run({"x": x})[0].astype(np.float64)


def samples(shape, count, seed=0):
    """Correlated inputs with a mean."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, 3)) @ np.random.default_rng(99).standard_normal((3, int(np.prod(shape))))
    noise = rng.standard_normal((count, *shape))
    return (0.5 + mixed.reshape(count, *shape) + 0.3 * noise).astype(np.float32)


def dead(proto):
    """Channels 2 and 5 of the first layer are always zero."""
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "b1"):
            array = numpy_helper.to_array(tensor).copy()
            array[(2, 5), ...] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def half(proto):
    """The model in float16."""
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return proto


def calibrated_model(proto, x, count=200):
    analysis = inspect(proto)
    session = open_session(proto)
    given = read_samples({"x": x}, proto)
    return analysis, calibrate(analysis.model, working_inputs(analysis.model, session, {}), given, Sampling(count, 0))
