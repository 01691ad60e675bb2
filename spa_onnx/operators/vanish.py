"""Where a channel that is masked is zero in an activation too, so that a scale taken from all of it does not change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.quantisation import FLOAT_FORMS

Fed: TypeAlias = tuple[bool, ...]
"""For each operand of a node whether its masked channels are zero."""


def _any(fed: Fed) -> bool:
    return any(fed)


def _all(fed: Fed) -> bool:
    return all(fed)


def _first(fed: Fed) -> bool:
    return fed[0]


def _not_first(fed: Fed) -> bool:
    return all(fed[1:])


def _third(fed: Fed) -> bool:
    return len(fed) > 2 and fed[2]


ZERO: Mapping[str, Callable[[Fed], bool]] = {
    **dict.fromkeys(
        (
            "Abs Asin Asinh Atan AveragePool Cast Ceil Celu Clip DepthToSpace DequantizeLinear Div Dropout Elu Erf Expand Flatten Floor "
            "Gather Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool HardSwish Identity LeakyRelu LpPool MaxPool Mish Neg PRelu Pad Pow "
            "QuantizeLinear QuickGelu ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape Resize "
            "Round Selu Shrink Sign Sin Sinh Slice Softsign SpaceToDepth Split Sqrt Squeeze Swish Tan Tanh ThresholdedRelu Tile "
            "Transpose Unsqueeze Upsample"
        ).split(),
        _first,
    ),
    **dict.fromkeys("Add BiasGelu Concat FastGelu Max Mean Min Sub Sum".split(), _all),
    **dict.fromkeys("Attention Einsum FusedMatMul MatMul Mul".split(), _any),
    **dict.fromkeys(
        (
            "BatchNormalization Conv ConvTranspose GRU Gemm GroupNormalization InstanceNormalization LSTM LayerNormalization "
            "RMSNormalization RNN SimplifiedLayerNormalization Where"
        ).split(),
        _not_first,
    ),
    **dict.fromkeys("GroupQueryAttention MultiHeadAttention".split(), _third),
}
"""Operator, without its domain -> whether its masked channels are zero, given whether those of its operands are."""


def vanishes(tensor: str, model: Model) -> bool:
    """Whether the channels that a plan removes from an activation are zero in the masked model, as far as can be told."""
    return _vanishes(tensor, model, {})


def _vanishes(tensor: str, model: Model, known: dict[str, bool]) -> bool:
    if tensor not in known:
        known[tensor] = True  # graph inputs keep all their channels
        node = model.producer.get(tensor)
        if model.constant(tensor) is not None:
            known[tensor] = _is_masked(tensor, model)
        elif node is not None:
            known[tensor] = _behind(node, model, known)
    return known[tensor]


def _is_masked(constant: str, model: Model) -> bool:
    """A constant of one element holds for all channels alike and is never cut."""
    array = model.constant(constant)
    return array is not None and (array.size > 1 or not array.any())


def _behind(node: Node, model: Model, known: dict[str, bool]) -> bool:
    form = FLOAT_FORMS.get(node.op)
    operator = form.operator if form else node.op.rsplit(".", 1)[-1]
    if (
        operator not in ZERO
        or (operator == "Clip" and not _allows_zero(node, model))
        or node.attributes.get("activations")
    ):
        return False
    slots: Iterable[int] = form.slots if form else range(len(node.inputs))
    operands = tuple(
        _vanishes(node.inputs[slot], model, known) for slot in slots if slot < len(node.inputs) and node.inputs[slot]
    )
    return ZERO[operator](operands)


def _allows_zero(node: Node, model: Model) -> bool:
    """Whether zero lies within the bounds of a Clip, as far as they are known."""
    for slot, name, sign in ((1, "min", 1), (2, "max", -1)):
        bound = model.constant(node.input(slot)) if node.input(slot) else node.attributes.get(name, 0)
        if bound is None or sign * float(np.asarray(bound).item()) > 0:
            return False
    return True
