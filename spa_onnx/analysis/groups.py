"""What the analysis finds: groups of channels, and the graph of couplings that explains them."""

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
    """Channels that touch the same axes and so compete with each other.

    owner: for each axis, int64 of the axis's size with the channel that owns each index, -1 for none. Matrices and filters come
    first, then vectors, then activations, each in the order of the graph. pinned: empty, or why none of these channels may go.
    cause: the reason without its place, to be counted. parts: the channels stand in so many parts of equal size, one after the other,
    each of which loses as many (the groups of a convolution). An axis that every part has for itself has an owner of shape
    (parts, the axis's size): part p of the tensor along axis 0 has row p.
    """

    name: str
    size: int
    owner: Mapping[Axis, Indices]
    pinned: str = ""
    cause: str = ""
    parts: int = 1

    @property
    def steps(self) -> int:
        """The channels of one part: how often one can be taken from each."""
        return self.size // self.parts

    def ranked(self, scores: NDArray[np.float64]) -> Indices:
        """The channels of every part by their score, the lowest first, int64 (steps, parts): a row can go."""
        order = np.argsort(scores.reshape(self.parts, -1), axis=1, kind="stable")
        return np.asarray((order + np.arange(self.parts)[:, None] * self.steps).T, dtype=np.int64)

    def share(self, axis: Axis) -> float:
        """How many indices an axis loses with a channel, on average."""
        owner = self.owner[axis]
        rows = owner.size // owner.shape[-1]
        return int(np.count_nonzero(owner >= 0)) / int(rows) / self.size

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

    @classmethod
    def of_groups(cls, model: Model, groups: Iterable[Group]) -> Analysis:
        """Return an analysis of known groups, without the graph that explains them."""
        return cls(model, tuple(groups), nx.MultiGraph(), (), {})

    def prunable(self) -> tuple[Group, ...]:
        """Groups that can lose channels and hold weights."""
        return tuple(
            g for g in self.groups if not g.pinned and g.steps > 1 and any(True for _ in g.weights(self.model))
        )

    def pinned(self) -> tuple[Group, ...]:
        """Groups that hold weights and cannot lose channels; positions (the height of a kernel) are not channels."""
        return tuple(group for group in self._held() if group.cause != POSITIONS_CAUSE)

    def positions(self) -> tuple[Group, ...]:
        """The axes of weights that count positions: the height and width of kernels, the places of an embedding."""
        return tuple(group for group in self._held() if group.cause == POSITIONS_CAUSE)

    def _held(self) -> Iterator[Group]:
        held = (group for group in self.groups if group.pinned)
        return (g for g in held if any(g.owner[axis].shape[-1] > 1 for axis in g.weights(self.model)))
