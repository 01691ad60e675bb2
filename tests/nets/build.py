"""Tiny nets from onnx text: weights are declared, not written, and get seeded normals."""

import zlib
from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper, parser

Build = Callable[[], onnx.ModelProto]

FRESH = {"ir": 8, "opset": 17}

LIMITS = {"int8": (-64, 64), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}
"""Smallest and largest number drawn for the types of quantised weights.

Processors without VNNI add two products of 8 bits in 16, and onnxruntime saturates there: two of 255 * 64 just fit.
"""


def net(inputs: str, weights: str, nodes: str, outputs: str = "y", **options) -> Build:
    """A function that makes the net.

    inputs: graph inputs. weights: declarations; those with values (`int64[1] s = {0}`) are kept, the others are filled
    with normals. outputs: their shapes are inferred where none is written. options: `opset`, `ir`, `domains` (more
    operator sets), and `shown`: initializers are graph inputs too.
    """
    settings = FRESH | options

    def build() -> onnx.ModelProto:
        head = f'<ir_version: {settings["ir"]}, opset_import: ["": {settings["opset"]}{settings.get("domains", "")}]>'
        model = parser.parse_model(f"{head}\ntiny ({inputs}) => ({outputs}) <{weights}> {{ {nodes} }}")
        _fill(model, zlib.crc32(nodes.encode()))
        if settings["ir"] < 4:
            known = {t.name for t in model.graph.initializer}
            model.graph.input.extend(v for v in map(_declared, model.graph.initializer) if v.name in known)
        _declare_outputs(model)
        return model

    return build


def image(nodes: str, weights: str = "", wide: int = 8, into: int = 8, size: int = 6, **options) -> Build:
    """A 1x1 convolution makes `a` with `wide` channels, `nodes` make `z` of it, another reads its `into` channels."""
    more = f"{weights}, " if weights else ""
    return net(
        f"float[{options.pop('batch', 2)},3,{size},{size}] x",
        f"{more}float[{wide},3,1,1] w1, float[{wide}] b1, float[4,{into},1,1] w9, float[4] b9",
        f"a = Conv(x, w1, b1) {nodes} y = Conv(z, w9, b9)",
        **options,
    )


def tokens(nodes: str, weights: str = "", wide: int = 8, into: int = 8, **options) -> Build:
    """A linear layer makes `a` (2, 5, wide), `nodes` make `z` of it, another reads its last axis of size `into`."""
    more = f"{weights}, " if weights else ""
    return net(
        f"float[{options.pop('batch', 2)},5,6] x",
        f"{more}float[6,{wide}] w1, float[{wide}] b1, float[{into},4] w9",
        f"m = MatMul(x, w1) a = Add(m, b1) {nodes} y = MatMul(z, w9)",
        **options,
    )


def _fill(model: onnx.ModelProto, seed: int) -> None:
    """Initializers for what is declared without a value; whatever is called `var` or `scale` is positive.

    Integers of a byte fill their range (quantised weights); whatever is called `bias` is some hundreds.
    """
    rng = np.random.default_rng(seed)
    for value in model.graph.value_info:
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        drawn = rng.standard_normal(shape)
        if value.name.startswith(("var", "scale")):
            drawn = 0.5 + np.abs(drawn)
        if dtype.name in LIMITS or value.name.startswith("bias"):
            low, high = LIMITS.get(dtype.name, (-500, 500))
            drawn = rng.integers(low, high + 1, shape)
        model.graph.initializer.append(
            numpy_helper.from_array(drawn > 0 if dtype.kind == "b" else drawn.astype(dtype), value.name)
        )
    del model.graph.value_info[:]


def _declared(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)


def _declare_outputs(model: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value, known in zip(model.graph.output, inferred.graph.output, strict=True):
        if not value.type.HasField("tensor_type"):
            value.CopyFrom(known)


def as_constant_nodes(build: Build) -> Build:
    """The same net with its weights in Constant nodes."""

    def rebuilt() -> onnx.ModelProto:
        model = build()
        nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
        rest = list(model.graph.node)
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend([*nodes, *rest])
        return model

    return rebuilt
