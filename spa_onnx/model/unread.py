"""Nodes and constants that nothing reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import onnx

from spa_onnx.model.subgraphs import nested, operators


def _readers(graph: onnx.GraphProto) -> dict[str, int]:
    """Return how often each tensor is read: by nodes, by their subgraphs, or as a graph output."""
    count: dict[str, int] = defaultdict(int)
    for node in graph.node:
        for name in node.input:
            count[name] += 1
        for inner in nested(node):
            for name, times in _readers(inner).items():
                count[name] += times
    for value in graph.output:
        count[value.name] += 1
    return count


def unread_nodes(graph: onnx.GraphProto) -> set[str]:
    """Return the first outputs of nodes that nothing reads."""
    count = _readers(graph)
    return {node.output[0] for node in operators(graph) if not any(count[name] for name in node.output)}


def remove_unread(seen: Sequence[onnx.GraphProto], dead_before: set[str], unused: set[str]) -> None:
    """Remove nodes and constants that rewriting left without readers. What was unread before is kept.

    Args:
        seen: The main graph, and the subgraphs that are analysed.
        dead_before: First outputs of the nodes that nothing read in the original.
        unused: Constants that may have lost their last reader.
    """
    count = _readers(seen[0])
    suspects = set(unused)
    for graph in reversed(seen):
        for node in reversed(list(graph.node)):
            if not any(count[name] for name in node.output) and node.output[0] not in dead_before:
                for name in node.input:
                    count[name] -= 1
                    suspects.add(name)
                graph.node.remove(node)
    orphans = {name for name in suspects if not count[name]}
    for field in (*(graph.initializer for graph in seen), seen[0].input):
        for entry in [entry for entry in field if entry.name in orphans]:
            field.remove(entry)
