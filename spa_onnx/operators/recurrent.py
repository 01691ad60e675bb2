"""LSTM, GRU and RNN, in one or two directions: https://onnx.ai/onnx/operators/onnx__LSTM.html."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import NodeProto, helper

from spa_onnx.layers.find import weight_of
from spa_onnx.layers.layer import LinearLayer, MatrixForm, reshaped
from spa_onnx.linalg.blas import Matrix
from spa_onnx.model.facts import Axis, Coupling, Fact, Normalises, Positions, Span, same, whole
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.traits import Array, Operand, Quantised
from spa_onnx.operators.macs import axes_of
from spa_onnx.operators.registry import Held, register
from spa_onnx.operators.updates import Cut, SetAttribute, ShapeEdit
from spa_onnx.operators.zeros import all_but_first, is_zero_when_masked

GATE_COUNTS: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Operator -> number of gates: i, o, f, c of an LSTM; z, r, h of a GRU. Weights store one gate after the other."""

SCALED = (8, 9, 10, 11)
"""The input positions of the scales and zero points of a quantised LSTM."""

PEEPHOLES = 3
"""The number of LSTM gates with peephole weights: i, o, f."""

DIRECTIONS_AND_BATCH: Mapping[tuple[int, bool], tuple[int, int]] = {
    (4, False): (1, 2),
    (3, False): (0, 1),
    (4, True): (2, 0),
    (3, True): (1, 0),
}
"""(rank, batch first) -> (axis of directions, axis of the batch). Rank 4 is the output of all steps, rank 3 a state."""


def recurrent(node: Node, model: Model) -> Iterator[Fact]:
    """h_t = f(W x_t + R h_t-1 + B).

    Hidden unit k owns row k of every gate of W, R and B, column k of R and index k of every state. Both directions have
    the same number of units, so unit k of one direction is coupled with unit k of the other. A unit without weights
    stays at its initial state, which is removed with it. The quantised LSTM stores W and R transposed, with one scale
    per row or per tensor.
    """
    x, w, r = node.inputs[:3]
    quantised = node.op not in GATE_COUNTS
    gates, hidden = GATE_COUNTS.get(node.op, GATE_COUNTS["LSTM"]), _hidden(node, model)
    row, column = (2, 1) if quantised else (1, 2)
    yield from same(
        Axis(x, 2), Axis(w, column), (model.shape(x) or ())[2], f"{node} reads feature k through W[:, :, k]"
    )
    blocks = [(w, row, gates), (r, row, gates), (node.input(3), 1, 2 * gates)]
    blocks += [(node.input(7), 1, PEEPHOLES)] if gates == GATE_COUNTS["LSTM"] else []
    blocks += [(node.input(slot), 1, gates) for slot in SCALED if quantised]
    for name, dim, count in blocks:
        shape = model.shape(name) or () if name else ()
        if name:
            yield Positions(Axis(name, 0))  # directions are never removed
        if len(shape) > dim:
            gated = Span(Axis(name, dim), hidden, outer=count, period=hidden)
            yield Coupling(gated, whole(Axis(r, column), hidden), f"{node} has row k of each gate for hidden unit k")
    if quantised:
        yield from _dynamic_scales(node, model)
    yield from _states(node, model, hidden)


def _hidden(node: Node, model: Model) -> int:
    """Return the number of hidden units per direction."""
    return (model.shape(node.inputs[2]) or ())[2 if node.op in GATE_COUNTS else 1]


def _dynamic_scales(node: Node, model: Model) -> Iterator[Normalises]:
    """Mark the axes from which scales are computed at run time; masked units that are zero do not change a scale."""
    why = f"{node.op} takes its scale from all of it"
    if not is_zero_when_masked(node.inputs[0], model):
        yield Normalises(Axis(node.inputs[0], 2), node.name, why)
    if node.attributes.get("activations") or not all(
        is_zero_when_masked(name, model) for name in node.inputs[5:7] if name
    ):
        yield Normalises(Axis(node.inputs[2], 1), node.name, why)


