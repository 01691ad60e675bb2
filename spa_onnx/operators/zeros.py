"""What channels that go leave behind: an index whose weights are zero holds zero, until an operator makes something else of it.

A product of two activations that sums over such indices adds f(0) * g(0) for each of them to the masked model, and nothing to the pruned
one: exp(q) @ exp(k) in linear attention, say. So what it sums over stays, unless one of the factors holds zeros there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from spa_onnx.model.facts import Axis, Choice, Coupling, Fact, Pin
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node

PRODUCTS = (
    "Conv ConvTranspose Einsum Gemm MatMul com.microsoft.FusedConv com.microsoft.FusedGemm com.microsoft.FusedMatMul "
    "com.microsoft.GemmFloat8 com.microsoft.TransposeMatMul"
).split()
"""Operators that multiply two tensors and sum over an axis of both."""

Held: TypeAlias = Sequence[bool | None]
"""For each input that carries channels: whether it holds zeros where channels go; None where it has no such axis."""

Keeps: TypeAlias = Callable[[Node, Model, Held], bool]


def _first(_: Node, __: Model, held: Held) -> bool:
    return bool(held[0])


def _any(_: Node, __: Model, held: Held) -> bool:
    return True in held


def _every(_: Node, __: Model, held: Held) -> bool:
    return all(held)


def _affine(node: Node, _: Model, held: Held) -> bool:
    """A product, and a bias that is zero as well; the activation that FusedConv and FusedGemm may have moves zero or does not."""
    return (
        True in held[:2]
        and all(held[2:])
        and node.attributes.get("activation", b"") not in (b"Sigmoid", b"HardSigmoid")
    )


def _scaled(_: Node, __: Model, held: Held) -> bool:
    """A norm: its scale and its bias are zero."""
    return all(held[1:3])


def _chosen(_: Node, __: Model, held: Held) -> bool:
    """Where: both values are zero, whatever the condition."""
    return all(held[1:])


def _clip(node: Node, model: Model, held: Held) -> bool:
    bounds = [model.constant(node.input(slot)) for slot in (1, 2)]
    low, high = (
        node.attributes.get(name, 0.0 if b is None else b.item())
        for name, b in zip(("min", "max"), bounds, strict=True)
    )
    return bool(held[0] and low <= 0 <= high)


def _pad(node: Node, model: Model, held: Held) -> bool:
    value = model.constant(node.input(2)) if node.input(2) else None
    filled = node.attributes.get("value", 0.0) if value is None else value.item()
    return bool(held[0] and filled == 0)


KEEPS: Mapping[str, Keeps] = {
    **dict.fromkeys(
        (
            "Abs Asin Asinh Atan Atanh Cast Ceil Celu Elu Erf Floor Gelu HardSwish Identity LeakyRelu Mish Neg Relu Round Selu Shrink Sign "
            "Sin Sinh Softsign Sqrt Swish Tan Tanh ThresholdedRelu com.microsoft.Gelu com.microsoft.QuickGelu Dropout PRelu Div Mod Pow "
            "AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool Resize Upsample LRN CumSum Trilu "
            "ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare "
            "GridSample MaxRoiPool RoiAlign ReverseSequence "
            "Transpose Reshape Squeeze Unsqueeze Flatten Expand Tile Slice Split Gather DepthToSpace SpaceToDepth "
            "RotaryEmbedding com.microsoft.RotaryEmbedding"
        ).split(),
        _first,
    ),
    **dict.fromkeys(
        "Mul And MatMul Einsum com.microsoft.FusedMatMul com.microsoft.TransposeMatMul Attention".split(), _any
    ),
    **dict.fromkeys("Add Sub Sum Max Min Mean Or Concat com.microsoft.BiasGelu com.microsoft.FastGelu".split(), _every),
    **dict.fromkeys("Conv ConvTranspose Gemm com.microsoft.FusedConv com.microsoft.FusedGemm".split(), _affine),
    **dict.fromkeys(
        "BatchNormalization InstanceNormalization GroupNormalization LayerNormalization RMSNormalization".split(),
        _scaled,
    ),
    "Where": _chosen,
    "Clip": _clip,
    "Pad": _pad,
}
"""Operator -> whether its output holds zeros where channels go, by what its inputs hold there."""

ENDS = (
    "Acos Acosh BitwiseNot Cos Cosh Equal Exp GreaterOrEqual HardSigmoid Hardmax IsInf IsNaN LessOrEqual Log LogSoftmax Not Reciprocal "
    "Sigmoid Softmax Softplus"
).split()
"""Operators that make something else of zero. Of any other that is in neither table nothing is known, and validation has to tell."""


def sums_what_is_left(model: Model) -> bool:
    """Whether any product has two activations, so that it matters what masked channels hold."""
    return any(node.op in PRODUCTS and not any(map(model.is_constant, node.inputs[:2])) for node in model.nodes)


class Zeros:
    """The axes of activations that hold zeros where channels go, node by node in the order of the graph."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._zero: set[Axis] = set()

    def chain(self, outputs: Iterable[str], facts: Iterable[Fact]) -> None:
        """Follow a channel shuffle, which only reorders."""
        self._follow(outputs, facts, lambda axes: any(map(self._holds, axes)))

    def _follow(self, outputs: Iterable[str], facts: Iterable[Fact], keeps: Callable[[list[Axis]], bool]) -> None:
        """keeps: whether an axis holds zeros, told the axes that it is tied to."""
        tied = _tied(facts)
        for name in outputs:
            for axis in (Axis(name, dim) for dim in range(len(self._model.shape(name) or ()))):
                if axis in tied and keeps(tied[axis]):
                    self._zero.add(axis)

    def node(self, node: Node, facts: Sequence[Fact], parameters: frozenset[int]) -> Iterator[Pin]:
        """Follow one node, and pin what it sums over where neither factor holds zeros. parameters: inputs without channels."""
        carriers = [name for slot, name in enumerate(node.inputs) if name and slot not in parameters]
        if node.op not in ENDS:
            rule = KEEPS.get(node.op, _any)
            self._follow(
                node.outputs, facts, lambda axes: rule(node, self._model, [self._held(name, axes) for name in carriers])
            )
        if node.op in PRODUCTS:
            yield from self._summed(node, facts)

    def _held(self, tensor: str, axes: list[Axis]) -> bool | None:
        mine = [axis for axis in axes if axis.tensor == tensor]
        return any(map(self._holds, mine)) if mine else None

    def _holds(self, axis: Axis) -> bool:
        return axis in self._zero or self._model.is_constant(axis.tensor)

    def _summed(self, node: Node, facts: Iterable[Fact]) -> Iterator[Pin]:
        tied = _tied(facts)
        for axis, others in tied.items():
            made = any(other.tensor in node.outputs for other in others) or axis.tensor in node.outputs
            factors = [] if made else [other for other in others if other.tensor in node.inputs[:2]]
            if factors and axis.tensor in node.inputs[:2] and not any(map(self._holds, (axis, *factors))):
                yield Pin(axis, f"{node.op} sums over what is not zero there when masked", f"{node}, {axis}")


def _tied(facts: Iterable[Fact]) -> Mapping[Axis, list[Axis]]:
    """Axis -> the axes that any coupling ties it to, whichever option holds."""
    found: dict[Axis, list[Axis]] = defaultdict(list)
    for fact in facts:
        given = [f for option in fact.options for f in option.facts] if isinstance(fact, Choice) else [fact]
        for one in given:
            if isinstance(one, Coupling):
                found[one.a.axis].append(one.b.axis)
                found[one.b.axis].append(one.a.axis)
    return found
