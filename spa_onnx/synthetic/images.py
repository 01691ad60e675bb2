"""Synthetic pictures with the statistics of photographs: edges, a 1/f spectrum, shading, and correlated colours.

Dead leaves (Lee, Mumford & Huang, Occlusion models for natural images, 2001), each leaf with a colour, a texture and a
gradient of light.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from spa_onnx.model.folding import Array

HALF_WIDTH = 3.0**0.5
"""Half the width of a uniform distribution with variance one; the largest absolute value in a picture."""

LEAVES = 150
"""The number of leaves in a picture, the ground among them."""

TEXTURES = 16
"""The number of different textures in a set of pictures."""

SMALLEST, LARGEST = 0.015, 0.5
"""Radii of leaves as shares of the longer side; the frequency falls with the third power of the radius."""

LARGEST_TEXTURE = 128
"""The longest side of a texture. On larger pictures it is repeated; its noise continues without a seam."""

HUE = 0.45
"""The standard deviation of a leaf's channels around its grey."""

SQUARE = 1 / 3
"""The share of leaves with corners."""

CORNER = 2.0**0.5
"""The maximum distance of a point of a leaf from its centre, in radii."""

PIXELS_PER_STEP = 2**14
"""The number of positions that are drawn together, at least those of one picture."""

MOST_POSITIONS = 2**21
"""The number of positions at which leaves are placed together, at least those of one leaf."""

CONTRAST = 0.25, 0.8
"""The factors between which the contrast of pictures varies."""

BRIGHTNESS = 0.4
"""The maximum absolute mean of a picture."""


