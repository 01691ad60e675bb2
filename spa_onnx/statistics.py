"""What is known of the inputs of every consumer: sums over samples, collected batch by batch, that can be added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from spa_onnx import runtime
from spa_onnx.consumers import Consumer, Matrix
from spa_onnx.fold import Array
from spa_onnx.model import Model
from spa_onnx.runtime import Feed
from spa_onnx.unfold import columns

BASE = 2048
"""Columns that even a product with few inputs is given; every further input asks for PER_INPUT more."""

PER_INPUT = 8

ROUNDING = 1e-12
"""A variance below this share of the mean square is what rounding leaves of zero."""

ChannelMoments: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""(mean, variance) of each channel."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over the columns X (inputs, n) of one consumer's input, per block.

    gram: sum of x x', float64 (blocks, inputs, inputs). total: sum of x, float64 (blocks, inputs). count: n.
    """

    gram: Matrix
    total: Matrix
    count: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.gram + other.gram, self.total + other.total, self.count + other.count)

    @classmethod
    def of(cls, x: Matrix) -> Moments:
        """The sums of these columns, float64 (blocks, inputs, n)."""
        return cls(x @ x.transpose(0, 2, 1), x.sum(axis=2), x.shape[2])

    @property
    def mean(self) -> Matrix:
        """Mean of every input, (blocks, inputs)."""
        return self.total / max(self.count, 1)

    def covariance(self) -> Matrix:
        """Gram matrix of the centred columns over their number, (blocks, inputs, inputs); exactly zero for constant inputs."""
        mean = self.mean
        raw = self.gram / max(self.count, 1)
        centred = raw - mean[:, :, None] * mean[:, None, :]
        varies = np.einsum("bii->bi", centred) > ROUNDING * np.einsum("bii->bi", raw)
        return np.where(varies[:, :, None] & varies[:, None, :], centred, 0.0)


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

    products: index of a consumer's node -> moments of its input. channels: tensor -> moments of its channels (axis 1).
    """

    products: Mapping[int, Moments]
    channels: Mapping[str, ChannelMoments]


def observe(
    model: Model, proto: onnx.ModelProto, found: Sequence[Consumer], channels: Sequence[str], feeds: Iterable[Feed], count: int, seed: int
) -> Observed:
    """Run every feed once, and sum up the inputs of products and the channels of other tensors.

    proto: the graph to run, which computes the model's tensors (itself, or with other normalisation). count: samples in all feeds.
    Consumers whose input is a graph input are read from the feeds.
    """
    names = sorted({*channels, *(consumer.data for consumer in found if consumer.data not in model.inputs)})
    opened = (
        runtime.session(with_outputs(proto, names), optimise=True, what="the model with its inner tensors as outputs") if names else None
    )
    rng = np.random.default_rng(seed)
    products: dict[int, Moments] = {}
    sums: dict[str, ChannelSums] = {}
    for feed in feeds:
        tensors = {**feed, **(dict(zip(names, runtime.run(opened, feed), strict=True)) if opened else {})}
        for consumer in found:
            data = consumer.numbers(np.asarray(tensors[consumer.data]))
            seen = Moments.of(columns(consumer, model, data, positions(consumer, model, count), rng))
            products[consumer.node.index] = products[consumer.node.index] + seen if consumer.node.index in products else seen
        for name in channels:
            seen_there = ChannelSums.of(tensors[name])
            sums[name] = sums[name] + seen_there if name in sums else seen_there
    return Observed(products, {name: total.moments() for name, total in sums.items()})


def collect(model: Model, proto: onnx.ModelProto, found: Sequence[Consumer], feeds: Sequence[Feed], seed: int) -> Mapping[int, Moments]:
    """Only the moments of each consumer's input, by the index of its node; arguments as in `observe`."""
    return observe(model, proto, found, (), feeds, sum(map(feed_size, feeds)), seed).products


def feed_size(feed: Feed) -> int:
    """Samples in a feed."""
    return next((len(array) for array in feed.values() if array.ndim), 1)


def positions(consumer: Consumer, model: Model, samples: int) -> int:
    """How many positions of each sample are looked at."""
    inputs = int((model.shape(consumer.weight) or ())[consumer.axis.dim] * consumer.window)
    return -(-(BASE + PER_INPUT * inputs) // samples)


@dataclass(frozen=True, slots=True)
class ChannelSums:
    """Sums of the elements of each channel, and of their squares: float64 (channels,). count: elements of one channel."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    count: int

    @classmethod
    def of(cls, tensor: Array) -> ChannelSums:
        """Of a tensor (samples, channels, ...). Squares are summed sample by sample in its own precision, samples in float64."""
        flat = tensor.reshape(*tensor.shape[:2], -1).astype(np.promote_types(tensor.dtype, np.float32), copy=False)
        first, second = flat.sum(axis=2, dtype=np.float64), np.einsum("ncp,ncp->nc", flat, flat).astype(np.float64)
        return cls(first.sum(axis=0), second.sum(axis=0), flat.shape[0] * flat.shape[2])

    def __add__(self, other: ChannelSums) -> ChannelSums:
        return ChannelSums(self.first + other.first, self.second + other.second, self.count + other.count)

    def moments(self) -> ChannelMoments:
        """(mean, variance) of each channel."""
        mean = self.first / self.count
        return mean, np.maximum(self.second / self.count - np.square(mean), 0.0)


def channel_moments(model: Model, proto: onnx.ModelProto, names: Sequence[str], feeds: Iterable[Feed]) -> Mapping[str, ChannelMoments]:
    """(mean, variance) of every channel (axis 1) of these tensors over samples and positions, float64 (channels,)."""
    return observe(model, proto, (), names, feeds, 0, 0).channels
