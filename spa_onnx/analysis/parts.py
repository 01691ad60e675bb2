"""Parts that lose channels of their own: the groups of a convolution have to stay equally large, and no more.

Where a coupling takes the same channel of every part, that number is arbitrary. Without it every channel stands for itself, and a group
says that its parts lose equally many. An operator that ties parts with each other in another way (an addition of shifted channels,
another number of groups) leaves no such freedom: there the same channel of every part goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.network import Edge, Network
from spa_onnx.model.facts import Axis, Indices


@dataclass(frozen=True, slots=True)
class Loose:
    """Couplings without the ties between parts. own: classes that every part has for itself, so that they count once per part."""

    parts: int
    edges: tuple[Edge, ...]
    own: frozenset[int]

    def part_of(self, labels: Indices, start: Mapping[int, int]) -> NDArray[np.int64]:
        """The part that each channel lies in, int64 (channels,); -1 for those in none, `parts` for those in several.

        labels: channel of each index of all classes, those of a class from `start` on.
        """
        count = labels.max(initial=-1) + 1
        lowest, highest = np.full(count, self.parts), np.full(count, -1)
        for edge in self.edges:
            if edge.parts > 1:
                channels = labels[edge.left[:, 0] + start[edge.a]]
                part = np.repeat(np.arange(self.parts), len(channels) // self.parts)
                np.minimum.at(lowest, channels, part)
                np.maximum.at(highest, channels, part)
        return np.where((highest >= 0) & (lowest != highest), self.parts, highest)


def loosened(network: Network, edges: Sequence[Edge]) -> Loose | None:
    """The couplings of a component with parts that each may lose their own channels; None where there are none, or of several numbers."""
    numbers = {edge.parts for edge in edges if edge.parts > 1}
    own = frozenset(edge.b for edge in edges if edge.parts > 1 and edge.right.shape[1] == 1)
    if len(numbers) != 1 or not all(_is_apart(network, number, edges) for number in own):
        return None
    return Loose(numbers.pop(), tuple(_one_by_one(edge) for edge in edges), own)


def _is_apart(network: Network, number: int, edges: Iterable[Edge]) -> bool:
    """Whether a class is the second axis of weights whose first axis holds the parts, and nothing else reads it."""
    axes = network.classes[number].axes
    rows = {network.of.get(Axis(axis.tensor, 0)) for axis in axes}
    ties = [edge for edge in edges if number in (edge.a, edge.b)]
    return (
        all(axis.dim == 1 for axis in axes)
        and len(rows) == 1
        and all(tie.parts > 1 and tie.b == number for tie in ties)
    )


def _one_by_one(edge: Edge) -> Edge:
    """The coupling of single indices, part after part."""
    if edge.parts == 1:
        return edge
    left = edge.left.T.reshape(-1, 1)
    right = edge.right.T.reshape(-1, 1) if edge.right.shape[1] > 1 else np.arange(len(left))[:, None]
    return replace(edge, left=left, right=right)


def equal(part: NDArray[np.int64], parts: int) -> int:
    """How many parts channels lie in that are equally many in each; 1 for channels in none, 0 where they are unequal."""
    if (part < 0).all():
        return 1
    counts = np.bincount(part[part >= 0], minlength=parts)
    return parts if len(counts) == parts and (part >= 0).all() and (counts == counts[0]).all() else 0
