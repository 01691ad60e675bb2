"""Statistics of the dense model's layer inputs, collected once on calibration data or synthetic samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from spa_onnx.data.batches import Samples
from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import Feed, Session, feed_size, open_session
from spa_onnx.layers import LayerKey, LinearLayer, linear_layers
from spa_onnx.linalg.obs import CALIBRATED, SYNTHETIC, UNCERTAIN, Regularisation
from spa_onnx.model.facts import Axis, Indices
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model, has_free_batch, is_batched
from spa_onnx.operators.macs import macs
from spa_onnx.statistics.batchnorm import ChannelMoments, batch_normalizations, corrected_statistics
from spa_onnx.statistics.collect import Observation, Schedule, channel_moments, observe
from spa_onnx.statistics.memory import (
    ARENA_FACTOR,
    DEFAULT_MEMORY,
    MemoryBudget,
    capture_passes,
    memory_budget,
    peak_bytes,
    peak_live_bytes,
    sample_bytes,
)
from spa_onnx.statistics.moments import Moments
from spa_onnx.synthetic.generate import (
    SyntheticSamples,
    generate_samples,
    has_stored_statistics,
    input_bytes,
    with_batch_statistics,
)
from spa_onnx.synthetic.working import WorkingInputs

LARGEST_BATCH = 64

SMALLEST_BATCH = 8
"""Batch statistics need several samples, so tensors are captured in several passes before batches get smaller."""

DEFAULT_SAMPLES = 256

MOST_DEFAULT_SAMPLES = 512
"""Small models run more synthetic samples by default: as many as DEFAULT_MACS allows, up to this many."""

DEFAULT_MACS = 20 * 10**9
"""Multiply-accumulates that a default of more than DEFAULT_SAMPLES may cost."""

MOST_SYNTHETIC_MACS = 500 * 10**9
"""Multiply-accumulates that synthetic samples may cost; large models run fewer samples than were asked for."""

FEWEST_SYNTHETIC_SAMPLES = 16
"""Synthetic samples that run whatever they cost."""

SEQUENTIAL_SHARE = 0.75
"""The share of the memory that live tensors of sequential repair may take; onnxruntime takes the rest as it runs."""

SEQUENTIAL_MODELS = 2
"""Models that sequential repair runs side by side: the dense one and the one that is repaired."""

FEWEST_SEQUENTIAL_SAMPLES = 32
"""Sequential repair is skipped if memory allows fewer samples than this and more were run."""

DRAWING_COPIES = 4
"""How many times its own size a sample takes while it is drawn."""

CANDIDATES_PER_SAMPLE = 4
"""Synthetic samples that are generated for each one that is used, if they cost little."""

HELD_SHARE = 0.6
"""The share of the memory that synthetic samples may take. All of them are held at once."""

PROCESS_BYTES = 3 * 10**8
"""What the process takes beside statistics: the interpreter, onnxruntime and the model."""

MOST_CANDIDATE_BYTES = 8 * 10**8
"""Float32 bytes that these candidates may take: large images take long to generate."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Samples, and the statistics of the dense model on them.

    Args:
        model: The dense model.
        layers: The layers whose inputs were observed.
        statistics: Key of a layer -> moments of its input.
        feeds: The samples, in batches.
        samples: Number of samples.
        synthetic: Whether the samples are synthetic. They run with batch statistics.
        uncertain: Whether the samples are synthetic and no normalisation makes inner activations similar to real ones.
        normalisation_inputs: Inputs of BatchNormalization nodes -> moments of their channels, for synthetic samples.
        passes: The tensors that are captured together, for each pass.
        sequential_samples: Samples for sequential repair, 0 to skip it. It holds all live tensors of its samples, so
            memory limits their number. It is skipped if the model is so large that fewer synthetic samples run than
            were asked for.
        memory: Bytes that running samples may take.
    """

    model: Model
    layers: tuple[LinearLayer, ...]
    statistics: Mapping[LayerKey, Moments]
    feeds: Sequence[Feed]
    samples: int
    synthetic: bool
    uncertain: bool = False
    normalisation_inputs: Mapping[str, ChannelMoments] = field(default_factory=dict)
    passes: Sequence[Sequence[str]] = ()
    sequential_samples: int = 0
    memory: int = DEFAULT_MEMORY

    @property
    def regularisation(self) -> Regularisation:
        """Return the regularisation for this kind of samples."""
        return UNCERTAIN if self.uncertain else SYNTHETIC if self.synthetic else CALIBRATED

    def describe(self) -> str:
        """Return the number and kind of samples, for reports."""
        is_part = 0 < self.sequential_samples < self.samples
        in_order = f", {self.sequential_samples} of them in the order of the graph" if is_part else ""
        return f"{self.samples} {'synthetic' if self.synthetic else 'given'} samples{in_order}"

    def first(self, count: int) -> list[Feed]:
        """Return the first feeds, with at most `count` samples if the batch is symbolic, else with at least as many."""
        if count >= self.samples:
            return list(self.feeds)
        can_shorten = has_free_batch(self.model)
        feeds: list[Feed] = []
        for feed in self.feeds:
            if count <= 0:
                break
            feeds.append({name: array[:count] for name, array in feed.items()} if can_shorten else feed)
            count -= feed_size(feed, batched=is_batched(self.model))
        return feeds

    def run(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """Return the graph to run on the samples: with batch statistics if they are synthetic, else `proto` itself."""
        if self.synthetic and has_stored_statistics(self.model):
            return with_batch_statistics(self.model, proto)
        return proto

    def correction(self, repaired: onnx.ModelProto, kept_on: Callable[[Axis], Indices]) -> dict[str, Array]:
        """Correct stored BatchNormalization statistics after repair.

        Args:
            repaired: The repaired model.
            kept_on: The kept indices of an axis, as `Removal.kept` returns them.

        Returns:
            Constant -> new value in the original's shape; empty for calibration data.
        """
        if not self.normalisation_inputs:
            return {}
        passes = [sorted(set(names) & set(self.normalisation_inputs)) for names in self.passes]
        after = channel_moments(
            self.model,
            self.run(repaired),
            sorted(self.normalisation_inputs),
            self.feeds,
            [names for names in passes if names],
        )
        return corrected_statistics(self.model, self.normalisation_inputs, after, kept_on)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How much of a model is looked at.

    Args:
        count: The most samples; None for the default.
        seed: Seed of positions and of synthetic samples.
        memory: Bytes that all this may take.
    """

    count: int | None = None
    seed: int = 0
    memory: int = DEFAULT_MEMORY


