"""What the inputs of every product look like: collected once from the dense model, on given samples or on made-up ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import onnx

from spa_onnx.consumers import Consumer, consumers
from spa_onnx.cut import Removal
from spa_onnx.data import Samples
from spa_onnx.fold import Array
from spa_onnx.model import Model
from spa_onnx.repair import correct_normalisation, normalisations
from spa_onnx.runtime import Feed
from spa_onnx.statistics import ChannelMoments, Moments, channel_moments, feed_size, observe
from spa_onnx.synthetic import has_stored_statistics, synthetic_feeds, with_batch_statistics

BUDGET = 256 * 2**20
"""Bytes of captured tensors held at a time."""

LARGEST_BATCH = 64

USUAL_INPUT = 3 * 32 * 32
"""Elements of a sample that is small; of larger ones fewer samples hold as many positions."""

FEWEST = 32


@dataclass(frozen=True, slots=True)
class Calibration:
    """statistics: index of a consumer's node -> moments of its input. made_up: whether the samples are, with batch statistics.

    feeds: the samples, in batches. samples: how many. normalised: inputs of BatchNormalizations -> moments of their channels, for
    made-up samples.
    """

    model: Model
    consumers: tuple[Consumer, ...]
    statistics: Mapping[int, Moments]
    feeds: Sequence[Feed]
    samples: int
    made_up: bool
    normalised: Mapping[str, ChannelMoments] = field(default_factory=dict)

    def describe(self) -> str:
        """How many samples of which kind, for people."""
        return f"{self.samples} {'made-up' if self.made_up else 'given'} samples"

    def run(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """The graph to collect from: with batch statistics where samples are made up and the graph stores statistics."""
        if self.made_up and has_stored_statistics(self.model):
            return with_batch_statistics(self.model, proto)
        return proto

    def correction(self, repaired: onnx.ModelProto, removal: Removal) -> dict[str, Array]:
        """How stored normalisation statistics have to move after repair: constant -> new value; nothing for real samples."""
        if not self.normalised:
            return {}
        after = channel_moments(self.model, self.run(repaired), sorted(self.normalised), self.feeds)
        return correct_normalisation(self.model, self.normalised, after, removal)


def calibrate(model: Model, dims: Mapping[str, int], samples: Samples | None, count: int, seed: int) -> Calibration:
    """Run the dense model on at most `count` samples, given or made up, and collect the moments of every consumer's input."""
    found = tuple(consumers(model))
    per_sample = 4 * sum(prod(model.shape(name) or ()) for name in {c.data for c in found}) // max(dims_batch(model), 1)
    batch = max(1, min(LARGEST_BATCH, BUDGET // max(per_sample, 1)))
    if samples is not None:
        chosen = samples.head(count, batch)
        feeds: Sequence[Feed] = chosen.feeds()
        number = len(chosen)
    else:
        elements = max(prod((model.shape(name) or (1,))[1:]) for name in model.inputs)
        feeds = synthetic_feeds(model, dims, max(min(count, count * USUAL_INPUT // elements), FEWEST), batch, seed)
        number = sum(map(feed_size, feeds))
    bare = Calibration(model, found, {}, feeds, number, samples is None)
    names = sorted({node.inputs[0] for node in normalisations(model)}) if bare.made_up else []
    seen = observe(model, bare.run(model.proto), found, names, feeds, bare.samples, seed)
    return replace(bare, statistics=seen.products, normalised=seen.channels)


def dims_batch(model: Model) -> int:
    """The size that stands for the batch in the shapes at hand."""
    return (model.shape(model.inputs[0]) or (1,))[0] if model.inputs and model.shape(model.inputs[0]) else 1
