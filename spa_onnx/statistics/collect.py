"""What is known of the inputs of every layer: sums over samples, collected batch by batch, that can be added up."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from spa_onnx.execution.session import Feed, Session, feed_size, open_session
from spa_onnx.layers import Columns as ColumnKind
from spa_onnx.layers import LayerKey, LinearLayer, columns
from spa_onnx.linalg.blas import Matrix, add_gram
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.statistics.moments import Columns, Moments, Sums, are_few

BASE = 2048
"""Columns that even a product with few inputs is given; every further input asks for PER_INPUT more."""

PER_INPUT = 8

MANY = 2048
"""Samples from which on BASE will do. Positions of one sample are alike, so that fewer samples are looked at more closely: MANY / k of
them at k times BASE columns, k at most MOST_MORE.
"""

MOST_MORE = 8

FOR_CHANNELS = 128
"""Samples that are enough for the moments of channels: they have many positions, and are compared on the same samples."""

LARGEST = 1e140
"""Beyond this, squares and their sums leave the range of float64."""

AT_ONCE = 32 * 2**20
"""Bytes of columns that are unfolded at a time."""

ChannelMoments: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""(mean, variance) of each channel."""


def finite(*parts: Matrix) -> list[Matrix]:
    """The columns, float64 (blocks, inputs, n) each, at which no part holds a number that is not finite, or too large to be squared."""
    if all(np.isfinite(part.sum()) for part in parts):
        return list(parts)
    usable = np.logical_and.reduce([(np.isfinite(part) & (np.abs(part) < LARGEST)).all(axis=(0, 1)) for part in parts])
    return [part[:, :, usable] for part in parts]


class _Gathered:
    """What columns show while they come: the columns themselves as long as they are few, then sums, in place, as matrices are large."""

    def __init__(self, blocks: int, inputs: int) -> None:
        self._columns: list[Matrix] = []
        self._grams: list[Matrix] = []
        self._total = np.zeros((blocks, inputs))
        self.count = 0

    def add(self, x: Matrix) -> None:
        """More columns, float64 (blocks, inputs, n); those that are not finite are left out."""
        (x,) = finite(x)
        if not x.shape[2]:
            return
        self.count += x.shape[2]
        self._columns.append(x)
        if not are_few(self.count, x.shape[1]):
            self._add_up()

    def _add_up(self) -> None:
        blocks, inputs = self._total.shape
        self._grams = self._grams or [np.zeros((inputs, inputs), order="F") for _ in range(blocks)]
        for x in self._columns:
            for number, columns_ in enumerate(x):
                self._grams[number] = add_gram(self._grams[number], columns_)
            self._total += x.sum(axis=2)
        self._columns = []

    def moments(self) -> Moments:
        """All of it; only one triangle of each symmetric matrix was computed."""
        if not self._grams:
            return Columns(np.concatenate(self._columns, axis=2))
        grams = [gram.T for gram in self._grams]  # row by row, as all others expect it
        for gram in grams:
            for row in range(len(gram)):
                gram[row, row + 1 :] = gram[row + 1 :, row]
        return Sums(np.stack(grams) if len(grams) > 1 else grams[0][None], self._total, self.count)


