"""Multiply-accumulates and parameters of a model, and of a plan before it is carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.graph.facts import Axis
from spa_onnx.graph.model import COUNTED, UNKNOWN, Model, parameters
from spa_onnx.graph.node import Node
from spa_onnx.graph.quantised import float_form
from spa_onnx.graph.shapes import Shape
from spa_onnx.groups import Group

Products: TypeAlias = list[list[Axis]]
"""Axes whose sizes multiply, product by product."""


def _conv(node: Node, model: Model) -> Products:
    """Each output element sums over one filter: W without its first axis."""
    return [[*_all(model, node.outputs[0]), *_all(model, node.inputs[1])[1:]]]


def _conv_transpose(node: Node, model: Model) -> Products:
    """Each input element spreads over one filter: W without its first axis."""
    return [[*_all(model, node.inputs[0]), *_all(model, node.inputs[1])[1:]]]


def _gemm(node: Node, model: Model) -> Products:
    return [[*_all(model, node.outputs[0]), Axis(node.inputs[0], 0 if node.attributes.get("transA") else 1)]]


def _matmul(node: Node, model: Model) -> Products:
    """Fused ones may swap the last two axes of the left side, and have had its first axis put before those."""
    axes = _all(model, node.inputs[0])
    swapped = axes[0] if node.attributes.get("transBatchA") else axes[-2:][0]
    return [[*_all(model, node.outputs[0]), swapped if node.attributes.get("transA") else axes[-1]]]


def _attention(node: Node, model: Model) -> Products:
    """Queries times keys, and weights times values; keys of a cache are not counted. Packed queries are as wide as the result."""
    result = _all(model, node.outputs[0])
    queries = _all(model, node.inputs[0]) if node.input(1) else result
    keys = node.input(1) or node.outputs[0]
    positions = Axis(keys, 2 if len(model.shape(keys) or ()) == 4 else 1)
    return [[*queries, positions], [*result, positions]]


def _projected(node: Node, model: Model) -> Products:
    """Queries, keys and values are made of one input first."""
    scores = [*_all(model, node.outputs[0]), Axis(node.inputs[0], 1)]
    return [[*_all(model, node.inputs[0]), Axis(node.inputs[1], 1)], scores, scores]


def _recurrent(node: Node, model: Model) -> Products:
    """Every step of every sequence goes through W, and the state before it through R."""
    steps = _all(model, node.inputs[0])[:2]
    return [[*steps, *_all(model, weight)] for weight in node.inputs[1:3]]


def _of_bits(node: Node, model: Model) -> Products:
    """Every element of the input meets every row of the weight."""
    return [[*_all(model, node.inputs[0]), _all(model, node.inputs[1])[0]]]


MACS: Mapping[str, Callable[[Node, Model], Products]] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "RNN": _recurrent,
    "com.microsoft.Attention": _projected,
    "com.microsoft.DynamicQuantizeLSTM": _recurrent,
    "com.microsoft.FusedConv": _conv,
    "com.microsoft.FusedGemm": _gemm,
    "com.microsoft.FusedMatMul": _matmul,
    "com.microsoft.GroupQueryAttention": _attention,
    "com.microsoft.MatMulNBits": _of_bits,
    "com.microsoft.MultiHeadAttention": _attention,
    "com.microsoft.TransposeMatMul": _matmul,
}
"""Operator -> the axes whose sizes multiply to its multiply-accumulates; several such products add up."""


def _all(model: Model, tensor: str) -> list[Axis]:
    return [Axis(tensor, dim) for dim in range(len(model.shape(tensor) or ()))]


def _size(model: Model, axis: Axis) -> int:
    return (model.shape(axis.tensor) or ())[axis.dim]


def _multiplications(model: Model) -> Iterator[list[Axis]]:
    """The products of all nodes whose sizes are known, quantised ones as the float operators that they are."""
    for node in model.nodes:
        operator, plain = float_form(node) or (node.op, node)
        shapes = [model.shape(name) for name in (*plain.inputs[:3], *plain.outputs[:1]) if name]
        if operator in MACS and all(shape is not None and UNKNOWN not in shape for shape in shapes):
            yield from MACS[operator](plain, model)


def batch_size(model: Model) -> int:
    """The size that stands for the symbolic batch: the first dimension of the first input, if it is symbolic."""
    for value in model.proto.graph.input:
        if value.name in model.inputs:
            dims = value.type.tensor_type.shape.dim
            symbolic = bool(dims) and dims[0].dim_value < 1
            return max((model.shape(value.name) or (1,))[0], 1) if symbolic else 1
    return 1


def macs(model: Model, shape: Callable[[str], Shape] | None = None) -> int:
    """Multiply-accumulates of one forward pass at batch 1.

    shape: sizes of a tensor where they are others than the model's own, as once a plan has been carried out.
    """
    sizes = shape or (lambda tensor: model.shape(tensor) or ())
    return sum(prod(sizes(axis.tensor)[axis.dim] for axis in product) for product in _multiplications(model)) // batch_size(model)


def _weights(model: Model) -> Iterator[list[Axis]]:
    """Weights, float and quantised, each once: those with a name per use are taken for cut alike by all users."""
    uses = {source: use for use, source in reversed(list(model.source.items()))}
    return (_all(model, uses.get(name, name)) for name, tensor in model.constants.items() if tensor.data_type in COUNTED)


@dataclass(frozen=True, slots=True)
class Unit:
    """products: the sets of axes whose sizes multiply, to be added up. whole: of the original model, at batch 1. batched: per batch."""

    products: Callable[[Model], Iterator[list[Axis]]]
    whole: Callable[[Model], int]
    batched: bool


UNITS: Mapping[str, Unit] = {
    "macs": Unit(_multiplications, macs, batched=True),
    "params": Unit(_weights, lambda model: parameters(model.proto), batched=False),
}
"""What a plan can save."""


def per_channel(model: Model, groups: Sequence[Group], unit: str = "macs") -> NDArray[np.float64]:
    """What is saved when a group loses its first channel, float64 (groups,)."""
    cost = PlanCost(model, groups, unit)
    whole = cost(np.zeros(len(groups), np.int64))
    return np.asarray([whole - cost(one) for one in np.eye(len(groups), dtype=np.int64)], dtype=np.float64)


class PlanCost:
    """What a model costs, in a unit, as a function of how many channels each group loses."""

    def __init__(self, model: Model, groups: Sequence[Group], unit: str = "macs") -> None:
        kind = UNITS[unit]
        self._batch = batch_size(model) if kind.batched else 1
        owned = [{axis: group.share(axis) for axis in group.owner} for group in groups]
        touched: dict[Axis, list[tuple[int, float]]] = {}
        for number, axes in enumerate(owned):
            for axis, count in axes.items():
                touched.setdefault(axis, []).append((number, count))
        self._fixed = 0.0
        self._terms: list[tuple[float, list[tuple[float, list[tuple[int, float]]]]]] = []
        for product in kind.products(model):
            constant = float(prod(_size(model, axis) for axis in product if axis not in touched))
            moving = [(float(_size(model, axis)), touched[axis]) for axis in product if axis in touched]
            if moving:
                self._terms.append((constant, moving))
            else:
                self._fixed += constant
        self._fixed += kind.whole(model) * self._batch - self(np.zeros(len(groups), np.int64)) * self._batch  # in nested graphs

    def __call__(self, removed: NDArray[np.int64]) -> float:
        """removed: channels that each group loses, int64 (groups,)."""
        total = self._fixed
        for constant, moving in self._terms:
            total += constant * prod(size - sum(count * removed[number] for number, count in owners) for size, owners in moving)
        return total / self._batch
