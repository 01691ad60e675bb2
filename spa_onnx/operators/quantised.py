"""Quantised operators: the rules of their float operators, plus rules for scales and zero points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from onnx import NodeProto, helper

from spa_onnx.layers.find import weight_of
from spa_onnx.layers.layer import LinearLayer, MatrixForm, reshaped
from spa_onnx.linalg.blas import Matrix
from spa_onnx.model.contrib_shapes import integer, like_first
from spa_onnx.model.facts import Axis, Choice, Coupling, Fact, Normalises, Option, Pin, Span, same, whole
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.quantisation import float_form
from spa_onnx.model.traits import Moves, Operand, Quantised, operator_name, traits
from spa_onnx.operators.conv import CONV
from spa_onnx.operators.elementwise import broadcast
from spa_onnx.operators.linear import unchanged
from spa_onnx.operators.macs import axes_of
from spa_onnx.operators.registry import Held, knowledge, register
from spa_onnx.operators.updates import Cut, SetAttribute, ShapeEdit
from spa_onnx.operators.zeros import any_input, first, is_zero_when_masked


def linear_quantisation(node: Node, model: Model) -> Iterator[Fact]:
    """Y = round(x / scale) + zero point, or the inverse, with one scale per tensor, index of `axis` or block."""
    x, y = node.inputs[0], node.outputs[0]
    shape, block = model.shape(x) or (), int(node.attributes.get("block_size", 0))
    yield from broadcast(node, model, [x], y)
    for name in filter(None, node.inputs[1:3]):
        entries = model.shape(name) or ()
        axis = int(node.attributes.get("axis", 1)) % max(len(shape), 1)
        if len(entries) == 1 and entries[0] > 1:
            yield from same(Axis(x, axis), Axis(name, 0), shape[axis], f"{node} has one scale for each index")
        for dim, count in enumerate(entries if len(entries) == len(shape) > 1 else ()):
            if dim != axis:
                yield from same(Axis(x, dim), Axis(name, dim), shape[dim], f"{node} has scales for each index")
            elif block and count * block == shape[dim]:
                blocks = Span(Axis(x, dim), count, inner=block)
                yield Coupling(blocks, whole(Axis(name, dim), count), f"{node} has a scale for each block of {block}")


def form_of(node: Node) -> Quantised:
    """Return the float operator of a quantised operator and the input positions of its scales."""
    return traits(node.op).quantised or Quantised()


def quantised_operator(node: Node, model: Model) -> Iterator[Fact]:
    """Apply the rule of the float operator; couple vectors of scales and zero points with the axis that they scale."""
    form = float_form(node)
    if form is None:
        return
    operator, float_node = form
    rule = knowledge(operator).coupling
    yield from rule(float_node, model) if rule else ()
    yield from _scales(node, model)
    added = node.input(form_of(node).added) if form_of(node).added >= 0 else ""
    if added:
        yield from broadcast(node, model, [added], node.outputs[0])
    if node.op == "com.microsoft.DynamicQuantizeMatMul":
        yield from _dynamic_scale(node, model)


def _scales(node: Node, model: Model) -> Iterator[Coupling]:
    """Couple each vector of scales or zero points with the axis of its operand."""
    for operand in form_of(node).operands:
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


def update_quantised(node: Node, model: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Apply the shape update of the float operator."""
    form = float_form(node)
    if form is None:
        return
    operator, float_node = form
    update = knowledge(operator).update
    yield from update(float_node, model, cut) if update else ()


def dynamic_quantisation(node: Node, model: Model) -> Iterator[Fact]:
    """Y = round(x / scale) + zero point, scale = (max(x, 0) - min(x, 0)) / 255: zeros do not change the scale."""
    yield from broadcast(node, model, [node.inputs[0]], node.outputs[0])
    yield from _dynamic_scale(node, model)


def _dynamic_scale(node: Node, model: Model) -> Iterator[Normalises]:
    """Mark the axes of the input as normalised, unless masked channels are zero and leave the scale unchanged."""
    x = node.inputs[0]
    if not is_zero_when_masked(x, model):
        for dim, size in enumerate(model.shape(x) or ()):
            if size > 1:
                yield Normalises(Axis(x, dim), node.name, f"{node.op} takes its scale from all of it")


