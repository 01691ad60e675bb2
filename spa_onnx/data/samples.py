"""Samples given by the user, checked against the inputs of a model and divided into runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import overload

import numpy as np
import onnx

from spa_onnx.data.preprocess import HELP, PRESETS, Preprocess, class_numbers, picture, pixels_of
from spa_onnx.data.sources import ONLY, Images, NamedArrays, read_parts
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.execution.session import Feed
from spa_onnx.model.folding import Array
from spa_onnx.model.model import feeds

BATCH = 64
"""Samples per run if the model's batch is free."""

LABELS = "y"


@dataclass(frozen=True, slots=True)
class Column:
    """One input of all samples of a part; `count` is None for an input that all share, `take` returns some of them."""

    count: int | None
    take: Callable[[slice], Array]


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of a model.

    Args:
        parts: Input name -> its values. Samples of one part have the same sizes.
        labels: Integers (samples, ...), or None.
        batch: Samples per run.
        fixed: Whether the model takes exactly as many.
        whole: Whether each part is one run, because the inputs share no axis for samples.
        most: The number of samples to use, None for all.
    """

    parts: tuple[Mapping[str, Column], ...]
    labels: Array | None
    batch: int
    fixed: bool = False
    whole: bool = False
    most: int | None = None

    def __len__(self) -> int:
        """Return the number of samples that are run."""
        return sum(1 if self.whole else chosen.stop - chosen.start for _, chosen in self.runs())

    def head(self, count: int, batch: int) -> Samples:
        """Return the first `count` samples, in batches of `batch` unless the model fixes another size."""
        return (
            replace(self, most=max(count, self.batch), batch=self.batch)
            if self.fixed
            else replace(self, most=count, batch=batch)
        )

    def runs(self) -> Iterator[tuple[int, slice]]:
        """Yield (part, its samples) for every run. Samples that do not fill a fixed batch are left out."""
        left = self.most
        for number, part in enumerate(self.parts):
            if self.whole:
                count, runs = 1, [slice(None)]
            else:
                count = _length(part) if left is None else min(_length(part), left)
                count = count // self.batch * self.batch if self.fixed else count
                runs = [slice(start, min(start + self.batch, count)) for start in range(0, count, self.batch)]
            if left is not None:
                left -= count
                if left < 0:
                    return
            yield from ((number, run) for run in runs)

    def feeds(self) -> Feeds:
        """Return the samples in batches, each read on demand."""
        return Feeds(self.parts, tuple(self.runs()))


class Feeds(Sequence[Feed]):
    """Runs of samples that are read, decoded and preprocessed on demand: memory holds one at a time."""

    def __init__(self, parts: Sequence[Mapping[str, Column]], runs: Sequence[tuple[int, slice]]) -> None:
        self._parts, self._runs = parts, runs

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, place: int) -> Feed: ...
    @overload
    def __getitem__(self, place: slice) -> Feeds: ...
    def __getitem__(self, place: int | slice) -> Feed | Feeds:
        if isinstance(place, slice):
            return Feeds(self._parts, self._runs[place])
        number, chosen = self._runs[place]
        return {name: column.take(chosen) for name, column in self._parts[number].items()}


def _length(part: Mapping[str, Column]) -> int:
    """Return the number of samples of a part."""
    return next(column.count for column in part.values() if column.count is not None)


def read_samples(given: object, proto: onnx.ModelProto, preprocess: Preprocess | None = None) -> Samples:
    """Read samples for a model.

    Args:
        given: A path, `module:factory`, a mapping of arrays, or an iterable of feeds.
        proto: The model.
        preprocess: How images and arrays of pixels become inputs.

    Raises:
        UsageError: The data is of no known kind.
        RefusedError: An array does not fit its input; the message names the array and what was expected.
    """
    where, raw = read_parts(given)
    wanted = feeds(proto.graph)
    if not any(value.type.tensor_type.shape.dim for value in wanted):
        raise RefusedError(f"{where} is of no use: the model has no input with an axis for samples")
    whole = len({_sizes(value)[0] for value in wanted if _sizes(value)}) > 1
    fixed = None if whole else next(_sizes(value)[0] for value in wanted if _sizes(value))
    parts = [_checked(where, part, wanted, preprocess, whole=whole) for part in (raw if whole else _joined(raw))]
    samples = Samples(tuple(parts), None, fixed or BATCH, fixed is not None, whole)
    if fixed is not None and all(_length(part) < fixed for part in parts):
        raise RefusedError(f"{where} has {max(map(_length, parts))} samples, but the model takes {fixed} at a time")
    return replace(
        samples, labels=_labels(where, raw, preprocess or Preprocess(), None if whole else sum(map(_length, parts)))
    )


def _joined(parts: Sequence[NamedArrays]) -> Iterator[NamedArrays]:
    """Yield the parts; consecutive ones that differ only in their number of samples become one."""
    for _, run in groupby(parts, lambda part: {name: _form(array) for name, array in part.items()}):
        alike = list(run)
        yield (
            alike[0]
            if len(alike) == 1
            else {name: np.concatenate([np.asarray(part[name]) for part in alike]) for name in alike[0]}
        )


def _form(array: Array | Images) -> object:
    """Return what two arrays must share to be joined: their type and the sizes of a sample."""
    return (str(array.dtype), array.shape[1:]) if isinstance(array, np.ndarray) and array.ndim else id(array)


def _checked(
    where: str, part: NamedArrays, wanted: Sequence[onnx.ValueInfoProto], preprocess: Preprocess | None, *, whole: bool
) -> Mapping[str, Column]:
    """Return a part as a column for each input of the model."""
    columns, sizes = {}, {}
    used = False
    for number, value in enumerate(wanted):
        if not value.type.tensor_type.elem_type:
            raise RefusedError(
                f"{where}: input {value.name} is not a tensor, so no array can be given for it; leave --data out"
            )
        array = _find(where, part, value, number, only=len(wanted) == 1)
        if isinstance(array, Images) or _has_pixels(array, value, preprocess):
            columns[value.name], used = _pictures(where, value, array, preprocess), True
            continue
        fitted = _fit(where, value, array, whole=whole)
        sizes[value.name] = fitted.shape
        columns[value.name] = _column(fitted, shared=whole)
    if preprocess is not None and not used:
        raise UsageError(
            f"{where} holds neither images nor uint8 arrays of pixels, so there is nothing to do for --preprocess"
        )
    lengths = {name: column.count for name, column in columns.items() if column.count is not None}
    if len(set(lengths.values())) > 1:
        raise RefusedError(f"{where}: the inputs differ in their number of samples: {lengths}")
    _same_dimensions(where, wanted, sizes)
    return columns


def _column(array: Array, *, shared: bool) -> Column:
    """Return the column of an array."""
    return (
        Column(None, lambda _: array) if shared or not array.ndim else Column(len(array), lambda chosen: array[chosen])
    )


def _find(where: str, part: NamedArrays, value: onnx.ValueInfoProto, number: int, *, only: bool) -> Array | Images:
    """Return the array for an input: by its name, by its number in test data, or the only one."""
    for name in (value.name, f"#{number}", *((ONLY,) if only else ())):
        if name in part:
            return part[name]
    held = [name for name in part if not name.startswith("#")] or [f"input_{name[1:]}.pb" for name in part]
    if any(isinstance(array, Images) for array in part.values()):
        raise RefusedError(f"{where} holds images, which fit models with one input, and this one also has {value.name}")
    hint = f"; name one: {where}:{held[0]}" if only and len(held) > 1 and where.endswith(".npz") else ""
    raise RefusedError(
        f"{where} has no array for input {value.name} ({_describe(value)}); "
        f"it has {', '.join(sorted(held)) or 'none'}{hint}"
    )


def _has_pixels(array: Array | Images, value: onnx.ValueInfoProto, preprocess: Preprocess | None) -> bool:
    """Return whether an array holds images that have to be preprocessed."""
    return (
        preprocess is not None
        and isinstance(array, np.ndarray)
        and array.dtype == np.uint8
        and array.ndim == len(_sizes(value)) == 4
    )


def _pictures(where: str, value: onnx.ValueInfoProto, given: Array | Images, preprocess: Preprocess | None) -> Column:
    """Return images, or arrays of pixels, in the form of an input; raise RefusedError if they do not fit it."""
    dtype, sizes = _dtype(value), _sizes(value)
    if preprocess is None and dtype != np.uint8:
        raise RefusedError(f"{where} holds images and input {value.name} is {dtype}: {HELP}")
    how = preprocess or PRESETS["raw"]
    want = picture(where, value.name, sizes, how.layout)
    height, width, channels = want.sizes
    if isinstance(given, Images):
        found = (height or (how.size or (0, 0))[0], width or (how.size or (0, 0))[1])
        if not all(found) or (how.size is not None and how.size != found):
            raise RefusedError(
                f"{where}: input {value.name} is {_describe(value)}; say size=HEIGHTxWIDTH in --preprocess"
                + (f", not {how.size[0]}x{how.size[1]}" if how.size and all((height, width)) else "")
            )
        _check_moments(where, how, channels or 3)
        return Column(
            len(given), lambda chosen: how.values(given.pixels(chosen, found, channels or 3), want.layout, dtype)
        )
    pixels = pixels_of(given, want.layout)
    if any(size not in (None, have) for size, have in zip(want.sizes, pixels.shape[1:], strict=True)) or not given.size:
        raise RefusedError(f"{where}: {value.name} has shape {list(given.shape)}, the model expects {_describe(value)}")
    _check_moments(where, how, pixels.shape[3])
    return Column(len(pixels), lambda chosen: how.values(pixels[chosen], want.layout, dtype))


def _check_moments(where: str, how: Preprocess, channels: int) -> None:
    """Check that the preprocessing has one value per channel."""
    for name, numbers in (("mean", how.mean), ("std", how.std)):
        if len(numbers) not in (1, channels):
            raise RefusedError(
                f"{where}: --preprocess has {len(numbers)} values for {name}, and the images have {channels} channels"
            )


def _labels(where: str, parts: Sequence[NamedArrays], how: Preprocess, samples: int | None) -> Array | None:
    """Return the labels of all parts. samples: the required number of labels, None if there must be none."""
    found = []
    for part in parts:
        images = part.get(ONLY)
        if isinstance(images, Images) and how.labels:
            found.append(np.asarray(class_numbers(where, images.paths, how.labels)))
        elif LABELS in part:
            found.append(np.asarray(part[LABELS]))
    if not found or len(found) < len(parts) or samples is None:
        return None
    labels = found[0] if len(found) == 1 else np.concatenate([np.atleast_1d(array) for array in found])
    if labels.dtype.kind not in "iu":
        raise RefusedError(f"{where}: the labels y are {labels.dtype}, expected class numbers (integers)")
    if labels.ndim == 0 or len(labels) != samples:
        raise RefusedError(f"{where}: y has shape {list(labels.shape)}, expected a label for each of {samples} samples")
    return labels + how.first if how.first else labels


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    """Return the sizes of an input, None for free ones."""
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]


def _dtype(value: onnx.ValueInfoProto) -> np.dtype[np.generic]:
    """Return the type of an input."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _describe(value: onnx.ValueInfoProto) -> str:
    """Return the type and shape of an input for messages."""
    shape = ", ".join("any" if size is None else str(size) for size in _sizes(value))
    return f"{_dtype(value)} [{shape}]"


