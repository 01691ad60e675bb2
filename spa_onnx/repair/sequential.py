"""Repair in the order of the graph: every product aims at what the dense model computes, from the inputs that it gets after repair.

So the errors of the layers before are corrected, not added up (SPA, section 4; the asymmetric form of layer-wise reconstruction,
He, Zhang & Sun, Channel pruning for accelerating very deep neural networks, 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from spa_onnx.model.model import Model
from spa_onnx.model.subgraphs import operators
from spa_onnx.plan.mask import mask
from spa_onnx.plan.removal import Removal, zeroed
from spa_onnx.repair.layerwise import in_range, kept_columns
from spa_onnx.repair.regression import Fit, RegressionCollector, RegressionData
from spa_onnx.repair.residual import ResidualInput, residual_inputs
from spa_onnx.statistics.collect import View, finite, sample_keys, view_of

Keys: TypeAlias = NDArray[np.uint32]

DAMPINGS = tuple(DAMPING * 10 ** (half / 2) for half in range(7))
"""How strongly weights may be held where they were: what is fitted to either half of the samples has to suit the other best."""


def refit_in_order(
    model: Model,
    found: Sequence[LinearLayer],
    feeds: Sequence[Feed],
    removal: Removal,
    prior: Mapping[str, Array],
    seed: int,
    *,
    graph: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda proto: proto,
    look: Callable[[LinearLayer], View] | None = None,
) -> dict[str, Array]:
    """Constant -> new value in the original's shape, for all products with a weight of their own.

    feeds: the samples, all of which are held while the two models run. prior: values from `refit_layers`, towards which little known
    directions are drawn and which stay where a weight is shared. graph: what to run in a model's place, with tensors of the same names.
    look: what is looked at; as usual where nothing is prompt. Raises RefusedError where onnxruntime cannot run the model in parts.
    """
    made = list(feeds)  # they may be decoded or made up anew each time that they are asked for
    both = _SideBySide(model, made, removal, prior, seed, graph)
    partners = residual_inputs(model, found)
    samples = sum(map(feed_size, made))
    for layer in found:
        weight = _own_weight(layer, model)
        if weight is not None:
            view = look(layer) if look else view_of(layer, samples)
            halves = both.halves(layer, layer.matrix(weight), partners.get(layer.node.index), view)
            if halves:
                both.refit(layer, weight, halves)
    return both.values


class _SideBySide:
    """The dense model and the one under repair on the same samples. New values of constants enter the second as they are found.

    values: all of them.
    """

    def __init__(
        self,
        model: Model,
        feeds: Sequence[Feed],
        removal: Removal,
        prior: Mapping[str, Array],
        seed: int,
        graph: Callable[[onnx.ModelProto], onnx.ModelProto],
    ) -> None:
        self.values: dict[str, Array] = {}
        self._model, self._removal = model, removal
        masked = mask(model, removal)
        self._nodes = list(operators(masked.graph))
        self._dense, self._repaired = (
            PartialExecution(graph(model.proto), feeds),
            PartialExecution(graph(masked), feeds),
        )
        self._keys = [sample_keys(feed, seed) for feed in feeds]
        for name, value in prior.items():
            self._settle(name, value)

    def halves(
        self, layer: LinearLayer, weight: Matrix, partner: ResidualInput | None, view: View
    ) -> list[RegressionData]:
        """The sums over one half of the samples and over the other, at the same positions of both models.

        The key of a sample decides in which half it is, so that batches do not matter. Without columns there is no half, and none at all
        where nothing has changed yet. weight: of the dense model. partner: what the product is added to. view: what is looked at.
        """
        x, z = self._tensors(layer.data)
        beside = self._tensors(partner.tensor) if partner is not None else ([], [])
        if layer.axis not in self._removal and all(map(np.array_equal, [*x, *beside[0]], [*z, *beside[1]])):
            return []
        gathered = RegressionCollector(weight), RegressionCollector(weight)
        for batch, draw in enumerate(self._keys):
            both = [layer.numbers(data[batch]) for data in (x, z)]
            for number, rows, keys in _split(draw, len(both[0]), view):
                seen = [columns(layer, data[rows], view.positions, keys) for data in both]
                if partner is not None:
                    there, left = (outputs(layer, data[batch][rows], view.positions, keys) for data in beside)
                    seen.append(partner.before(there - left))
                gathered[number].add(*finite(*seen))
        return [pairs for pairs in (half.pairs() for half in gathered) if pairs is not None]

    def refit(self, layer: LinearLayer, weight: Array, halves: Sequence[RegressionData]) -> None:
        """Take the weight that fits best, and a bias that takes up the means, where their types can hold them."""
        model = self._model
        old = layer.matrix(weight)
        start = (
            layer.matrix(model.numbers(layer.weight, self.values[layer.weight])) if layer.weight in self.values else old
        )
        new = _fitted(layer, halves, start, [kept_columns(layer, self._removal, block) for block in range(len(old))])
        fitted = in_range(model, layer.weight, layer.tensor(new, weight)) if np.isfinite(new).all() else None
        if fitted is None:
            return
        self._settle(layer.weight, fitted)
        bias = model.weight(layer.bias) if layer.bias else None
        if bias is not None:
            lost = sum(half.lost(new) for half in halves) / sum(half.count for half in halves)
            moved = in_range(model, layer.bias, bias.astype(np.float64) + np.reshape(lost, bias.shape))
            if moved is not None:
                self._settle(layer.bias, moved)

    def _tensors(self, name: str) -> tuple[list[Array], list[Array]]:
        """A tensor of the dense model and of the other one, one array per batch each."""
        dense, repaired = run_together([self._dense, self._repaired], name)
        return dense, repaired

    def _settle(self, name: str, value: Array) -> None:
        """Take the value into the repaired model, wherever the constant is read."""
        self.values[name] = value
        for node in self._model.consumers[name]:
            use = self._nodes[node.index].input[node.inputs.index(name)]
            self._repaired.replace(use, zeroed(self._model, name, value, self._removal.slices(name)))


def _split(keys: Keys, rows: int, view: View) -> Iterator[tuple[int, slice | NDArray[np.bool_], Keys]]:
    """(half, rows of a batch that are in it, keys of their samples); all are in one where rows belong to no sample."""
    if rows % len(keys):
        yield 0, slice(None), keys
        return
    for number in (0, 1):
        half = (keys % 2 == number) & view.takes(keys)
        if half.any():
            yield number, np.repeat(half, rows // len(keys)), keys[half]


def _own_weight(layer: LinearLayer, model: Model) -> Array | None:
    """The numbers of the weight, if nothing else reads it."""
    shared = layer.weight in model.source or count_uses(model, layer.weight) != 1
    return None if shared else model.weight(layer.weight)


def _fitted(
    layer: LinearLayer, halves: Sequence[RegressionData], start: Matrix, kept: Sequence[NDArray[np.int64]]
) -> Matrix:
    """The new weights as a matrix, (blocks, rows, inputs), zero for the inputs that are gone. kept: the inputs that stay of each block."""
    first = [start[block][:, left] for block, left in enumerate(kept)]
    damping = _damping(layer, halves, first, kept)
    whole = sum(halves[1:], halves[0])
    new = np.zeros_like(start)
    for block, fit in enumerate(whole.fits(kept, centred=bool(layer.bias))):
        new[block][:, kept[block]] = fit.fitted(first[block], damping)
    return new


def _damping(
    layer: LinearLayer, halves: Sequence[RegressionData], first: Sequence[Matrix], kept: Sequence[NDArray[np.int64]]
) -> float:
    """Of DAMPINGS that with which what is fitted to one half suits the other best.

    Where all samples are in one half, a fit to fewer columns than SUPPORT per input is damped the more, since it holds for no others.
    """
    if len(halves) == 1:
        return DAMPING * max(1.0, SUPPORT * int(halves[0].repaired.shape[1]) / halves[0].count)
    one, other = (half.fits(kept, centred=bool(layer.bias)) for half in halves)
    missed = [
        sum(_crossed(a, b, w, damping) for a, b, w in zip(one, other, first, strict=True)) for damping in DAMPINGS
    ]
    return DAMPINGS[missed.index(min(missed))]


def _crossed(one: Fit, other: Fit, start: Matrix, damping: float) -> float:
    """What weights that are fitted to either half miss of the other."""
    return other.error(one.fitted(start, damping)) + one.error(other.fitted(start, damping))
