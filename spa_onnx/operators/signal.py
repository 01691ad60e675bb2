"""Operators of signals: DFT and Col2Im work along some axes and carry the others."""

from __future__ import annotations

from collections.abc import Iterator

from spa_onnx.model.facts import Axis, Coupling, Fact, Positions, Span, same, whole
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.registry import register
from spa_onnx.operators.zeros import first

DFT_AXIS_AS_INPUT = 20
"""From this operator set on, DFT reads its axis from an input, and its default is the last but one."""


def dft(node: Node, model: Model) -> Iterator[Fact]:
    """Y = Fourier transform of x along one axis. The last axis holds real and imaginary parts; others are coupled."""
    x, y = node.inputs[0], node.outputs[0]
    shape = model.shape(x) or ()
    axis = int(node.attributes.get("axis", 1)) if model.opset < DFT_AXIS_AS_INPUT else -2
    if model.opset >= DFT_AXIS_AS_INPUT and node.input(2):
        given = model.constant(node.inputs[2])
        if given is None:
            return
        axis = int(given.item())
    for dim in range(len(shape) - 1):
        if dim != axis % len(shape):
            yield from same(Axis(x, dim), Axis(y, dim), shape[dim], f"{node} runs over another axis")


def col2im(node: Node, model: Model) -> Iterator[Fact]:
    """y[n, c] = sum of the blocks of image c in x[n]: channel c owns as many indices as a block has elements."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = model.shape(x) or (), model.shape(y) or ()
    yield from same(Axis(x, 0), Axis(y, 0), before[0], f"batch of {node}")
    block, rest = divmod(before[1], after[1])
    if not rest and after[1] > 1:
        blocks = Span(Axis(x, 1), after[1], inner=block)
        yield Coupling(blocks, whole(Axis(y, 1), after[1]), f"{node} puts the blocks of channel k into channel k")
    yield Positions(Axis(x, 2))
    for dim in range(2, len(after)):
        yield Positions(Axis(y, dim))


register("DFT", coupling=dft, parameters=(1, 2), zero=first)
register("Col2Im", coupling=col2im, parameters=(1, 2), zero=first)
