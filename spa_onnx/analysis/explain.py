"""Explanations: why an axis can or cannot be cut.

An explanation is the chain of couplings from the axis to everything that is removed with it, or to the pin that stops
it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from spa_onnx.analysis.groups import Analysis, Group
from spa_onnx.errors import UsageError
from spa_onnx.model.facts import Axis


@dataclass(frozen=True, slots=True)
class CouplingStep:
    """One coupling on the way from the axis that was asked about.

    Args:
        near: The axis closer to the start.
        far: The axis that it is coupled to.
        why: The reason of the coupling.
        depth: The number of couplings from the start.
    """

    depth: int
    near: Axis
    far: Axis
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What holds for the channels of one group on an axis.

    Args:
        group: The group.
        steps: Everything that is removed with the axis, nearest first. If the group is pinned, only the chain that
        leads to
            the pin.
    """

    axis: Axis
    group: Group
    steps: tuple[CouplingStep, ...]
    indices: int


def parse_axis(text: str, analysis: Analysis) -> Axis:
    """Return the axis that a text such as `conv1.weight[0]` names.

    Raises:
        UsageError: The model has no such axis; the message holds the nearest names.
    """
    match = re.fullmatch(r"(.+)\[(-?\d+)\]", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not an axis; write it as TENSOR[AXIS], for example conv1.weight[0]")
    tensor, dim = match.group(1), int(match.group(2))
    known = {axis.tensor for axis in analysis.graph.nodes}
    if tensor not in known:
        uses = sorted(name for name in known if analysis.model.source.get(name) == tensor)
        near = uses or difflib.get_close_matches(tensor, sorted(known), n=3, cutoff=0.4)
        raise UsageError(
            f"no tensor {tensor!r} takes part in the analysis" + (f"; did you mean {', '.join(near)}?" if near else "")
        )
    rank = len(analysis.model.shape(tensor) or ())
    if not -rank <= dim < rank:
        raise UsageError(f"{tensor} has {rank} axes, so there is no axis {dim}")
    return Axis(tensor, dim % rank)


def explain(analysis: Analysis, axis: Axis) -> Iterator[Explanation]:
    """Yield one explanation for each group that owns indices of the axis."""
    for group in analysis.groups:
        if axis in group.owner:
            steps = _to_pin(analysis, axis, group) if group.pinned else tuple(_reach(analysis, axis, group))
            yield Explanation(
                axis,
                group,
                steps,
                int((group.owner[axis] >= 0).reshape(-1, group.owner[axis].shape[-1]).any(axis=0).sum()),
            )


def _inside(analysis: Analysis, group: Group) -> nx.MultiGraph[Axis]:
    """Return the couplings between the axes of a group."""
    return analysis.graph.subgraph([axis for axis in group.owner if axis in analysis.graph])


def _why(graph: nx.MultiGraph[Axis], near: Axis, far: Axis) -> str:
    """Return the reason of a coupling between two axes."""
    return str(next(iter(graph.get_edge_data(near, far).values()))["coupling"].why)


def _reach(analysis: Analysis, axis: Axis, group: Group) -> Iterator[CouplingStep]:
    """Yield the couplings from an axis to everything in its group, nearest first."""
    graph = _inside(analysis, group)
    depth = {axis: 0}
    for near, far in nx.bfs_edges(graph, axis):
        depth[far] = depth[near] + 1
        yield CouplingStep(depth[far], near, far, _why(graph, near, far))


def _to_pin(analysis: Analysis, axis: Axis, group: Group) -> tuple[CouplingStep, ...]:
    """Return the shortest chain to an axis with a pin; empty if the axis itself has one."""
    graph = _inside(analysis, group)
    for target in nx.single_source_shortest_path_length(graph, axis):
        if graph.nodes[target].get("pins"):
            path = nx.shortest_path(graph, axis, target)
            return tuple(CouplingStep(n + 1, a, b, _why(graph, a, b)) for n, (a, b) in enumerate(pairwise(path)))
    return ()


def pin_at_end(analysis: Analysis, explanation: Explanation) -> str:
    """Return the reason of the pin at the end of the chain."""
    last = explanation.steps[-1].far if explanation.steps else explanation.axis
    pins = analysis.graph.nodes[last].get("pins", ()) if last in analysis.graph else ()
    return str(pins[0]) if pins else explanation.group.pinned
