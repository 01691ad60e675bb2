"""LSTM, GRU and RNN, in one or two directions: https://onnx.ai/onnx/operators/onnx__LSTM.html."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from spa_onnx.model.facts import Axis, Coupling, Fact, Normalises, Positions, Span, same, whole
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.registry import rule
from spa_onnx.operators.updates import Cut, Edit, SetAttribute, follow
from spa_onnx.operators.vanish import vanishes

GATES: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Operator -> gates of a hidden unit: i, o, f, c of an LSTM; z, r, h of a GRU. Weights hold them one behind the other."""

SCALED = (8, 9, 10, 11)
"""Input positions of scales and zero points of a quantised LSTM."""

PEEPHOLES = 3
"""Gates of an LSTM that look at the cell: i, o, f."""

DIRECTIONS_AND_BATCH: Mapping[tuple[int, bool], tuple[int, int]] = {
    (4, False): (1, 2),
    (3, False): (0, 1),
    (4, True): (2, 0),
    (3, True): (1, 0),
}
"""(rank, batch first) -> where outputs (time as well) and states have the axes of directions and of the batch."""


@rule("LSTM", "GRU", "RNN", "com.microsoft.DynamicQuantizeLSTM", parameters=(4,))
def recurrent(node: Node, model: Model) -> Iterator[Fact]:
    """h_t = f(W x_t + R h_t-1 + B): hidden unit k owns row k of every gate of W, R and B, column k of R, and k of every state.

    Both directions have the same number of units, so unit k of one goes with unit k of the other. Without its weights a unit stays at
    its initial state, which goes too. The quantised LSTM has W and R the other way round, with a scale for each row or for all.
    """
    x, w, r = node.inputs[:3]
    quantised = node.op not in GATES
    gates, hidden = GATES.get(node.op, GATES["LSTM"]), _hidden(node, model)
    row, column = (2, 1) if quantised else (1, 2)
    yield from same(
        Axis(x, 2), Axis(w, column), (model.shape(x) or ())[2], f"{node} reads feature k through W[:, :, k]"
    )
    blocks = [(w, row, gates), (r, row, gates), (node.input(3), 1, 2 * gates)]
    blocks += [(node.input(7), 1, PEEPHOLES)] if gates == GATES["LSTM"] else []
    blocks += [(node.input(slot), 1, gates) for slot in SCALED if quantised]
    for name, dim, count in blocks:
        shape = model.shape(name) or () if name else ()
        if name:
            yield Positions(Axis(name, 0))  # the two directions, which both stay
        if len(shape) > dim:
            gated = Span(Axis(name, dim), hidden, outer=count, period=hidden)
            yield Coupling(gated, whole(Axis(r, column), hidden), f"{node} has row k of each gate for hidden unit k")
    if quantised:
        yield from _statistics(node, model)
    yield from _states(node, model, hidden)


def _hidden(node: Node, model: Model) -> int:
    """Hidden units of one direction."""
    return (model.shape(node.inputs[2]) or ())[2 if node.op in GATES else 1]


def _statistics(node: Node, model: Model) -> Iterator[Normalises]:
    """Inputs and states are quantised while running, with a scale from all of them; a unit that is masked does not change it at zero."""
    why = f"{node.op} takes its scale from all of it"
    if not vanishes(node.inputs[0], model):
        yield Normalises(Axis(node.inputs[0], 2), node.name, why)
    if node.attributes.get("activations") or not all(vanishes(name, model) for name in node.inputs[5:7] if name):
        yield Normalises(Axis(node.inputs[2], 1), node.name, why)


def _states(node: Node, model: Model, hidden: int) -> Iterator[Fact]:
    """Initial states, outputs and last states end in an axis of hidden units; the batch is carried through unless its lengths differ."""
    x, unit, batch_first = (
        node.inputs[0],
        Axis(node.inputs[2], 2 if node.op in GATES else 1),
        bool(node.attributes.get("layout")),
    )
    batch, time = (0, 1) if batch_first else (1, 0)
    yield Positions(Axis(x, time))
    for name in (*node.inputs[5:7], *node.outputs):
        shape = model.shape(name) if name else None
        if shape is None:
            continue
        if len(shape) == 4:  # the outputs of all steps
            yield Positions(Axis(name, time))
        directions, place = DIRECTIONS_AND_BATCH[len(shape), batch_first]
        yield Positions(Axis(name, directions))
        yield from same(unit, Axis(name, len(shape) - 1), hidden, f"{node} has one entry per hidden unit")
        if not node.input(4):
            yield from same(Axis(x, batch), Axis(name, place), shape[place], f"batch of {node}")


@follow("LSTM", "GRU", "RNN", "com.microsoft.DynamicQuantizeLSTM")
def recurrent_follows(node: Node, _: Model, cut: Cut) -> Iterator[Edit]:
    """As many hidden units as are left."""
    hidden = cut.after(node.inputs[2])[2 if node.op in GATES else 1]
    if "hidden_size" in node.attributes and node.attributes["hidden_size"] != hidden:
        yield SetAttribute("hidden_size", hidden)
