"""Repair in the order of the graph: every product aims at what the dense model computes, from the inputs that it gets after repair.

So the errors of the layers before are corrected, not added up (SPA, section 4; the asymmetric form of layer-wise reconstruction,
He, Zhang & Sun, Channel pruning for accelerating very deep neural networks, 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from spa_onnx.blas import Matrix, product
from spa_onnx.bodies import operators
from spa_onnx.consumers import Consumer
from spa_onnx.cut import Removal, zeroed
from spa_onnx.fold import Array
from spa_onnx.mask import mask
from spa_onnx.model import Model
from spa_onnx.obs import DAMPING, SUPPORT, missed, steer
from spa_onnx.repair import in_range, kept_columns
from spa_onnx.runtime import Feed, feed_size
from spa_onnx.statistics import finite, positions_of, sample_keys
from spa_onnx.unfold import columns
from spa_onnx.walk import Walk

Keys: TypeAlias = NDArray[np.uint32]

DAMPINGS = (DAMPING, 10 * DAMPING, 100 * DAMPING, 1000 * DAMPING)
"""How strongly weights may be held where they were: what is fitted to either half of the samples has to suit the other best."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Sums over the columns X of the dense model's input and Z of the repaired one's, at the same positions, per block.

    cross: sum of x z', gram: sum of z z', float64 (blocks, inputs, inputs). dense, repaired: sums of x and of z, (blocks, inputs).
    count: columns.
    """

    cross: Matrix
    gram: Matrix
    dense: Matrix
    repaired: Matrix
    count: int

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(
            self.cross + other.cross,
            self.gram + other.gram,
            self.dense + other.dense,
            self.repaired + other.repaired,
            self.count + other.count,
        )

    @classmethod
    def of(cls, x: Matrix, z: Matrix) -> Pairs:
        """The sums of these columns, float64 (blocks, inputs, n) each."""
        cross = np.stack([product(dense, repaired.T) for dense, repaired in zip(x, z, strict=True)])
        gram = np.stack([product(repaired, repaired.T) for repaired in z])
        return cls(cross, gram, x.sum(axis=2), z.sum(axis=2), x.shape[2])

    def centred(self) -> tuple[Matrix, Matrix]:
        """(cross, gram) of the columns without their means, over their number."""
        x, z = self.dense / self.count, self.repaired / self.count
        return self.cross / self.count - x[:, :, None] * z[:, None, :], self.gram / self.count - z[:, :, None] * z[:, None, :]


def reconstruct_in_order(
    model: Model,
    found: Sequence[Consumer],
    feeds: Sequence[Feed],
    removal: Removal,
    prior: Mapping[str, Array],
    seed: int,
    *,
    graph: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda proto: proto,
    closely: bool = True,
) -> dict[str, Array]:
    """Constant -> new value in the original's shape, for all products with a weight of their own.

    feeds: the samples, all of which are held while the two models run. prior: values from `reconstruct`, towards which little known
    directions are drawn and which stay where a weight is shared. graph: what to run in a model's place, with tensors of the same names.
    closely: as in `positions_of`. Raises RefusedError where onnxruntime cannot run the model in parts.
    """
    values = dict(prior)
    masked = mask(model, removal)
    made = list(feeds)  # they may be decoded or made up anew each time that they are asked for
    dense, repaired = Walk(graph(model.proto), made), Walk(graph(masked), made)
    nodes = list(operators(masked.graph))
    count = sum(map(feed_size, made))
    keys = [sample_keys(feed, seed) for feed in made]

    def settle(name: str, value: Array) -> None:
        """Take the value into the repaired model, wherever the constant is read."""
        values[name] = value
        for node in model.consumers[name]:
            repaired.replace(nodes[node.index].input[node.inputs.index(name)], zeroed(model, name, value, removal.slices(name)))

    for name, value in prior.items():
        settle(name, value)
    for consumer in found:
        x, z = dense.tensor(consumer.data), repaired.tensor(consumer.data)
        weight = _own_weight(consumer, model)
        untouched = consumer.axis not in removal and all(map(np.array_equal, x, z))  # nothing before it has changed
        halves = [] if untouched else _halves(consumer, model, x, z, keys, positions_of(consumer, model, count, closely=closely))
        if weight is None or not halves:
            continue
        old = consumer.matrix(weight)
        start = consumer.matrix(model.numbers(consumer.weight, values[consumer.weight])) if consumer.weight in values else old
        whole = sum(halves[1:], halves[0])
        new = _steered(consumer, whole, halves, old, start, [kept_columns(consumer, removal, block) for block in range(len(old))])
        fitted = in_range(model, consumer.weight, consumer.tensor(new, weight)) if np.isfinite(new).all() else None
        if fitted is None:
            continue
        settle(consumer.weight, fitted)
        bias = model.weight(consumer.bias) if consumer.bias else None
        if bias is not None:
            lost = np.einsum("bri,bi->br", old, whole.dense) - np.einsum("bri,bi->br", new, whole.repaired)
            moved = in_range(model, consumer.bias, bias.astype(np.float64) + (lost / whole.count).reshape(bias.shape))
            if moved is not None:
                settle(consumer.bias, moved)
    return values


def _own_weight(consumer: Consumer, model: Model) -> Array | None:
    """The numbers of the weight, if nothing else reads it."""
    shared = consumer.weight in model.source or len(model.consumers[consumer.weight]) != 1
    return None if shared else model.weight(consumer.weight)


@dataclass(frozen=True, slots=True)
class _Fit:
    """What one product's new weights have to fit, per block: target Y Z' / n, (rows, kept), and gram Z Z' / n, (kept, kept)."""

    target: Sequence[Matrix]
    gram: Sequence[Matrix]

    @classmethod
    def of(cls, pairs: Pairs, consumer: Consumer, old: Matrix, kept: Sequence[NDArray[np.int64]]) -> _Fit:
        """About the means where a bias takes those up. kept: the inputs that stay of each block."""
        cross, gram = pairs.centred() if consumer.bias else (pairs.cross / pairs.count, pairs.gram / pairs.count)
        targets = [product(old[block], cross[block][:, left]) for block, left in enumerate(kept)]
        return cls(targets, [gram[block][np.ix_(left, left)] for block, left in enumerate(kept)])

    def steered(self, start: Sequence[Matrix], damping: float) -> list[Matrix]:
        """The best weights near those at the start, (rows, kept) each. damping: as in `obs.steer`."""
        return [steer(target, gram, first, damping) for target, gram, first in zip(self.target, self.gram, start, strict=True)]

    def error(self, weights: Sequence[Matrix]) -> float:
        """What weights miss by, summed over the blocks: `obs.missed`."""
        return sum(missed(weight, target, gram) for weight, target, gram in zip(weights, self.target, self.gram, strict=True))