def with_outputs(proto: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model whose outputs are these tensors, in this order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


@dataclass(frozen=True, slots=True)
class Observed:
    """What one pass over the samples shows.

    products: key of a layer -> moments of its input. channels: tensor -> moments of its channels (axis 1).
    """

    products: Mapping[LayerKey, Moments]
    channels: Mapping[str, ChannelMoments]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How to look: samples that the feeds hold, a seed for positions, and the tensors that are captured together, pass by pass.

    most: key of a layer -> columns of which memory has room for no more. stored: whether matrices are put into files.
    """

    samples: int
    seed: int
    passes: Sequence[Sequence[str]]
    most: Mapping[LayerKey, int] = field(default_factory=dict)
    stored: bool = False


def positions_of(layer: LinearLayer, samples: int, *, closely: bool = True) -> int:
    """How many positions of each sample are looked at. closely: at more of them where samples are few."""
    more = min(max(MANY / samples, 1), MOST_MORE) if closely else 1
    return -(-round(max(BASE * more, BASE + PER_INPUT * layer.inputs)) // samples)


def places_of(layer: LinearLayer, model: Model) -> int | None:
    """Positions that there are in one sample, None where that is not known."""
    image = layer.form.columns is not ColumnKind.VECTORS
    shape = model.shape(layer.node.outputs[0] if layer.form.columns is ColumnKind.WINDOWS else layer.data)
    if not shape or min(shape) < 1:
        return None
    return prod(shape[2:]) if image else max(prod(shape) // (layer.blocks * layer.inputs) // max(model.batch, 1), 1)


@dataclass(frozen=True, slots=True)
class View:
    """What is looked at: so many positions of one sample in `every`."""

    positions: int
    every: int = 1

    def takes(self, keys: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which samples are looked at; those of either half alike, which the last bit of a key tells apart."""
        return np.asarray(keys // 2 % self.every == 0)

    def of(self, data: Array, keys: NDArray[np.uint32]) -> tuple[Array, NDArray[np.uint32]]:
        """The rows of data that are looked at, and the keys of their samples."""
        rows, rest = divmod(len(data), len(keys))
        chosen = self.takes(keys)
        return (data, keys) if rest or chosen.all() else (data[np.repeat(chosen, rows)], keys[chosen])


def view_of(layer: LinearLayer, samples: int, most: int | None = None, *, closely: bool = True) -> View:
    """What is looked at of so many samples. most: columns at most. closely: as in `positions_of`."""
    positions = positions_of(layer, samples, closely=closely)
    if most is None:
        return View(positions)
    return View(max(min(positions, most // samples), 1), max(-(-samples // most), 1))


def columns_of(layer: LinearLayer, model: Model, samples: int) -> int:
    """How many columns so many samples have, as far as is known."""
    places = places_of(layer, model)
    positions = positions_of(layer, samples)
    return samples * (positions if places is None else min(positions, places))


def sample_keys(feed: Feed, seed: int) -> NDArray[np.uint32]:
    """A number for each sample that depends on what it holds and on nothing else, uint32 (samples,)."""
    size = feed_size(feed)
    arrays = [np.ascontiguousarray(array) for array in feed.values() if array.ndim and len(array) == size]
    keys = []
    for number in range(size):
        key = seed
        for array in arrays:
            key = zlib.crc32(array[number].tobytes(), key)
        keys.append(key)
    return np.asarray(keys, np.uint32)


def _portions(data: Array, keys: NDArray[np.uint32], values: int) -> Iterator[tuple[Array, NDArray[np.uint32]]]:
    """(data, keys) of so many samples that their columns stay below AT_ONCE. values: in the columns of one sample."""
    rows, rest = divmod(len(data), max(len(keys), 1))
    step = len(keys) if rest else max(1, AT_ONCE // (8 * values))
    for start in range(0, len(keys), step):
        yield (data if rest else data[start * rows : (start + step) * rows]), keys[start : start + step]


def _opened(proto: onnx.ModelProto, names: Sequence[str]) -> Session | None:
    return (
        open_session(with_outputs(proto, names), optimise=True, what="the model with its inner tensors as outputs")
        if names
        else None
    )


def _captured(opened: Session | None, feed: Feed, names: Sequence[str]) -> Feed:
    """Inner tensors, by name."""
    return dict(zip(names, opened.run(feed, names, release=True), strict=True)) if opened and names else {}


def observe(
    model: Model,
    proto: onnx.ModelProto,
    found: Sequence[LinearLayer],
    channels: Sequence[str],
    feeds: Iterable[Feed],
    schedule: Schedule,
) -> Observed:
    """Run the feeds, and sum up the inputs of products and the channels of other tensors.

    proto: the graph to run, which computes the model's tensors (itself, or with other normalisation). Consumers whose input is a graph
    input are read from the feeds. What is found depends neither on the order of the samples nor on how they are put into feeds.
    """
    moments: dict[LayerKey, Moments] = {}
    sums: dict[str, ChannelSums] = {}
    for names in schedule.passes:
        inner = [name for name in names if name not in model.inputs]
        here, seen = [c for c in found if c.data in names], [name for name in channels if name in names]
        products = {c.key: _Gathered(c.blocks, c.inputs) for c in here}
        views = {c.key: view_of(c, schedule.samples, schedule.most.get(c.key)) for c in here}
        opened = _opened(proto, inner)
        looked_at = {layer.data for layer in here}
        count = 0
        for feed in feeds:
            if count >= FOR_CHANNELS:
                seen, inner = [], [name for name in inner if name in looked_at]
                if not looked_at:
                    break
            tensors = {**feed, **_captured(opened, feed, inner)}
            count += feed_size(feed)
            keys = sample_keys(feed, schedule.seed)
            for layer in here:
                view = views[layer.key]
                data, chosen = view.of(layer.numbers(np.asarray(tensors[layer.data])), keys)
                for part, some in _portions(data, chosen, view.positions * layer.inputs):
                    products[layer.key].add(columns(layer, part, view.positions, some))
            for name in seen:
                more = ChannelSums.of(tensors[name])
                sums[name] = sums[name] + more if name in sums else more
            del tensors  # else they would stay until the next batch has been run
        for index, gathered in products.items():
            if gathered.count:
                moments[index] = gathered.moments().stored() if schedule.stored else gathered.moments()
    return Observed(moments, {name: total.moments() for name, total in sums.items()})


def collect(
    model: Model, proto: onnx.ModelProto, found: Sequence[LinearLayer], feeds: Sequence[Feed], seed: int
) -> Mapping[LayerKey, Moments]:
    """Only the moments of each layer's input, by its key, in one pass; arguments as in `observe`."""
    schedule = Schedule(sum(map(feed_size, feeds)), seed, [sorted({layer.data for layer in found})])
    return observe(model, proto, found, (), feeds, schedule).products


@dataclass(frozen=True, slots=True)
class ChannelSums:
    """Sums of the elements of each channel, and of their squares: float64 (channels,). count: elements of one channel."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    count: int

    @classmethod
    def of(cls, tensor: Array) -> ChannelSums:
        """Of a tensor (samples, channels, ...). Each sample is summed in its own precision, samples in float64."""
        flat = tensor.reshape(*tensor.shape[:2], -1).astype(np.promote_types(tensor.dtype, np.float32), copy=False)
        first, second = flat.sum(axis=2), np.einsum("ncp,ncp->nc", flat, flat)
        return cls(
            first.sum(axis=0, dtype=np.float64), second.sum(axis=0, dtype=np.float64), flat.shape[0] * flat.shape[2]
        )

    def __add__(self, other: ChannelSums) -> ChannelSums:
        return ChannelSums(self.first + other.first, self.second + other.second, self.count + other.count)

    def moments(self) -> ChannelMoments:
        """(mean, variance) of each channel."""
        mean = self.first / self.count
        return mean, np.maximum(self.second / self.count - np.square(mean), 0.0)


def channel_moments(
    model: Model,
    proto: onnx.ModelProto,
    names: Sequence[str],
    feeds: Iterable[Feed],
    passes: Sequence[Sequence[str]] = (),
) -> Mapping[str, ChannelMoments]:
    """(mean, variance) of every channel (axis 1) of these tensors over samples and positions, float64 (channels,).

    passes: which of them are captured together; all where nothing is prompt.
    """
    return observe(model, proto, (), names, feeds, Schedule(0, 0, passes or [names])).channels
