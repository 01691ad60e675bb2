"""The order of nodes: onnxruntime sorts them itself, and everything here reads them in the order of execution."""

from __future__ import annotations

from collections import defaultdict
from heapq import heapify, heappop, heappush

import onnx

from spa_onnx.model.subgraphs import captured_names, graphs


def unsorted_graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    """Return the graphs of a model, at every depth, in which a node reads what a later node computes."""
    return [graph for graph in graphs(proto.graph) if not _is_sorted(graph)]


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Sort the nodes of a graph into the order of execution, else in the order of the file.

    Nodes in a circle, which cannot be executed, keep their order.

    Args:
        graph: The graph; it is modified, without its subgraphs.
    """
    nodes = list(graph.node)
    maker = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    waits = [{maker[name] for name in _read(node) if name in maker} for node in nodes]
    readers: dict[int, list[int]] = defaultdict(list)
    for number, sources in enumerate(waits):
        for source in sources:
            readers[source].append(number)
    ready = [number for number, sources in enumerate(waits) if not sources]
    heapify(ready)
    order = []
    while ready:
        order.append(heappop(ready))
        for reader in readers[order[-1]]:
            waits[reader].discard(order[-1])
            if not waits[reader]:
                heappush(ready, reader)
    if len(order) < len(nodes):
        return
    sorted_nodes = [onnx.NodeProto.FromString(nodes[number].SerializeToString()) for number in order]
    del graph.node[:]
    graph.node.extend(sorted_nodes)


def _is_sorted(graph: onnx.GraphProto) -> bool:
    """Return whether no node reads what it computes itself or what a later node computes."""
    later = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if not later.isdisjoint(_read(node)):
            return False
        later.difference_update(node.output)
    return True


def _read(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the tensors that a node reads, directly or inside its subgraphs."""
    return (*node.input, *captured_names(node))
