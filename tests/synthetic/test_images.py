"""Made-up pictures resemble photographs in what can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from spa_onnx.synthetic.images import HALF_WIDTH, pictures


@pytest.fixture(scope="module")
def drawn():
    return pictures(48, (3, 64, 48), np.random.default_rng(0))


def test_range_and_variance(drawn):
    assert drawn.shape == (48, 3, 64, 48)
    assert np.abs(drawn).max() <= HALF_WIDTH
    assert 0.4 < drawn.std() < 0.9


def test_some_pictures_are_brighter_than_others_and_some_have_more_contrast(drawn):
    brightness, contrast = drawn.mean(axis=(1, 2, 3)), drawn.std(axis=(1, 2, 3))
    assert brightness.std() > 0.2
    assert contrast.max() > 2 * contrast.min()


def test_neighbours_and_channels_go_together(drawn):
    assert np.corrcoef(drawn[..., 1:].ravel(), drawn[..., :-1].ravel())[0, 1] > 0.7
    assert np.corrcoef(drawn[:, 0].ravel(), drawn[:, 1].ravel())[0, 1] > 0.7


def test_power_falls_with_frequency_about_as_one_over_its_square():
    grey = pictures(48, (1, 64, 64), np.random.default_rng(1))[:, 0]
    power = np.square(np.abs(np.fft.fft2(grey - grey.mean()))).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    between = (frequency > 0.03) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[between]), np.log(power[between]), 1)[0]
    assert -3 < slope < -1.4


def test_contrasts_have_heavy_tails(drawn):
    """Edges are rare and strong: the kurtosis of differences is far above the 3 of noise."""
    steps = np.diff(drawn, axis=3).ravel()
    assert np.mean(steps**4) / np.mean(steps**2) ** 2 > 6


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (4, 2, 3), (1, 8, 8)])
def test_any_shape(shape):
    found = pictures(3, shape, np.random.default_rng(0))
    assert found.shape == (3, *shape)
    assert np.isfinite(found).all()


def test_the_seed_decides():
    one, same, other = (pictures(2, (3, 16, 16), np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert (one == same).all()
    assert (one != other).any()
