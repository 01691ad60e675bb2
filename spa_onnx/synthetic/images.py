"""Synthetic pictures with the statistics of photographs: edges, a 1/f spectrum, shading, and correlated colours.

Dead leaves (Lee, Mumford & Huang, Occlusion models for natural images, 2001), each leaf with a colour, a texture and a
gradient of light.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from spa_onnx.model.folding import Array

HALF_WIDTH = 3.0**0.5
"""Half the width of a uniform distribution with variance one; the largest absolute value in a picture."""

PIXELS = 0.0, 255.0
"""The smallest and the largest pixel."""

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

POSITIONS_PER_STEP = 2**18
"""The number of numbers that are computed together, at least those of one row."""

LARGE_WINDOW = 2**12
"""The number of positions from which on the window of a leaf is compared alone."""

CONTRAST = 0.25, 0.8
"""The factors between which the contrast of pictures varies."""

BRIGHTNESS = 0.4
"""The maximum absolute mean of a picture."""


def pictures(
    count: int, shape: tuple[int, int, int], rng: np.random.Generator, dtype: np.dtype[Any] | None = None
) -> Array:
    """Draw pictures. The cost is proportional to count * height * width, and one step is held beside the result.

    Args:
        count: The number of pictures.
        shape: (channels, height, width).
        rng: The random generator.
        dtype: The type of the result, by default float64.

    Returns:
        (count, channels, height, width): floats between -HALF_WIDTH and HALF_WIDTH, or pixels in integers. Pixel 0 is
        the smallest number of their type.
    """
    channels, height, width = shape
    largest = channels, min(height, LARGEST_TEXTURE), min(width, LARGEST_TEXTURE)
    textures = np.stack([_texture(largest, rng) for _ in range(min(TEXTURES, count))])
    step = max(1, PIXELS_PER_STEP // (height * width))
    result = np.empty((count, *shape), dtype or np.float64)
    for first in range(0, count, step):
        for rows, images in _draw_pictures(min(step, count - first), shape, textures, rng):
            result[first : first + step, :, rows] = _as_type(images, result.dtype)
    return result


def between(images: Array, low: float, high: float) -> Array:
    """Return the pictures with their values scaled to lie between `low` and `high`."""
    return np.asarray(low + (images / HALF_WIDTH + 1) / 2 * (high - low))


def _as_type(images: Array, dtype: np.dtype[Any]) -> Array:
    """Return pictures as floats of a type, or as pixels in a type of integers."""
    if dtype.kind == "f":
        return images.astype(dtype)
    return (np.rint(between(images, *PIXELS)) + np.iinfo(dtype).min).astype(dtype)


def _draw_pictures(
    count: int, shape: tuple[int, int, int], textures: Array, rng: np.random.Generator
) -> Iterator[tuple[slice, Array]]:
    """Draw pictures: find the topmost leaf at each position, then its colour at that position.

    Yields:
        (rows, the pictures in these rows, float64 (count, channels, rows, width)).
    """
    channels, height, width = shape
    side, leaves = max(height, width), (count, LEAVES)
    smallest = min(SMALLEST + 0.5 / side, LARGEST)
    radius = side * rng.uniform(LARGEST**-2, smallest**-2, leaves) ** -0.5
    radius[:, 0] = 4 * side  # the ground
    centre = rng.uniform(-radius, np.array([height, width])[:, None, None] + radius)
    centre[:, :, 0] = np.array([[height / 2], [width / 2]])
    angle, flat, square = rng.uniform(0, np.pi, leaves), rng.uniform(0.4, 1.0, leaves), rng.random(leaves) < SQUARE
    topmost = _topmost_leaves((height, width), _Leaves(centre, radius, np.cos(angle), np.sin(angle), flat, square))
    grey = rng.uniform(-HALF_WIDTH, HALF_WIDTH, (*leaves, 1))
    colour = np.clip(grey + HUE * rng.standard_normal((*leaves, channels)), -HALF_WIDTH, HALF_WIDTH)
    slope = rng.uniform(-0.9, 0.9, leaves) / radius
    texture_of_leaf = rng.integers(len(textures), size=leaves)
    contrast, middle = rng.uniform(*CONTRAST, (count, 1, 1, 1)), rng.uniform(-BRIGHTNESS, BRIGHTNESS, (count, 1, 1, 1))
    picture, all_rows, columns = np.ogrid[:count, :height, :width]
    step = max(1, POSITIONS_PER_STEP // (count * width * channels))
    for first in range(0, height, step):
        rows, top = all_rows[:, first : first + step], topmost[:, first : first + step]
        along = (rows - centre[0][picture, top]) * np.cos(angle)[picture, top] + (
            columns - centre[1][picture, top]
        ) * np.sin(angle)[picture, top]
        texture = texture_of_leaf[picture, top]
        pattern = textures.transpose(0, 2, 3, 1)[texture, rows % textures.shape[2], columns % textures.shape[3]]
        image = colour[picture, top] + pattern + (slope[picture, top] * along)[..., None]
        lit = np.clip(image, -HALF_WIDTH, HALF_WIDTH) * contrast + middle
        yield slice(first, first + step), np.clip(lit, -HALF_WIDTH, HALF_WIDTH).transpose(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class _Leaves:
    """Leaves: `centre` is (2, pictures, leaves), the other arrays are (pictures, leaves)."""

    centre: Array
    radius: Array
    cosine: Array
    sine: Array
    flat: Array
    square: Array

    def cover(self, picture: Array | int, leaf: Array | int, rows: Array, columns: Array) -> Array:
        """Return which positions leaves cover.

        Args:
            picture: The numbers of the pictures, int (n,), or one number.
            leaf: The numbers of the leaves in them, int (n,), or one number.
            rows: int (n, rows), or (rows,).
            columns: int (n, columns), or (columns,).

        Returns:
            bool (n, rows, columns), or (rows, columns).
        """
        cosine, sine, flatness, edged, reach = (
            np.asarray(values[picture, leaf])[..., None, None]
            for values in (self.cosine, self.sine, self.flat, self.square, self.radius)
        )
        middle = self.centre[:, picture, leaf][..., None]
        down, right = (rows - middle[0])[..., :, None], (columns - middle[1])[..., None, :]
        along, across = down * cosine + right * sine, (right * cosine - down * sine) / flatness
        if edged.all():
            return np.asarray(np.maximum(np.abs(along), np.abs(across)) < reach)
        far = np.sqrt(along**2 + across**2)
        if edged.any():
            far = np.where(edged, np.maximum(np.abs(along), np.abs(across)), far)
        return np.asarray(far < reach)


def _topmost_leaves(size: tuple[int, int], leaves: _Leaves) -> Array:
    """Return the number of the topmost leaf at each position of each picture, int16 (pictures, height, width).

    A leaf is looked for in a square window around it, cut off at the edges of the picture.
    """
    top = np.zeros((len(leaves.radius), *size), np.int16)
    window = np.ceil(2 ** (np.ceil(2 * np.log2(2 * CORNER * leaves.radius + 2)) / 2)).astype(int)
    window[:, 0] = 0  # the ground is everywhere, and its number is 0
    for side in np.unique(window[:, 1:]).tolist():
        picture, leaf = np.nonzero(window == side)
        positions = min(side, size[0]) * min(side, size[1])
        if positions < LARGE_WINDOW:
            step = POSITIONS_PER_STEP // positions
            for first in range(0, len(leaf), step):
                _place_together(top, leaves, picture[first : first + step], leaf[first : first + step], side)
        else:
            for one, number in zip(picture.tolist(), leaf.tolist(), strict=True):
                _place(top[one], leaves, one, number, side)
    return top


def _place(top: Array, leaves: _Leaves, picture: int, leaf: int, side: int) -> None:
    """Place a leaf in its picture, int16 (height, width)."""
    corner = np.floor(leaves.centre[:, picture, leaf] - side / 2).astype(int).tolist()
    rows, columns = (
        np.arange(max(first, 0), min(first + side, length)) for first, length in zip(corner, top.shape, strict=True)
    )
    if rows.size and columns.size:
        part = top[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.maximum(part, leaves.cover(picture, leaf, rows, columns) * np.int16(leaf), out=part)


def _place_together(top: Array, leaves: _Leaves, picture: Array, leaf: Array, side: int) -> None:
    """Place several leaves of similar size in their pictures, int16 (pictures, height, width)."""
    corner = np.floor(leaves.centre[:, picture, leaf] - side / 2).astype(int)
    rows, columns = (
        first[:, None] * (side < length) + np.arange(min(side, length))
        for first, length in zip(corner, top.shape[1:], strict=True)
    )
    inside = [(places >= 0) & (places < length) for places, length in zip((rows, columns), top.shape[1:], strict=True)]
    covered = leaves.cover(picture, leaf, rows, columns) & inside[0][:, :, None] & inside[1][:, None]
    which, row, column = np.nonzero(covered)
    place = picture[which], rows[which, row], columns[which, column]
    # leaves ascend within a picture, so the topmost of those at one position is assigned last
    top[place] = np.maximum(top[place], leaf[which])


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
