"""What the analysis finds: groups of channels, and the graph of couplings that explains them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import networkx as nx

from spa_onnx.facts import Axis, Indices
from spa_onnx.model import Model
from spa_onnx.rules.shuffle import Chain

POSITIONS = "positions, not channels"
"""The cause of pins on the height of a kernel and the like."""

UNREAD = "no operator reads it"
"""The cause of pins on weights that have no use."""


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that touch the same axes and so compete with each other.

    owner: for each axis, int64 of the axis's size with the channel that owns each index, -1 for none. Matrices and filters come
    first, then vectors, then activations, each in the order of the graph. pinned: empty, or why none of these channels may go.
    cause: the reason without its place, to be counted.
    """

    name: str
    size: int
    owner: Mapping[Axis, Indices]
    pinned: str = ""
    cause: str = ""

    def weights(self, model: Model) -> Iterator[Axis]:
        """The axes of weights that the group touches."""
        return (axis for axis in self.owner if model.is_weight(axis.tensor))


@dataclass(frozen=True, slots=True)
class Analysis:
    """The groups of a model and how they came about.

    graph: axes as nodes (`pins`: reasons), an edge per coupling (`coupling`). chains: channel shuffles that count as one step.
    statistics: axis -> the node that computes a norm or mean over it, where channels may be removed all the same.
    """

    model: Model
    groups: tuple[Group, ...]
    graph: nx.MultiGraph[Axis]
    chains: tuple[Chain, ...]
    statistics: Mapping[Axis, str]

    def prunable(self) -> tuple[Group, ...]:
        """Groups that can lose channels and hold weights."""
        return tuple(g for g in self.groups if not g.pinned and g.size > 1 and any(True for _ in g.weights(self.model)))

    def pinned(self) -> tuple[Group, ...]:
        """Groups that hold weights and cannot lose channels; positions (the height of a kernel) are not channels."""
        return tuple(group for group in self._held() if group.cause != POSITIONS)

    def positions(self) -> tuple[Group, ...]:
        """The axes of weights that count positions: the height and width of kernels, the places of an embedding."""
        return tuple(group for group in self._held() if group.cause == POSITIONS)

    def _held(self) -> Iterator[Group]:
        held = (group for group in self.groups if group.pinned)
        return (g for g in held if any(len(g.owner[axis]) > 1 for axis in g.weights(self.model)))
