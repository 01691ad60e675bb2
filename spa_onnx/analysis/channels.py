"""Connected indices are channels; channels that touch the same classes are groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import POSITIONS_CAUSE, Group
from spa_onnx.analysis.network import Edge, Network
from spa_onnx.analysis.parts import Loose, equal, loosened
from spa_onnx.model.facts import Axis, Indices, Pin
from spa_onnx.model.model import Model


@dataclass(frozen=True, slots=True)
class _Alike:
    """Channels that touch the same classes.

    owner: class -> the channel of each of its indices, -1 for none. parts: see `Group`.
    """

    owner: Mapping[int, Indices]
    size: int
    pinned: bool
    parts: int = 1


def groups(network: Network) -> Iterator[Group]:
    """Yield the groups of every component in graph order. Channels that touch the same classes form a group."""
    order = {name: place for place, name in enumerate(_tensors_in_order(network.model))}
    found = []
    for component, edges in _components(network):
        for alike in _channels(network, component, edges) if edges else _lone(network, component[0]):
            pin = _reason(network, alike) if alike.pinned else None
            owner = {axis: array for number, array in alike.owner.items() for axis in network.classes[number].axes}
            axes = sorted(owner, key=lambda axis: _rank(axis, order, network.model))
            members = {axis: owner[axis] for axis in axes}
            found.append(Group("", alike.size, members, str(pin or ""), pin.why if pin else "", alike.parts))
    return _named(sorted(found, key=lambda group: _rank(next(iter(group.owner)), order, network.model)), network.model)


def _components(network: Network) -> Iterator[tuple[list[int], list[Edge]]]:
    """Yield (classes that edges connect, those edges)."""
    links: nx.Graph[int] = nx.Graph()
    links.add_nodes_from(range(len(network.classes)))
    links.add_edges_from((edge.a, edge.b) for edge in network.edges)
    components = [sorted(component) for component in nx.connected_components(links)]
    where = {number: place for place, component in enumerate(components) for number in component}
    edges: list[list[Edge]] = [[] for _ in components]
    for edge in network.edges:
        edges[where[edge.a]].append(edge)
    return zip(components, edges, strict=True)


def _tensors_in_order(model: Model) -> Iterator[str]:
    """Yield the tensors of the graph in the order of its nodes."""
    for node in model.nodes:
        yield from (name for name in node.inputs if name and model.is_constant(name))
        yield from (name for name in (*node.inputs, *node.outputs) if name and not model.is_constant(name))


def _channels(network: Network, component: list[int], edges: list[Edge]) -> list[_Alike]:
    """Return the channels of connected classes, part by part if each part may lose channels of its own."""
    loose = loosened(network, edges)
    free = _alike(network, component, loose) if loose else None
    return free or _alike(network, component, Loose(1, tuple(edges), frozenset())) or []


def _alike(network: Network, component: list[int], loose: Loose) -> list[_Alike] | None:
    """Return the channels that touch the same classes; None if the parts have unequal numbers of channels."""
    held = [np.tile(network.classes[number].pinned, loose.parts if number in loose.own else 1) for number in component]
    sizes = [len(mask) for mask in held]
    start = dict(zip(component, np.cumsum([0, *sizes]).tolist(), strict=False))
    labels = _label(sum(sizes), [(edge.left + start[edge.a], edge.right + start[edge.b]) for edge in loose.edges])
    pinned = np.zeros(labels.max(initial=-1) + 1, bool)
    pinned[labels[np.concatenate(held)]] = True
    part, place = loose.part_of(labels, start), np.full(len(pinned), -1)
    found = []
    for several, touched in _by_signature(labels, np.repeat(np.arange(len(component)), sizes), pinned):
        parts = equal(part[several], loose.parts)
        if parts == 0:
            return None
        channels = several[np.argsort(part[several], kind="stable")]
        place[channels] = np.arange(len(channels))
        owner = {
            component[at]: place[labels[start[component[at]] : start[component[at]] + sizes[at]]] for at in touched
        }
        rows = {
            number: array.reshape(loose.parts, -1) if number in loose.own else array for number, array in owner.items()
        }
        found.append(_Alike(rows, len(channels), bool(pinned[channels[0]]), parts))
        place[channels] = -1
    return found if any(alike.parts > 1 and not alike.pinned for alike in found) or loose.parts == 1 else None


def _lone(network: Network, number: int) -> Iterator[_Alike]:
    """Yield the channels of a class without edges: each index is one channel."""
    mask = network.classes[number].pinned
    for pinned in (False, True):
        chosen = mask == pinned
        if chosen.any():
            yield _Alike({number: np.where(chosen, np.cumsum(chosen) - 1, -1)}, int(chosen.sum()), pinned)


def _reason(network: Network, alike: _Alike) -> Pin:
    """Return the pin that stops the channels; a pin that says more than `positions` is preferred."""
    axes = [axis for number in alike.owner for axis in network.classes[number].axes]
    pins: list[Pin] = [pin for axis in axes for pin in network.graph.nodes[axis].get("pins", ())]
    if pins:
        return min(pins, key=lambda pin: pin.why == POSITIONS_CAUSE)
    lone = [network.classes[number].axes[0] for number in alike.owner if len(network.classes[number].pinned) <= 1]
    if lone:
        return Pin(axes[0], "tied to an axis that has no other index", str(lone[0]))
    return next(filter(None, map(network.cause, axes)), Pin(axes[0], "tied to channels that are pinned"))


def _label(total: int, links: list[tuple[Indices, Indices]]) -> Indices:
    """Return a label from 0 on for each index; connected indices share a label.

    links: rows of indices of channel k on either side.
    """
    if not links:
        return np.arange(total)
    rows, columns = [], []
    for left, right in links:
        anchor = left[:, :1]
        rows += [
            np.broadcast_to(anchor, (len(left), left.shape[1] - 1)).ravel(),
            np.broadcast_to(anchor, right.shape).ravel(),
        ]
        columns += [left[:, 1:].ravel(), right.ravel()]
    labels = _connected(total, np.concatenate(rows), np.concatenate(columns))
    return np.asarray(np.unique(labels, return_inverse=True)[1], dtype=np.int64)


def _connected(total: int, row: Indices, column: Indices) -> Indices:
    """Return for each index the lowest index that it is connected with, by links row[k] to column[k].

    Where a link joins two labels, the higher one is replaced by the lower one, for all links at once; then every label
    is replaced by the label of its label. The number of rounds grows with the logarithm of the longest path (Shiloach
    and Vishkin 1982).
    """
    labels = np.arange(total)
    while len(row):
        a, b = labels[row], labels[column]
        apart = a != b
        row, column = row[apart], column[apart]
        np.minimum.at(labels, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while (labels[labels] != labels).any():
            labels = labels[labels]
    return labels


def _by_signature(labels: Indices, home: Indices, pinned: NDArray[np.bool_]) -> Iterator[tuple[Indices, list[int]]]:
    """Yield (channels that touch the same classes and are all pinned or all free, those classes).

    The channels are in the order of their first index. labels: the channel of each index. home: the class of each
    index.
    pinned: bool per channel.
    """
    pairs = np.unique(labels * (int(home.max(initial=0)) + 1) + home)
    channel, touched = np.divmod(pairs, int(home.max(initial=0)) + 1)
    bounds = np.searchsorted(channel, np.arange(len(pinned) + 1)).tolist()
    found: dict[tuple[bytes, bool], list[int]] = defaultdict(list)
    for number, held in enumerate(pinned.tolist()):
        found[touched[bounds[number] : bounds[number + 1]].tobytes(), held].append(number)
    first = np.full(len(pinned), len(labels))
    np.minimum.at(first, labels, np.arange(len(labels)))
    for (classes, _), numbers in found.items():
        channels = np.asarray(numbers)
        yield channels[np.argsort(first[channels], kind="stable")], np.frombuffer(classes, touched.dtype).tolist()


def _rank(axis: Axis, order: Mapping[str, int], model: Model) -> tuple[bool, bool, int, int]:
    """Return the sort key of an axis: matrices and filters first, then vectors, then activations, in graph order."""
    shape = model.shape(axis.tensor) or ()
    return not model.is_constant(axis.tensor), sum(size > 1 for size in shape) < 2, order.get(axis.tensor, -1), axis.dim


def _named(groups: Iterable[Group], model: Model) -> Iterator[Group]:
    """Yield the groups, each named after its first axis, with a number if several groups share that axis."""
    names: dict[str, int] = defaultdict(int)
    for group in groups:
        first = next(iter(group.owner))
        base = f"{model.source.get(first.tensor, first.tensor)}[{first.dim}]"
        names[base] += 1
        yield replace(group, name=base if names[base] == 1 else f"{base}#{names[base]}")
