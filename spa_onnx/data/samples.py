"""Samples given by the user, read and checked against the inputs of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import onnx

from spa_onnx.data.batches import Column, Samples, sample_count
from spa_onnx.data.image_metadata import ImageInputs
from spa_onnx.data.inputs import check_shared_dimensions, describe_input, fit_to_input, input_dtype, input_sizes
from spa_onnx.data.preprocess import HELP, Preprocess, class_numbers, picture, pixels_of
from spa_onnx.data.sources import ONLY_INPUT, Images, NamedArrays, read_parts
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.model.folding import Array
from spa_onnx.model.model import feeds

BATCH = 64
"""Samples per run if the batch size of the model is free."""

LABELS = "y"
"""The name under which labels are stored."""


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
    alone = not whole and not _has_batch(proto)
    if alone:
        raw, whole = [sample for part in raw for sample in _unstacked(part, inputs)], True
    fixed = None if whole else next(input_sizes(value)[0] for value in inputs if input_sizes(value))
    images = ImageInputs.of(proto, preprocess)
    parts = [
        _checked_columns(where, part, inputs, images, whole=whole) for part in (raw if whole else _join_parts(raw))
    ]
    if preprocess is not None and not any(_has_images(part, inputs) for part in raw):
        raise UsageError(
            f"{where} holds neither images nor uint8 arrays of pixels, so there is nothing to do for --preprocess"
        )
    samples = Samples(tuple(parts), None, fixed or BATCH, fixed is not None, whole)
    if fixed is not None and all(sample_count(part) < fixed for part in parts):
        raise RefusedError(
            f"{where} has {max(map(sample_count, parts))} samples, but the model takes {fixed} at a time"
        )
    return replace(
        samples,
        labels=_labels(where, raw, preprocess or Preprocess(), _labelled(parts, whole=whole, alone=alone)),
    )


def _has_batch(proto: onnx.ModelProto) -> bool:
    """Return whether the first axis of the inputs counts samples: it is free, or the outputs have its size too."""
    sizes = {size[0] for value in feeds(proto.graph) if (size := input_sizes(value))}
    declared = {size[0] for value in proto.graph.output if (size := input_sizes(value))}
    return None in sizes or not declared or bool(declared & {None, *sizes})


def _unstacked(part: NamedArrays, inputs: Sequence[onnx.ValueInfoProto]) -> Iterator[NamedArrays]:
    """Yield the samples of a part, for a model whose inputs have no axis for samples.

    An array with one axis more than its input holds one sample per row. Other parts are one sample.
    """
    ranks = {len(input_sizes(value)) for value in inputs}
    arrays = {name: array for name, array in part.items() if isinstance(array, np.ndarray) and name != LABELS}
    stacked = bool(arrays) and all(array.ndim - 1 in ranks and array.ndim not in ranks for array in arrays.values())
    if not stacked:
        yield part
        return
    for row in range(min(map(len, arrays.values()))):
        yield {name: np.asarray(array)[row] for name, array in part.items()}


def _labelled(parts: Sequence[Mapping[str, Column]], *, whole: bool, alone: bool) -> int | None:
    """Return how many labels are expected; None if labels cannot be told apart by sample."""
    if alone:
        return len(parts)
    return None if whole else sum(map(sample_count, parts))


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
    where: str, part: NamedArrays, inputs: Sequence[onnx.ValueInfoProto], images: ImageInputs, *, whole: bool
) -> Mapping[str, Column]:
    """Return a column for each input of the model."""
    columns, shapes = {}, {}
    for number, value in enumerate(inputs):
        if not value.type.tensor_type.elem_type:
            raise RefusedError(
                f"{where}: input {value.name} is not a tensor, so no array can be given for it; leave --data out"
            )
        array = _array_for_input(where, part, value, number, only=len(inputs) == 1)
        if isinstance(array, Images) or _has_pixels(array, value, images):
            columns[value.name] = _image_column(where, value, array, images.preprocessing(input_dtype(value)))
            continue
        fitted = fit_to_input(where, value, array, whole=whole)
        shapes[value.name] = fitted.shape
        columns[value.name] = _column(fitted, shared=whole)
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


def _has_images(part: NamedArrays, inputs: Sequence[onnx.ValueInfoProto]) -> bool:
    """Return whether a part holds images or pixels for one of the inputs."""
    ranks = {len(input_sizes(value)) for value in inputs}
    return any(
        isinstance(array, Images) or (array.dtype == np.uint8 and array.ndim == 4 and array.ndim in ranks)
        for name, array in part.items()
        if name != LABELS
    )


def _has_pixels(array: Array, value: onnx.ValueInfoProto, images: ImageInputs) -> bool:
    """Return whether an array holds images that have to be preprocessed."""
    return (
        array.dtype == np.uint8
        and array.ndim == len(input_sizes(value)) == 4
        and images.takes_pixels(input_dtype(value))
    )


def _image_column(
    where: str, value: onnx.ValueInfoProto, array: Array | Images, preprocessing: Preprocess | None
) -> Column:
    """Return images, or arrays of pixels, in the form of an input; raise RefusedError if they do not fit it."""
    dtype, sizes = input_dtype(value), input_sizes(value)
    if preprocessing is None or (dtype == np.int8 and not preprocessing.sets_values):
        raise RefusedError(f"{where} holds images and input {value.name} is {dtype}: {HELP}")
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
