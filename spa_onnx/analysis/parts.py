"""Parts: the groups of a convolution can lose different channels, as long as they stay equally large.

A coupling that ties channel k of every part to channel k of the others is stricter than needed. Without that tie every
channel stands for itself, and the group states that its parts lose equally many channels. An operator that ties the
parts in another way (an addition of shifted channels, another number of groups) removes this freedom: then channel k of
every part is removed together.
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
    """Couplings without the ties between parts.

    own: classes that every part has for itself, which count once per part.
    """

    parts: int
    edges: tuple[Edge, ...]
    own: frozenset[int]

    def part_of(self, labels: Indices, start: Mapping[int, int]) -> NDArray[np.int64]:
        """Return the part that holds each channel, int64 (channels,); -1 for none, `parts` for several.

        Args:
            labels: The channel of each index of all classes.
            start: Class -> the position of its first index in `labels`.
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
    """Return the couplings of a component whose parts may each lose channels of their own.

    None if the component has no parts, or parts of several numbers.
    """
    numbers = {edge.parts for edge in edges if edge.parts > 1}
    own = frozenset(edge.b for edge in edges if edge.parts > 1 and edge.right.shape[1] == 1)
    if len(numbers) != 1 or not all(_is_apart(network, number, edges) for number in own):
        return None
    return Loose(numbers.pop(), tuple(_one_by_one(edge) for edge in edges), own)


def _is_apart(network: Network, number: int, edges: Iterable[Edge]) -> bool:
    """Return whether a class is only the second axis of weights whose first axis holds the parts."""
    axes = network.classes[number].axes
    rows = {network.of.get(Axis(axis.tensor, 0)) for axis in axes}
    ties = [edge for edge in edges if number in (edge.a, edge.b)]
    return (
        all(axis.dim == 1 for axis in axes)
        and len(rows) == 1
        and all(tie.parts > 1 and tie.b == number for tie in ties)
    )


def _one_by_one(edge: Edge) -> Edge:
    """Return the coupling of single indices, part after part."""
    if edge.parts == 1:
        return edge
    left = edge.left.T.reshape(-1, 1)
    right = edge.right.T.reshape(-1, 1) if edge.right.shape[1] > 1 else np.arange(len(left))[:, None]
    return replace(edge, left=left, right=right)


def equal(part: NDArray[np.int64], parts: int) -> int:
    """Return the number of parts with equally many channels; 1 if no channel is in a part, 0 if they are unequal."""
    if (part < 0).all():
        return 1
    counts = np.bincount(part[part >= 0], minlength=parts)
    return parts if len(counts) == parts and (part >= 0).all() and (counts == counts[0]).all() else 0
