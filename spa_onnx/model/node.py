"""The operators of a graph, as coupling rules and criteria read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Body:
    """A subgraph of an opened node: a branch of an If, or the body of a Loop or Scan.

    Args:
        name: The attribute that holds it.
        inputs: The names of its inputs, in the subgraph.
        outputs: The names of its outputs, in the subgraph.
        tied: Whether its outputs have the same shapes as the outputs of the node.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tied: bool = True


@dataclass(frozen=True, slots=True)
class Node:
    """An operator of the graph; read-only.

    Args:
        index: Position among all operators of the model, including those of all subgraphs.
        name: The name of the node, or `Op(first output)` if it has none.
        op: The operator type, with its domain in front unless it is ai.onnx: `Conv`, `com.microsoft.FusedConv`.
        inputs: Tensor names, empty for an optional input that is left out. A constant vector that is read more than
            once has a name for each use (`bias@conv1:2`), so that a shared vector does not couple its readers.
        outputs: Tensor names, empty for an optional output that is left out.
        attributes: Attribute values as Python numbers, strings, tuples and numpy arrays.
        captures: The outer tensors that the subgraphs of the node read, if the node is not opened.
        bodies: The subgraphs of the node, if it is opened; their operators are listed before the node.
        inside: Whether the operator belongs to a subgraph.
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
        """Return the name of the tensor at an input position; empty if that input is left out."""
        return self.inputs[slot] if slot < len(self.inputs) else ""

    def __str__(self) -> str:
        return f"{self.op} '{self.name}'"
