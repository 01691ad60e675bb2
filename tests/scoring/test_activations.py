"""Criteria that look at activations, each against a direct computation from the tensors themselves."""

from __future__ import annotations

import numpy as np
import pytest
from command import MODELS
from nets.build import image, net

import spa_onnx
from spa_onnx.analysis import analyse
from spa_onnx.config import Settings
from spa_onnx.execution.session import open_session
from spa_onnx.layers import linear_layers
from spa_onnx.model.model import Model
from spa_onnx.pipeline import resolved
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.aggregate import score_groups
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.statistics.collect import collect, with_outputs

NAMES = sorted(name for name, criterion in CRITERIA.items() if criterion.needs_statistics and name != "obspa")
CONV = image(
    "z = Relu(a) q = Conv<pads=[1,1,1,1]>(z, w5, b5)", "float[4,8,3,3] w5, float[4] b5", batch="N", outputs="y, q"
)
ROWS = net(
    "float[N,6] x",
    "float[6,8] w1, float[8] b1, float[8,5] w2",
    "a = MatMul(x, w1) b = Add(a, b1) c = Relu(b) y = MatMul(c, w2)",
)
GROUPED = image("z = Relu(a) q = Conv<group=2>(z, w5)", "float[6,4,1,1] w5", batch="N", outputs="y, q")

SHIFTED = image(
    "l, r = Split<axis=1>(a, s) t = Concat<axis=1>(r, l) z = Add(a, t) q = Conv<group=2>(z, w5)",
    "float[6,4,1,1] w5, int64[2] s = {4, 4}",
    batch="N",
    outputs="y, q",
)


def observed(build, samples=40, seed=0):
    """(the group, context, the tensors that products read, as (channels, columns), by the name of their weight)."""
    model = Model.of(build())
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((samples, *model.shape("x")[1:])) + 0.3).astype(np.float32)
    found = tuple(linear_layers(model))
    context = ScoringContext(model, 0, found, collect(model, model.proto, found, [{"x": x}], 0))
    names = [layer.data for layer in found if layer.data != "x"]
    tensors = open_session(with_outputs(model.proto, names)).run({"x": x})
    return (
        analyse(model).prunable()[0],
        context,
        {c.weight: t for c, t in zip((c for c in found if c.data != "x"), tensors, strict=True)},
    )


def windows(tensor):
    """Padded 3x3 windows, (channels, 9, columns)."""
    padded = np.pad(tensor.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1)])
    parts = [padded[:, :, i : i + tensor.shape[2], j : j + tensor.shape[3]] for i in range(3) for j in range(3)]
    return np.stack(parts, axis=2).transpose(1, 2, 0, 3, 4).reshape(tensor.shape[1], 9, -1)


def inputs(context, tensors):
    """Return weight name -> (its matrix, its inputs).

    The matrix is (rows, channels, places of the kernel), the inputs are (channels, places of the kernel, columns).
    """
    for name, tensor in tensors.items():
        weight = context.model.constant(name).astype(np.float64)
        if tensor.ndim == 2:
            yield name, weight.T[:, :, None], tensor.T.astype(np.float64)[:, None]
        elif weight.shape[2:] == (3, 3):
            yield name, weight.reshape(*weight.shape[:2], 9), windows(tensor)
        else:
            flat = tensor.astype(np.float64).transpose(1, 0, 2, 3).reshape(tensor.shape[1], 1, -1)
            yield name, weight.reshape(*weight.shape[:2], 1), flat


DIRECT = {
    "wanda": lambda w, x: (np.abs(w).sum(axis=0) * np.sqrt(np.square(x).mean(axis=2))).sum(axis=1),
    "activation-variance": lambda w, x: (np.square(w).sum(axis=0) * x.var(axis=2)).sum(axis=1),
    "activation-mean": lambda _, x: np.abs(x.mean(axis=2)).sum(axis=1),
}


@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.parametrize("build", [CONV, ROWS], ids=["convolutions", "rows"])
def test_scores_equal_a_direct_computation(name, build):
    group, context, tensors = observed(build)
    found = {axis.tensor: score for axis, score in CRITERIA[name](group, context)}
    expected = {weight: DIRECT[name](w, x) for weight, w, x in inputs(context, tensors)}
    assert found.keys() == expected.keys()
    for weight, score in found.items():
        np.testing.assert_allclose(score, expected[weight], rtol=1e-4, atol=1e-6)


def test_products_side_by_side_score_their_own_channels():
    group, context, tensors = observed(GROUPED)
    (score,) = [score for axis, score in CRITERIA["activation-mean"](group, context) if axis.tensor == "w5"]
    np.testing.assert_allclose(score, np.abs(tensors["w5"].mean(axis=(0, 2, 3))), rtol=1e-4)


def test_products_side_by_side_that_lose_the_same_channels_are_added_up():
    group, context, tensors = observed(SHIFTED)
    (score,) = [score for axis, score in CRITERIA["activation-mean"](group, context) if axis.tensor == "w5"]
    mean = np.abs(tensors["w5"].mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(score, mean[:4] + mean[4:], rtol=1e-4)


def test_a_constant_channel_costs_nothing_once_the_bias_has_taken_it_up():
    model = ROWS()
    for tensor in model.graph.initializer:
        if tensor.name in ("w1", "b1"):
            array = np.array(Model.of(model).constant(tensor.name))
            array[..., 3] = 0 if tensor.name == "w1" else 2.0
            tensor.raw_data = array.tobytes()
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    result = spa_onnx.prune(model, 0.1, criterion="activation-variance", data={"x": x})
    assert [group["removed"] for group in result.plan["groups"]] == [[3]]
    assert result.plan["settings"]["repair"] == "none" or result.plan["repaired"]
    assert resolved(Settings(ratio=0.5, criterion="activation-variance")).repair == "mean"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_known_without_statistics(name):
    group, context, _ = observed(ROWS)
    assert len(CRITERIA[name](group, ScoringContext(context.model))) == 0
    assert len(CRITERIA[name](group, ScoringContext(context.model, 0, context.layers, {}))) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("build", [CONV, ROWS], ids=["convolutions", "rows"])
def test_a_dead_channel_is_the_first_to_go(name, build):
    proto = build()
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "b1"):
            array = np.array(Model.of(proto).constant(tensor.name))
            index = (..., 3) if build is ROWS else (3,)
            array[index] = 0
            tensor.raw_data = array.tobytes()
    group, context, _ = observed(lambda: proto)
    (scores,) = score_groups([group], CRITERIA[name], context).values()
    assert scores[3] == 0
    assert int(np.argmin(np.abs(scores))) == 3  # what cancels others is worth less than nothing to the perturbation


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["digits_resnet", "digits_vit"])
def test_they_prune_real_models(name, model):
    result = spa_onnx.prune(MODELS / f"{model}.onnx", 0.3, criterion=name, samples=16)
    assert result.report.validation.gap is not None
    assert result.plan["settings"]["scope"] == ("global" if CRITERIA[name].loss else "local")
