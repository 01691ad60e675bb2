"""Shape updates: how the attributes and parameter inputs of an operator follow once channels are removed.

A shape update is a pure function of a node, the model and the cut; it yields edits and changes nothing itself.
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
    """What a plan leaves of each axis."""

    def kept(self, axis: Axis) -> Indices:
        """The indices of the axis that stay, sorted, int64."""

    def after(self, tensor: str) -> Shape:
        """Sizes of a tensor in the pruned model."""

    def value(self, tensor: str) -> Array | None:
        """A small tensor as the pruned graph would compute it without any edit; None where it is not known."""


@dataclass(frozen=True, slots=True)
class SetAttribute:
    """Give the node's attribute another value, or take it away (None)."""

    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class SetInput:
    """Feed other values at an input position.

    where: the elements that must change, bool of the same shape; None for all. The others may be computed while running.
    """

    slot: int
    values: Array
    where: Array | None = None


@dataclass(frozen=True, slots=True)
class Rescale:
    """Where an input names `found`, let it name `wanted`: sizes, each of them a product.

    An input that the graph computes is scaled, so that a factor of it, like the batch in batch * heads, may still be any size.
    """

    slot: int
    found: Array
    wanted: Array


@dataclass(frozen=True, slots=True)
class TakeInstead:
    """Replace the node by a Gather of these indices along one axis of `source`, or of its first input."""

    axis: int
    indices: Indices
    source: str = ""


Edit: TypeAlias = SetAttribute | SetInput | Rescale | TakeInstead
ShapeUpdate: TypeAlias = Callable[[Node, Model, Cut], Iterator[Edit]]
"""(node, model, cut) -> what has to change."""