def _states(node: Node, model: Model, hidden: int) -> Iterator[Fact]:
    """Couple the last axis of states and outputs with the hidden units, and the batch unless there are lengths."""
    x, batch_first = node.inputs[0], bool(node.attributes.get("layout"))
    unit = Axis(node.inputs[2], 2 if node.op in GATE_COUNTS else 1)
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


def update_recurrent(node: Node, _: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Set `hidden_size` to the number of kept hidden units."""
    hidden = cut.after(node.inputs[2])[2 if node.op in GATE_COUNTS else 1]
    if "hidden_size" in node.attributes and node.attributes["hidden_size"] != hidden:
        yield SetAttribute("hidden_size", hidden)


def stays_at_zero(node: Node, model: Model, held: Held) -> bool:
    """Return whether a unit without weights stays at zero: zero initial state, default activations."""
    return not node.attributes.get("activations") and all_but_first(node, model, held)


def recurrent_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Each step of each sequence multiplies its input by W and the previous state by R."""
    steps = axes_of(model, node.inputs[0])[:2]
    return [[*steps, *axes_of(model, weight)] for weight in node.inputs[1:3]]


def _all_directions(_: LinearLayer, weight: Matrix) -> Matrix:
    return weight.reshape(1, -1, weight.shape[2])


def _each_direction(_: LinearLayer, weight: Matrix) -> Matrix:
    return weight


def _by_sample(_: LinearLayer, data: Array) -> Array:
    """Return (time, batch, I) as (batch, time, I)."""
    return np.asarray(data.swapaxes(0, 1))


def _directions_together(_: LinearLayer, data: Array) -> Array:
    """Return (time, directions, batch, H) as (batch, time, directions * H)."""
    by_sample = data.transpose(2, 0, 1, 3)
    return np.asarray(by_sample.reshape(*by_sample.shape[:2], -1))


OF_INPUTS = MatrixForm(_all_directions, reshaped, _by_sample, linear=False)
OF_STATES = MatrixForm(_each_direction, reshaped, _directions_together, linear=False)


def recurrent_layers(node: Node, model: Model) -> Iterator[LinearLayer]:
    """Yield one layer W x for all directions, and one layer R h with a block for each direction.

    W (directions, gates, I) becomes the matrix (1, directions * gates, I). The inputs h of R are the states of all
    steps, so the layer exists only if these are an output. For a GRU the reset gate, which may multiply h before R, is
    ignored.
    """
    for slot, data, form in ((1, node.inputs[0], OF_INPUTS), (2, node.outputs[0], OF_STATES)):
        weight = weight_of(model, node.inputs[slot])
        if weight is not None and data and model.shape(data) is not None:
            view, shape = weight
            blocks = 1 if slot == 1 else shape[0]
            yield LinearLayer(node, data, view, Axis(node.inputs[slot], 2), shape, form, blocks=blocks)


def steps(node: Node, model: Model) -> int:
    """Return the number of steps of a sequence."""
    sequences = model.shape(node.inputs[0]) or ()
    return sequences[int(node.attributes.get("layout", 0))] if len(sequences) == 3 else 1


def lstm_shapes(node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """Yield the float LSTM with the output shapes of a quantised LSTM."""
    lstm = helper.make_node("LSTM", list(x[:3]), list(y))
    lstm.attribute.extend(a for a in node.attribute if a.name in ("hidden_size", "direction"))
    yield lstm


register(
    "LSTM",
    "GRU",
    "RNN",
    coupling=recurrent,
    parameters=(4,),
    update=update_recurrent,
    zero=stays_at_zero,
    macs=recurrent_macs,
    layer=recurrent_layers,
    bounds={4: steps},
)
register(
    "com.microsoft.DynamicQuantizeLSTM",
    coupling=recurrent,
    parameters=(4,),
    update=update_recurrent,
    zero=stays_at_zero,
    macs=recurrent_macs,
    not_refitted="its inputs are quantised while it runs",
    shape=lstm_shapes,
    quantised=Quantised(operands=(Operand(1, 8, 9, -1), Operand(2, 10, 11, -1))),
)
