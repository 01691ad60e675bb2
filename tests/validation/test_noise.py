"""Models that draw random numbers are compared without them."""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import image

import spa_onnx
from spa_onnx.execution.session import open_session
from spa_onnx.validation.noise import without_noise

NOISE = {
    "normal": image("r = RandomNormalLike(a) s = Mul(r, strength) z = Add(a, s)", "float[8,1,1] strength"),
    "uniform": image("r = RandomUniformLike<low=0.5, high=1.5>(a) z = Mul(a, r) s = Relu(z)", ""),
    "of another type": image("r = RandomNormalLike<dtype=11>(a) c = Cast<to=1>(r) z = Add(a, c)"),
}


@pytest.mark.parametrize("build", NOISE.values(), ids=NOISE)
def test_a_model_with_noise_loses_channels_and_is_compared(build):
    report = spa_onnx.prune(build(), 0.5, criterion="l1", repair="none").report
    assert report.validation.gap is not None
    assert report.groups == (("w1[0]", 8, 4),)


@pytest.mark.parametrize("build", NOISE.values(), ids=NOISE)
def test_without_noise_two_runs_are_alike(build):
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    noisy, quiet = open_session(build()), open_session(without_noise(build()))
    runs = [session.run({"x": x})[0] for session in (noisy, noisy, quiet, quiet)]
    assert (runs[0] != runs[1]).any()
    np.testing.assert_array_equal(runs[2], runs[3])
