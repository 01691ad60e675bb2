"""Checks of arrays against the inputs of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from spa_onnx.data.preprocess import HELP
from spa_onnx.data.sources import Images
from spa_onnx.errors import RefusedError
from spa_onnx.model.folding import Array


def input_sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    """Return the sizes of an input, None for free ones."""
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]


def input_dtype(value: onnx.ValueInfoProto) -> np.dtype[np.generic]:
    """Return the type of an input."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def describe_input(value: onnx.ValueInfoProto) -> str:
    """Return the type and shape of an input for messages."""
    shape = ", ".join("any" if size is None else str(size) for size in input_sizes(value))
    return f"{input_dtype(value)} [{shape}]"


def fit_to_input(where: str, value: onnx.ValueInfoProto, values: Array | Images, *, whole: bool) -> Array:
    """Return an array in the type of an input.

    Args:
        where: The name of the data in messages.
        value: The input.
        values: The array.
        whole: Whether the first axis must have the input's size too, because it does not count samples.

    Raises:
        RefusedError: The shape or the type does not fit, or a value is not finite. The message says what was expected.
    """
    array, dtype, sizes = np.asarray(values), input_dtype(value), input_sizes(value)
    if dtype.kind == "O" and array.dtype.kind in "US":
        array = array.astype(object)
    first_checked = 0 if whole else 1
    pairs = zip(sizes[first_checked:], array.shape[first_checked:], strict=False)
    if array.ndim != len(sizes) or any(expected not in (None, actual) for expected, actual in pairs) or array.size == 0:
        raise RefusedError(
            f"{where}: {value.name} has shape {list(array.shape)}, the model expects {describe_input(value)}"
        )
    if array.dtype != dtype and not (
        array.dtype.kind == dtype.kind or (array.dtype.kind in "iu" and dtype.kind == "i")
    ):
        pixels = array.dtype == np.uint8 and array.ndim == 4
        hint = f"for pixels {HELP}" if pixels else "convert it first"
        raise RefusedError(f"{where}: {value.name} is {array.dtype}, the model expects {describe_input(value)}; {hint}")
    if array.dtype != dtype and dtype.kind in "iu" and not _within(array, dtype):
        raise RefusedError(
            f"{where}: {value.name} holds {array.dtype} from {array.min()} to {array.max()}, "
            f"and the model takes {describe_input(value)}; convert it first, or for pixels {HELP}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RefusedError(f"{where}: {value.name} holds {int((~np.isfinite(array)).sum())} values that are not finite")
    with np.errstate(over="ignore"):
        fitted = array.astype(dtype, copy=False)
    if array.dtype.kind == "f" and not np.isfinite(fitted).all():
        raise RefusedError(f"{where}: {value.name} holds {array.dtype} that are too large for {describe_input(value)}")
    return fitted


def _within(array: Array, dtype: np.dtype[Any]) -> bool:
    """Return whether a type of integers has all numbers of an array of integers."""
    limits = np.iinfo(dtype)
    return int(limits.min) <= int(array.min()) and int(array.max()) <= int(limits.max)


def check_shared_dimensions(
    where: str, inputs: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that a symbolic dimension that inputs share has one size.

    Args:
        where: The name of the data in messages.
        inputs: The inputs of the model.
        shapes: Input name -> the shape of its array.

    Raises:
        RefusedError: A dimension has two sizes.
    """
    first_uses: dict[str, tuple[str, int]] = {}
    for value in inputs:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            if dim.dim_param:
                name, first_size = first_uses.setdefault(dim.dim_param, (value.name, size))
                if first_size != size:
                    raise RefusedError(
                        f"{where}: dimension {dim.dim_param} is {size} in {value.name} "
                        f"(shape {list(shapes[value.name])}) and {first_size} in {name}; they must agree"
                    )
