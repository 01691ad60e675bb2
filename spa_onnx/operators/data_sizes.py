"""Facts about axes whose sizes depend on data: they have a stand-in for their size, and are never pruned."""

from __future__ import annotations

from spa_onnx.model.facts import Choice, Coupling, Fact, Pin
from spa_onnx.model.model import Model

DATA_SIZE = "its size depends on data"
"""The reason for pinning axes with sizes that are unknown before the model runs."""


def couplings(fact: Fact) -> list[Coupling]:
    """Return the couplings of a fact, in all options."""
    if isinstance(fact, Choice):
        return [f for option in fact.options for f in option.facts if isinstance(f, Coupling)]
    return [fact] if isinstance(fact, Coupling) else []


def settled(fact: Fact, model: Model, node: str) -> list[Fact]:
    """Return the facts that hold in place of a fact, whatever the size of an axis is that depends on data.

    Where a fact couples such an axis with one of a fixed size, that one is pinned: the other channels are not known. It
    can be a weight, which has as many indices as its layer has inputs, although shape inference has lost their number.

    Args:
        fact: The fact; its choices never hold for axes whose sizes depend on data, which are pinned.
        model: The model.
        node: The node, as messages name it.
    """
    if not isinstance(fact, Coupling):
        return [fact]
    fixed = [axis for axis in fact.axes() if not model.depends_on_data(axis)]
    if len(fixed) != 1:
        return [fact]
    return [Pin(axis, DATA_SIZE, node) for axis in fact.axes()]
