"""Samples given by the user, checked against the inputs of a model and divided into runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import overload

import numpy as np
import onnx

from spa_onnx.data.inputs import check_shared_dimensions, describe_input, fit_to_input, input_dtype, input_sizes
from spa_onnx.data.preprocess import HELP, PRESETS, Preprocess, class_numbers, picture, pixels_of
from spa_onnx.data.sources import ONLY_INPUT, Images, NamedArrays, read_parts
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.execution.session import Feed
from spa_onnx.model.folding import Array
from spa_onnx.model.model import feeds

BATCH = 64
"""Samples per run if the batch size of the model is free."""

LABELS = "y"
"""The name under which labels are stored."""


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one input for all samples of a part.

    Args:
        count: The number of samples; None for an input that all samples share.
        take: Returns the values for a slice of the samples.
    """

    count: int | None
    take: Callable[[slice], Array]


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of a model.

    Args:
        parts: Input name -> its values, for each part. The samples of a part have the same sizes.
        labels: Integers (samples, ...), or None.
        batch: Samples per run.
        fixed: Whether the model takes exactly `batch` samples per run.
        whole: Whether each part is one run, because the inputs share no axis for samples.
        limit: The number of samples to use, None for all.
    """

    parts: tuple[Mapping[str, Column], ...]
    labels: Array | None
    batch: int
    fixed: bool = False
    whole: bool = False
    limit: int | None = None

    def __len__(self) -> int:
        """Return the number of samples that are run."""
        return sum(1 if self.whole else run.stop - run.start for _, run in self.runs())

    def head(self, count: int, batch: int) -> Samples:
        """Return the first samples.

        Args:
            count: The number of samples. At least one batch is used if its size is fixed.
            batch: Samples per run. It is ignored if the model fixes the batch size.
        """
        return (
            replace(self, limit=max(count, self.batch), batch=self.batch)
            if self.fixed
            else replace(self, limit=count, batch=batch)
        )

    def runs(self) -> Iterator[tuple[int, slice]]:
        """Yield the part and the samples of every run. Samples that do not fill a fixed batch are left out.

        Yields:
            (number of the part, slice of its samples).
        """
        remaining = self.limit
        for number, part in enumerate(self.parts):
            if self.whole:
                count, runs = 1, [slice(None)]
            else:
                count = _sample_count(part) if remaining is None else min(_sample_count(part), remaining)
                count = count // self.batch * self.batch if self.fixed else count
                runs = [slice(start, min(start + self.batch, count)) for start in range(0, count, self.batch)]
            if remaining is not None:
                remaining -= count
                if remaining < 0:
                    return
            yield from ((number, run) for run in runs)

    def feeds(self) -> Feeds:
        """Return the samples in batches, each read on demand."""
        return Feeds(self.parts, tuple(self.runs()))


class Feeds(Sequence[Feed]):
    """Runs of samples, read, decoded and preprocessed on demand, so that memory holds one run at a time."""

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
        part, run = self._runs[place]
        return {name: column.take(run) for name, column in self._parts[part].items()}


def _sample_count(part: Mapping[str, Column]) -> int:
    """Return the number of samples of a part."""
    return next(column.count for column in part.values() if column.count is not None)


def read_samples(data: object, proto: onnx.ModelProto, preprocess: Preprocess | None = None) -> Samples:
    """Read samples for a model.

    Args:
        data: A path, `module:factory`, a mapping of arrays, or an iterable of feeds.
        proto: The model.
        preprocess: How images and arrays of pixels become inputs.

    Raises:
        UsageError: The data is of no known kind, or the preprocessing does not apply to it.
        RefusedError: The data is damaged, or an array does not fit its input. The message says what was expected.
    """
    where, raw = read_parts(data)
    inputs = feeds(proto.graph)
    if not any(value.type.tensor_type.shape.dim for value in inputs):
        raise RefusedError(f"{where} is of no use: the model has no input with an axis for samples")
    whole = len({input_sizes(value)[0] for value in inputs if input_sizes(value)}) > 1
    fixed = None if whole else next(input_sizes(value)[0] for value in inputs if input_sizes(value))
    parts = [
        _checked_columns(where, part, inputs, preprocess, whole=whole) for part in (raw if whole else _join_parts(raw))
    ]
    samples = Samples(tuple(parts), None, fixed or BATCH, fixed is not None, whole)
    if fixed is not None and all(_sample_count(part) < fixed for part in parts):
        raise RefusedError(
            f"{where} has {max(map(_sample_count, parts))} samples, but the model takes {fixed} at a time"
        )
    return replace(
        samples,
        labels=_labels(where, raw, preprocess or Preprocess(), None if whole else sum(map(_sample_count, parts))),
    )


def _join_parts(parts: Sequence[NamedArrays]) -> Iterator[NamedArrays]:
    """Yield the parts. Consecutive parts that differ only in their number of samples become one."""
    for _, consecutive in groupby(parts, lambda part: {name: _sample_form(array) for name, array in part.items()}):
        similar = list(consecutive)
        yield (
            similar[0]
            if len(similar) == 1
            else {name: np.concatenate([np.asarray(part[name]) for part in similar]) for name in similar[0]}
        )


def _sample_form(array: Array | Images) -> object:
    """Return what two arrays must share to be joined: their type and the sizes of a sample."""
    return (str(array.dtype), array.shape[1:]) if isinstance(array, np.ndarray) and array.ndim else id(array)


def _checked_columns(
    where: str, part: NamedArrays, inputs: Sequence[onnx.ValueInfoProto], preprocess: Preprocess | None, *, whole: bool
) -> Mapping[str, Column]:
    """Return a column for each input of the model."""
    columns, shapes = {}, {}
    preprocessed = False
    for number, value in enumerate(inputs):
        if not value.type.tensor_type.elem_type:
            raise RefusedError(
                f"{where}: input {value.name} is not a tensor, so no array can be given for it; leave --data out"
            )
        array = _array_for_input(where, part, value, number, only=len(inputs) == 1)
        if isinstance(array, Images) or _has_pixels(array, value, preprocess):
            columns[value.name], preprocessed = _image_column(where, value, array, preprocess), True
            continue
        fitted = fit_to_input(where, value, array, whole=whole)
        shapes[value.name] = fitted.shape
        columns[value.name] = _column(fitted, shared=whole)
    if preprocess is not None and not preprocessed:
        raise UsageError(
            f"{where} holds neither images nor uint8 arrays of pixels, so there is nothing to do for --preprocess"
        )
    lengths = {name: column.count for name, column in columns.items() if column.count is not None}
    if len(set(lengths.values())) > 1:
        raise RefusedError(f"{where}: the inputs differ in their number of samples: {lengths}")
    check_shared_dimensions(where, inputs, shapes)
    return columns


def _column(array: Array, *, shared: bool) -> Column:
    """Return the column of an array."""
    return Column(None, lambda _: array) if shared or not array.ndim else Column(len(array), lambda run: array[run])


def _array_for_input(
    where: str, part: NamedArrays, value: onnx.ValueInfoProto, number: int, *, only: bool
) -> Array | Images:
    """Return the array for an input: by its name, by its number in test data, or that of the only input."""
    for name in (value.name, f"#{number}", *((ONLY_INPUT,) if only else ())):
        if name in part:
            return part[name]
    names = [name for name in part if not name.startswith("#")] or [f"input_{name[1:]}.pb" for name in part]
    if any(isinstance(array, Images) for array in part.values()):
        raise RefusedError(f"{where} holds images, which fit models with one input, and this one also has {value.name}")
    hint = f"; name one: {where}:{names[0]}" if only and len(names) > 1 and where.endswith(".npz") else ""
    raise RefusedError(
        f"{where} has no array for input {value.name} ({describe_input(value)}); "
        f"it has {', '.join(sorted(names)) or 'none'}{hint}"
    )


def _has_pixels(array: Array | Images, value: onnx.ValueInfoProto, preprocess: Preprocess | None) -> bool:
    """Return whether an array holds images that have to be preprocessed."""
    return (
        preprocess is not None
        and isinstance(array, np.ndarray)
        and array.dtype == np.uint8
        and array.ndim == len(input_sizes(value)) == 4
    )


def _image_column(
    where: str, value: onnx.ValueInfoProto, array: Array | Images, preprocess: Preprocess | None
) -> Column:
    """Return images, or arrays of pixels, in the form of an input; raise RefusedError if they do not fit it."""
    dtype, sizes = input_dtype(value), input_sizes(value)
    if preprocess is None and dtype != np.uint8:
        raise RefusedError(f"{where} holds images and input {value.name} is {dtype}: {HELP}")
    preprocessing = preprocess or PRESETS["raw"]
    expected = picture(where, value.name, sizes, preprocessing.layout)
    height, width, channels = expected.sizes
    if isinstance(array, Images):
        image_size = (height or (preprocessing.size or (0, 0))[0], width or (preprocessing.size or (0, 0))[1])
        if not all(image_size) or (preprocessing.size is not None and preprocessing.size != image_size):
            raise RefusedError(
                f"{where}: input {value.name} is {describe_input(value)}; say size=HEIGHTxWIDTH in --preprocess"
                + (
                    f", not {preprocessing.size[0]}x{preprocessing.size[1]}"
                    if preprocessing.size and all((height, width))
                    else ""
                )
            )
        _check_moments(where, preprocessing, channels or 3)
        return Column(
            len(array),
            lambda run: preprocessing.values(array.pixels(run, image_size, channels or 3), expected.layout, dtype),
        )
    pixels = pixels_of(array, expected.layout)
    if (
        any(size not in (None, actual) for size, actual in zip(expected.sizes, pixels.shape[1:], strict=True))
        or not array.size
    ):
        raise RefusedError(
            f"{where}: {value.name} has shape {list(array.shape)}, the model expects {describe_input(value)}"
        )
    _check_moments(where, preprocessing, pixels.shape[3])
    return Column(len(pixels), lambda run: preprocessing.values(pixels[run], expected.layout, dtype))


def _check_moments(where: str, preprocess: Preprocess, channels: int) -> None:
    """Raise RefusedError unless mean and std have one value, or one per channel."""
    for name, numbers in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(numbers) not in (1, channels):
            raise RefusedError(
                f"{where}: --preprocess has {len(numbers)} values for {name}, and the images have {channels} channels"
            )


def _labels(where: str, parts: Sequence[NamedArrays], preprocess: Preprocess, samples: int | None) -> Array | None:
    """Return the labels of all parts; None if a part has none, or if `samples`, their number, is None."""
    arrays = []
    for part in parts:
        images = part.get(ONLY_INPUT)
        if isinstance(images, Images) and preprocess.labels:
            arrays.append(np.asarray(class_numbers(where, images.paths, preprocess.labels)))
        elif LABELS in part:
            arrays.append(np.asarray(part[LABELS]))
    if not arrays or len(arrays) < len(parts) or samples is None:
        return None
    labels = arrays[0] if len(arrays) == 1 else np.concatenate([np.atleast_1d(array) for array in arrays])
    if labels.dtype.kind not in "iu":
        raise RefusedError(f"{where}: the labels y are {labels.dtype}, expected class numbers (integers)")
    if labels.ndim == 0 or len(labels) != samples:
        raise RefusedError(f"{where}: y has shape {list(labels.shape)}, expected a label for each of {samples} samples")
    return labels + preprocess.first if preprocess.first else labels
