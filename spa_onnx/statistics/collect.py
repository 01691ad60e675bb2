"""Collect the moments of the inputs of every linear layer, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from spa_onnx.execution.session import Feed, Session, feed_size, open_session
from spa_onnx.layers import LayerKey, LinearLayer, columns
from spa_onnx.linalg.blas import Matrix, add_gram
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
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

ChannelMoments: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""(mean, variance) of each channel."""


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
    """Moments from one run over the samples.

    Args:
        layers: Key of a layer -> moments of its input.
        channels: Tensor -> moments of its channels (axis 1).
    """

    layers: Mapping[LayerKey, Moments]
    channels: Mapping[str, ChannelMoments]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How tensors are captured and columns are chosen.

    Args: samples: Number of samples in the feeds. seed: Seed of the positions that are chosen. passes: The tensors
    that are captured together, for each pass over the feeds. column_limits: Key of a layer -> the most columns that
    memory has room for; layers without a limit are not in it. on_disk: Whether matrices are moved to temporary files.
    """

    samples: int
    seed: int
    passes: Sequence[Sequence[str]]
    column_limits: Mapping[LayerKey, int] = field(default_factory=dict)
    on_disk: bool = False


def _portions(data: Array, keys: NDArray[np.uint32], values: int) -> Iterator[tuple[Array, NDArray[np.uint32]]]:
    """Yield (data, keys) of as many samples as PORTION_BYTES allows; a sample has `values` numbers in its columns."""
    rows, remainder = divmod(len(data), max(len(keys), 1))
    step = len(keys) if remainder else max(1, PORTION_BYTES // (8 * values))
    for start in range(0, len(keys), step):
        yield (data if remainder else data[start * rows : (start + step) * rows]), keys[start : start + step]


def _session_with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> Session | None:
    return (
        open_session(with_outputs(proto, names), optimise=True, what="the model with its inner tensors as outputs")
        if names
        else None
    )


def _captured(session: Session | None, feed: Feed, names: Sequence[str]) -> Feed:
    """Return the inner tensors by name."""
    return dict(zip(names, session.run(feed, names, release=True), strict=True)) if session and names else {}


def observe(
    model: Model,
    proto: onnx.ModelProto,
    layers: Sequence[LinearLayer],
    channels: Sequence[str],
    feeds: Iterable[Feed],
    schedule: Schedule,
) -> Observed:
    """Run the feeds, and collect the moments of the inputs of layers and of the channels of other tensors.

    The result depends neither on the order of the samples nor on their division into feeds.

    Args:
        model: The model that the layers belong to.
        proto: The graph to run, with the same tensor names as `model`: the model itself, or a copy with other
            normalisation.
        layers: Layers whose inputs are observed. Inputs of the graph are read from the feeds.
        channels: Tensors whose channels (axis 1) are observed.
        feeds: The samples, in batches. They are iterated over once per pass.
        schedule: How tensors are captured and columns are chosen.
    """
    moments: dict[LayerKey, Moments] = {}
    sums: dict[str, ChannelSums] = {}
    for names in schedule.passes:
        inner = [name for name in names if name not in model.inputs]
        pass_layers = [layer for layer in layers if layer.data in names]
        pass_channels = [name for name in channels if name in names]
        accumulators = {layer.key: _MomentAccumulator(layer.blocks, layer.inputs) for layer in pass_layers}
        session = _session_with_outputs(proto, inner)
        layer_inputs = {layer.data for layer in pass_layers}
        count = 0
        for feed in feeds:
            if count >= CHANNEL_SAMPLES:
                pass_channels, inner = [], [name for name in inner if name in layer_inputs]
                if not layer_inputs:
                    break
            tensors = {**feed, **_captured(session, feed, inner)}
            count += feed_size(feed)
            keys = sample_keys(feed, schedule.seed)
            for layer in pass_layers:
                _accumulate(accumulators[layer.key], layer, np.asarray(tensors[layer.data]), keys, schedule)
            for name in pass_channels:
                channel_sums = ChannelSums.of(tensors[name])
                sums[name] = sums[name] + channel_sums if name in sums else channel_sums
            del tensors  # frees memory before the next batch runs
        for key, accumulator in accumulators.items():
            if accumulator.count:
                moments[key] = accumulator.moments().offloaded() if schedule.on_disk else accumulator.moments()
    return Observed(moments, {name: total.moments() for name, total in sums.items()})


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
    """Return the moments of each layer's input by the layer's key, in one pass; see `observe` for the arguments."""
    schedule = Schedule(sum(map(feed_size, feeds)), seed, [sorted({layer.data for layer in layers})])
    return observe(model, proto, layers, (), feeds, schedule).layers


@dataclass(frozen=True, slots=True)
class ChannelSums:
    """Sums over the elements of each channel.

    Args:
        total: Sum of the elements, float64 (channels,).
        squares: Sum of the squares of the elements, float64 (channels,).
        count: Number of elements of each channel.
    """

    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    count: int

    @classmethod
    def of(cls, tensor: Array) -> ChannelSums:
        """Return the sums of a tensor (samples, channels, ...).

        Each sample is summed in the tensor's own precision (at least float32), and samples in float64.
        """
        flat = tensor.reshape(*tensor.shape[:2], -1).astype(np.promote_types(tensor.dtype, np.float32), copy=False)
        total, squares = flat.sum(axis=2), np.einsum("ncp,ncp->nc", flat, flat)
        return cls(
            total.sum(axis=0, dtype=np.float64), squares.sum(axis=0, dtype=np.float64), flat.shape[0] * flat.shape[2]
        )

    def __add__(self, other: ChannelSums) -> ChannelSums:
        return ChannelSums(self.total + other.total, self.squares + other.squares, self.count + other.count)

    def moments(self) -> ChannelMoments:
        """Return (mean, variance) of each channel."""
        mean = self.total / self.count
        return mean, np.maximum(self.squares / self.count - np.square(mean), 0.0)


def channel_moments(
    model: Model,
    proto: onnx.ModelProto,
    names: Sequence[str],
    feeds: Iterable[Feed],
    passes: Sequence[Sequence[str]] = (),
) -> Mapping[str, ChannelMoments]:
    """Return (mean, variance) of every channel (axis 1) of tensors over samples and positions, float64 (channels,).

    Args:
        model: See `observe`.
        proto: See `observe`.
        names: The tensors.
        feeds: The samples, in batches.
        passes: The tensors that are captured together, for each pass; by default all in one pass.
    """
    return observe(model, proto, (), names, feeds, Schedule(0, 0, passes or [names])).channels
