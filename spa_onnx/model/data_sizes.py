"""Sizes that depend on data, as the number of boxes that are found: shape inference goes on with a stand-in for them.

Only such a size is unknown, and neither the other sizes of the tensor nor those of the tensors that are computed from
it. A size that is not the same with another stand-in depends on data as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TypeAlias

import onnx
from onnx import TensorProto, TypeProto, helper

from spa_onnx.model.facts import Axis
from spa_onnx.model.traits import Moves, operator_name, traits

STAND_INS = (60, 120)
"""Two sizes that take the place of each size that depends on data; many numbers divide them."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Tensor -> its sizes, negative if unknown."""


def put_stand_ins(bare: onnx.GraphProto, inferred: onnx.GraphProto, size: int) -> bool:
    """Give a size to each axis of unknown size of the first nodes that have one; later nodes may follow from them.

    The outputs of such a node become graph inputs of the known sizes, and the node is removed.

    Args:
        bare: The graph that shapes are inferred for; it is modified.
        inferred: The same graph with inferred shapes.
        size: The stand-in.

    Returns:
        Whether there was such a node.
    """
    types = {value.name: value.type for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    known = {tensor.name for tensor in inferred.initializer} | {""}
    known |= {name for name, kind in types.items() if _is_known(kind)}
    replaced: dict[int, list[onnx.ValueInfoProto]] = {}
    for number, node in enumerate(inferred.node):
        outputs = [name for name in node.output if name]
        if known.issuperset(node.input) and not known.issuperset(outputs) and all(_has_rank(types, n) for n in outputs):
            replaced[number] = [_with_sizes(node, name, types, size) for name in outputs]
    kept = [node for number, node in enumerate(bare.node) if number not in replaced]
    for values in replaced.values():
        bare.input.extend(values)
    del bare.node[:]
    bare.node.extend(kept)
    return bool(replaced)


def _is_known(kind: TypeProto) -> bool:
    """Return whether all sizes of a tensor are known; those of a sequence are not asked for."""
    if not kind.HasField("tensor_type"):
        return True
    tensor = kind.tensor_type
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def _has_rank(types: Mapping[str, TypeProto], name: str) -> bool:
    """Return whether a name is a tensor of known rank."""
    tensor = types.get(name, TypeProto()).tensor_type
    return tensor.elem_type != TensorProto.UNDEFINED and tensor.HasField("shape")


def _with_sizes(node: onnx.NodeProto, name: str, types: Mapping[str, TypeProto], size: int) -> onnx.ValueInfoProto:
    """Return an output of a node with all its sizes, those that are unknown computed or replaced by the stand-in."""
    tensor = types[name].tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    source = _sizes(types, node.input[0]) if node.input else []
    known = traits(operator_name(node.op_type, node.domain))
    if known.fold is not None and known.fold.fills and known.fold.moved is not None:  # several indices stay as they are
        padded = [1] * (len(sizes) - len(source)) + source
        sizes = [found or (given if given > 1 else 0) for found, given in zip(sizes, padded, strict=True)]
    if known.moves is Moves.RESHAPE and sizes.count(0) == 1 and prod(source) % prod(filter(None, sizes)) == 0:
        sizes = [found or prod(source) // prod(filter(None, sizes)) for found in sizes]
    return helper.make_tensor_value_info(name, tensor.elem_type, [found or size for found in sizes])


def _sizes(types: Mapping[str, TypeProto], name: str) -> list[int]:
    """Return the sizes of a tensor, 0 if unknown; none for a constant or sequence."""
    kind = types.get(name, TypeProto())
    return [dim.dim_value for dim in kind.tensor_type.shape.dim]


def varying_axes(first: Shapes, second: Shapes) -> Iterator[Axis]:
    """Yield the axes whose sizes differ between two inferences; all axes of a tensor whose rank differs.

    Args:
        first: The shapes with one stand-in.
        second: The shapes with another one.
    """
    for name, sizes in first.items():
        others = second.get(name, ())
        for dim, size in enumerate(sizes):
            if len(others) != len(sizes) or others[dim] != size:
                yield Axis(name, dim)
