"""What the metadata of a model say about its images (https://github.com/onnx/onnx/blob/main/docs/MetadataProps.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from spa_onnx.data.preprocess import PRESETS, Preprocess

NOMINAL_RANGES: Mapping[str, Preprocess] = {
    "nominalrange_0_255": PRESETS["raw"],
    "nominalrange_16_235": Preprocess(scale=219 / 255, mean=(-16.0,)),
    "normalized_0_1": PRESETS["unit"],
    "normalized_1_1": PRESETS["tf"],
}
"""Value of `Image.NominalPixelRange` in lower case -> the preprocessing."""

COLOUR_ORDERS: Mapping[str, str] = {"bgr8": "bgr", "bgra8": "bgr", "rgb8": "rgb", "rgba8": "rgb"}
"""Value of `Image.BitmapPixelFormat` in lower case -> the order of the colours."""


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """How the inputs of a model take images.

    Args:
        preprocess: The user's preprocessing, or None.
        metadata: The metadata of the model, in lower case.
    """

    preprocess: Preprocess | None
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, proto: onnx.ModelProto, preprocess: Preprocess | None) -> ImageInputs:
        """Read the metadata of a model. Their keys and values are not case sensitive."""
        return cls(preprocess, {entry.key.lower(): entry.value.lower() for entry in proto.metadata_props})

    def preprocessing(self, dtype: np.dtype[Any]) -> Preprocess | None:
        """Return the preprocessing for an input of this type; None if neither the user nor the model says it.

        The model says what the user does not: the range if no scale, mean or deviation is given, and the order of the
        colours. Without either, bytes are pixels.
        """
        order = COLOUR_ORDERS.get(self.metadata.get("image.bitmappixelformat", ""), "")
        nominal = NOMINAL_RANGES.get(self.metadata.get("image.nominalpixelrange", ""))
        if nominal is None and dtype == np.uint8:
            nominal = PRESETS["raw"]
        chosen = self.preprocess or nominal
        if chosen is None:
            return None
        if nominal is not None and not chosen.sets_values:
            chosen = replace(chosen, scale=nominal.scale, mean=nominal.mean, std=nominal.std)
        return replace(chosen, order=chosen.order or order)

    def takes_pixels(self, dtype: np.dtype[Any]) -> bool:
        """Return whether arrays of bytes are pixels to preprocess for an input of this type, and not its values."""
        return self.preprocess is not None or (dtype != np.uint8 and self.preprocessing(dtype) is not None)
