"""Operators that draw random numbers. Models are compared with fixed numbers in their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from spa_onnx.model.facts import Axis, Fact, Free, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.elementwise import unary
from spa_onnx.operators.registry import register
from spa_onnx.operators.updates import Cut, SetAttribute, ShapeEdit

CAST_LIKE = 15
"""From this operator set on, CastLike gives a tensor the type of another."""

QUARTILE = 0.75
"""Drawn numbers are replaced by their upper quartile: common, and not zero, so that what multiplies them is compared.
"""

DEVIATIONS = 0.6745
"""The upper quartile of a normal distribution, in standard deviations above the mean."""


def shaped_alike(node: Node, model: Model) -> Iterator[Fact]:
    """Y = random numbers in the shape of x, whatever x holds."""
    x, y = node.inputs[0], node.outputs[0]
    for dim, size in enumerate(model.shape(x) or ()):
        yield from same(Axis(x, dim), Axis(y, dim), size, f"{node} has the shape of its input")


def shaped_by_attribute(node: Node, model: Model) -> Iterator[Fact]:
    """Y = random numbers, independent of each other, in the shape that an attribute gives."""
    for dim in range(len(model.shape(node.outputs[0]) or ())):
        yield Free(Axis(node.outputs[0], dim))


def update_shape(node: Node, model: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Draw as many numbers as are left."""
    after = cut.after(node.outputs[0])
    if after != model.shape(node.outputs[0]):
        yield SetAttribute("shape", list(after))


def multinomial(node: Node, model: Model) -> Iterator[Fact]:
    """y[n] = classes drawn from the scores x[n]. The classes and the draws have to stay."""
    x, y = node.inputs[0], node.outputs[0]
    yield from same(Axis(x, 0), Axis(y, 0), (model.shape(x) or ())[0], f"{node} draws for each sample")


def upper_quartile(node: NodeProto, opset: int) -> Iterator[NodeProto]:
    """Yield nodes that fill the output of a normal or uniform distribution with its upper quartile.

    Before CastLike, a tensor in the type of an input is filled with zeros instead.
    """
    (y,), given = node.output, _attributes(node)
    mean, scale = (float(given.get(name, default)) for name, default in (("mean", 0.0), ("scale", 1.0)))
    low, high = (float(given.get(name, default)) for name, default in (("low", 0.0), ("high", 1.0)))
    value = mean + DEVIATIONS * scale if "Normal" in node.op_type else low + QUARTILE * (high - low)
    dtype, like = int(given.get("dtype", 0)), node.input[0] if node.input else ""
    if like and not dtype and opset < CAST_LIKE:
        yield helper.make_node("Sub", [like, like], [y], f"{y}__fixed")
        return
    shape, filled = f"{y}__shape", f"{y}__filled" if like and not dtype else y
    yield (
        helper.make_node("Shape", [like], [shape], shape)
        if like
        else helper.make_node("Constant", [], [shape], shape, value=_sizes(given["shape"]))
    )
    kind = helper.tensor_dtype_to_np_dtype(dtype or TensorProto.FLOAT)
    number = numpy_helper.from_array(np.full(1, value, np.float32).astype(kind))
    yield helper.make_node("ConstantOfShape", [shape], [filled], f"{y}__fixed", value=number)
    if filled != y:
        yield helper.make_node("CastLike", [filled, like], [y], f"{y}__cast")


def probabilities(node: NodeProto, _: int) -> Iterator[NodeProto]:
    """Yield a node that returns the probabilities themselves, which are the mean of what is drawn by them."""
    dtype = _attributes(node).get("dtype")
    if dtype is None:
        yield helper.make_node("Identity", node.input, node.output, f"{node.output[0]}__mean")
    else:
        yield helper.make_node("Cast", node.input, node.output, f"{node.output[0]}__mean", to=dtype)


def likeliest(node: NodeProto, _: int) -> Iterator[NodeProto]:
    """Yield nodes that return the class of the largest score in each draw."""
    (y,), given = node.output, _attributes(node)
    best, shape, repeated = f"{y}__best", f"{y}__shape", f"{y}__repeated"
    yield helper.make_node("ArgMax", node.input, [best], best, axis=1, keepdims=1)
    yield helper.make_node("Constant", [], [shape], shape, value=_sizes([1, given.get("sample_size", 1)]))
    yield helper.make_node("Expand", [best, shape], [repeated], repeated)
    yield helper.make_node("Cast", [repeated], [y], f"{y}__fixed", to=given.get("dtype", TensorProto.INT32))


def _sizes(values: Sequence[int]) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.int64))


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


register("RandomNormalLike", "RandomUniformLike", coupling=shaped_alike, random=upper_quartile)
register("RandomNormal", "RandomUniform", coupling=shaped_by_attribute, update=update_shape, random=upper_quartile)
register("Bernoulli", coupling=unary, random=probabilities)  # onnxruntime draws ones by a probability of 0
register("Multinomial", coupling=multinomial, default_reason="draws from all of it", random=likeliest)
