"""Random numbers in a model: fixed ones take their place while two models are compared, which each draw their own."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from spa_onnx.model.node import Node
from spa_onnx.model.subgraphs import graphs, operators
from spa_onnx.model.traits import FixedNumbers, operator_name, traits


def without_noise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model that draws no random numbers, also in its subgraphs; the model itself if it draws none.

    Fixed numbers take their place. They do not depend on the size of the tensor, so that a pruned model has those of
    the original.
    """
    if not any(_fixed(node) for node in operators(proto.graph)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    for graph in reversed(list(graphs(copy.graph))):  # the innermost first, before nodes around it are copied
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            fixed = _fixed(node)
            nodes += fixed(node, opset) if fixed else [node]
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    return copy


def noted(nodes: Iterable[Node]) -> tuple[str, ...]:
    """Return the note that a comparison does without the random numbers of these nodes; none if they draw none."""
    count = sum(traits(node.op).random is not None for node in nodes)
    what = "1 node draws" if count == 1 else f"{count} nodes draw"
    return (f"{what} random numbers: pruned and masked were compared with fixed ones",) if count else ()


def _fixed(node: onnx.NodeProto) -> FixedNumbers | None:
    """Return what computes fixed numbers in place of those that a node draws; None if it draws none."""
    return traits(operator_name(node.op_type, node.domain)).random
