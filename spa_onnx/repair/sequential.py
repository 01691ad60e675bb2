"""Sequential repair: fit each layer's output to the dense model's, from the inputs that the repaired model gives it.

Layers are repaired in graph order, so each one corrects the errors of those before it (SPA, section 4; the asymmetric
form of layer-wise reconstruction, He, Zhang & Sun, Channel pruning for accelerating very deep neural networks, 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from spa_onnx.execution.partial import PartialExecution, run_together
from spa_onnx.execution.session import Feed, feed_size
from spa_onnx.layers import LinearLayer, columns, count_uses, outputs
from spa_onnx.linalg.blas import Matrix
from spa_onnx.linalg.obs import DAMPING, SUPPORT
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model, is_batched
from spa_onnx.model.subgraphs import operators
from spa_onnx.plan.mask import mask
from spa_onnx.plan.removal import Removal, zeroed
from spa_onnx.repair.layerwise import in_range, kept_columns
from spa_onnx.repair.regression import Fit, RegressionCollector, RegressionData
from spa_onnx.repair.residual import ResidualInput, residual_inputs
from spa_onnx.statistics.collect import finite_columns
from spa_onnx.statistics.subsampling import Subsampling, sample_keys, subsampling

Keys: TypeAlias = NDArray[np.uint32]

DAMPINGS = tuple(DAMPING * 10 ** (half / 2) for half in range(7))
"""Ridge penalties to choose from by two-fold cross-validation, as shares of the mean diagonal."""


def _as_it_is(proto: onnx.ModelProto) -> onnx.ModelProto:
    return proto


@dataclass(frozen=True, slots=True)
class SampleRun:
    """The samples of a sequential refit, and how they run.

    Args:
        feeds: The samples, in batches. All of them are held in memory while both models run.
        seed: Seed of the positions that are chosen.
        graph: Returns the graph to run in a model's place, with the same tensor names.
        subsample: Returns which columns of a layer are used; by default as `subsampling` says.
    """

    feeds: Sequence[Feed]
    seed: int = 0
    graph: Callable[[onnx.ModelProto], onnx.ModelProto] = _as_it_is
    subsample: Callable[[LinearLayer], Subsampling] | None = None


def refit_in_order(
    model: Model, layers: Sequence[LinearLayer], run: SampleRun, removal: Removal, prior: Mapping[str, Array]
) -> dict[str, Array]:
    """Refit all layers whose weight nothing else reads.

    Args:
        model: The dense model.
        layers: The layers, in graph order.
        run: The samples.
        removal: What is removed.
        prior: Values from `refit_layers`. The ridge penalty pulls towards them, and shared weights keep them.

    Returns:
        Constant -> new value in the original's shape, `prior` included.

    Raises:
        RefusedError: onnxruntime cannot run the model in parts.
    """
    batches = list(run.feeds)  # feeds may be decoded or generated anew on each iteration
    models = _SideBySide(model, replace(run, feeds=batches), removal, prior)
    residuals = residual_inputs(model, layers)
    samples = sum(feed_size(feed, batched=is_batched(model)) for feed in batches)
    for layer in layers:
        weight = _own_weight(layer, model)
        if weight is not None:
            chosen = run.subsample(layer) if run.subsample else subsampling(layer, samples)
            halves = models.halves(layer, layer.matrix(weight), residuals.get(layer.node.index), chosen)
            if halves:
                models.refit(layer, weight, halves)
    return models.values


class _SideBySide:
    """The dense model and the repaired one, run on the same samples. New values enter the repaired one at once.

    values: the new values of constants so far.
    """

    def __init__(self, model: Model, run: SampleRun, removal: Removal, prior: Mapping[str, Array]) -> None:
        self.values: dict[str, Array] = {}
        self._model, self._removal = model, removal
        masked = mask(model, removal)
        self._nodes = list(operators(masked.graph))
        self._dense = PartialExecution(run.graph(model.proto), run.feeds)
        self._repaired = PartialExecution(run.graph(masked), run.feeds)
        self._keys = [sample_keys(feed, run.seed, batched=is_batched(model)) for feed in run.feeds]
        for name, value in prior.items():
            self._replace(name, value)

    def halves(
        self, layer: LinearLayer, weight: Matrix, residual: ResidualInput | None, chosen: Subsampling
    ) -> list[RegressionData]:
        """Return the regression data of each half of the samples, for two-fold cross-validation.

        The key of a sample decides its half, so the division does not depend on batches. A half without columns is left
        out, and the list is empty if the layer's inputs are those of the dense model. weight: W of the dense model.
        """
        x, z = self._tensors(layer.data)
        dense, repaired = self._tensors(residual.tensor) if residual is not None else ([], [])
        if layer.axis not in self._removal and all(map(np.array_equal, [*x, *dense], [*z, *repaired])):
            return []
        collectors = RegressionCollector(weight), RegressionCollector(weight)
        for batch, batch_keys in enumerate(self._keys):
            inputs = [layer.numbers(data[batch]) for data in (x, z)]
            for half, rows, keys in _split(batch_keys, len(inputs[0]), chosen):
                piece = [columns(layer, data[rows], chosen.positions, keys) for data in inputs]
                if residual is not None:
                    before, after = (
                        outputs(layer, data[batch][rows], chosen.positions, keys) for data in (dense, repaired)
                    )
                    piece.append(residual.before(before - after))
                collectors[half].add(*finite_columns(*piece))
        return [data for data in (collector.data() for collector in collectors) if data is not None]

    def refit(self, layer: LinearLayer, weight: Array, halves: Sequence[RegressionData]) -> None:
        """Fit the weight, and a bias that absorbs the change of the mean, unless their types cannot hold them."""
        model = self._model
        old = layer.matrix(weight)
        start = (
            layer.matrix(model.numbers(layer.weight, self.values[layer.weight])) if layer.weight in self.values else old
        )
        new = _fitted(layer, halves, start, [kept_columns(layer, self._removal, block) for block in range(len(old))])
        stored = in_range(model, layer.weight, layer.tensor(new, weight)) if np.isfinite(new).all() else None
        if stored is None:
            return
        self._replace(layer.weight, stored)
        bias = model.weight(layer.bias) if layer.bias else None
        if bias is not None:
            shift = sum(half.residual(new) for half in halves) / sum(half.count for half in halves)
            stored_bias = in_range(model, layer.bias, bias.astype(np.float64) + np.reshape(shift, bias.shape))
            if stored_bias is not None:
                self._replace(layer.bias, stored_bias)

    def _tensors(self, name: str) -> tuple[list[Array], list[Array]]:
        """Return a tensor of (the dense model, the repaired one), one array per batch."""
        dense, repaired = run_together([self._dense, self._repaired], name)
        return dense, repaired

    def _replace(self, name: str, value: Array) -> None:
        """Replace a constant of the repaired model in all nodes that read it."""
        self.values[name] = value
        for node in self._model.consumers[name]:
            use = self._nodes[node.index].input[node.inputs.index(name)]
            self._repaired.replace(use, zeroed(self._model, name, value, self._removal.slices(name)))


def _split(keys: Keys, rows: int, chosen: Subsampling) -> Iterator[tuple[int, slice | NDArray[np.bool_], Keys]]:
    """Yield (half, its rows of a batch, keys of their samples).

    All rows are in half 0 if they cannot be assigned to samples.
    """
    if rows % len(keys):
        yield 0, slice(None), keys
        return
    for half in (0, 1):
        members = (keys % 2 == half) & chosen.takes(keys)
        if members.any():
            yield half, np.repeat(members, rows // len(keys)), keys[members]


def _own_weight(layer: LinearLayer, model: Model) -> Array | None:
    """Return the numbers of the weight, None if anything else reads it."""
    shared = layer.weight in model.source or count_uses(model, layer.weight) != 1
    return None if shared else model.weight(layer.weight)


def _fitted(
    layer: LinearLayer, halves: Sequence[RegressionData], start: Matrix, kept: Sequence[NDArray[np.int64]]
) -> Matrix:
    """Return the new weights, (blocks, rows, inputs), zero for removed inputs. kept: input numbers for each block."""
    start_kept = [start[block][:, inputs] for block, inputs in enumerate(kept)]
    damping = _damping(layer, halves, start_kept, kept)
    whole = sum(halves[1:], halves[0])
    new = np.zeros_like(start)
    for block, fit in enumerate(whole.fits(kept, centred=bool(layer.bias))):
        new[block][:, kept[block]] = fit.fitted(start_kept[block], damping)
    return new


def _damping(
    layer: LinearLayer, halves: Sequence[RegressionData], start: Sequence[Matrix], kept: Sequence[NDArray[np.int64]]
) -> float:
    """Return the ridge penalty of DAMPINGS with the smallest error in two-fold cross-validation.

    If only one half has columns, there is nothing to validate on. The penalty is then DAMPING, multiplied by the factor
    by which the columns fall short of SUPPORT per input.
    """
    if len(halves) == 1:
        return DAMPING * max(1.0, SUPPORT * int(halves[0].input_total.shape[1]) / halves[0].count)
    first, second = (half.fits(kept, centred=bool(layer.bias)) for half in halves)
    errors = [
        sum(_held_out_error(a, b, w, damping) for a, b, w in zip(first, second, start, strict=True))
        for damping in DAMPINGS
    ]
    return DAMPINGS[errors.index(min(errors))]


def _held_out_error(first: Fit, second: Fit, start: Matrix, damping: float) -> float:
    """Return the error of the fit to each half on the other half, summed."""
    return second.error(first.fitted(start, damping)) + first.error(second.fitted(start, damping))