def _steered(
    consumer: Consumer, whole: Pairs, halves: Sequence[Pairs], old: Matrix, start: Matrix, kept: Sequence[NDArray[np.int64]]
) -> Matrix:
    """The new weights as a matrix, (blocks, rows, inputs), zero for the inputs that are gone.

    whole: the sum of the halves. kept: the inputs that stay of each block. Where all samples are in one half, a fit to fewer columns than
    SUPPORT per input is damped the more, since it holds for no others.
    """
    first = [start[block][:, left] for block, left in enumerate(kept)]
    if len(halves) == 1:
        damping = DAMPING * max(1.0, SUPPORT * old.shape[2] / whole.count)
    else:
        fits = [_Fit.of(pairs, consumer, old, kept) for pairs in halves]
        damping = min(DAMPINGS, key=lambda each: sum(fits[1 - n].error(fits[n].steered(first, each)) for n in (0, 1)))
    new = np.zeros_like(old)
    for block, (left, weight) in enumerate(zip(kept, _Fit.of(whole, consumer, old, kept).steered(first, damping), strict=True)):
        new[block][:, left] = weight
    return new


def _halves(consumer: Consumer, model: Model, x: Sequence[Array], z: Sequence[Array], keys: Sequence[Keys], most: int) -> list[Pairs]:
    """The sums over one half of the samples and over the other, at the same positions of both models; without columns there is no half.

    The key of a sample decides in which half it is, so that batches do not matter.
    """
    found: dict[int, Pairs] = {}
    for dense, repaired, draw in zip(x, z, keys, strict=True):
        both = [columns(consumer, model, consumer.numbers(data), most, draw) for data in (dense, repaired)]
        count, rest = divmod(both[0].shape[2], len(draw))
        half = np.zeros(both[0].shape[2], np.int64) if rest else np.repeat(draw % 2, count)
        for number in (0, 1):
            some = finite(*(part[:, :, half == number] for part in both))
            if some[0].shape[2]:
                seen = Pairs.of(some[0], some[1])
                found[number] = found[number] + seen if number in found else seen
    return [found[number] for number in sorted(found)]
