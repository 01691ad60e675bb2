"""Collect the moments of the inputs of every linear layer, batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor as Workers
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import accumulate, pairwise
from operator import add
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from spa_onnx.execution.session import Executor, Feed, Session, executor, feed_size
from spa_onnx.layers import LayerKey, LinearLayer, columns
from spa_onnx.linalg.blas import Matrix, add_gram
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model, is_batched
from spa_onnx.statistics.batchnorm import ChannelMoments, ChannelSums
from spa_onnx.statistics.moments import MomentColumns, Moments, MomentSums, are_few
from spa_onnx.statistics.subsampling import sample_keys, subsampling

CHANNEL_SAMPLES = 128
"""Samples from which the moments of channels are computed.

A few are enough: each sample has many positions, and the dense and the pruned model are compared on the same samples.
"""

LARGEST_SQUARABLE = 1e140
"""Squares of larger numbers, or sums of such squares, may overflow in float64."""

PORTION_BYTES = 32 * 2**20
"""Bytes of columns that are unfolded at a time."""


def finite_columns(*parts: Matrix) -> list[Matrix]:
    """Drop the columns at which any part has a number that is not finite, or too large to be squared.

    Args:
        parts: float64 (blocks, inputs, n) each, all with the same n.
    """
    if all(np.isfinite(part.sum()) for part in parts):
        return list(parts)
    usable = np.logical_and.reduce(
        [(np.isfinite(part) & (np.abs(part) < LARGEST_SQUARABLE)).all(axis=(0, 1)) for part in parts]
    )
    return [part[:, :, usable] for part in parts]


class _MomentAccumulator:
    """Accumulates moments. It keeps the columns while they are few, then sums them up in place to save memory."""

    def __init__(self, blocks: int, inputs: int) -> None:
        self._columns: list[Matrix] = []
        self._grams: list[Matrix] = []
        self._total = np.zeros((blocks, inputs))
        self.count = 0

    def add(self, x: Matrix) -> None:
        """Add columns, float64 (blocks, inputs, n), except those that are not finite."""
        (x,) = finite_columns(x)
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
            for block, block_columns in enumerate(x):
                self._grams[block] = add_gram(self._grams[block], block_columns)
            self._total += x.sum(axis=2)
        self._columns = []

    def moments(self) -> Moments:
        """Return the moments of all columns, with both triangles of each Gram matrix filled in."""
        if not self._grams:
            return MomentColumns(np.concatenate(self._columns, axis=2))
        grams = [gram.T for gram in self._grams]  # row-major, as the callers expect
        for gram in grams:
            for row in range(len(gram)):
                gram[row, row + 1 :] = gram[row + 1 :, row]
        return MomentSums(np.stack(grams) if len(grams) > 1 else grams[0][None], self._total, self.count)


def with_outputs(proto: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return a copy of the model whose outputs are the named tensors, in this order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


@dataclass(frozen=True, slots=True)
class Observed:
    """Moments from some samples; the sum of two is what all their samples give.

    Args:
        layers: Key of a layer -> moments of its input.
        channels: Tensor -> sums over its channels (axis 1).
    """

    layers: Mapping[LayerKey, Moments]
    channels: Mapping[str, ChannelSums]

    def __add__(self, other: Observed) -> Observed:
        return Observed(_added(self.layers, other.layers), _added(self.channels, other.channels))


def _added(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> dict[Any, Any]:
    return {**one, **{key: one[key] + value if key in one else value for key, value in other.items()}}


@dataclass(frozen=True, slots=True)
class Schedule:
    """How tensors are captured and columns are chosen.

    Args:
        samples: Number of samples in all feeds. seed: Seed of the positions that are chosen. passes: The tensors that
        are captured together, for each pass over the feeds. column_limits: Key of a layer -> the most columns that
        memory has room for; layers without a limit are not in it. on_disk: Whether matrices are moved to temporary
        files. batched: Whether feeds hold several samples along their first axis.
    """

    samples: int
    seed: int
    passes: Sequence[Sequence[str]]
    column_limits: Mapping[LayerKey, int] = field(default_factory=dict)
    on_disk: bool = False
    batched: bool = True


@dataclass(frozen=True, slots=True)
class Observation:
    """The task of collecting moments: called with feeds, it returns an `Observed`.

    It can be pickled, so that processes can share the feeds among them. The result depends neither on the order of the
    samples nor on their division into feeds.

    Args:
        proto: The graph to run: the model that the layers belong to, or a copy with other normalisation.
        inputs: The inputs of the graph, which are read from the feeds.
        layers: Layers whose inputs are observed.
        channels: Tensors whose channels (axis 1) are observed.
        schedule: How tensors are captured and columns are chosen.
        executor: What runs the graph.
    """

    proto: onnx.ModelProto
    inputs: Collection[str]
    layers: Sequence[LinearLayer]
    channels: Sequence[str]
    schedule: Schedule
    executor: Executor = field(default_factory=executor)

    def __call__(self, feeds: Iterable[Feed], before: int = 0) -> Observed:
        """Run the feeds.

        Args:
            feeds: The samples, in batches. They are iterated over once per pass.
            before: The number of samples that others run: channels are observed on the first samples of all only.

        Raises:
            RefusedError: The executor cannot run the graph on them.
        """
        moments: dict[LayerKey, Moments] = {}
        sums: dict[str, ChannelSums] = {}
        for names in self.schedule.passes:
            accumulators, channels = self._one_pass(names, feeds, before)
            sums |= channels
            for key, accumulator in accumulators.items():
                if accumulator.count:
                    found = accumulator.moments()
                    moments[key] = found.offloaded() if self.schedule.on_disk else found
        return Observed(moments, sums)

    def _one_pass(
        self, names: Sequence[str], feeds: Iterable[Feed], before: int
    ) -> tuple[dict[LayerKey, _MomentAccumulator], dict[str, ChannelSums]]:
        """Capture these tensors."""
        inner = [name for name in names if name not in self.inputs]
        layers = [layer for layer in self.layers if layer.data in names]
        channels = [name for name in self.channels if name in names]
        accumulators = {layer.key: _MomentAccumulator(layer.blocks, layer.inputs) for layer in layers}
        sums: dict[str, ChannelSums] = {}
        session = self._session(inner)
        layer_inputs = {layer.data for layer in layers}
        count = before
        for feed in feeds:
            if count >= CHANNEL_SAMPLES:
                channels, inner = [], [name for name in inner if name in layer_inputs]
                if not layer_inputs:
                    break
            tensors = {**feed, **_captured(session, feed, inner)}
            count += feed_size(feed, batched=self.schedule.batched)
            keys = sample_keys(feed, self.schedule.seed, batched=self.schedule.batched)
            for layer in layers:
                _accumulate(accumulators[layer.key], layer, np.asarray(tensors[layer.data]), keys, self.schedule)
            sums = _added(sums, {name: ChannelSums.of(tensors[name]) for name in channels})
            del tensors  # frees memory before the next batch runs
        return accumulators, sums

    def _session(self, names: Sequence[str]) -> Session | None:
        """Open the graph with these tensors as outputs."""
        if not names:
            return None
        what = "the model with its inner tensors as outputs"
        return self.executor.open(with_outputs(self.proto, names), optimise=True, what=what)


def observe(
    observation: Observation, feeds: Sequence[Feed], workers: Workers | None = None, shares: int = 2
) -> Observed:
    """Collect moments, on several workers if there are some.

    Args:
        observation: What to collect.
        feeds: The samples, in batches.
        workers: Runs a share of the feeds each; None runs all of them here.
        shares: The number of shares. With several, sums are added in another order, which changes their last digits.

    Raises:
        RefusedError: The executor cannot run the graph on the feeds.
    """
    if workers is None or len(feeds) < 2:
        return observation(feeds)
    bounds = np.linspace(0, len(feeds), min(shares, len(feeds)) + 1).round().astype(int)
    parts = [feeds[first:last] for first, last in pairwise(bounds)]
    size = partial(feed_size, batched=observation.schedule.batched)
    before = [0, *accumulate(sum(map(size, part)) for part in parts)][:-1]
    return reduce(add, workers.map(observation, parts, before))


def _portions(data: Array, keys: NDArray[np.uint32], values: int) -> Iterator[tuple[Array, NDArray[np.uint32]]]:
    """Yield (data, keys) of as many samples as PORTION_BYTES allows; a sample has `values` numbers in its columns."""
    rows, remainder = divmod(len(data), max(len(keys), 1))
    step = len(keys) if remainder else max(1, PORTION_BYTES // (8 * values))
    for start in range(0, len(keys), step):
        yield (data if remainder else data[start * rows : (start + step) * rows]), keys[start : start + step]


def _captured(session: Session | None, feed: Feed, names: Sequence[str]) -> Feed:
    """Return the inner tensors by name."""
    return dict(zip(names, session.run(feed, names, release=True), strict=True)) if session and names else {}


def _accumulate(
    accumulator: _MomentAccumulator, layer: LinearLayer, data: Array, keys: NDArray[np.uint32], schedule: Schedule
) -> None:
    """Add the columns of one batch."""
    chosen = subsampling(layer, schedule.samples, schedule.column_limits.get(layer.key))
    rows, row_keys = chosen.of(layer.numbers(data), keys)
    for portion, portion_keys in _portions(rows, row_keys, chosen.positions * layer.inputs):
        accumulator.add(columns(layer, portion, chosen.positions, portion_keys))


def collect(
    model: Model, proto: onnx.ModelProto, layers: Sequence[LinearLayer], feeds: Sequence[Feed], seed: int
) -> Mapping[LayerKey, Moments]:
    """Return the moments of each layer's input by the layer's key, in one pass; see `Observation` for the arguments."""
    batched = is_batched(model)
    samples = sum(feed_size(feed, batched=batched) for feed in feeds)
    schedule = Schedule(samples, seed, [sorted({layer.data for layer in layers})], batched=batched)
    return observe(Observation(proto, model.inputs, layers, (), schedule), feeds).layers


def channel_moments(
    model: Model,
    proto: onnx.ModelProto,
    names: Sequence[str],
    feeds: Sequence[Feed],
    passes: Sequence[Sequence[str]] = (),
) -> Mapping[str, ChannelMoments]:
    """Return (mean, variance) of every channel (axis 1) of tensors over samples and positions, float64 (channels,).

    Args:
        model: The model.
        proto: The graph to run; see `Observation`.
        names: The tensors.
        feeds: The samples, in batches.
        passes: The tensors that are captured together, for each pass; by default all in one pass.
    """
    observation = Observation(
        proto, model.inputs, (), names, Schedule(0, 0, passes or [names], batched=is_batched(model))
    )
    return {name: sums.moments() for name, sums in observe(observation, feeds).channels.items()}