def matmul_nbits(node: Node, model: Model) -> Iterator[Fact]:
    """Y = A B', with B (N, K / block, bytes of a block), a scale per block, and zero points that may be packed.

    Rows of B are removable one by one. Along K only whole blocks are removable, in runs of the blocks whose zero points
    share a byte. If the scales form one vector, either rows or blocks can be removed, but not both.
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
        pins = (Pin(Axis(b, 1), why, str(node)), Pin(Axis(a, len(sizes) - 1), why, str(node)))
        yield Choice(
            node.name,
            (Option("rows", (*by_row, *pins)), Option("blocks", (*by_block, Pin(Axis(b, 0), why, str(node))))),
        )
        return
    yield from (*by_row, *by_block)


def _by_row(node: Node, model: Model, scales: list[str]) -> Iterator[Coupling]:
    """Couple row n of B with its scales and zero points."""
    b = node.inputs[1]
    rows = (model.shape(b) or ())[0]
    for name in scales:
        shape = model.shape(name) or ()
        row_scales = Span(Axis(name, 0), rows, inner=shape[0] // rows)
        yield Coupling(whole(Axis(b, 0), rows), row_scales, f"{node} has scales for each row")


def _by_block(node: Node, model: Model, scales: list[str]) -> Iterator[Coupling]:
    """Couple the inputs of a block with that block of all rows of B, its scales and zero points, if sizes divide."""
    a, b, block = node.inputs[0], node.inputs[1], int(node.attributes["block_size"])
    depth, (rows, blocks, *_) = (model.shape(a) or ())[-1], model.shape(b) or ()
    entries = {name: prod(model.shape(name) or ()) // rows for name in scales}
    together = max(-(-blocks // count) for count in entries.values())
    if depth != blocks * block or blocks % together or blocks == together or node.input(4):
        return
    count = blocks // together
    why = f"{node} has a scale for each block of {block}"
    inputs = Span(Axis(a, len(model.shape(a) or ()) - 1), count, inner=block * together)
    yield Coupling(inputs, Span(Axis(b, 1), count, inner=together), why)
    for name, number in entries.items():
        flat = len(model.shape(name) or ()) == 1
        block_scales = Span(
            Axis(name, 0 if flat else 1), count, inner=number // count, outer=rows if flat else 1, period=number
        )
        yield Coupling(inputs, block_scales, why)


def update_matmul_nbits(node: Node, _: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Set K and N to the kept sizes."""
    for name, size in (("K", cut.after(node.inputs[0])[-1]), ("N", cut.after(node.inputs[1])[0])):
        if node.attributes[name] != size:
            yield SetAttribute(name, size)


def zero_quantised(node: Node, model: Model, held: Held) -> bool:
    """Return whether the float operator keeps zero. The zero point represents zero here."""
    form = float_form(node)
    if form is None:
        return False
    operator, float_node = form
    return knowledge(operator).zero(float_node, model, [held[slot] for slot in form_of(node).slots if slot < len(held)])


def quantised_shapes(
    node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]
) -> Iterator[NodeProto]:
    """Yield the float operator of a quantised operator, applied to its operands."""
    form = traits(operator_name(node.op_type, node.domain)).quantised or Quantised()
    if not integer(node, "channels_last"):
        float_node = helper.make_node(form.operator, [x[slot] for slot in form.slots if slot < len(x)], [y[0]])
        float_node.attribute.extend(a for a in node.attribute if a.name not in ("channels_last", "opset"))
        yield float_node


