"""What samples show is trusted as far as it holds for real ones."""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import net

from spa_onnx.analysis import analyse
from spa_onnx.data.samples import read_samples
from spa_onnx.linalg.obs import CALIBRATED, SYNTHETIC, UNCERTAIN, Regularisation
from spa_onnx.model.model import Model
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.scoring.obs import obspa
from spa_onnx.statistics.calibration import Sampling, calibrate
from spa_onnx.synthetic.generate import normalises
from spa_onnx.synthetic.working import WorkingInputs

SHARED = "float[8] one, float[8] two, float[8] mean, float[8] variance, float[4,8] w, float[8,3] w2"


def model_with(between, weights=SHARED, end="y = MatMul(b, w2)"):
    return Model.of(net("float[N,4] x", weights, f"a = MatMul(x, w) {between} {end}", "float[N,3] y")(), {"N": 4})


GEMM = net(
    "float[N,4] x",
    "float[4,10] w1, float[10] b1, float[10,3] w2, float[3] b2",
    "a = Gemm(x, w1, b1) b = Relu(a) y = Gemm(b, w2, b2)",
    "float[N,3] y",
)
MEAN = "{to} = ReduceMean<keepdims=1, axes=[1]>({of})"
NETS = {
    "nothing": ("b = Relu(a)", "", False),
    "layer": ("b = LayerNormalization(a, one, two)", "", True),
    "stored": ("b = BatchNormalization(a, one, two, mean, variance)", "", False),
    "parts": (
        (
            f"{MEAN.format(of='a', to='m')} c = Sub(a, m) d = Mul(c, c) "
            f"{MEAN.format(of='d', to='v')} s = Sqrt(v) b = Div(c, s)"
        ),
        "",
        True,
    ),
    "parts and epsilon": (
        f"d = Mul(a, a) {MEAN.format(of='d', to='v')} e = Add(v, tiny) s = Sqrt(e) b = Div(a, s)",
        ", float[1] tiny",
        True,
    ),
    "a length": ("d = Mul(a, a) s = Sqrt(d) b = Relu(s)", "", False),
    "an embedding": ("b = LpNormalization(a)", "", False),
}  # fmt: skip
"""Name -> (what is between two products, constants, whether it normalises)."""


@pytest.mark.parametrize("name", NETS)
def test_normalisation_is_seen_whole_and_in_parts(name):
    between, more, expected = NETS[name]
    assert normalises(model_with(between, SHARED + more)) is expected


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("nothing", True, CALIBRATED),
        ("nothing", False, UNCERTAIN),
        ("layer", False, SYNTHETIC),
        ("stored", False, SYNTHETIC),
    ],
)
def test_made_up_samples_are_trusted_as_far_as_the_graph_normalises(name, given, expected):
    model = model_with(*NETS[name][:1])
    samples = (
        read_samples({"x": np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)}, model.proto)
        if given
        else None
    )
    assert calibrate(model, WorkingInputs({"N": 4}), samples, Sampling(16, 0)).regularisation is expected


@pytest.mark.parametrize("regularisation", [CALIBRATED, SYNTHETIC, UNCERTAIN, Regularisation(3.0, biased_damping=0.2)])
def test_scores_are_losses_where_the_least_removal_is_refitted_on_what_is_trusted(regularisation):
    """As if there were columns that held nothing but the means, and columns that held one input each."""
    model = Model.of(GEMM(), {"N": 4})
    x = np.random.default_rng(0).standard_normal((800, 4)).astype(np.float32)
    known = calibrate(model, WorkingInputs({"N": 4}), read_samples({"x": x}, model.proto), Sampling(800, 0))
    (group,) = analyse(model).prunable()
    layer = known.layers[-1]
    moments = known.statistics[layer.key]
    found = obspa(group, ScoringContext(model, 0, known.layers, known.statistics, regularisation)).min()
    weight = np.asarray(model.constant("w2"), np.float64).T
    mean = moments.total[0] / moments.count
    plain = moments.gram[0] / moments.count - (1 - regularisation.mean) * np.outer(mean, mean)
    square = plain + regularisation.biased_damping * np.trace(plain) / len(plain) * np.eye(len(plain))
    root = np.linalg.cholesky(square)
    losses = []
    for gone in range(group.size):
        kept = np.setdiff1d(np.arange(group.size), gone)
        rest = weight @ root - np.linalg.lstsq(root[kept].T, (weight @ root).T, rcond=None)[0].T @ root[kept]
        losses.append(0.5 * np.square(rest).sum())
    assert found == pytest.approx(min(losses) / (0.5 * np.sum((weight @ plain) * weight)))
