"""Random valid networks.

A recipe is plain data that prints as it was drawn, and `build(recipe)` makes the same model again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from random_blocks import FEATURE_BLOCKS, IMAGE_BLOCKS, spatial_mean
from random_net import BATCH, CHANNELS, WIDEST, Net, convolve

if TYPE_CHECKING:
    from collections.abc import Sequence

settings.register_profile(
    "ci", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)
CI = settings.get_profile("ci")
"""The same examples on every machine, without a database or a deadline."""


@dataclass(frozen=True)
class Step:
    """One block: `source` chooses the tensor it continues, `size` and `kind` how; any numbers make a valid block."""

    family: str
    source: int
    size: int
    kind: int


@dataclass(frozen=True)
class Recipe:
    images: tuple[Step, ...]
    features: tuple[Step, ...]
    seed: int
    opset: int
    symbolic: bool

    def families(self) -> set[str]:
        return {step.family for step in (*self.images, *self.features)}


def flatten(net: Net, x: str, kind: int) -> str:
    """An image as features, by one of the ways that exporters know."""
    batch, channels, height, width = net.shapes[x]
    if kind % 5 == 0:
        return spatial_mean(net, x, keep=False)
    if kind % 5 == 1 and height * width <= 16:
        return net.op("Flatten", [x], (batch, channels * height * width), axis=1)
    pooled = net.op(("GlobalAveragePool", "GlobalMaxPool")[kind % 2], [x], (batch, channels, 1, 1))
    if kind % 5 == 2:
        return net.op("Squeeze", [pooled, net.numbers(2, 3)], (batch, channels))
    return (
        net.reshape(pooled, (batch, channels), kind // 5)
        if kind % 5 == 3
        else net.op("Flatten", [pooled], (batch, channels))
    )


def build(recipe: Recipe) -> onnx.ModelProto:
    net = Net(recipe.seed, recipe.opset, symbolic=recipe.symbolic)
    net.shapes["x"] = (BATCH, 3, 6, 6)
    net.images = [convolve(net, "x", CHANNELS[recipe.seed % 4])]
    for step in recipe.images:
        x = net.images[-1 - step.source % min(len(net.images), 3)]
        net.images += [y for y in IMAGE_BLOCKS[step.family](net, x, step.size, step.kind) if min(net.shapes[y]) > 0]
        if net.channels(net.images[-1]) > WIDEST:
            net.images.append(convolve(net, net.images[-1], 6, 1))
    loose = [y for y in net.images if y not in net.read]
    rows = [flatten(net, y, recipe.seed + place) for place, y in enumerate(loose)]
    net.features = [
        rows[0] if len(rows) == 1 else net.op("Concat", rows, (BATCH, sum(net.channels(r) for r in rows)), axis=1)
    ]
    for step in recipe.features:
        x = net.features[-1 - step.source % min(len(net.features), 2)]
        net.features += FEATURE_BLOCKS[step.family](net, x, step.size, step.kind)
    for y in [y for y in net.features if y not in net.read]:
        net.op("Gemm", [y, net.weight(net.channels(y), 3), net.weight(3)], (BATCH, 3))
    return _model(net, [y for y in net.shapes if y not in net.read and y != "x"])


def _model(net: Net, outputs: list[str]) -> onnx.ModelProto:
    batch = "N" if net.symbolic else BATCH
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *net.shapes["x"][1:]])
    made = [helper.make_tensor_value_info(y, TensorProto.FLOAT, [batch, *net.shapes[y][1:]]) for y in outputs]
    graph = helper.make_graph(net.nodes, "random", [x], made, net.stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", net.opset)], ir_version=8)


def steps(families: Sequence[str], least: int, most: int) -> st.SearchStrategy[tuple[Step, ...]]:
    number = st.integers(0, 59)
    return st.lists(
        st.builds(Step, st.sampled_from(families), number, number, number), min_size=least, max_size=most
    ).map(tuple)


def recipes() -> st.SearchStrategy[Recipe]:
    return st.builds(
        Recipe,
        steps(list(IMAGE_BLOCKS), 2, 9),
        steps(list(FEATURE_BLOCKS), 0, 4),
        st.integers(0, 2**16),
        st.sampled_from((13, 17, 18, 21)),
        st.booleans(),
    )
