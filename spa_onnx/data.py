"""Data given by the user: arrays named like the graph's inputs, or `x`, and optionally labels `y`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnx

from spa_onnx.errors import RefusedError
from spa_onnx.files import check_input, first_line
from spa_onnx.fold import Array
from spa_onnx.model import feeds
from spa_onnx.runtime import Feed

BATCH = 64
"""Samples per run where the model's batch is free."""

DAMAGES = (ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError, OSError, EOFError, BadZipFile, struct.error, zlib.error)
"""What numpy and zipfile raise on files that are damaged, or not theirs."""


@dataclass(frozen=True, slots=True)
class Samples:
    """inputs: input name -> array with the samples along its first axis, or a scalar. labels: integers (samples, ...), or None.

    batch: samples per run. fixed: whether the model takes exactly as many.
    """

    inputs: Feed
    labels: Array | None
    batch: int
    fixed: bool = False

    def __len__(self) -> int:
        return next(len(array) for array in self.inputs.values() if array.ndim)

    def head(self, count: int, batch: int) -> Samples:
        """The first `count` samples, in batches of `batch` unless the model fixes another size."""
        first = {name: array[:count] if array.ndim else array for name, array in self.inputs.items()}
        labels = None if self.labels is None else self.labels[:count]
        return Samples(first, labels, self.batch if self.fixed else batch, self.fixed)

    def feeds(self) -> Iterator[Feed]:
        """The samples in batches; what does not fill a fixed batch is left out."""
        count = len(self) // self.batch * self.batch if self.fixed else len(self)
        for start in range(0, count, self.batch):
            yield {name: array[start : start + self.batch] if array.ndim else array for name, array in self.inputs.items()}


def read_samples(path: Path, proto: onnx.ModelProto) -> Samples:
    """Read an .npz for this model. Raises UsageError or RefusedError that names the array and what was expected."""
    arrays = _load(path)
    wanted = feeds(proto.graph)
    if len(wanted) == 1 and wanted[0].name not in arrays and "x" in arrays:
        arrays[wanted[0].name] = arrays["x"]
    inputs = {}
    for value in wanted:
        if not value.type.tensor_type.elem_type:
            raise RefusedError(f"{path}: input {value.name} is not a tensor, so no array can be given for it; leave --data out")
        if value.name not in arrays:
            has = ", ".join(sorted(arrays)) or "none"
            raise RefusedError(f"{path} has no array for input {value.name} ({_describe(value)}); it has {has}")
        inputs[value.name] = _fit(path, value, arrays[value.name])
    lengths = {name: len(array) for name, array in inputs.items() if array.ndim}
    if not lengths:
        raise RefusedError(f"{path} is of no use: the model has no input with an axis for samples")
    if len(set(lengths.values())) != 1:
        raise RefusedError(f"{path}: the inputs differ in their number of samples: {lengths}")
    samples = next(iter(lengths.values()))
    first = next(_sizes(value)[0] for value in wanted if _sizes(value))
    if first is not None and samples < first:
        raise RefusedError(f"{path} has {samples} samples, but the model takes {first} at a time")
    return Samples(inputs, _labels(path, arrays.get("y"), samples), first or BATCH, first is not None)


def _labels(path: Path, labels: Array | None, samples: int) -> Array | None:
    if labels is None:
        return None
    if labels.dtype.kind not in "iu":
        raise RefusedError(f"{path}: the labels y are {labels.dtype}, expected class numbers (integers)")
    if labels.ndim == 0 or len(labels) != samples:
        raise RefusedError(f"{path}: y has shape {list(labels.shape)}, expected a label for each of {samples} samples")
    return labels


def _load(path: Path) -> dict[str, Array]:
    check_input(path)
    try:
        with path.open("rb") as file:
            content: Any = np.load(file, allow_pickle=False)
            return {"x": content} if isinstance(content, np.ndarray) else {name: content[name] for name in content.files}
    except DAMAGES as error:
        raise RefusedError(f"{path} is not an .npz or .npy file of plain arrays: {first_line(error)}") from error


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]


def _describe(value: onnx.ValueInfoProto) -> str:
    shape = ", ".join("any" if size is None else str(size) for size in _sizes(value))
    return f"{np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))} [{shape}]"


def _fit(path: Path, value: onnx.ValueInfoProto, array: Array) -> Array:
    """The array in the input's type. The first axis counts samples; the others must have the input's sizes."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    sizes = _sizes(value)
    wrong = array.ndim != len(sizes) or any(want is not None and want != got for want, got in zip(sizes[1:], array.shape[1:], strict=True))
    if wrong or array.size == 0:
        raise RefusedError(f"{path}: {value.name} has shape {list(array.shape)}, the model expects {_describe(value)}")
    if array.dtype != dtype and not (array.dtype.kind == dtype.kind or (array.dtype.kind in "iu" and dtype.kind == "i")):
        raise RefusedError(f"{path}: {value.name} is {array.dtype}, the model expects {_describe(value)}; convert it first")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RefusedError(f"{path}: {value.name} holds {int((~np.isfinite(array)).sum())} values that are not finite")
    return array.astype(dtype, copy=False)
