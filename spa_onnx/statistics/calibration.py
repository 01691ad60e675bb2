"""What the inputs of every product look like: collected once from the dense model, on given samples or on made-up ones."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from spa_onnx.data.samples import Samples
from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import Feed, Session, feed_size, open_session
from spa_onnx.layers import LayerKey, LinearLayer, linear_layers
from spa_onnx.linalg.obs import CALIBRATED, SYNTHETIC, UNCERTAIN, Regularisation
from spa_onnx.model.facts import Axis
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model, has_free_batch
from spa_onnx.operators.macs import macs
from spa_onnx.plan.removal import Removal
from spa_onnx.statistics.batchnorm import corrected_statistics, normalisations
from spa_onnx.statistics.collect import ChannelMoments, Schedule, channel_moments, observe
from spa_onnx.statistics.memory import ARENA, MEMORY, Room, passes, room, running, sample_bytes, widest_cut
from spa_onnx.statistics.moments import Moments
from spa_onnx.synthetic.generate import SyntheticSamples, generate_samples, has_stored_statistics, with_batch_statistics

LARGEST_BATCH = 64

SMALLEST_BATCH = 8
"""Rather than run fewer samples at a time, which batch statistics could not do with, tensors are looked at in several passes."""

USUAL = 256
"""Samples to look at where nothing is prompt."""

USUAL_FOR_SMALL = 512
"""Made-up samples where nothing is prompt, with small models: as many of them as cost SMALL_WORK, but no fewer than USUAL."""

SMALL_WORK = 20 * 10**9
"""Multiply-accumulates."""

WORK = 500 * 10**9
"""Multiply-accumulates that made-up samples may cost together: of large models and inputs fewer are made, but FEWEST_MADE_UP."""

FEWEST_MADE_UP = 16

WALKS = 2
"""Models that run side by side while one is repaired in the order of the graph: the dense one and it."""

FEWEST_IN_ORDER = 32
"""Of fewer samples, if more were looked at, repair in the order of the graph would know too little."""

DRAWN = 4
"""So many times as many samples are made up as are asked for, where that costs little, and those are taken that tell most."""

MOST_DRAWN = 8 * 10**8
"""Bytes that these may take together, as float32, beside what WORK and --memory allow: large pictures take long to make."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """statistics: key of a layer -> moments of its input. synthetic: whether the samples are, with batch statistics.

    consumers: those whose inputs were looked at. feeds: the samples, in batches. samples: how many. uncertain: whether they are made up
    and inner layers may be stirred otherwise than by real ones. normalised: inputs of BatchNormalizations -> moments of their channels,
    for made-up samples. passes: which tensors are captured together. in_order: samples of which all that they do in the graph is held,
    to repair it in its order: as many as memory has room for; none where these are but few, or the model is so large that fewer are made
    up than were asked for. memory: bytes that looking at samples may take.
    """

    model: Model
    layers: tuple[LinearLayer, ...]
    statistics: Mapping[LayerKey, Moments]
    feeds: Sequence[Feed]
    samples: int
    synthetic: bool
    uncertain: bool = False
    normalised: Mapping[str, ChannelMoments] = field(default_factory=dict)
    passes: Sequence[Sequence[str]] = ()
    in_order: int = 0
    memory: int = MEMORY

    @property
    def regularisation(self) -> Regularisation:
        """How far the statistics hold for real samples."""
        return UNCERTAIN if self.uncertain else SYNTHETIC if self.synthetic else CALIBRATED

    def describe(self) -> str:
        """How many samples of which kind, for people."""
        some = f", {self.in_order} of them in the order of the graph" if 0 < self.in_order < self.samples else ""
        return f"{self.samples} {'made-up' if self.synthetic else 'given'} samples{some}"

    def first(self, most: int) -> list[Feed]:
        """The first feeds that hold as many samples; the last one is shortened where the batch is symbolic."""
        if most >= self.samples:
            return list(self.feeds)
        free = has_free_batch(self.model)
        found: list[Feed] = []
        for feed in self.feeds:
            if most <= 0:
                break
            found.append({name: array[:most] for name, array in feed.items()} if free else feed)
            most -= feed_size(feed)
        return found

    def run(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """The graph to collect from: with batch statistics where samples are made up and the graph stores statistics."""
        if self.synthetic and has_stored_statistics(self.model):
            return with_batch_statistics(self.model, proto)
        return proto

    def correction(self, repaired: onnx.ModelProto, removal: Removal) -> dict[str, Array]:
        """How stored normalisation statistics have to move after repair: constant -> new value; nothing for real samples."""
        if not self.normalised:
            return {}
        passes = [sorted(set(names) & set(self.normalised)) for names in self.passes]
        after = channel_moments(
            self.model, self.run(repaired), sorted(self.normalised), self.feeds, [names for names in passes if names]
        )
        return corrected_statistics(self.model, self.normalised, after, removal)


def calibrate(
    model: Model,
    dims: Mapping[str, int],
    samples: Samples | None,
    count: int | None,
    seed: int,
    *,
    memory: int = MEMORY,
    of: Container[Axis] | None = None,
) -> Calibration:
    """Run the dense model on at most `count` samples, given or made up, and collect the moments of every layer's input.

    count: None for what is usual. memory: bytes that all this may hold. of: only consumers that sum over one of these axes. Raises
    RefusedError where the model does not run, or matrices that memory has no room for do not fit into the folder for temporary files
    either.
    """
    found = tuple(layer for layer in linear_layers(model) if of is None or layer.axis in of)
    names = {node.inputs[0] for node in normalisations(model)} if samples is None else set()
    sizes = {name: sample_bytes(model, name) for name in {*names, *(layer.data for layer in found)}}
    each = max(macs(model), 1)
    affordable = WORK // each
    if count is None:
        count = USUAL if samples is not None else min(max(SMALL_WORK // each, USUAL), USUAL_FOR_SMALL)
    wanted = count if samples is not None else min(count, max(affordable, FEWEST_MADE_UP))
    space = room(model, found, memory, wanted)
    most = space.tensors // max(sizes.values(), default=1)
    fullest = ARENA * max(running(model, sizes), 1)
    batch = max(1, min(LARGEST_BATCH, max(space.tensors // fullest, SMALLEST_BATCH), most))
    chosen = None if samples is None else samples.head(count, batch)
    together = tuple(passes(model, sizes, chosen.batch if chosen else batch, space))
    collection = _Collection(model, found, names, space, together, seed)
    if chosen is not None:
        known = collection.over(chosen.feeds(), len(chosen))
    else:
        held = min(space.tensors, MOST_DRAWN) // max(sum(sample_bytes(model, name) for name in model.inputs), 1)
        known = _on_synthetic(collection, dims, wanted, min(batch, wanted), min(DRAWN * wanted, affordable, held))
    cut = WALKS * max(widest_cut(model, {layer.data for layer in found}), 1)
    walked = space.in_order // cut - ARENA * max(
        map(feed_size, known.feeds), default=0
    )  # a batch that runs takes as much again
    return replace(known, memory=memory, in_order=_in_order(known.samples, walked) if wanted == count else 0)


def _in_order(samples: int, most: int) -> int:
    """How many samples to repair with in the order of the graph, where memory has room for so many at most."""
    return min(samples, most) if most >= min(samples, FEWEST_IN_ORDER) else 0


def _on_synthetic(
    collection: _Collection, dims: Mapping[str, int], samples: int, batch: int, drawn: int
) -> Calibration:
    """What is found on made-up samples, the most telling of those drawn. Raises RefusedError where the model runs on none."""
    model, seed = collection.model, collection.seed
    try:
        made = generate_samples(model, dims, samples, batch, seed, drawn=drawn)
        return collection.over(made.feeds, sum(map(feed_size, made.feeds)), made)
    except RefusedError:  # a state has room for one sample alone, or lengths do not fit
        made = generate_samples(model, dims, samples, 0, seed)
        session = open_session(model.proto)
        feeds = [feed for feed in made.feeds if _runs(session, feed)]
        if not feeds:
            raise
        return collection.over(feeds, sum(map(feed_size, feeds)), made)


@dataclass(frozen=True, slots=True)
class _Collection:
    """What is to be collected: the inputs of products, and the channels of the tensors named, which enter BatchNormalizations.

    space: what there is room for. passes: which tensors are captured together. seed: of positions.
    """

    model: Model
    found: tuple[LinearLayer, ...]
    names: Collection[str]
    space: Room
    passes: tuple[tuple[str, ...], ...]
    seed: int

    def over(self, feeds: Sequence[Feed], samples: int, made: SyntheticSamples | None = None) -> Calibration:
        """What is found on these feeds, all or some of those made up. Raises RefusedError where the model does not run on them."""
        uncertain = made is not None and made.uncertain
        bare = Calibration(self.model, self.found, {}, feeds, samples, made is not None, uncertain)
        schedule = Schedule(samples, self.seed, self.passes, self.space.most, self.space.stored)
        seen = observe(self.model, bare.run(self.model.proto), self.found, sorted(self.names), feeds, schedule)
        return replace(bare, statistics=seen.products, normalised=seen.channels, passes=self.passes)


def _runs(session: Session, feed: Feed) -> bool:
    try:
        session.run(feed)
    except RefusedError:
        return False
    return True
