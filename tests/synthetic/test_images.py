"""Made-up pictures resemble photographs in what can be counted."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from spa_onnx.synthetic import images
from spa_onnx.synthetic.images import HALF_WIDTH, LEAVES, pictures


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


@pytest.mark.parametrize("shape", [(1, 1, 784), (1, 64, 2000), (2, 1500, 30), (3, 300, 500), (1, 1, 8000)])
def test_memory_grows_with_the_area_and_not_with_the_longer_side(shape):
    tracemalloc.start()
    found = pictures(3, shape, np.random.default_rng(0), np.dtype(np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * found.nbytes + 50 * 2**20


@pytest.mark.parametrize(("short", "long"), [((1, 30, 40), (1, 30, 4000)), ((1, 20, 20), (1, 2000, 20))])
def test_as_many_positions_are_compared_for_each_of_a_long_picture(short, long, monkeypatch):
    compared = []

    def cover(leaves, picture, leaf, rows, columns, known=images._Leaves.cover):
        found = known(leaves, picture, leaf, rows, columns)
        compared.append(found.size)
        return found

    monkeypatch.setattr(images._Leaves, "cover", cover)

    def share(shape):
        compared.clear()
        pictures(4, shape, np.random.default_rng(0))
        return sum(compared) / (4 * shape[1] * shape[2])

    assert share(long) < 5 * share(short)
    assert share(long) < LEAVES / 2


@pytest.mark.parametrize("size", [(7, 9), (64, 48), (1, 60), (90, 4), (5, 700), (130, 120)])
def test_the_topmost_leaf_of_each_position_is_the_last_that_covers_it(size):
    rng = np.random.default_rng(3)
    radius = max(size) * rng.uniform(0.03, 0.5, (3, LEAVES))
    centre = rng.uniform(-radius, np.array(size)[:, None, None] + radius)
    angle, flat, square = (
        rng.uniform(0, 3, radius.shape),
        rng.uniform(0.4, 1, radius.shape),
        rng.random(radius.shape) < 0.4,
    )
    found = images._topmost_leaves(size, images._Leaves(centre, radius, np.cos(angle), np.sin(angle), flat, square))
    rows, columns = np.ogrid[: size[0], : size[1]]
    for picture in range(len(radius)):
        top = np.zeros(size)
        for leaf in range(1, LEAVES):
            y, x = rows - centre[0, picture, leaf], columns - centre[1, picture, leaf]
            cosine, sine = np.cos(angle[picture, leaf]), np.sin(angle[picture, leaf])
            along, across = y * cosine + x * sine, (x * cosine - y * sine) / flat[picture, leaf]
            corners = square[picture, leaf]
            far = np.maximum(abs(along), abs(across)) if corners else np.sqrt(along**2 + across**2)
            top[far < radius[picture, leaf]] = leaf
        np.testing.assert_array_equal(found[picture], top)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8, np.int8])
def test_a_type_changes_only_the_rounding(dtype):
    plain = pictures(5, (3, 40, 50), np.random.default_rng(2))
    found = pictures(5, (3, 40, 50), np.random.default_rng(2), np.dtype(dtype))
    assert found.dtype == dtype
    if np.dtype(dtype).kind != "f":
        found = (found.astype(float) - np.iinfo(dtype).min) / 255 * 2 * HALF_WIDTH - HALF_WIDTH
    np.testing.assert_allclose(found, plain, atol=0.01)
