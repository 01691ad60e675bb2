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

CHANNELS = (1, 3, 4)
"""Channels that an image can have: grey, colours, colours with transparency."""

HELP = "give --preprocess imagenet, tf or raw, or mean=...,std=..."


@dataclass(frozen=True, slots=True)
class Preprocess:
    """value = (pixel * scale - mean) / std for each channel, for pixels from 0 to 255.

    Args:
        mean: One value for each channel, or one for all.
        std: One value for each channel, or one for all.
        scale: The factor of the pixels.
        layout: The axes of the model's input, `nchw` or `nhwc`; empty to derive it from the sizes of the input.
        order: The order of the colours, `rgb` or `bgr`.
        size: (height, width) to which images are cropped and resized; None for the size of the input.
        labels: Where the class of an image is: in the `name` of its file, in that of its `folder`, or empty for
        nowhere.
        first: A number that is added to every label.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    layout: str = ""
    order: str = "rgb"
    size: tuple[int, int] | None = None
    labels: str = ""
    first: int = 0

    def values(self, pixels: Array, layout: str, dtype: np.dtype[Any]) -> Array:
        """Return pixels as an input of the given layout and type; integers are rounded and clipped.

        Args:
            pixels: uint8 (n, height, width, channels).
            layout: `nchw` or `nhwc`.
            dtype: The type of the input.
        """
        colours = pixels[..., ::-1] if self.order == "bgr" and pixels.shape[-1] == 3 else pixels
        result = (colours * np.float32(self.scale) - np.asarray(self.mean, np.float32)) / np.asarray(
            self.std, np.float32
        )
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            result = np.clip(np.rint(result), limits.min, limits.max)
        return np.ascontiguousarray(result.transpose(0, 3, 1, 2) if layout == "nchw" else result).astype(dtype)


PRESETS: Mapping[str, Preprocess] = {
    "imagenet": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "tf": Preprocess(mean=(0.5,), std=(0.5,)),
    "raw": Preprocess(scale=1.0),
}
"""The moments of ImageNet as in torchvision; from -1 to 1, as TensorFlow models take it; the pixels themselves."""


def _numbers(text: Sequence[str]) -> tuple[float, ...]:
    """Return one or several numbers."""
    numbers = tuple(float(word) for word in text)
    if len(numbers) not in CHANNELS or not all(map(math.isfinite, numbers)):
        raise ValueError("it takes 1, 3 or 4 numbers")
    return numbers


def _divisors(text: Sequence[str]) -> tuple[float, ...]:
    """Return one or several numbers that are not zero."""
    if 0 in _numbers(text):
        raise ValueError("nothing can be divided by 0")
    return _numbers(text)


def _scale(text: Sequence[str]) -> float:
    """Return a factor; `1/255` is allowed."""
    (number,) = _divisors(text)
    return number


def _size(text: Sequence[str]) -> tuple[int, int]:
    """Return (height, width) from one or two whole numbers."""
    sizes = [int(word) for part in text for word in part.split("x")]
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise ValueError("it takes one size, or height x width")
    return sizes[0], sizes[-1]


def _first(text: Sequence[str]) -> int:
    """Return a whole number."""
    (number,) = text
    return int(number)


def _one_of(*names: str) -> Callable[[Sequence[str]], str]:
    """Return the reader of a key that takes one of these names."""

    def chosen(text: Sequence[str]) -> str:
        """Return the name if it is known."""
        if ",".join(text) not in names:
            raise ValueError(f"choose from {', '.join(names)}")
        return text[0]

    return chosen


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
    chosen, words = Preprocess(), [word.strip() for word in text.split(",")]
    if words[0] in PRESETS:
        chosen = PRESETS[words.pop(0)]
    given: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in KEYS:
            given[key] = [value]
        elif given and not equals:
            given[list(given)[-1]].append(word)
        else:
            known = f"presets {', '.join(PRESETS)}; keys {', '.join(KEYS)}"
            raise UsageError(f"--preprocess {text}: {word!r} is none of the {known}")
    changes: dict[str, Any] = {key: _read(text, key, values) for key, values in given.items()}
    return replace(chosen, **changes)


def _read(text: str, key: str, values: Sequence[str]) -> object:
    """Return the value of a key."""
    try:
        return KEYS[key](values)
    except ValueError as error:
        raise UsageError(f"--preprocess {text}: {key}={','.join(values)} makes no sense: {error}") from error


@dataclass(frozen=True, slots=True)
class Picture:
    """How a model's input takes images: its layout, and its (height, width, channels), None where they are free."""

    layout: str
    sizes: tuple[int | None, int | None, int | None]


def picture(where: str, name: str, sizes: Sequence[int | None], wanted: str) -> Picture:
    """Return how an input takes images.

    Args:
        where: The name of the data in messages.
        name: The name of the input.
        sizes: The sizes of the input, None for free ones.
        wanted: The layout that the user gave, or empty.

    Raises:
        RefusedError: The input takes no images, or its layout is unclear.
    """
    if len(sizes) != 4:
        raise RefusedError(f"{where}: input {name} has {len(sizes)} axes, and images need 4")
    places = {"nchw": (2, 3, 1), "nhwc": (1, 2, 3)}
    fitting = [layout for layout, (*_, channels) in places.items() if sizes[channels] in CHANNELS]
    if not wanted and not fitting:
        raise RefusedError(
            f"{where}: the sizes of input {name} do not tell its channels; "
            "add layout=nchw or layout=nhwc to --preprocess"
        )
    layout = wanted or fitting[0]
    height, width, channels = (sizes[place] for place in places[layout])
    if channels not in (*CHANNELS, None):
        raise RefusedError(
            f"{where}: input {name} has {channels} channels in layout {layout}, and images have 1, 3 or 4"
        )
    return Picture(layout, (height, width, channels))


def pixels_of(array: Array, layout: str) -> Array:
    """Return images as (n, height, width, channels). The channels are the axis of size 1, 3 or 4.

    Args:
        array: uint8 (n, ...).
        layout: The layout of the model, for arrays in which two axes could be the channels.
    """
    first, last = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
    channels_first = layout == "nchw" if first == last else first
    return array.transpose(0, 2, 3, 1) if channels_first else array


def class_numbers(where: str, paths: Sequence[str], place: str) -> list[int]:
    """Return the class of each image: the number in the name of its file, or in that of its folder.

    Folders without numbers are counted in the order of their names, as usual.

    Raises:
        RefusedError: A name holds no number.
    """
    parts = [path.split("/") for path in paths]
    if place == "folder":
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
