"""Pruned against masked in float64, where what rounding does to float32 is more than a checker allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

import spa_onnx
from spa_onnx import runtime
from spa_onnx.cut import Removal
from spa_onnx.mask import mask
from spa_onnx.pipeline import inspect
from spa_onnx.validate import difference


def in_double(path: Path, result: spa_onnx.Result) -> float:
    """How far the pruned model is from the masked original, relative to its largest output, when onnx's reference computes both."""
    settings = result.plan["settings"]
    analysis = inspect(path, width=settings["width"], attention=settings["attention"])
    drop = {group["name"]: np.asarray(group["removed"]) for group in result.plan["groups"]}
    masked = mask(analysis.model, Removal(analysis, drop))
    dims = runtime.working_dims(analysis.model, runtime.session(masked), {})
    feed = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in runtime.random_feed(analysis.model, dims, 0).items()}
    want, got = (ReferenceEvaluator(doubled(proto)).run(None, feed) for proto in (masked, result.model))
    return max(difference(x, y) if x.dtype.kind == "f" else float((x != y).mean()) for x, y in zip(want, got, strict=True))


def doubled(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all that is float32 in float64."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.value_info[:]
    attributes = [(node, attribute) for node in copy.graph.node for attribute in node.attribute]
    for tensor in (*copy.graph.initializer, *(attribute.t for _, attribute in attributes if attribute.HasField("t"))):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node, attribute in attributes:
        if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", onnx.TensorProto.FLOAT):
            attribute.i = onnx.TensorProto.DOUBLE
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return copy