def _fit(where: str, value: onnx.ValueInfoProto, given: Array | Images, *, whole: bool) -> Array:
    """Return the array in the input's type. The first axis counts samples; the others must have the input's sizes."""
    array, dtype, sizes = np.asarray(given), _dtype(value), _sizes(value)
    counted = 0 if whole else 1
    pairs = zip(sizes[counted:], array.shape[counted:], strict=False)
    if array.ndim != len(sizes) or any(want not in (None, got) for want, got in pairs) or array.size == 0:
        raise RefusedError(f"{where}: {value.name} has shape {list(array.shape)}, the model expects {_describe(value)}")
    if array.dtype != dtype and not (
        array.dtype.kind == dtype.kind or (array.dtype.kind in "iu" and dtype.kind == "i")
    ):
        pixels = array.dtype == np.uint8 and array.ndim == 4
        hint = f"for pixels {HELP}" if pixels else "convert it first"
        raise RefusedError(f"{where}: {value.name} is {array.dtype}, the model expects {_describe(value)}; {hint}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RefusedError(f"{where}: {value.name} holds {int((~np.isfinite(array)).sum())} values that are not finite")
    return array.astype(dtype, copy=False)


def _same_dimensions(where: str, wanted: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise RefusedError if a symbolic dimension that inputs share has two sizes."""
    first: dict[str, tuple[str, int]] = {}
    for value in wanted:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            if dim.dim_param:
                name, known = first.setdefault(dim.dim_param, (value.name, size))
                if known != size:
                    raise RefusedError(
                        f"{where}: dimension {dim.dim_param} is {size} in {value.name} "
                        f"(shape {list(shapes[value.name])}) and {known} in {name}; they must agree"
                    )
