"""One operator of the graph, as the rules see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Body:
    """A graph that a node runs: the tensors that it takes and gives, by their names inside.

    name: of the attribute that holds it. tied: whether what it gives is what leaves the node, in that shape.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tied: bool = True


@dataclass(frozen=True, slots=True)
class Node:
    """An operator; read-only.

    name: the node's own, or `Op(first output)` where the exporter gave none.
    op: operator type, with its domain in front unless it is ai.onnx (`com.microsoft.FusedConv`).
    inputs: tensor names, empty where an optional input is left out. A constant vector that several nodes use has a name
    per use (`bias@conv1:2`), so that one exporter's shared zero vector ties nothing together.
    captures: tensors around it that its branches or bodies read by name, where these are not looked into. bodies: those that are, whose
    operators stand before it in the list of all. inside: whether the operator itself is one of a branch or body.
    """

    index: int
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    captures: tuple[str, ...] = ()
    bodies: tuple[Body, ...] = ()
    inside: bool = False

    def input(self, slot: int) -> str:
        """The tensor at an input position, empty where it is left out."""
        return self.inputs[slot] if slot < len(self.inputs) else ""

    def __str__(self) -> str:
        return f"{self.op} '{self.name}'"
