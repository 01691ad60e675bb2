"""What is known of the inputs of every consumer: sums over samples, collected batch by batch, that can be added up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from spa_onnx import runtime
from spa_onnx.consumers import Consumer, Matrix
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


def collect(model: Model, proto: onnx.ModelProto, found: Sequence[Consumer], feeds: Sequence[Feed], seed: int) -> dict[int, Moments]:
    """Moments of each consumer's input, by the index of its node.

    proto: the graph to run, which computes the model's tensors (itself, or with other normalisation). Consumers whose input is a graph
    input are read from the feeds.
    """
    names = sorted({consumer.data for consumer in found if consumer.data not in model.inputs})
    opened = (
        runtime.session(with_outputs(proto, names), optimise=True, what="the model with its inner tensors as outputs") if names else None
    )
    samples = sum(next((len(array) for array in feed.values() if array.ndim), 1) for feed in feeds)
    rng = np.random.default_rng(seed)
    moments: dict[int, Moments] = {}
    for feed in feeds:
        tensors = {**feed, **(dict(zip(names, runtime.run(opened, feed), strict=True)) if opened else {})}
        for consumer in found:
            inputs = _inputs(consumer, model)
            positions = -(-(BASE + PER_INPUT * inputs) // samples)
            x = columns(consumer, model, np.asarray(tensors[consumer.data]), positions, rng)
            seen = Moments.of(x)
            moments[consumer.node.index] = moments[consumer.node.index] + seen if consumer.node.index in moments else seen
    return moments


def _inputs(consumer: Consumer, model: Model) -> int:
    return int((model.shape(consumer.weight) or ())[consumer.axis.dim] * consumer.window)


def channel_moments(proto: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, ChannelMoments]:
    """(mean, variance) of every channel (axis 1) of these tensors over samples and positions, float64 (channels,)."""
    opened = runtime.session(with_outputs(proto, names), optimise=True, what="the model with its inner tensors as outputs")
    sums: dict[str, tuple[NDArray[np.float64], NDArray[np.float64], int]] = {}
    for feed in feeds:
        for name, tensor in zip(names, runtime.run(opened, feed), strict=True):
            flat = np.moveaxis(tensor, 1, 0).reshape(tensor.shape[1], -1).astype(np.float64)
            first, second, count = sums.get(name, (np.zeros(len(flat)), np.zeros(len(flat)), 0))
            sums[name] = (first + flat.sum(axis=1), second + np.square(flat).sum(axis=1), count + flat.shape[1])
    return {name: (a / n, np.maximum(b / n - np.square(a / n), 0.0)) for name, (a, b, n) in sums.items()}