def matmul_nbits_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Each input element is multiplied once for each row of the weight."""
    return [[*axes_of(model, node.inputs[0]), axes_of(model, node.inputs[1])[0]]]


def _packed(_: LinearLayer, weight: Matrix) -> Matrix:
    return weight.reshape(1, weight.shape[0], -1)


PACKED_FORM = MatrixForm(_packed, reshaped, unchanged, linear=False)
"""A weight (N, blocks, elements of a block) as the matrix (1, N, K)."""


def matmul_nbits_layer(node: Node, model: Model) -> Iterator[LinearLayer]:
    """Yield the linear layer of a weight that stores several elements per byte."""
    weight, block = weight_of(model, node.inputs[1]), int(node.attributes["block_size"])
    if weight is None or int(node.attributes["K"]) % block:
        return
    view, packed_shape = weight
    shape = (*packed_shape[:2], block)
    yield LinearLayer(node, node.inputs[0], view, Axis(node.inputs[1], 1), shape, PACKED_FORM, window=block)


def matmul_nbits_shapes(
    node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]
) -> Iterator[NodeProto]:
    """Yield a MatMul with a matrix of the sizes (K, N) that the attributes give."""
    sizes = [integer(node, "K"), integer(node, "N")]
    yield helper.make_node("Constant", [], [f"{y[0]}__sizes"], value_ints=sizes)
    yield helper.make_node("ConstantOfShape", [f"{y[0]}__sizes"], [f"{y[0]}__matrix"])
    yield helper.make_node("MatMul", [x[0], f"{y[0]}__matrix"], [y[0]])


ONE_OPERAND = (Operand(0, 1, 2),)
TWO_OPERANDS = (Operand(0, 1, 2), Operand(3, 4, 5))
MAX_CONCAT_INPUTS = 300
"""The maximum number of inputs of a QLinearConcat."""

FORMS: Mapping[str, Quantised] = {
    "ConvInteger": Quantised(CONV, (0, 1), (Operand(0, -1, 2), Operand(1, -1, 3, 0))),
    "MatMulInteger": Quantised("MatMul", (0, 1), (Operand(0, -1, 2, -2), Operand(1, -1, 3, -1))),
    "QLinearConv": Quantised(
        CONV, (0, 3, 8), (*ONE_OPERAND, Operand(3, 4, 5, 0)), scales=frozenset({6, 7}), bias=(8, 1, 4)
    ),
    "QLinearMatMul": Quantised(
        "MatMul", (0, 3), (Operand(0, 1, 2, -2), Operand(3, 4, 5, -1)), scales=frozenset({6, 7})
    ),
    "com.microsoft.DynamicQuantizeMatMul": Quantised("MatMul", (0, 1), (Operand(1, 2, 3, -1),), added=4),
    "com.microsoft.MatMulIntegerToFloat": Quantised(
        "MatMul", (0, 1), (Operand(0, 2, 4, -2), Operand(1, 3, 5, -1)), added=6
    ),
    "com.microsoft.QGemm": Quantised("Gemm", (0, 3, 6), (*ONE_OPERAND, Operand(3, 4, 5, -1)), bias=(6, 1, 4)),
    "com.microsoft.QLinearAdd": Quantised("Add", (0, 3), TWO_OPERANDS),
    "com.microsoft.QLinearAveragePool": Quantised("AveragePool", (0,)),
    "com.microsoft.QLinearConcat": Quantised(
        "Concat",
        tuple(range(2, MAX_CONCAT_INPUTS, 3)),
        tuple(Operand(slot, slot + 1, slot + 2) for slot in range(2, MAX_CONCAT_INPUTS, 3)),
    ),
    "com.microsoft.QLinearGlobalAveragePool": Quantised("GlobalAveragePool", (0,)),
    "com.microsoft.QLinearLeakyRelu": Quantised("LeakyRelu", (0,)),
    "com.microsoft.QLinearMul": Quantised("Mul", (0, 3), TWO_OPERANDS),
    "com.microsoft.QLinearSigmoid": Quantised("Sigmoid", (0,)),
    "com.microsoft.QLinearSoftmax": Quantised("Softmax", (0,)),
    "com.microsoft.QLinearWhere": Quantised("Where", (0, 1, 4)),
}
"""Quantised operator -> its float operator and scales. An operand without a scale is scaled by a later node."""

for _name, _form in FORMS.items():
    register(
        _name,
        coupling=quantised_operator,
        update=update_quantised,
        zero=zero_quantised,
        shape=quantised_shapes if "." in _name else None,
        quantised=_form,
        chooses=_form.operator == "Softmax",
    )
register(
    "QuantizeLinear",
    coupling=linear_quantisation,
    zero=first,
    moves=Moves.ROUND,
    quantised=Quantised(scales=frozenset({1, 2})),
)
register(
    "DequantizeLinear",
    coupling=linear_quantisation,
    zero=first,
    moves=Moves.ROUND,
    quantised=Quantised(operands=ONE_OPERAND),
)
register(
    "com.microsoft.QuantizeLinear",
    coupling=linear_quantisation,
    zero=first,
    moves=Moves.ROUND,
    shape=like_first(),
    quantised=Quantised(scales=frozenset({1, 2})),
)
register(
    "com.microsoft.DequantizeLinear",
    coupling=linear_quantisation,
    zero=first,
    moves=Moves.ROUND,
    shape=like_first(),
    quantised=Quantised(operands=ONE_OPERAND),
)
register("DynamicQuantizeLinear", coupling=dynamic_quantisation, zero=first)
register(
    "com.microsoft.MatMulNBits",
    coupling=matmul_nbits,
    parameters=(4,),
    update=update_matmul_nbits,
    zero=any_input,
    macs=matmul_nbits_macs,
    layer=matmul_nbits_layer,
    shape=matmul_nbits_shapes,
    quantised=Quantised(scales=frozenset({2, 3})),
)
