"""The network of axes and couplings.

Axes whose indices correspond one to one form a class. Couplings are edges between classes. Pins are on both.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import POSITIONS_CAUSE
from spa_onnx.model.facts import Axis, Batches, Choice, Coupling, Fact, Indices, Normalises, Pin, Positions, Span
from spa_onnx.model.model import Model


@dataclass(frozen=True, slots=True)
class AxisClass:
    """Axes whose indices correspond one to one. pinned: bool per index, updated as pins arrive."""

    axes: list[Axis]
    pinned: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Edge:
    """A coupling between two classes.

    Row k of `left` and row k of `right` hold the indices of channel k, int64 (channels, owned). parts: see `Coupling`.
    """

    a: int
    b: int
    left: Indices
    right: Indices
    parts: int = 1


class Network:
    """The facts of a model as a graph. Choices stay open until they are settled.

    Attributes:
        graph: Axes as nodes (`pins`: what pins them), and an edge for each coupling (`coupling`).
        classes: Classes of axes.
        edges: Couplings between classes.
        statistics: Axis -> the node that computes a norm or mean over it, if that does not pin the axis.
    """

    def __init__(self, model: Model, facts: Iterable[Fact], *, inexact: bool) -> None:
        self.model = model
        self.graph: nx.MultiGraph[Axis] = nx.MultiGraph()
        self.statistics: dict[Axis, str] = {}
        self.choices: list[Choice] = []
        self.classes: list[AxisClass] = []
        self.edges: list[Edge] = []
        self.of: dict[Axis, int] = {}
        self._at: dict[int, list[Edge]] = defaultdict(list)
        batches: set[Axis] = set()
        for fact in facts:
            if isinstance(fact, Batches):
                batches.add(fact.axis)
            self._add(fact, inexact=inexact)
        self._classify()
        self.batches = {self.of[axis] for axis in batches}
        self._spread(self.edges)

    # --- gathering facts
    # ---------------------------------------------------------------------------------------------------

    def _add(self, fact: Fact, *, inexact: bool) -> None:
        """Add a fact."""
        if isinstance(fact, Coupling):
            self.graph.add_edge(fact.a.axis, fact.b.axis, coupling=fact)
            return
        self.graph.add_nodes_from(fact.axes())
        if isinstance(fact, Choice):
            self.choices.append(fact)
        elif isinstance(fact, Normalises) and inexact:
            self.statistics[fact.axis] = fact.node
        elif isinstance(fact, Normalises):
            self._pin(Pin(fact.axis, f"{fact.why}; only cut with --width", fact.node))
        elif isinstance(fact, Pin):
            self._pin(fact)
        elif isinstance(fact, Positions):
            self._pin(Pin(fact.axis, POSITIONS_CAUSE))

    def _pin(self, pin: Pin) -> None:
        """Pin an axis."""
        self.graph.nodes[pin.axis].setdefault("pins", []).append(pin)

    def _size(self, axis: Axis) -> int:
        """Return the size of an axis."""
        shape = self.model.shape(axis.tensor)
        return 0 if shape is None else max(shape[axis.dim], 0)

    # --- classes and edges
    # -------------------------------------------------------------------------------------------------

    def _classify(self) -> None:
        """Join axes that correspond index by index, and turn the other couplings into edges between the classes."""
        plain: nx.Graph[Axis] = nx.Graph()
        plain.add_nodes_from(self.graph.nodes)
        crooked = []
        for *_, coupling in self.graph.edges(data="coupling"):
            if coupling.a.is_whole(self._size(coupling.a.axis)) and coupling.b.is_whole(self._size(coupling.b.axis)):
                plain.add_edge(coupling.a.axis, coupling.b.axis)
            else:
                crooked.append(coupling)
        for number, axes in enumerate(nx.connected_components(plain)):
            members = sorted(axes)
            size = self._size(members[0])
            pinned = np.full(size, size <= 1 or any("pins" in self.graph.nodes[axis] for axis in members))
            self.classes.append(AxisClass(members, pinned))
            self.of.update(dict.fromkeys(members, number))
        for coupling in crooked:
            self._connect(coupling)

    def _connect(self, coupling: Coupling) -> Edge:
        """Return the edge of a coupling."""
        edge = Edge(
            self.of[coupling.a.axis],
            self.of[coupling.b.axis],
            coupling.a.indices(),
            coupling.b.indices(),
            coupling.parts,
        )
        for end in {edge.a, edge.b}:
            self._at[end].append(edge)
        self.edges.append(edge)
        return edge

    # --- pins
    # --------------------------------------------------------------------------------------------------------------

    def pinned(self, axis: Axis) -> NDArray[np.bool_]:
        """Return which indices of the axis cannot be removed by the facts so far, bool (size of the axis,)."""
        return self.classes[self.of[axis]].pinned

    def cause(self, axis: Axis) -> Pin | None:
        """Return the nearest pin that stops the axis, over all couplings that hold; None if there is none.

        A pin that says more than `positions` is preferred.
        """
        seen = {self.of[axis]}
        waiting = deque(seen)
        while waiting:
            number = waiting.popleft()
            if not self.classes[number].pinned.any():
                continue
            pins: list[Pin] = [
                pin for member in self.classes[number].axes for pin in self.graph.nodes[member].get("pins", ())
            ]
            telling = [pin for pin in pins if pin.why != POSITIONS_CAUSE]
            if telling:
                return min(telling, key=lambda pin: not pin.why.startswith("graph "))
            further = {end for edge in self._at[number] for end in (edge.a, edge.b)} - seen
            seen |= further
            waiting.extend(sorted(further))
        return None

    def is_cut(self, span: Span) -> bool:
        """Return whether a coupling already divides the span's axis into the same channels.

        An axis that corresponds to it counts as well.
        """
        number, rows = self.of[span.axis], np.sort(span.indices(), axis=1)
        sides = [
            side
            for edge in self._at[number]
            for end, side in ((edge.a, edge.left), (edge.b, edge.right))
            if end == number
        ]
        return any(side.shape == rows.shape and np.array_equal(np.sort(side, axis=1), rows) for side in sides)

    def hold(self, facts: Iterable[Coupling | Pin]) -> set[int]:
        """Make facts hold that were options before. Return the classes with more pinned indices than before."""
        waiting: list[Edge] = []
        changed: set[int] = set()
        for fact in facts:
            if isinstance(fact, Coupling):
                self.graph.add_edge(fact.a.axis, fact.b.axis, coupling=fact)
                waiting.append(self._connect(fact))
            elif not self.pinned(fact.axis).all():
                self._pin(fact)
                self.pinned(fact.axis)[:] = True
                changed.add(self.of[fact.axis])
        return changed | self._spread([*waiting, *(edge for number in changed for edge in self._at[number])])

    def _spread(self, start: Iterable[Edge]) -> set[int]:
        """Carry pins along edges, starting with these, and return the classes that changed.

        A channel with one pinned index is pinned everywhere.
        """
        waiting, changed = deque(start), set()
        while waiting:
            edge = waiting.popleft()
            a, b = self.classes[edge.a].pinned, self.classes[edge.b].pinned
            hit = a[edge.left].any(axis=1) | b[edge.right].any(axis=1)
            if not hit.any():
                continue
            for end, mask, indices in ((edge.a, a, edge.left[hit]), (edge.b, b, edge.right[hit])):
                if not mask[indices].all():
                    mask[indices] = True
                    waiting.extend(self._at[end])
                    changed.add(end)
        return changed
