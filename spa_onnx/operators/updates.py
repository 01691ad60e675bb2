"""Shape updates: how the attributes and parameter inputs of an operator change when channels are removed.

A shape update is a pure function of a node, the model and the cut. It yields edits and does not apply them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from spa_onnx.model.facts import Axis, Indices
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.shapes import Shape


class Cut(Protocol):
    """The pruned model as a plan leaves it: kept indices, new shapes and the values of shape arithmetic."""

    def kept(self, axis: Axis) -> Indices:
        """Return the kept indices of an axis, int64, sorted."""

    def after(self, tensor: str) -> Shape:
        """Return the shape of a tensor in the pruned model."""

    def value(self, tensor: str) -> Array | None:
        """Return a small tensor as the pruned graph computes it without any edit; None if its value is unknown."""


@dataclass(frozen=True, slots=True)
class SetAttribute:
    """Set an attribute of the node, or remove it if `value` is None."""

    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class SetInput:
    """Replace the values of an input.

    Args:
        slot: The input position.
        values: The new values.
        where: The elements that must change, bool of the shape of `values`; None for all. The graph may go on computing
            the other elements.
    """

    slot: int
    values: Array
    where: Array | None = None


@dataclass(frozen=True, slots=True)
class Rescale:
    """Change sizes in an input from `found` to `wanted`; each size can be a product.

    An input that the graph computes is scaled, so that one factor of a product can still have any size: for example the
    batch in batch * heads.

    Args:
        slot: The input position.
        found: The sizes that the input holds.
        wanted: The sizes that it must hold.
    """

    slot: int
    found: Array
    wanted: Array


@dataclass(frozen=True, slots=True)
class TakeInstead:
    """Replace the node by a Gather along one axis.

    Args:
        axis: The axis.
        indices: The indices that are gathered, int64.
        source: The tensor that is gathered from; the first input of the node if empty.
    """

    axis: int
    indices: Indices
    source: str = ""


ShapeEdit: TypeAlias = SetAttribute | SetInput | Rescale | TakeInstead
ShapeUpdate: TypeAlias = Callable[[Node, Model, Cut], Iterator[ShapeEdit]]
"""(node, model, cut) -> the edits of the node."""
