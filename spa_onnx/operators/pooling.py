"""Pooling and resizing work on each channel separately. Positions are never removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import NodeProto, helper

from spa_onnx.model.facts import Axis, Fact, Pin, Positions, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.registry import register
from spa_onnx.operators.reshaping import rescaled_target
from spa_onnx.operators.updates import Cut, ShapeEdit
from spa_onnx.operators.zeros import first


def pool(node: Node, model: Model) -> Iterator[Fact]:
    """y[n, c] = reduction of windows of x[n, c]. MaxPool's second output holds positions in the whole tensor."""
    x, y = node.inputs[0], node.outputs[0]
    shape = model.shape(x) or ()
    for dim in (0, 1):
        yield from same(Axis(x, dim), Axis(y, dim), shape[dim], f"{node} works channel by channel")
    for tensor in (x, y):
        for dim in range(2, len(shape)):
            yield Positions(Axis(tensor, dim))
    yield from _positions(node, model)


def _positions(node: Node, model: Model) -> Iterator[Fact]:
    """Couple the positions that MaxPool returns with its output, if nothing but MaxUnpool reads them."""
    positions, x = node.outputs[1] if len(node.outputs) > 1 else "", node.inputs[0]
    if not positions:
        return
    readers = model.consumers.get(positions, ())
    if positions in model.outputs or any(reader.op != "MaxUnpool" for reader in readers):
        yield Pin(Axis(x, 1), f"{node.op} returns positions counted over all channels", str(node))
        return
    shape = model.shape(x) or ()
    for dim in (0, 1):
        yield from same(Axis(x, dim), Axis(positions, dim), shape[dim], f"{node} has a position for each element")
    for dim in range(2, len(shape)):
        yield Positions(Axis(positions, dim))


def unpool(node: Node, model: Model) -> Iterator[Fact]:
    """Y = zeros with each element of x at the position of the whole tensor that MaxPool has returned for it."""
    x, positions, y = node.inputs[0], node.inputs[1], node.outputs[0]
    shape = model.shape(x) or ()
    for dim in (0, 1):
        yield from same(Axis(x, dim), Axis(y, dim), shape[dim], f"{node} works channel by channel")
        yield from same(Axis(x, dim), Axis(positions, dim), shape[dim], f"{node} has a position for each element")
    for tensor in (x, positions, y):
        for dim in range(2, len(shape)):
            yield Positions(Axis(tensor, dim))
    pool = model.producer.get(positions)
    if pool is None or pool.op != "MaxPool":
        yield Pin(Axis(x, 1), f"{node.op} reads positions that no MaxPool returns", str(node))
    elif (model.shape(pool.inputs[0]) or ())[2:] != (model.shape(y) or ())[2:]:
        yield Pin(Axis(x, 1), f"{node.op} reads positions in a tensor of another size", str(node))


def sample(node: Node, model: Model) -> Iterator[Fact]:
    """y[n, c] = x[n, c] interpolated at the positions grid[n]."""
    x, grid, y = *node.inputs[:2], node.outputs[0]
    shape = model.shape(x) or ()
    for dim in (0, 1):
        yield from same(Axis(x, dim), Axis(y, dim), shape[dim], f"{node} works channel by channel")
    yield from same(Axis(grid, 0), Axis(y, 0), shape[0], f"{node} has a grid for each sample")
    for tensor in (x, y):
        for dim in range(2, len(shape)):
            yield Positions(Axis(tensor, dim))


def region(node: Node, model: Model) -> Iterator[Fact]:
    """y[r, c] = x[n, c] interpolated (RoiAlign) or its maximum (MaxRoiPool) within region r of sample n."""
    x, y = node.inputs[0], node.outputs[0]
    shape = model.shape(x) or ()
    yield from same(Axis(x, 1), Axis(y, 1), shape[1], f"{node} works channel by channel")
    for tensor in (x, y):
        for dim in range(2, len(shape)):
            yield Positions(Axis(tensor, dim))


def resize(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x interpolated along the axes whose size or scale changes. The other axes are coupled."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = model.shape(x) or (), model.shape(y) or ()
    for dim, (old, new) in enumerate(zip(before, after, strict=True)):
        if old == new and (dim < 2 or _is_unscaled(node, model, dim)):
            yield from same(Axis(x, dim), Axis(y, dim), old, f"{node} interpolates over other axes")


def _is_unscaled(node: Node, model: Model, dim: int) -> bool:
    """Return whether an axis is known not to be interpolated: its scale is the constant 1, or its size is unchanged."""
    scales = model.constant(node.input(2) if node.op == "Resize" and model.opset >= 11 else node.input(1))
    if scales is not None and scales.size > dim:
        return bool(np.ravel(scales)[dim] == 1)
    sizes = model.constant(node.input(3))
    return sizes is not None and sizes.size > dim and int(sizes[dim]) == (model.shape(node.inputs[0]) or ())[dim]


def unpool_shape(
    node: NodeProto, inputs: Sequence[str], outputs: Sequence[str], _: Mapping[str, int]
) -> Iterator[NodeProto]:
    """Yield nodes with the shape of the output, which ONNX infers only where it is not given."""
    if len(inputs) > 2 and inputs[2]:
        yield helper.make_node("ConstantOfShape", [inputs[2]], [outputs[0]])
    else:
        yield node


def update_unpool(node: Node, _: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Set the number of channels in the given shape of the output."""
    if node.input(2):
        yield from rescaled_target(node, cut, 2)


def update_resize(node: Node, _: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Set the sizes of the coupled axes to those of the pruned input."""
    if node.input(3) and "axes" not in node.attributes:
        yield from rescaled_target(node, cut, 3)


register(
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
    coupling=pool,
    zero=first,
)
register(
    "MaxUnpool",
    coupling=unpool,
    parameters=(2,),
    update=update_unpool,
    corrects=(2,),
    zero=first,
    shape=unpool_shape,
)
register("GridSample", coupling=sample, zero=first)
register("RoiAlign", "MaxRoiPool", coupling=region, zero=first)
register("Resize", coupling=resize, parameters=(1, 2, 3), update=update_resize, corrects=(3,), zero=first)
register("Upsample", coupling=resize, parameters=(1, 2, 3), zero=first)
