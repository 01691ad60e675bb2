"""The table of followers: operator -> how its attributes and parameter inputs change once channels are gone.

A follower is a pure function of a node, the model and the cut; it yields edits and changes nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

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
Follower: TypeAlias = Callable[[Node, Model, Cut], Iterator[Edit]]

FOLLOWERS: dict[str, Follower] = {}

CORRECTED = {"ConstantOfShape": {0}, "Expand": {1}, "Reshape": {1}, "Resize": {3}, "Slice": {1, 2}, "Split": {1}}
"""Operator -> the input positions whose values its follower sets right even where they are computed from sizes that change."""


def follow(*operators: str) -> Callable[[Follower], Follower]:
    """Register one follower for these operators. Raises ValueError where one of them has a follower already."""

    def register(function: Follower) -> Follower:
        for operator in operators:
            if operator in FOLLOWERS:
                raise ValueError(f"{operator} has two followers: {FOLLOWERS[operator].__name__}, {function.__name__}")
            FOLLOWERS[operator] = function
        return function

    return register


def target_shape(node: Node, cut: Cut, slot: int) -> Iterator[Rescale]:
    """Correct a target shape at an input position wherever it names another size than the output now has.

    In Reshape -1 takes what is left and 0 copies the input's size, so that both follow by themselves where they can; in
    Expand 1 means that the input's size stays.
    """
    target, wanted = cut.value(node.inputs[slot]), np.asarray(cut.after(node.outputs[0]))
    if target is None:
        return
    wanted = wanted[len(wanted) - target.size :]
    meant = target.copy()
    if node.op == "Reshape":
        given = cut.after(node.inputs[0])
        for place in np.flatnonzero(target == 0):
            meant[place] = given[place] if place < len(given) else -1
        meant[target == -1] = wanted[target == -1]
    if node.op == "Expand":
        meant[target == 1] = wanted[target == 1]
    wrong = meant != wanted
    if wrong.any():
        yield Rescale(slot, target, np.where(wrong, wanted, target).astype(target.dtype))
