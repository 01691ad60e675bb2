"""Blocks of random networks with a nested graph: branches and bodies of loops."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper
from random_net import CHANNELS, Body, Net, convolve


def hidden(net: Net, x: str, width: int) -> str:
    """Through a hidden layer, whose channels are nobody else's, and back to the shape of x."""
    shape = net.shapes[x]
    if len(shape) == 4:
        return convolve(net, net.op("Relu", [convolve(net, x, width)], (shape[0], width, *shape[2:])), shape[1], 1)
    inner = net.op("MatMul", [x, net.weight(shape[1], width)], (shape[0], width))
    return net.op("MatMul", [net.op("Tanh", [inner], (shape[0], width)), net.weight(width, shape[1])], shape)


def branch(net: Net, x: str, size: int, kind: int) -> list[str]:
    """An If, one of whose branches has weights of its own or reads one of the net's; both read x."""
    shape = net.shapes[x]
    then, other = Body(net, "then"), Body(net, "else")
    if kind % 2:
        first = hidden(then, x, CHANNELS[size % 4])
    else:
        first = then.op("Mul", [x, net.weight(shape[1], *(1,) * (len(shape) - 2))], shape)
    second = other.op(("Neg", "Tanh")[size % 2], [x], shape)
    condition = net.constant(np.asarray(kind % 4 < 2))
    return [net.op("If", [condition], shape, then_branch=then.graph([], first), else_branch=other.graph([], second))]


def loop(net: Net, x: str, size: int, kind: int) -> list[str]:
    """A Loop that takes x through a body twice."""
    shape = net.shapes[x]
    body = Body(net, "body")
    names = [body.mark + name for name in ("count", "go", "state")]
    body.shapes[names[2]] = shape
    made = hidden(body, names[2], CHANNELS[size % 4]) if kind % 2 else body.op("Sigmoid", [names[2]], shape)
    going = body.op("Identity", [names[1]], ())
    count = helper.make_tensor_value_info(names[0], TensorProto.INT64, [])
    go, again = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in (names[1], going))
    graph = body.graph([count, go, body.value(names[2], shape)], made, again)
    return [
        net.op("Loop", [net.constant(np.asarray(2, np.int64)), net.constant(np.asarray(True)), x], shape, body=graph)
    ]


def scan(net: Net, x: str, size: int, kind: int) -> list[str]:
    """A Scan through the rows of an image, with a state that starts as the sum over them."""
    batch, channels, _, width = shape = net.shapes[x]
    strip = (batch, channels, width)
    body = Body(net, "body")
    state, row = (body.mark + name for name in ("state", "row"))
    body.shapes |= {state: strip, row: strip}
    if kind % 2:
        inner = body.op("MatMul", [body.weight(CHANNELS[size % 4], channels), row], (batch, CHANNELS[size % 4], width))
        made = body.op(
            "MatMul", [body.weight(channels, CHANNELS[size % 4]), body.op("Tanh", [inner], body.shapes[inner])], strip
        )
    else:
        made = body.op("Neg", [row], strip)
    after = body.op("Tanh", [body.op("Add", [state, made], strip)], strip)
    graph = body.graph(
        [body.value(name, strip) for name in (state, row)], body.op("Sigmoid", [after], strip), body.value(after, strip)
    )
    start = net.op("ReduceSum", [x, net.numbers(2)], strip, keepdims=0)
    along = {
        "num_scan_inputs": 1,
        "scan_input_axes": [2],
        "scan_output_axes": [2],
        "scan_input_directions": [kind % 4 // 2],
    }
    return net.ops("Scan", [start, x], [strip, shape], body=graph, **along)[1:]
