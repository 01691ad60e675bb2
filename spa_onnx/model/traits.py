"""Traits: properties of operators that are needed to read a graph.

The operator families in `spa_onnx.operators` register the traits together with the coupling rules. That package is
imported by name when it is first needed, because it depends on this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

from numpy.typing import NDArray
from onnx import NodeProto

from spa_onnx.model.node import Node

Array: TypeAlias = NDArray[Any]

FAMILIES = "spa_onnx.operators"
"""The package that registers the operators when it is imported."""


class Moves(Enum):
    """How an operator moves the elements of its first input, if it does nothing else."""

    NOTHING = auto()
    """The operator computes new values."""
    IDENTITY = auto()
    DROPOUT = auto()
    CAST = auto()
    """The operator converts the elements to another type."""
    ROUND = auto()
    """The operator quantises or dequantises the elements."""
    RESHAPE = auto()
    """The operator keeps the order of the elements and changes the shape."""
    TRANSPOSE = auto()
    PICK = auto()
    """The operator selects some of the elements."""


Evaluate: TypeAlias = Callable[[Node, Sequence[Array]], "Array | list[Array]"]
"""Function of (node, input arrays) that returns the output array, or a list of them."""


@dataclass(frozen=True, slots=True)
class Fold:
    """How shape arithmetic evaluates an operator in numpy.

    Args:
        evaluate: Function that evaluates the operator.
        moved: The inputs whose elements the operator only moves; None if it computes new values.
        together: Whether every output element depends on every input element.
        sized_by: The inputs whose values determine the size of the output.
        fills: Whether the operator can fill a tensor of any size, like ConstantOfShape and Expand.
    """

    evaluate: Evaluate
    moved: slice | None = None
    together: bool = False
    sized_by: slice | None = None
    fills: bool = False


class Operand(NamedTuple):
    """The input positions of a quantised operand.

    Args:
        data: Position of the operand.
        scale: Position of its scale; -1 if it has none.
        zero: Position of its zero point; -1 if it has none.
        axis: The axis of the operand along which a vector of scales varies; None if an attribute of the node sets it.
    """

    data: int
    scale: int
    zero: int
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class Quantised:
    """The float equivalent of a quantised operator, and the input positions of its operands and scales.

    Args:
        operator: The equivalent float operator; empty if there is none.
        slots: The input positions of the operands of the float operator.
        operands: The quantised operands.
        scales: The input positions of scales and zero points that do not belong to `operands`.
        bias: The input positions of the integer bias, and of the two scales whose product is its scale.
        added: The input position of a float vector that is added to each row of the result; -1 if there is none.
    """

    operator: str = ""
    slots: tuple[int, ...] = ()
    operands: tuple[Operand, ...] = ()
    scales: frozenset[int] = frozenset()
    bias: tuple[int, int, int] | None = None
    added: int = -1

    def all_scales(self) -> frozenset[int]:
        """Return the input positions of all scales and zero points."""
        return self.scales | {slot for operand in self.operands for slot in operand[1:3] if slot >= 0}


ShapeEquivalent: TypeAlias = Callable[[NodeProto, Sequence[str], Sequence[str], Mapping[str, int]], Iterator[NodeProto]]
"""Function of (node, inputs, outputs, rank of each constant and graph input).

It yields standard nodes with the same output shapes as the node.
"""


FixedNumbers: TypeAlias = Callable[[NodeProto, int], Iterator[NodeProto]]
"""Function of (node, operator set). It yields standard nodes with the same outputs in type and shape, without chance.
"""


@dataclass(frozen=True, slots=True)
class Traits:
    """Properties of an operator that are needed to read a graph.

    Args:
        moves: How the operator moves the elements of its first input, if it does nothing else.
        fold: How shape arithmetic evaluates the operator; None if shape arithmetic does not support it.
        shape: The shape equivalent of an operator that ONNX shape inference does not know.
        quantised: The float equivalent and the operands of a quantised operator.
        chooses: Whether the operator computes probabilities or classes from its first input.
        saturates: Whether the operator maps a range of inputs to one output: it clips, rounds or compares.
        random: The fixed numbers that take the place of those that the operator draws; None if it draws none.
    """

    moves: Moves = Moves.NOTHING
    fold: Fold | None = None
    shape: ShapeEquivalent | None = None
    quantised: Quantised | None = None
    chooses: bool = False
    saturates: bool = False
    random: FixedNumbers | None = None


TRAITS: dict[str, Traits] = {}
"""Operator, with its domain in front unless it is ai.onnx -> its traits, for all registered operators."""

UNKNOWN_OPERATOR = Traits()


def traits(operator: str) -> Traits:
    """Return the traits of an operator, or default traits if it is not registered.

    Args:
        operator: The name of the operator as `operator_name` returns it.
    """
    if not TRAITS:
        import_module(FAMILIES)
    return TRAITS.get(operator, UNKNOWN_OPERATOR)


def is_registered(operator: str) -> bool:
    """Return whether an operator is registered, by the name that `operator_name` returns."""
    return traits(operator) is not UNKNOWN_OPERATOR


def operator_name(op_type: str, domain: str) -> str:
    """Return the name under which an operator is registered, as in `Conv` and `com.microsoft.FusedConv`."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}.{op_type}"
