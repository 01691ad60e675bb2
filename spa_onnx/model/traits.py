"""What has to be known about an operator to read a graph: what it only moves, how it is folded, what shapes it gives.

The families in `spa_onnx.operators` register these traits together with all else that they know. They are found by name, as plug-ins
are, so that no room above depends on them.
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
"""The package that registers operators when it is imported."""


class Moves(Enum):
    """What an operator does to the elements of its first input, where it does no more than that."""

    NOTHING = auto()
    """It computes: its output holds other elements."""
    IDENTITY = auto()
    DROPOUT = auto()
    CAST = auto()
    """It changes their type."""
    ROUND = auto()
    """It quantises or dequantises them."""
    RESHAPE = auto()
    """It keeps their order and counts them along other axes."""
    TRANSPOSE = auto()
    PICK = auto()
    """It takes some of them."""


Evaluate: TypeAlias = Callable[[Node, Sequence[Array]], "Array | list[Array]"]
"""(node, its inputs) -> its output, or its outputs."""


@dataclass(frozen=True, slots=True)
class Fold:
    """How shape arithmetic evaluates an operator in numpy.

    Args:
        evaluate: The operator.
        moved: The inputs whose elements it only moves; None where it computes.
        together: Whether every element of the result depends on every element that is given.
        sized_by: The inputs whose values say how large the result is.
        fills: Whether it can fill a tensor of any size, as ConstantOfShape and Expand do.
    """

    evaluate: Evaluate
    moved: slice | None = None
    together: bool = False
    sized_by: slice | None = None
    fills: bool = False


class Operand(NamedTuple):
    """Input positions of a quantised operand, of its scale and of its zero point; -1 where there is none.

    Args:
        axis: The dimension along which a vector of scales has its entries; None where an attribute says so.
    """

    data: int
    scale: int
    zero: int
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class Quantised:
    """What a quantised operator computes, and where its scales are.

    Args:
        operator: The float operator that it computes; empty where it has no float form.
        slots: The input positions that are the operands of the float operator.
        operands: Its quantised operands.
        scales: The input positions of scales and zero points, which are no weights, beside those of the operands.
        bias: The input positions of its integer bias, and of the two scales whose product is the bias's scale.
        added: The input position of a float vector that it adds to each row of its result; -1 where there is none.
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
"""(node, inputs, outputs, rank of each constant and graph input) -> standard nodes with the same output shapes."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What reading a graph needs to know about an operator.

    Args:
        moves: What it only moves.
        fold: How shape arithmetic evaluates it; None where it has no part in that.
        shape: Standard nodes with the same shapes, for an operator whose shapes ONNX cannot infer.
        quantised: What it computes if it is quantised.
        chooses: Whether its output holds probabilities or classes that it computes from its first input.
    """

    moves: Moves = Moves.NOTHING
    fold: Fold | None = None
    shape: ShapeEquivalent | None = None
    quantised: Quantised | None = None
    chooses: bool = False


TRAITS: dict[str, Traits] = {}
"""Operator, with its domain in front unless it is ai.onnx -> its traits."""

UNKNOWN_OPERATOR = Traits()


def traits(operator: str) -> Traits:
    """Return what is known about an operator; of one that nobody has registered nothing is."""
    if not TRAITS:
        import_module(FAMILIES)
    return TRAITS.get(operator, UNKNOWN_OPERATOR)


def operator_name(op_type: str, domain: str) -> str:
    """Return the name under which an operator is registered: `Conv`, `com.microsoft.FusedConv`."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}.{op_type}"
