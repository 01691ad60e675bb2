"""Preprocessing: from pixels to the values that a model was trained on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.model.folding import Array

UNCHANGED = (0.0,), (1.0,)
"""The mean and deviation that change nothing."""

CHANNELS = (1, 3, 4)
"""The numbers of channels that an image can have: 1 is grey, 3 is colour, 4 is colour with transparency."""

BLUE_FIRST = (2, 1, 0)
"""The channels of a colour image with the blue one first; transparency stays last."""

HELP = "give --preprocess imagenet, tf, unit or raw, or mean=...,std=..."


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Preprocessing of images: value = (pixel * scale - mean) / std for each channel, for pixels from 0 to 255.

    Args:
        mean: One value for each channel, or one for all.
        std: One value for each channel, or one for all.
        scale: The factor of the pixels. None is 1/255, and for an integer input without mean and std 1: pixels stay.
        layout: The axes of the model's input, `nchw` or `nhwc`; empty to derive it from the sizes of the input.
        order: The order of the colours, `rgb` or `bgr`; empty for that of the model's metadata, else `rgb`.
        size: (height, width) to which images are cropped and resized; None for the size of the input.
        labels: The source of class numbers: `name` of the file, `folder`, or empty for no labels.
        first: A number that is added to every label.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float | None = None
    layout: str = ""
    order: str = ""
    size: tuple[int, int] | None = None
    labels: str = ""
    first: int = 0

    @property
    def sets_values(self) -> bool:
        """Whether a scale, a mean or a deviation is given."""
        return self.scale is not None or (self.mean, self.std) != UNCHANGED

    def values(self, pixels: Array, layout: str, dtype: np.dtype[Any]) -> Array:
        """Return pixels as an input of the given layout and type; integers are rounded and clipped.

        Args:
            pixels: uint8 (n, height, width, channels).
            layout: `nchw` or `nhwc`.
            dtype: The type of the input.

        Returns:
            (n, channels, height, width) or (n, height, width, channels), as the layout says.
        """
        swapped = self.order == "bgr" and pixels.shape[-1] >= len(BLUE_FIRST)
        colours = pixels[..., [*BLUE_FIRST, *range(len(BLUE_FIRST), pixels.shape[-1])]] if swapped else pixels
        scale = self.scale
        if scale is None:
            scale = 1.0 if dtype.kind in "iu" and not self.sets_values else 1 / 255
        result = (colours * np.float32(scale) - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            result = np.clip(np.rint(result), limits.min, limits.max)
        return np.ascontiguousarray(result.transpose(0, 3, 1, 2) if layout == "nchw" else result).astype(dtype)


PRESETS: Mapping[str, Preprocess] = {
    "imagenet": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=1 / 255),
    "tf": Preprocess(mean=(0.5,), std=(0.5,), scale=1 / 255),
    "unit": Preprocess(scale=1 / 255),
    "raw": Preprocess(scale=1.0),
}
"""imagenet: the mean and deviation that torchvision uses. tf: values from -1 to 1. unit: values from 0 to 1. raw: the
pixels themselves."""


def _number(word: str) -> float:
    """Return a number, or a fraction like 1/255."""
    above, slash, below = word.partition("/")
    if slash and not float(below):
        raise ValueError("nothing can be divided by 0")
    return float(above) / float(below) if slash else float(above)


def _numbers(words: Sequence[str]) -> tuple[float, ...]:
    """Return 1, 3 or 4 finite numbers."""
    numbers = tuple(map(_number, words))
    if len(numbers) not in CHANNELS or not all(map(math.isfinite, numbers)):
        raise ValueError("it takes 1, 3 or 4 numbers")
    return numbers


def _divisors(words: Sequence[str]) -> tuple[float, ...]:
    """Return 1, 3 or 4 finite numbers that are not zero."""
    if 0 in _numbers(words):
        raise ValueError("nothing can be divided by 0")
    return _numbers(words)


def _scale(words: Sequence[str]) -> float:
    """Return one number that is not zero."""
    (number,) = _divisors(words)
    return number


def _size(words: Sequence[str]) -> tuple[int, int]:
    """Return (height, width) from one or two whole numbers."""
    sizes = [int(word) for part in words for word in part.split("x")]
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise ValueError("it takes one size, or height x width")
    return sizes[0], sizes[-1]


def _first(words: Sequence[str]) -> int:
    """Return the whole number that is added to labels."""
    (number,) = words
    return int(number)


def _one_of(*names: str) -> Callable[[Sequence[str]], str]:
    """Return a function that reads one of these names."""

    def read_name(words: Sequence[str]) -> str:
        """Return the name if it is one of `names`."""
        if ",".join(words) not in names:
            raise ValueError(f"choose from {', '.join(names)}")
        return words[0]

    return read_name


KEYS: Mapping[str, Callable[[Sequence[str]], object]] = {
    "mean": _numbers,
    "std": _divisors,
    "scale": _scale,
    "layout": _one_of("nchw", "nhwc"),
    "order": _one_of("rgb", "bgr"),
    "size": _size,
    "labels": _one_of("name", "folder"),
    "first": _first,
}
"""Key of --preprocess -> the function that reads its value from the words between commas."""


def parse(text: str) -> Preprocess:
    """Parse the value of --preprocess: a preset, then keys that change it.

    Examples are `imagenet,size=224` and `mean=0.5,0.5,0.5,std=0.25,layout=nhwc`.

    Raises:
        UsageError: A key or a value is unknown.
    """
    preprocess, words = Preprocess(), [word.strip() for word in text.split(",")]
    if words[0] in PRESETS:
        preprocess = PRESETS[words.pop(0)]
    key_words: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in KEYS:
            key_words[key] = [value]
        elif key_words and not equals:
            key_words[list(key_words)[-1]].append(word)
        else:
            choices = f"presets {', '.join(PRESETS)}; keys {', '.join(KEYS)}"
            raise UsageError(f"--preprocess {text}: {word!r} is none of the {choices}")
    changes: dict[str, Any] = {key: _read(text, key, values) for key, values in key_words.items()}
    return replace(preprocess, **changes)


def _read(text: str, key: str, values: Sequence[str]) -> object:
    """Return the value of a key."""
    try:
        return KEYS[key](values)
    except ValueError as error:
        raise UsageError(f"--preprocess {text}: {key}={','.join(values)} makes no sense: {error}") from error


@dataclass(frozen=True, slots=True)
class Picture:
    """How a model's input takes images.

    Args:
        layout: `nchw` or `nhwc`.
        sizes: (height, width, channels), None for free ones.
    """

    layout: str
    sizes: tuple[int | None, int | None, int | None]


def picture(where: str, name: str, sizes: Sequence[int | None], user_layout: str) -> Picture:
    """Return how an input takes images.

    Args:
        where: The name of the data in messages.
        name: The name of the input.
        sizes: The sizes of the input, None for free ones.
        user_layout: The layout that the user gave, or empty.

    Raises:
        RefusedError: The input takes no images, or its layout is unclear.
    """
    if len(sizes) != 4:
        raise RefusedError(f"{where}: input {name} has {len(sizes)} axes, and images need 4")
    image_axes = {"nchw": (2, 3, 1), "nhwc": (1, 2, 3)}
    possible_layouts = [layout for layout, (*_, channels) in image_axes.items() if sizes[channels] in CHANNELS]
    if not user_layout and not possible_layouts:
        raise RefusedError(
            f"{where}: the sizes of input {name} do not tell its channels; "
            "add layout=nchw or layout=nhwc to --preprocess"
        )
    layout = user_layout or possible_layouts[0]
    height, width, channels = (sizes[axis] for axis in image_axes[layout])
    if channels not in (*CHANNELS, None):
        raise RefusedError(
            f"{where}: input {name} has {channels} channels in layout {layout}, and images have 1, 3 or 4"
        )
    return Picture(layout, (height, width, channels))


def pixels_of(array: Array, layout: str) -> Array:
    """Return images with the channels last. The channels are the axis of size 1, 3 or 4.

    Args:
        array: uint8 (n, channels, height, width) or (n, height, width, channels).
        layout: The layout of the model. It decides if both axes, or neither, could be the channels.

    Returns:
        uint8 (n, height, width, channels).
    """
    second_fits, last_fits = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
    channels_first = layout == "nchw" if second_fits == last_fits else second_fits
    return array.transpose(0, 2, 3, 1) if channels_first else array


def class_numbers(where: str, paths: Sequence[str], label_source: str) -> list[int]:
    """Return the class of each image: the number in the name of its file, or of its folder.

    If any folder's name is not a number, the class is the folder's position among the sorted names.

    Args:
        where: The name of the data in messages.
        paths: The paths of the images.
        label_source: `folder` or `name`.

    Raises:
        RefusedError: A name holds no number.
    """
    parts = [path.split("/") for path in paths]
    if label_source == "folder":
        names = [part[-2] if len(part) > 1 else "" for part in parts]
        if not all(map(str.isdigit, names)):
            order = {name: number for number, name in enumerate(sorted(set(names)))}
            return [order[name] for name in names]
    else:
        names = [part[-1].rpartition(".")[0] for part in parts]
    numbers = [re.search(r"\d+", name) for name in names]
    if None in numbers:
        raise RefusedError(
            f"{where}: no class number in the name of image {paths[numbers.index(None)]}; leave labels=name out"
        )
    return [int(number[0]) for number in numbers if number]
