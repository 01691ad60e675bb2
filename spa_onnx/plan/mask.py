"""The masked model: the original with everything that is removed set to zero, in the shapes of the original."""

from __future__ import annotations

from collections.abc import Container, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from spa_onnx.model.facts import Axis
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.quantisation import scales
from spa_onnx.model.subgraphs import operators
from spa_onnx.operators import knowledge
from spa_onnx.plan.removal import Removal, SliceKey, Slices, lookup, zeroed


def mask(model: Model, removal: Removal, only: Container[Axis] | None = None) -> onnx.ModelProto:
    """Return the original with every removed slice of every constant at zero: the pruned model must compute the same.

    A quantised constant is set to its zero point. Scales and zero points are not changed.

    Args:
        model: The original.
        removal: What is removed.
        only: The axes of constants that are masked; None for all.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    nodes = list(operators(proto.graph))
    made: dict[tuple[str, SliceKey], str] = {}
    for node, slot, slices in losing(model, removal, only):
        name = node.inputs[slot]
        key = (model.source.get(name, name), lookup(slices))
        if key not in made:
            made[key] = f"{key[0]}__masked_{len(made)}"
            array = zeroed(model, name, np.asarray(model.constant(name)), slices)
            proto.graph.initializer.append(numpy_helper.from_array(array, made[key]))
        nodes[node.index].input[slot] = made[key]
    if proto.ir_version < 4:
        _list_initializers(proto.graph)
    return proto


def losing(model: Model, removal: Removal, only: Container[Axis] | None = None) -> Iterator[tuple[Node, int, Slices]]:
    """Yield (node, input position, kept slices of it) for every masked constant that a node reads. only: see `mask`."""
    divisors = _divisors(model)
    for node in model.nodes:
        for slot, name in enumerate(node.inputs):
            if name and model.is_constant(name) and name not in divisors and slot not in scales(node):
                slices = removal.slices(name, only)
                if any(slices):
                    yield node, slot, slices


def _list_initializers(graph: onnx.GraphProto) -> None:
    """List initializers as graph inputs: before IR 4, onnxruntime requires it for those that no node reads."""
    listed = {value.name for value in graph.input}
    fresh = (tensor for tensor in graph.initializer if tensor.name not in listed)
    graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in fresh
    )


def _divisors(model: Model) -> set[str]:
    """Return the constants that keep their values in the masked model.

    These are divisors and the like, and the constants that they are computed from (through an Identity or a Sqrt).
    """
    fixed = {name for node in model.nodes for name in node.inputs if name and model.is_constant(name)}
    for node in model.nodes:
        if node.inputs and all(name in fixed for name in node.inputs if name):
            fixed.update(node.outputs)
    found: set[str] = set()
    for node in reversed(model.nodes):
        for slot, name in enumerate(node.inputs):
            if name in fixed and (
                slot in knowledge(node.op).unmasked or any(output in found for output in node.outputs)
            ):
                found.add(name)
    return found
