"""What a classifier's probabilities and classes are computed from."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from spa_onnx.model.traits import Moves, operator_name, traits

ARRANGING = frozenset({Moves.IDENTITY, Moves.CAST, Moves.ROUND, Moves.RESHAPE, Moves.TRANSPOSE})
"""What operators between the logits and the output may do to the elements."""


def logits(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The outputs, with logits in place of those that are probabilities or classes; each tensor once, logits without a type."""
    producer = {name: node for node in graph.node for name in node.output}
    outputs = {value.name: value for value in graph.output}
    names = dict.fromkeys(_chosen_from(name, producer) or name for name in outputs)
    return [outputs.get(name) or onnx.ValueInfoProto(name=name) for name in names]


def _chosen_from(output: str, producer: Mapping[str, onnx.NodeProto]) -> str | None:
    """What operators choose from, the first of them, if such make the output and an operator computes it."""
    name, found = output, None
    while name in producer:
        known = traits(operator_name(producer[name].op_type, producer[name].domain))
        chooses = known.chooses
        if not chooses and known.moves not in ARRANGING:
            break
        name = producer[name].input[0]
        found = name if chooses and name in producer else found
    return found