def pictures(count: int, shape: tuple[int, int, int], rng: np.random.Generator, dtype: DTypeLike = np.float64) -> Array:
    """Draw pictures. Time and memory grow with height times width.

    Args:
        count: The number of pictures.
        shape: (channels, height, width).
        rng: The random generator.
        dtype: The type of the result.

    Returns:
        (count, channels, height, width), between -HALF_WIDTH and HALF_WIDTH.
    """
    channels, height, width = shape
    largest = channels, min(height, LARGEST_TEXTURE), min(width, LARGEST_TEXTURE)
    textures = np.stack([_texture(largest, rng) for _ in range(min(TEXTURES, count))])
    step = max(1, PIXELS_PER_STEP // (height * width))
    result = np.empty((count, *shape), dtype)
    for first in range(0, count, step):
        result[first : first + step] = _draw_pictures(min(step, count - first), shape, textures, rng)
    return result


def between(images: Array, low: float, high: float) -> Array:
    """Return the pictures with their values scaled to lie between `low` and `high`."""
    return np.asarray(low + (images / HALF_WIDTH + 1) / 2 * (high - low))


def _draw_pictures(count: int, shape: tuple[int, int, int], textures: Array, rng: np.random.Generator) -> Array:
    """Draw pictures: find the topmost leaf at each position, then its colour at that position."""
    channels, height, width = shape
    side, leaves = max(height, width), (count, LEAVES)
    smallest = min(SMALLEST + 0.5 / side, LARGEST)
    radius = side * rng.uniform(LARGEST**-2, smallest**-2, leaves) ** -0.5
    radius[:, 0] = 4 * side  # the ground
    centre = rng.uniform(-radius, np.array([height, width])[:, None, None] + radius)
    centre[:, :, 0] = np.array([[height / 2], [width / 2]])
    angle, flat, square = rng.uniform(0, np.pi, leaves), rng.uniform(0.4, 1.0, leaves), rng.random(leaves) < SQUARE
    top = _topmost_leaves((height, width), centre, radius, angle, flat, square)
    grey = rng.uniform(-HALF_WIDTH, HALF_WIDTH, (*leaves, 1))
    colour = np.clip(grey + HUE * rng.standard_normal((*leaves, channels)), -HALF_WIDTH, HALF_WIDTH)
    slope = rng.uniform(-0.9, 0.9, leaves) / radius
    picture, rows, columns = np.ogrid[:count, :height, :width]
    along = (rows - centre[0][picture, top]) * np.cos(angle)[picture, top] + (
        columns - centre[1][picture, top]
    ) * np.sin(angle)[picture, top]
    texture = rng.integers(len(textures), size=leaves)[picture, top]
    pattern = textures.transpose(0, 2, 3, 1)[texture, rows % textures.shape[2], columns % textures.shape[3]]
    image = colour[picture, top] + pattern + (slope[picture, top] * along)[..., None]
    contrast, middle = rng.uniform(*CONTRAST, (count, 1, 1, 1)), rng.uniform(-BRIGHTNESS, BRIGHTNESS, (count, 1, 1, 1))
    lit = np.clip(image, -HALF_WIDTH, HALF_WIDTH) * contrast + middle
    return np.asarray(np.clip(lit, -HALF_WIDTH, HALF_WIDTH).transpose(0, 3, 1, 2))


def _topmost_leaves(
    size: tuple[int, int], centre: Array, radius: Array, angle: Array, flat: Array, square: Array
) -> Array:
    """Return the number of the topmost leaf at each position of each picture, int64 (pictures, height, width).

    `centre` is (2, pictures, leaves), the other arrays are (pictures, leaves). Leaves of similar size are placed in one
    step, as many at a time as MOST_POSITIONS allows.
    """
    top = np.zeros((len(radius), *size), np.int64)
    diameter = 2 ** (np.ceil(2 * np.log2(2 * CORNER * radius + 2)) / 2)
    window = np.minimum(np.ceil(diameter).astype(int), max(size))
    window[:, 0] = 0  # the ground is everywhere, and its number is 0
    forms = np.stack([np.cos(angle), np.sin(angle), square, flat, radius])
    for side in np.unique(window[:, 1:]).tolist():
        picture, leaves = np.nonzero(window == side)
        sides = min(side, size[0]), min(side, size[1])
        step = max(1, MOST_POSITIONS // (sides[0] * sides[1]))
        for first in range(0, len(leaves), step):
            some = picture[first : first + step], leaves[first : first + step]
            _place_leaves(top, some, centre[:, some[0], some[1]], forms[:, some[0], some[1]], sides)
    return top


def _place_leaves(top: Array, part: tuple[Array, Array], middle: Array, forms: Array, sides: tuple[int, int]) -> None:
    """Place leaves on those below them; `top` is modified.

    part: (the picture, the number) of each leaf. middle: (2, leaves). forms: cosine and sine of the angle, whether the
    leaf has corners, flatness and radius, (5, leaves). sides: height and width of the window around a leaf's middle.
    """
    (picture, leaves), size = part, top.shape[1:]
    corner = np.floor(middle - np.max(sides) / 2).astype(int) * (np.array(sides) < size)[:, None]
    rows, columns = (
        corner[0][:, None, None] + np.arange(sides[0])[:, None],
        corner[1][:, None, None] + np.arange(sides[1]),
    )
    cosine, sine, edged, flatness, reach = forms[:, :, None, None]
    down, right = rows - middle[0][:, None, None], columns - middle[1][:, None, None]
    along, across = down * cosine + right * sine, (right * cosine - down * sine) / flatness
    far = np.where(edged, np.maximum(np.abs(along), np.abs(across)), np.sqrt(along**2 + across**2))
    covered = (far < reach) & (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    leaf, row, column = np.nonzero(covered)
    placed = np.zeros_like(top)
    # leaves ascend within a picture, so the topmost of those at one position is assigned last
    placed[picture[leaf], rows[leaf, row, 0], columns[leaf, 0, column]] = leaves[leaf]
    np.maximum(top, placed, out=top)


def _texture(shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
    """Return noise with a power spectrum of f^-2a, mostly common to all channels, in some cases with stripes."""
    channels, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.standard_normal((channels + 1, height, width))) / frequency ** rng.uniform(0.5, 1.6)
    waves = np.fft.irfft2(noise, (height, width))
    mixed = waves[-1] + 0.3 * waves[:-1]
    result = mixed / max(float(mixed.std()), 1e-12) * rng.uniform(0, 0.5)
    if rng.random() < 1 / 3:
        angle, pace = rng.uniform(0, np.pi), rng.uniform(0.05, 1.0)
        rows, columns = np.ogrid[:height, :width]
        result += rng.uniform(0.2, 0.9) * np.sign(np.sin(pace * (rows * np.cos(angle) + columns * np.sin(angle))))
    return np.asarray(result)
