"""From pixels to the values that a model was trained on."""

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
    """value = (pixel * scale - mean) / std, channel by channel, for pixels from 0 to 255.

    layout: axes of the model's input, `nchw` or `nhwc`; empty to tell it by the input's sizes. order: of the colours, `rgb` or `bgr`.
    size: (height, width) to which images are cropped and resized; None for that of the input. labels: where the class of an image
    stands: in the `name` of its file, in that of its `folder`, or empty for nowhere. first: added to every label.
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
        """Pixels uint8 (n, height, width, channels) as an input of this layout and type; integers are rounded and clipped."""
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
"""torchvision's moments of ImageNet; from -1 to 1, as TensorFlow likes it; the pixels themselves."""


def _numbers(text: Sequence[str]) -> tuple[float, ...]:
    numbers = tuple(float(word) for word in text)
    if len(numbers) not in CHANNELS or not all(map(math.isfinite, numbers)):
        raise ValueError("it takes 1, 3 or 4 numbers")
    return numbers


def _divisors(text: Sequence[str]) -> tuple[float, ...]:
    if 0 in _numbers(text):
        raise ValueError("nothing can be divided by 0")
    return _numbers(text)


def _scale(text: Sequence[str]) -> float:
    (number,) = _divisors(text)
    return number


def _size(text: Sequence[str]) -> tuple[int, int]:
    sizes = [int(word) for part in text for word in part.split("x")]
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise ValueError("it takes one size, or height x width")
    return sizes[0], sizes[-1]


def _first(text: Sequence[str]) -> int:
    (number,) = text
    return int(number)


def _one_of(*names: str) -> Callable[[Sequence[str]], str]:
    def chosen(text: Sequence[str]) -> str:
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
"""Key of --preprocess -> its value, from the words between commas."""


def parse(text: str) -> Preprocess:
    """`imagenet,size=224` or `mean=0.5,0.5,0.5,std=0.25,layout=nhwc`: a preset, then keys that change it. Raises UsageError."""
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
    try:
        return KEYS[key](values)
    except ValueError as error:
        raise UsageError(f"--preprocess {text}: {key}={','.join(values)} makes no sense: {error}") from error


@dataclass(frozen=True, slots=True)
class Picture:
    """What a model's input says about images: its layout, and its (height, width, channels), None where they are free."""

    layout: str
    sizes: tuple[int | None, int | None, int | None]


def picture(where: str, name: str, sizes: Sequence[int | None], wanted: str) -> Picture:
    """How an input of these sizes takes images. Raises RefusedError where it takes none, or where that cannot be told.

    wanted: the layout that the user says it has, or empty.
    """
    if len(sizes) != 4:
        raise RefusedError(f"{where}: input {name} has {len(sizes)} axes, and images need 4")
    places = {"nchw": (2, 3, 1), "nhwc": (1, 2, 3)}
    fitting = [layout for layout, (*_, channels) in places.items() if sizes[channels] in CHANNELS]
    if not wanted and not fitting:
        raise RefusedError(
            f"{where}: the sizes of input {name} do not tell its channels; add layout=nchw or layout=nhwc to --preprocess"
        )
    layout = wanted or fitting[0]
    height, width, channels = (sizes[place] for place in places[layout])
    if channels not in (*CHANNELS, None):
        raise RefusedError(
            f"{where}: input {name} has {channels} channels in layout {layout}, and images have 1, 3 or 4"
        )
    return Picture(layout, (height, width, channels))


def pixels_of(array: Array, layout: str) -> Array:
    """A uint8 array (n, ...) of images as (n, height, width, channels): its channels are where there are 1, 3 or 4 of them.

    layout: that of the model, for arrays where both could be.
    """
    first, last = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
    channels_first = layout == "nchw" if first == last else first
    return array.transpose(0, 2, 3, 1) if channels_first else array


def class_numbers(where: str, paths: Sequence[str], place: str) -> list[int]:
    """The class of each image: the number in the name of its file, or in that of its folder.

    Folders that are no numbers are counted in the order of their names, as is usual. Raises RefusedError where there is no number.
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
