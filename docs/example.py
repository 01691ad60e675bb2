"""The running example of docs/how_it_works.md: a small residual block.

`python docs/example.py` writes it to example.onnx.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

BLOCK = """
<ir_version: 8, opset_import: ["": 17]>
block (float[N,3,8,8] image) => (float[N,5] odds)
<
    float[6,3,3,3] stem_w, float[6] stem_b,
    float[8,6,1,1] wide_w, float[8] wide_b,
    float[8,4,3,3] mix_w, float[8] mix_b,
    float[6,8,1,1] thin_w, float[6] thin_b,
    float[5,24] head_w, float[5] head_b,
    int64[2] target = {-1, 24}
>
{
    stem = Conv <pads = [1,1,1,1]> (image, stem_w, stem_b)
    trunk = Relu (stem)
    wide = Conv (trunk, wide_w, wide_b)
    bent = Relu (wide)
    mix = Conv <group = 2, pads = [1,1,1,1]> (bent, mix_w, mix_b)
    thin = Conv (mix, thin_w, thin_b)
    total = Add (trunk, thin)
    pooled = MaxPool <kernel_shape = [4,4], strides = [4,4]> (total)
    flat = Reshape (pooled, target)
    scores = Gemm <transB = 1> (flat, head_w, head_b)
    odds = Softmax (scores)
}
"""
"""ONNX's own text form; the weights are declared here and drawn by `build`."""

SHUFFLE = """
<ir_version: 8, opset_import: ["": 17]>
shuffle (float[1,3,4,4] image) => (float[1,2,4,4] result)
<
    float[6,3,1,1] first_w, float[2,6,1,1] last_w,
    int64[5] apart = {1, 2, 3, 4, 4}, int64[4] back = {1, 6, 4, 4}
>
{
    first = Conv (image, first_w)
    split = Reshape (first, apart)
    turned = Transpose <perm = [0,2,1,3,4]> (split)
    mixed = Reshape (turned, back)
    result = Conv (mixed, last_w)
}
"""
"""A channel shuffle of 6 channels in 2 groups of 3."""


def build(text: str = BLOCK, seed: int = 0) -> onnx.ModelProto:
    """The model with weights drawn from a seeded normal distribution. Each node has the name of its output."""
    model = parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        drawn = rng.standard_normal(shape) / np.sqrt(prod(shape[1:]))
        model.graph.initializer.append(numpy_helper.from_array(drawn.astype(np.float32), value.name))
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.name = node.output[0]
    return model


if __name__ == "__main__":
    onnx.save(build(), Path("example.onnx"))
