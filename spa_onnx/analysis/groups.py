"""Results of the analysis: groups of channels, and the graph of couplings that explains them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.shuffle import Chain
from spa_onnx.model.facts import Axis, Indices
from spa_onnx.model.model import Model

POSITIONS_CAUSE = "positions, not channels"
"""The cause of pins on the height of a kernel and the like."""

UNREAD_CAUSE = "no operator reads it"
"""The cause of pins on weights that have no use."""


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that touch the same axes and therefore compete with each other.

    Args:
        name: The name, after the first axis.
        size: The number of channels.
        owner: Axis -> int64 (size of the axis,), the channel that owns each index, -1 for none. Matrices and filters
        come
            first, then vectors, then activations, each in graph order. If every part has the axis for itself, the shape
            is (parts, size of the axis), and row p belongs to part p of the tensor along axis 0.
        pinned: Empty, or why none of these channels can be removed.
        cause: The reason without its place, for counting.
        parts: The number of equally large parts that the channels form, one after the other. Each part loses as many
            channels as the others, as the groups of a convolution do.
    """

    name: str
    size: int
    owner: Mapping[Axis, Indices]
    pinned: str = ""
    cause: str = ""
    parts: int = 1

    @property
    def steps(self) -> int:
        """The number of channels of one part."""
        return self.size // self.parts

    def ranked(self, scores: NDArray[np.float64]) -> Indices:
        """Return the channels of every part by score, lowest first, int64 (steps, parts). Whole rows are removed."""
        order = np.argsort(scores.reshape(self.parts, -1), axis=1, kind="stable")
        return np.asarray((order + np.arange(self.parts)[:, None] * self.steps).T, dtype=np.int64)

    def share(self, axis: Axis) -> float:
        """Return how many indices an axis loses with a channel, on average."""
        owner = self.owner[axis]
        rows = owner.size // owner.shape[-1]
        return int(np.count_nonzero(owner >= 0)) / int(rows) / self.size

    def weights(self, model: Model) -> Iterator[Axis]:
        """Yield the axes of weights that the group touches."""
        return (axis for axis in self.owner if model.is_weight(axis.tensor))


@dataclass(frozen=True, slots=True)
class Analysis:
    """The groups of a model, and how they were derived.

    Args:
        model: The model.
        groups: The groups.
        graph: Axes as nodes (`pins`: reasons), and an edge for each coupling (`coupling`).
        chains: Channel shuffles that count as one step.
        statistics: Axis -> the node that computes a norm or mean over it, if channels may be removed from it all the
        same.
    """

    model: Model
    groups: tuple[Group, ...]
    graph: nx.MultiGraph[Axis]
    chains: tuple[Chain, ...]
    statistics: Mapping[Axis, str]

    @classmethod
    def of_groups(cls, model: Model, groups: Iterable[Group]) -> Analysis:
        """Return an analysis of known groups, without the graph that explains them."""
        return cls(model, tuple(groups), nx.MultiGraph(), (), {})

    def prunable(self) -> tuple[Group, ...]:
        """Return the groups that can lose channels and hold weights."""
        return tuple(
            g for g in self.groups if not g.pinned and g.steps > 1 and any(True for _ in g.weights(self.model))
        )

    def pinned(self) -> tuple[Group, ...]:
        """Return the groups that hold weights and cannot lose channels, without those of `positions`."""
        return tuple(group for group in self._held() if group.cause != POSITIONS_CAUSE)

    def positions(self) -> tuple[Group, ...]:
        """Return the axes of weights that count positions: height and width of kernels, places of an embedding."""
        return tuple(group for group in self._held() if group.cause == POSITIONS_CAUSE)

    def _held(self) -> Iterator[Group]:
        """Yield the groups with weights."""
        held = (group for group in self.groups if group.pinned)
        return (g for g in held if any(g.owner[axis].shape[-1] > 1 for axis in g.weights(self.model)))
