"""Operators with subgraphs (If, Loop, Scan): tensors that enter or leave a subgraph have the same channels inside."""

from __future__ import annotations

from collections.abc import Iterator

from spa_onnx.model.facts import Axis, Fact, Pin, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.subgraphs import crossings
from spa_onnx.operators.registry import register
from spa_onnx.operators.zeros import any_input


def crossing(node: Node, model: Model) -> Iterator[Fact]:
    """Couple index i of an axis outside with index i inside. The axis of iterations must stay."""
    tensors = crossings(node)
    for source, target in tensors.same():
        for dim, size in enumerate((model.shape(source) or ()) if source and target else ()):
            yield from same(Axis(source, dim), Axis(target, dim), size, f"{node} hands it over")
    for strip in (*tensors.sliced, *tensors.stacked):
        for dim, size in enumerate((model.shape(strip.inside) or ()) if model.shape(strip.outside) else ()):
            yield from same(
                Axis(strip.inside, dim), Axis(strip.outside, strip.beside(dim)), size, f"{node} goes through it in runs"
            )
    for name in tensors.inside():
        for dim in range(len(model.shape(name) or ()) if model.is_constant(name) else 0):
            yield Pin(Axis(name, dim), "a constant that a branch or body returns as it is", f"{node}, {name}[{dim}]")


register("If", coupling=crossing, parameters=(0,), zero=any_input)
register("Loop", coupling=crossing, parameters=(0, 1), zero=any_input)
register("Scan", coupling=crossing, zero=any_input)