def calibrate(
    model: Model,
    inputs: WorkingInputs,
    samples: Samples | None,
    sampling: Sampling,
    of: Container[Axis] | None = None,
) -> Calibration:
    """Run the dense model on calibration data or synthetic samples, and collect the moments of every layer's input.

    Args:
        model: The dense model.
        inputs: Inputs at which the model runs, for synthetic samples.
        samples: Calibration data, None for synthetic samples.
        sampling: How much is looked at.
        of: Observe only layers that sum over one of these axes; by default all.

    Raises:
        RefusedError: The model does not run, or its matrices fit neither into memory nor into the folder for temporary
            files.
    """
    layers = tuple(layer for layer in linear_layers(model) if of is None or layer.axis in of)
    channels = {node.inputs[0] for node in batch_normalizations(model)} if samples is None else set()
    sizes = {name: sample_bytes(model, name) for name in {*channels, *(layer.data for layer in layers)}}
    count, affordable = _sample_counts(model, sampling.count, synthetic=samples is None)
    sample_size = input_bytes(model)
    wanted = count
    if samples is None:
        held = max(int(HELD_SHARE * sampling.memory) // sample_size, 1)
        wanted = min(count, max(affordable, FEWEST_SYNTHETIC_SAMPLES), held)
    memory = sampling.memory - min(PROCESS_BYTES, sampling.memory // 4)
    memory -= 0 if samples is not None else wanted * sample_size
    budget = memory_budget(model, layers, memory, wanted)
    batch = _batch_size(model, sizes, budget)
    chosen = None if samples is None else samples.head(count, batch)
    passes = tuple(capture_passes(model, sizes, chosen.batch if chosen else batch, budget))
    collection = _Collection(model, layers, channels, budget, passes, sampling.seed)
    if chosen is not None:
        calibration = collection.over(chosen.feeds(), len(chosen))
    else:
        held = min(budget.tensors, MOST_CANDIDATE_BYTES) // sample_size
        drawn = min(CANDIDATES_PER_SAMPLE * wanted, affordable, held)
        calibration = _on_synthetic(collection, inputs, wanted, min(batch, wanted), drawn)
    sequential = _sequential_samples(calibration, budget) if wanted == count else 0
    return replace(calibration, memory=memory, sequential_samples=sequential)


def _sample_counts(model: Model, count: int | None, *, synthetic: bool) -> tuple[int, int]:
    """Return (`count` or its default, synthetic samples that MOST_SYNTHETIC_MACS allows)."""
    cost = max(macs(model), 1)
    if count is None:
        small_model = min(max(DEFAULT_MACS // cost, DEFAULT_SAMPLES), MOST_DEFAULT_SAMPLES)
        count = small_model if synthetic else DEFAULT_SAMPLES
    return count, MOST_SYNTHETIC_MACS // cost


def _batch_size(model: Model, sizes: Mapping[str, int], budget: MemoryBudget) -> int:
    """Return how many samples to run at a time. sizes: captured tensor -> bytes of one sample."""
    peak = ARENA_FACTOR * max(peak_bytes(model, sizes), 1)
    drawn = DRAWING_COPIES * input_bytes(model)
    most = budget.tensors // max(peak_bytes(model, ()) + max(sizes.values(), default=0), drawn)
    return max(1, min(LARGEST_BATCH, max(budget.tensors // peak, SMALLEST_BATCH), most))


def _sequential_samples(calibration: Calibration, budget: MemoryBudget) -> int:
    """Return how many samples sequential repair uses; 0 if memory allows too few."""
    inputs = {layer.data for layer in calibration.layers}
    sample_size = SEQUENTIAL_MODELS * max(peak_live_bytes(calibration.model, inputs), 1)
    batched = is_batched(calibration.model)
    running_samples = ARENA_FACTOR * max((feed_size(feed, batched=batched) for feed in calibration.feeds), default=0)
    most = int(SEQUENTIAL_SHARE * budget.sequential_tensors) // sample_size - running_samples
    return min(calibration.samples, most) if most >= min(calibration.samples, FEWEST_SEQUENTIAL_SAMPLES) else 0


def _on_synthetic(collection: _Collection, working: WorkingInputs, samples: int, batch: int, drawn: int) -> Calibration:
    """Collect on the most informative of `drawn` synthetic samples. Raises RefusedError if the model runs on none."""
    model, seed = collection.model, collection.seed
    try:
        synthetic = generate_samples(model, working, samples, batch, seed, drawn=drawn)
        return collection.over(synthetic.feeds, collection.count(synthetic.feeds), synthetic)
    except RefusedError:  # the model may need a fixed batch size, or other lengths
        synthetic = generate_samples(model, working, samples, 0, seed)
        session = open_session(model.proto)
        feeds = [feed for feed in synthetic.feeds if _runs(session, feed)]
        if not feeds:
            raise
        return collection.over(feeds, collection.count(feeds), synthetic)


@dataclass(frozen=True, slots=True)
class _Collection:
    """What to collect.

    layers: those whose inputs are observed. channels: tensors whose channels are observed: inputs of
    BatchNormalization. passes: tensors that are captured together. seed: of positions.
    """

    model: Model
    layers: tuple[LinearLayer, ...]
    channels: Collection[str]
    budget: MemoryBudget
    passes: tuple[tuple[str, ...], ...]
    seed: int

    def count(self, feeds: Sequence[Feed]) -> int:
        """Return the number of samples."""
        return sum(feed_size(feed, batched=is_batched(self.model)) for feed in feeds)

    def over(self, feeds: Sequence[Feed], samples: int, synthetic: SyntheticSamples | None = None) -> Calibration:
        """Collect on these feeds, all or some of `synthetic`. Raises RefusedError if the model does not run on them."""
        uncertain = synthetic is not None and synthetic.uncertain
        calibration = Calibration(self.model, self.layers, {}, feeds, samples, synthetic is not None, uncertain)
        limits, batched = self.budget.column_limits, is_batched(self.model)
        schedule = Schedule(samples, self.seed, self.passes, limits, self.budget.on_disk, batched)
        graph = calibration.run(self.model.proto)
        observed = observe(Observation(graph, self.model.inputs, self.layers, sorted(self.channels), schedule), feeds)
        inputs = {name: sums.moments() for name, sums in observed.channels.items()}
        return replace(calibration, statistics=observed.layers, normalisation_inputs=inputs, passes=self.passes)


def _runs(session: Session, feed: Feed) -> bool:
    try:
        session.run(feed)
    except RefusedError:
        return False
    return True
