"""Quantised operators: what their float forms demand, and scales and zero points that go along."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from spa_onnx.model.facts import Axis, Choice, Coupling, Fact, Normalises, Option, Pin, Span, same, whole
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.quantisation import ADDED, FLOAT_FORMS, OPERANDS, float_form
from spa_onnx.operators.elementwise import broadcast
from spa_onnx.operators.registry import RULES, rule
from spa_onnx.operators.updates import FOLLOWERS, Cut, Edit, SetAttribute, follow
from spa_onnx.operators.vanish import vanishes


@rule("QuantizeLinear", "DequantizeLinear", "com.microsoft.QuantizeLinear", "com.microsoft.DequantizeLinear")
def linear_quantisation(node: Node, model: Model) -> Iterator[Fact]:
    """Element by element, with one scale and zero point for all, for each index of `axis`, or for each block of them."""
    x, y = node.inputs[0], node.outputs[0]
    shape, size = model.shape(x) or (), int(node.attributes.get("block_size", 0))
    yield from broadcast(node, model, [x], y)
    for name in filter(None, node.inputs[1:3]):
        entries = model.shape(name) or ()
        axis = int(node.attributes.get("axis", 1)) % max(len(shape), 1)
        if len(entries) == 1 and entries[0] > 1:
            yield from same(Axis(x, axis), Axis(name, 0), shape[axis], f"{node} has one scale for each index")
        for dim, count in enumerate(entries if len(entries) == len(shape) > 1 else ()):
            if dim != axis:
                yield from same(Axis(x, dim), Axis(name, dim), shape[dim], f"{node} has scales for each index")
            elif size and count * size == shape[dim]:
                blocks = Span(Axis(x, dim), count, inner=size)
                yield Coupling(blocks, whole(Axis(name, dim), count), f"{node} has a scale for each block of {size}")


@rule(*FLOAT_FORMS)
def as_in_float(node: Node, model: Model) -> Iterator[Fact]:
    """What the float operator demands of the operands; vectors of scales and zero points go with the axis that they scale."""
    found = float_form(node)
    if found is None:
        return
    operator, plain = found
    yield from RULES[operator].function(plain, model)
    yield from _scales(node, model)
    if node.op in ADDED and node.input(ADDED[node.op]):
        yield from broadcast(node, model, [node.inputs[ADDED[node.op]]], node.outputs[0])
    if node.op == "com.microsoft.DynamicQuantizeMatMul":
        yield from _statistic(node, model)


def _scales(node: Node, model: Model) -> Iterator[Coupling]:
    for operand in OPERANDS.get(node.op, ()):
        shape = model.shape(node.input(operand.data)) or ()
        for name in (node.input(slot) for slot in operand[1:3] if slot >= 0):
            entries = model.shape(name) or ()
            if operand.axis is not None and len(entries) == 1 and entries[0] > 1:
                axis = 0 if node.op.endswith("QGemm") and node.attributes.get("transB") else operand.axis % len(shape)
                yield from same(
                    Axis(node.inputs[operand.data], axis),
                    Axis(name, 0),
                    entries[0],
                    f"{node} has one scale for each index",
                )


@follow(*FLOAT_FORMS)
def follows_as_in_float(node: Node, model: Model, cut: Cut) -> Iterator[Edit]:
    """What follows in the float operator."""
    found = float_form(node)
    if found is not None and found[0] in FOLLOWERS:
        yield from FOLLOWERS[found[0]](found[1], model, cut)


@rule("DynamicQuantizeLinear")
def dynamic_quantisation(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x over a scale that follows from the least and the largest x, 0 among them: channels at zero do not change it."""
    yield from broadcast(node, model, [node.inputs[0]], node.outputs[0])
    yield from _statistic(node, model)


def _statistic(node: Node, model: Model) -> Iterator[Normalises]:
    x = node.inputs[0]
    if not vanishes(x, model):
        for dim, size in enumerate(model.shape(x) or ()):
            if size > 1:
                yield Normalises(Axis(x, dim), node.name, f"{node.op} takes its scale from all of it")


@rule("com.microsoft.MatMulNBits", parameters=(4,))
def matmul_of_bits(node: Node, model: Model) -> Iterator[Fact]:
    """Y = A B', with B (N, K / block, bytes of a block), a scale per block, and zero points, which may be packed in bytes.

    Rows of B can go one by one; of K whole blocks, as many at a time as zero points share a byte. Scales in one long vector serve
    either.
    """
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    sizes, (rows, *_) = model.shape(a) or (), model.shape(b) or ()
    for dim in range(len(sizes) - 1):
        yield from same(Axis(a, dim), Axis(y, dim), sizes[dim], f"row of {node}")
    yield from same(Axis(b, 0), Axis(y, len(sizes) - 1), rows, f"{node} writes feature k with row k of its weight")
    if node.input(5):
        yield from same(Axis(node.inputs[5], 0), Axis(b, 0), rows, f"{node} adds bias k to feature k")
    scales = [name for name in node.inputs[2:4] if name]
    by_row = tuple(_by_row(node, model, scales))
    by_block = tuple(_by_block(node, model, scales))
    if by_block and any(len(model.shape(name) or ()) == 1 for name in scales):
        why = f"{node.op} has its scales in one vector, which cannot lose rows and blocks"
        rest = (Pin(Axis(b, 1), why, str(node)), Pin(Axis(a, len(sizes) - 1), why, str(node)))
        yield Choice(
            node.name,
            (Option("rows", (*by_row, *rest)), Option("blocks", (*by_block, Pin(Axis(b, 0), why, str(node))))),
        )
        return
    yield from (*by_row, *by_block)


def _by_row(node: Node, model: Model, scales: list[str]) -> Iterator[Coupling]:
    """Row n of B and its scales and zero points."""
    b = node.inputs[1]
    rows = (model.shape(b) or ())[0]
    for name in scales:
        shape = model.shape(name) or ()
        own = Span(Axis(name, 0), rows, inner=shape[0] // rows)
        yield Coupling(whole(Axis(b, 0), rows), own, f"{node} has scales for each row")


def _by_block(node: Node, model: Model, scales: list[str]) -> Iterator[Coupling]:
    """Inputs of a block, the block of every row of B, and its scales and zero points; nothing where they do not divide."""
    a, b, block = node.inputs[0], node.inputs[1], int(node.attributes["block_size"])
    depth, (rows, blocks, *_) = (model.shape(a) or ())[-1], model.shape(b) or ()
    entries = {name: prod(model.shape(name) or ()) // rows for name in scales}
    together = max(-(-blocks // count) for count in entries.values())
    if depth != blocks * block or blocks % together or blocks == together or node.input(4):
        return
    count = blocks // together
    why = f"{node} has a scale for each block of {block}"
    dense = Span(Axis(a, len(model.shape(a) or ()) - 1), count, inner=block * together)
    yield Coupling(dense, Span(Axis(b, 1), count, inner=together), why)
    for name, number in entries.items():
        long = len(model.shape(name) or ()) == 1
        own = Span(Axis(name, 0 if long else 1), count, inner=number // count, outer=rows if long else 1, period=number)
        yield Coupling(dense, own, why)


@follow("com.microsoft.MatMulNBits")
def matmul_of_bits_follows(node: Node, _: Model, cut: Cut) -> Iterator[Edit]:
    """K and N are what is left of them."""
    for name, left in (("K", cut.after(node.inputs[0])[-1]), ("N", cut.after(node.inputs[1])[0])):
        if node.attributes[name] != left:
            yield SetAttribute(name, left)
