"""The logits of a classifier: the tensors from which it computes probabilities and classes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from spa_onnx.model.traits import Moves, operator_name, traits

ARRANGING = frozenset({Moves.IDENTITY, Moves.CAST, Moves.ROUND, Moves.RESHAPE, Moves.TRANSPOSE})
"""What operators between the logits and the graph output may do to the elements."""


def logits(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the graph outputs, with logits in place of probabilities and classes.

    Returns:
        The outputs without duplicates. A tensor that is not a graph output has no type.
    """
    producer = {name: node for node in graph.node for name in node.output}
    outputs = {value.name: value for value in graph.output}
    names = dict.fromkeys(_logits_of(name, producer) or name for name in outputs)
    return [outputs.get(name) or onnx.ValueInfoProto(name=name) for name in names]


def _logits_of(output: str, producer: Mapping[str, onnx.NodeProto]) -> str | None:
    """Return the input of the first operator before an output that computes probabilities or classes.

    Operators whose input is not computed by a node do not count. Return None if there is no such operator.
    """
    name, logit_tensor = output, None
    while name in producer:
        operator = traits(operator_name(producer[name].op_type, producer[name].domain))
        if not operator.chooses and operator.moves not in ARRANGING:
            break
        name = producer[name].input[0]
        logit_tensor = name if operator.chooses and name in producer else logit_tensor
    return logit_tensor
