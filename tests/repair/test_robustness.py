"""Whatever the samples and the weights: every written value is finite, and what was not repaired is reported."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from calibrated import CONV, MLP, calibrated_model, dead, half, samples
from nets.build import net
from onnx import helper, numpy_helper

import spa_onnx
from spa_onnx.execution.session import open_session
from spa_onnx.linalg.blas import inverted
from spa_onnx.linalg.obs import damped, refit
from spa_onnx.model.model import Model
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.repair.repair import MOST_NAMED_WEIGHTS, not_refitted_weights
from spa_onnx.scoring import CRITERIA

SHAPE = (3, 6, 6)


def behind_cast(proto, dtype):
    """The model with its weights stored in another type, each behind a Cast."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    casts = [helper.make_node("Cast", [name], [f"{name}_wide"], to=onnx.TensorProto.FLOAT) for name in sorted(stored)]
    for node in proto.graph.node:
        for slot, name in enumerate(node.input):
            if name in stored:
                node.input[slot] = f"{name}_wide"
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def scaled(proto, name, factor):
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                numpy_helper.from_array((array * np.asarray(factor, array.dtype)).astype(array.dtype), name)
            )
    return proto


X = samples(SHAPE, 12)
CASES = {
    "dead channels": (lambda: dead(CONV()), X),
    "constant inputs": (CONV, np.full((12, *SHAPE), 7.0, np.float32)),
    "zeros": (CONV, np.zeros((12, *SHAPE), np.float32)),
    "a single sample": (CONV, samples(SHAPE, 1)),
    "huge inputs": (CONV, X * np.float32(1e12)),
    "tiny inputs": (CONV, X * np.float32(1e-30)),
    "one huge sample": (CONV, np.concatenate([X, X[:1] * np.float32(1e15)])),
    "a channel that dwarfs the others": (
        lambda: scaled(CONV(), "w1", 10.0 ** np.arange(-18, 18, 3).reshape(12, 1, 1, 1)),
        X,
    ),
    "float16": (lambda: half(CONV()), X.astype(np.float16)),
    "float16 that overflows inside": (lambda: scaled(half(CONV()), "w1", 2000), (X * 100).astype(np.float16)),
    "float16 at its smallest": (lambda: scaled(half(CONV()), "w1", 1e-7), X.astype(np.float16)),
    "bfloat16 behind Cast": (lambda: behind_cast(CONV(), ml_dtypes.bfloat16), X),
    "float16 behind Cast": (lambda: behind_cast(CONV(), np.float16), X),
    "rows in bfloat16 behind Cast": (lambda: behind_cast(MLP(), ml_dtypes.bfloat16), samples((6,), 12)),
}


@pytest.mark.parametrize("criterion", [name for name, criterion in CRITERIA.items() if criterion.needs_statistics])
@pytest.mark.parametrize(("make", "x"), CASES.values(), ids=CASES)
def test_what_is_written_is_finite(make, x, criterion):
    proto = make()
    before = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    for repair in ("obs", "mean"):
        result = spa_onnx.prune(proto, 0.4, criterion=criterion, repair=repair, data={"x": x}, check=False)
        for tensor in result.model.graph.initializer:
            assert tensor.data_type == before[tensor.name]
            assert np.isfinite(numpy_helper.to_array(tensor).astype(np.float64)).all(), tensor.name
        open_session(result.model)


def test_products_with_inputs_that_are_not_finite_are_left_alone_and_named():
    proto = scaled(half(CONV()), "w1", 2000)
    result = spa_onnx.prune(
        proto, 0.4, criterion="l1", repair="obs", data={"x": (X * 100).astype(np.float16)}, check=False
    )
    old, new = Model.of(proto), Model.of(result.model)
    (note,) = (note for note in result.report.notes if "were not refitted" in note)
    left = [name for name in ("w2", "w3") if name in note]
    assert left
    kept = {cut["name"]: cut["kept"] for cut in result.plan["tensors"]}
    for name in left:
        array = old.constant(name)
        for axis, indices in kept[name].items():
            array = array.take(indices, int(axis))
        np.testing.assert_array_equal(array, new.constant(name))


def test_where_all_is_refitted_there_is_no_note():
    assert spa_onnx.prune(CONV(), 0.4, samples=16, check=False).report.notes == ()


def test_what_is_out_of_the_range_of_its_type_is_left_alone_with_its_bias():
    """The best weights would be a million times larger than the old ones, which float16 cannot hold."""
    proto = half(MLP())
    x = np.concatenate([np.eye(6), -np.eye(6)]).astype(np.float16)
    result = spa_onnx.prune(scaled(scaled(proto, "w2", 1e4), "b2", 1e4), 0.5, data={"x": x}, check=False)
    for tensor in result.model.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor)).all()


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1.0, 1e30, 1e100])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_singular_matrices_are_solved(rank, scale):
    rng = np.random.default_rng(rank)
    x = rng.standard_normal((8, rank)) @ rng.standard_normal((rank, 40)) * scale**0.5
    gram, weight, kept = x @ x.T / 40, rng.standard_normal((3, 8)), np.array([0, 2, 3, 6])
    new = refit(weight, damped(gram), kept)
    assert np.isfinite(new).all()
    assert np.isfinite(inverted(damped(gram))).all()
    plain = refit(weight, gram, kept)
    assert np.isfinite(plain).all()
    error, without = (np.square(weight @ x - w @ x[kept]).sum() for w in (new, weight[:, kept]))
    assert error <= without * (1 + 1e-9)


@pytest.mark.parametrize("count", [1, MOST_NAMED_WEIGHTS, MOST_NAMED_WEIGHTS + 1])
def test_the_note_names_a_few_weights_and_says_where_there_are_more(count):
    chain = " ".join(f"a{i} = MatMul({f'r{i - 1}' if i else 'x'}, w{i}) r{i} = Relu(a{i})" for i in range(count + 1))
    weights = ", ".join(f"float[6,6] w{i}" for i in range(count + 1))
    proto = net("float[2,6] x", weights, f"{chain} y = Identity(r{count})", "float[2,6] y")()
    analysis, calibration = calibrated_model(proto, samples((6,), 12))
    removal = rewrite(analysis, Plan.removing({group.name: [0] for group in analysis.prunable()}, "")).removal
    (note,) = not_refitted_weights(calibration, removal, {})
    named = [f"w{i + 1}" for i in range(count)]
    assert note.startswith(f"{count} of the {count} weights")
    assert note.endswith(": " + ", ".join(named[:MOST_NAMED_WEIGHTS]) + (", ..." if count > MOST_NAMED_WEIGHTS else ""))
