"""What is compared of two models: what each output holds, and the tensor before it that does not saturate.

Probabilities of 0 and 1, classes, and clipped or rounded values do not show what changed before them. They are computed
from tensors that do, such as the logits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import onnx

from spa_onnx.model.model import Model, has_data_size, is_batched
from spa_onnx.model.node import Node
from spa_onnx.model.traits import Moves, traits
from spa_onnx.operators.registry import multiplies
from spa_onnx.synthetic.tokens import table_rows

ARRANGING = frozenset({Moves.IDENTITY, Moves.DROPOUT, Moves.CAST, Moves.ROUND, Moves.RESHAPE, Moves.TRANSPOSE})
"""What operators behind the compared tensor may do to its elements."""

SCORES_THROUGH = frozenset({Moves.IDENTITY, Moves.DROPOUT, Moves.CAST, Moves.ROUND, Moves.RESHAPE})
"""What operators between the last linear layer of a classifier and its output may do."""

SELECTING = frozenset({"Gather", "GatherND", "Compress", "NonMaxSuppression", "NonZero", "Slice", "Where"})
"""Operators that can make the number of rows depend on data."""

POOLING = frozenset({"GlobalAveragePool", "ReduceMean", "AveragePool"})
"""Operators that average the scores of positions."""

NO_SCORES = re.compile(
    r"act(ion)?s?($|[^a-z])|angle|audio|axis|bbox|box|cell|coord|cost|delta|depth|dist|embed|feat|flow|frame|"
    r"hidden|image|joint|key_?point|land_?mark|latent|loc|mean|mel|mesh|noise|offset|point|pose|pos($|[^a-z])|"
    r"reg($|[^a-z])|state|value|vec|wave",
    re.IGNORECASE,
)
"""Names of outputs whose rows are no scores of classes, though a linear layer computes them."""


class Kind(Enum):
    """What an output holds: numbers, scores of which the largest counts, or classes."""

    NUMBERS = auto()
    SCORES = auto()
    CLASSES = auto()


@dataclass(frozen=True, slots=True)
class Compared:
    """An output that is compared.

    Args:
        output: The graph output.
        tensor: The tensor that is compared where the output saturates; the output itself if there is none.
        kind: What the output holds.
        axis: The axis of the scores.
    """

    output: str
    tensor: str
    kind: Kind
    axis: int = -1


def compared_outputs(model: Model, pruned: onnx.ModelProto) -> tuple[Compared, ...]:
    """Return what is compared of a model and a pruned model.

    Args:
        model: The original.
        pruned: The pruned model. A tensor that it does not have is not compared.
    """
    present = {name for node in pruned.graph.node for name in node.output}
    return tuple(_compared(model, output, present) for output in model.outputs)


def with_outputs(proto: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return a copy of a model with these tensors as further outputs; the model itself if it has them all."""
    have = {value.name for value in proto.graph.output}
    missing = [name for name in dict.fromkeys(names) if name not in have]
    if not missing:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
    return copy


def _compared(model: Model, output: str, present: set[str]) -> Compared:
    """Return what is compared of one output."""
    chain = _chain(model, output)
    before = [name for node, name in chain if _hides(node) and name in model.producer]
    tensor = next((name for name in reversed(before) if name in present), output)
    chosen = next((node for node, _ in chain if traits(node.op).chooses), None)
    kind, axis = Kind.NUMBERS, -1
    if _is_integer(model, output):
        kind = Kind.CLASSES if chosen is not None else Kind.NUMBERS
    elif chosen is not None:
        kind, axis = Kind.SCORES, _softmax_axis(chosen, model)
    elif _is_row_of_scores(model, output, chain):
        kind = Kind.SCORES
    return Compared(output, tensor, kind, axis)


def _chain(model: Model, output: str) -> list[tuple[Node, str]]:
    """Return the nodes before an output that arrange, saturate, choose or select, each with its first input."""
    chain: list[tuple[Node, str]] = []
    name = output
    while name in model.producer:
        node = model.producer[name]
        trait = traits(node.op)
        selects = node.op in SELECTING and has_data_size(model, name)
        if node.inside or not (trait.chooses or trait.saturates or trait.moves in ARRANGING or selects):
            break
        name = next((source for source in node.inputs if source and not model.is_constant(source)), "")
        chain.append((node, name))
    return chain


def _hides(node: Node) -> bool:
    """Return whether the output of a node may be equal for different inputs."""
    trait = traits(node.op)
    return trait.chooses or trait.saturates or trait.moves is Moves.ROUND or node.op in SELECTING


def _is_row_of_scores(model: Model, output: str, chain: Sequence[tuple[Node, str]]) -> bool:
    """Return whether a linear layer computes a row of scores, one for each class or token."""
    shape = model.shape(output) or ()
    through = all(traits(node.op).moves in SCORES_THROUGH for node, _ in chain)
    if not through or len(shape) < 1 + is_batched(model) or shape[-1] < 2:
        return False
    if len(shape) > 2 and all(shape[-1] != table_rows(model, name) for name in model.inputs):
        return False
    source = chain[-1][1] if chain else output
    producer = model.producer.get(source)
    if producer is not None and producer.op in POOLING:
        producer = model.producer.get(producer.inputs[0])
    if producer is not None and producer.op == "Add":
        summands = [model.producer.get(name) for name in producer.inputs if not model.is_constant(name)]
        producer = summands[0] if len(summands) == 1 else None
    return producer is not None and multiplies(producer.op) and NO_SCORES.search(output) is None


def _softmax_axis(node: Node, model: Model) -> int:
    """Return the axis of the scores, counted from the end."""
    rank = len(model.shape(node.outputs[0]) or ()) or 1
    axis = int(node.attributes.get("axis", -1))
    return axis - rank if axis >= 0 else axis


def _is_integer(model: Model, output: str) -> bool:
    """Return whether an output holds integers or truth values that are no quantised numbers."""
    value = next(value for value in model.proto.graph.output if value.name == output)
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type or onnx.TensorProto.FLOAT))
    return kind.kind == "b" or (kind.kind in "iu" and kind.itemsize > 1)
