"""Repair in the order of the graph: every product aims at what the dense model computes, from the inputs that it gets after repair.

So the errors of the layers before are corrected, not added up (SPA, section 4; the asymmetric form of layer-wise reconstruction,
He, Zhang & Sun, Channel pruning for accelerating very deep neural networks, 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.blas import Matrix, product
from spa_onnx.consumers import Consumer
from spa_onnx.cut import Removal, zeroed
from spa_onnx.fold import Array
from spa_onnx.mask import mask
from spa_onnx.model import Model
from spa_onnx.obs import steer
from spa_onnx.repair import in_range, kept_columns
from spa_onnx.runtime import Feed
from spa_onnx.statistics import feed_size, finite, positions_of, sample_keys
from spa_onnx.unfold import columns
from spa_onnx.walk import Walk

Keys: TypeAlias = NDArray[np.uint32]


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
    model: Model, found: Sequence[Consumer], feeds: Sequence[Feed], removal: Removal, prior: Mapping[str, Array], seed: int
) -> dict[str, Array]:
    """Constant -> new value in the original's shape, for all products with a weight of their own.

    feeds: the samples, all of which are held while the two models run. prior: values from `reconstruct`, towards which little known
    directions are drawn and which stay where a weight is shared. Raises RefusedError where onnxruntime cannot run the model in parts.
    """
    values = dict(prior)
    masked = mask(model, removal)
    made = list(feeds)  # they may be decoded or made up anew each time that they are asked for
    dense, repaired = Walk(model.proto, made), Walk(masked, made)
    count = sum(map(feed_size, made))
    keys = [sample_keys(feed, seed) for feed in made]

    def settle(name: str, value: Array) -> None:
        """Take the value into the repaired model, wherever the constant is read."""
        values[name] = value
        for node in model.consumers[name]:
            repaired.replace(masked.graph.node[node.index].input[node.inputs.index(name)], zeroed(model, name, value, removal.slices(name)))

    for name, value in prior.items():
        settle(name, value)
    for consumer in found:
        x, z = dense.tensor(consumer.data), repaired.tensor(consumer.data)
        weight = _own_weight(consumer, model)
        untouched = consumer.axis not in removal and all(map(np.array_equal, x, z))  # nothing before it has changed
        pairs = None if untouched else _pairs(consumer, model, x, z, keys, positions_of(consumer, model, count))
        if weight is None or pairs is None:
            continue
        old = consumer.matrix(weight)
        start = consumer.matrix(model.numbers(consumer.weight, values[consumer.weight])) if consumer.weight in values else old
        new = _steered(consumer, pairs, old, start, [kept_columns(consumer, removal, block) for block in range(len(old))])
        fitted = in_range(model, consumer.weight, consumer.tensor(new, weight)) if np.isfinite(new).all() else None
        if fitted is None:
            continue
        settle(consumer.weight, fitted)
        bias = model.weight(consumer.bias) if consumer.bias else None
        if bias is not None:
            lost = np.einsum("bri,bi->br", old, pairs.dense) - np.einsum("bri,bi->br", new, pairs.repaired)
            moved = in_range(model, consumer.bias, bias.astype(np.float64) + (lost / pairs.count).reshape(bias.shape))
            if moved is not None:
                settle(consumer.bias, moved)
    return values


def _own_weight(consumer: Consumer, model: Model) -> Array | None:
    """The numbers of the weight, if nothing else reads it."""
    shared = consumer.weight in model.source or len(model.consumers[consumer.weight]) != 1
    return None if shared else model.weight(consumer.weight)


def _steered(consumer: Consumer, pairs: Pairs, old: Matrix, start: Matrix, kept: Sequence[NDArray[np.int64]]) -> Matrix:
    """The new weights as a matrix, zero for the inputs that are gone. kept: the inputs that stay of each block."""
    cross, gram = pairs.centred() if consumer.bias else (pairs.cross / pairs.count, pairs.gram / pairs.count)
    new = np.zeros_like(old)
    for block, left in enumerate(kept):
        wanted, inner = product(old[block], cross[block][:, left]), gram[block][np.ix_(left, left)]
        new[block][:, left] = steer(wanted, inner, start[block][:, left], pairs.count)
    return new


def _pairs(consumer: Consumer, model: Model, x: Sequence[Array], z: Sequence[Array], keys: Sequence[Keys], most: int) -> Pairs | None:
    """The sums over all batches, at the same positions of both models; None where no column is finite."""
    total: Pairs | None = None
    for dense, repaired, draw in zip(x, z, keys, strict=True):
        both = finite(*(columns(consumer, model, consumer.numbers(data), most, draw) for data in (dense, repaired)))
        if both[0].shape[2]:
            seen = Pairs.of(both[0], both[1])
            total = seen if total is None else total + seen
    return total
