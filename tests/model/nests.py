"""Models with nested graphs, by what they nest."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto, numpy_helper, parser

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


BEFORE = "a = MatMul(x, w1) b = Relu(a) p = MatMul(b, w2)"


AFTER = "r = MatMul(q, w3) s = Relu(r) y = MatMul(s, w4)"


OUTER = {"w1": (6, 8), "w2": (8, 8), "w3": (8, 10), "w4": (10, 4)}
"""w1[1] and w3[1] can always be cut; w2[1] and w3[0] touch what is nested, and go together where it is looked into."""


NUMBERS = "int64 two = {2}, int64 none = {0}, int64 one_ = {1}"


VECTORS = "int64[1] none_ = {0}, int64[1] two_ = {2}, int64[2] plain = {2, 8}"


THEN = "then_branch = one () => (float[2,8] t) {{ {} }}"


ELSE = "else_branch = two () => (float[2,8] u) {{ {} }}"


@dataclass(frozen=True)
class Nest:
    """One case.

    nodes: between p and q. inner: weights of the nested graphs. outer: further weights of the outer graph. free: what
    can be cut.
    """

    nodes: str
    inner: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outer: dict[str, tuple[int, ...]] = field(default_factory=dict)
    why: str = ""
    free: tuple[str, ...] = ("w1[1]", "w3[1]")


NESTS = {
    "if_inner_weights": Nest(
        f"q = If(yes) <{THEN.format('t = MatMul(p, wt)')}, {ELSE.format('u = MatMul(p, we)')}>",
        {"wt": (8, 8), "we": (8, 8)},
        free=("w1[1]", "w2[1]", "wt[1]", "w3[1]"),
    ),
    "if_private": Nest(
        f"q = If(yes) <{THEN.format('h = MatMul(p, wt) k = Relu(h) t = MatMul(k, ws)')}, "
        f"{ELSE.format('u = Identity(p)')}>",
        {"wt": (8, 6), "ws": (6, 8)},
        free=("w1[1]", "w2[1]", "wt[1]", "w3[1]"),
    ),
    "if_outer_weight": Nest(
        f"q = If(yes) <{THEN.format('t = MatMul(p, wo)')}, {ELSE.format('u = Neg(p)')}>",
        outer={"wo": (8, 8)},
        free=("w1[1]", "w2[1]", "w3[1]"),
    ),
    "if_in_if": Nest(
        f"q = If(yes) <{THEN.format('t = Neg(p)')}, "
        + ELSE.format(
            "u = If(yes) <then_branch = three () => (float[2,8] v) { v = MatMul(p, wv) }, "
            "else_branch = four () => (float[2,8] o) { o = Relu(p) }>"
        )
        + ">",
        free=("w1[1]", "w2[1]", "w3[1]"),
        outer={"wv": (8, 8)},
    ),
    "if_constant": Nest(
        "z = If(yes) <then_branch = one () => (float[8] t) "
        "{ t = Constant<value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>() }, "
        "else_branch = two () => (float[8] u) { u = ReduceMax<axes=[0], keepdims=0>(p) }> q = Add(p, z)",
        why="a constant that a branch or body returns as it is",
    ),
    "if_of_unlike_shapes": Nest(
        "z = If(yes) <then_branch = one () => (float[8,2] t) { t = Transpose<perm=[1,0]>(p) }, "
        "else_branch = two () => (float[M,K] u) { h = MatMul(p, we) u = MatMul(h, wh) }> "
        "q = Reshape(z, plain)",
        {"we": (8, 6), "wh": (6, 8)},
        free=("w1[1]", "w2[1]", "we[1]", "wh[1]", "w3[1]"),
    ),
    "if_of_a_size": Nest(
        "b3 = Unsqueeze(p, none_) size = Shape(b3) n = Gather(size, none) single = Equal(n, one_) "
        "q = If(single) <then_branch = one () => (float[M,8] t) { t = Squeeze(b3, none_) }, "
        "else_branch = two () => (float[1,2,8] u) { u = Identity(b3) }>",
        free=("w1[1]", "w2[1]", "w3[1]"),
    ),
    "loop": Nest(
        "q = Loop(two, yes, p) <body = b (int64 i, bool c, float[2,8] e) => (bool d, float[2,8] f) "
        "{ f = MatMul(e, wb) d = Identity(c) }>",
        {"wb": (8, 8)},
        free=("w1[1]", "w2[1]", "w3[1]"),
    ),
    "loop_private": Nest(
        "q = Loop(two, yes, p) <body = b (int64 i, bool c, float[2,8] e) => (bool d, float[2,8] f) "
        "{ h = MatMul(e, wb) k = Relu(h) f = MatMul(k, wc) d = Identity(c) }>",
        {"wb": (8, 6), "wc": (6, 8)},
        free=("w1[1]", "w2[1]", "wb[1]", "w3[1]"),
    ),
    "loop_that_stacks": Nest(
        "last, all = Loop(two, yes, p) "
        "<body = b (int64 i, bool c, float[2,8] e) => (bool d, float[2,8] f, float[2,8] g) "
        "{ h = MatMul(e, wb) k = Relu(h) f = MatMul(k, wc) g = Tanh(f) d = Identity(c) }> "
        "q = ReduceMax<axes=[0], keepdims=0>(all)",
        {"wb": (8, 6), "wc": (6, 8)},
        free=("w1[1]", "w2[1]", "wb[1]", "w3[1]"),
    ),
    "loop_that_grows": Nest(
        "long = Loop(two, yes, p) <body = b (int64 i, bool c, float[M,8] e) => (bool d, float[K,8] f) "
        "{ f = Concat<axis=0>(e, p) d = Identity(c) }> q = Slice(long, none_, two_, none_)",
        why="its size depends on data",
        free=("w1[1]",),
    ),
    "scan": Nest(
        "last, q = Scan<num_scan_inputs = 1, body = b (float[8] e, float[8] f) => (float[8] g, float[8] h) "
        "{ g = Add(e, f) h = Mul(g, ws) }>(start, p)",
        {"ws": (8,)},
        {"start": (8,)},
        free=("w1[1]", "w2[1]", "w3[1]"),
    ),
    "scan_private": Nest(
        "last, q = Scan<num_scan_inputs = 1, body = b (float[8] e, float[8] f) => (float[8] g, float[8] h) "
        "{ j = MatMul(f, wb) k = Relu(j) g = MatMul(k, wc) h = Add(g, e) }>(start, p)",
        {"wb": (8, 6), "wc": (6, 8)},
        {"start": (8,)},
        free=("w1[1]", "w2[1]", "wb[1]", "wc[1]", "w3[1]"),
    ),
    "scan_backwards_over_an_axis_of_channels": Nest(
        "last, q = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1], "
        "scan_input_directions = [1], "
        "body = b (float[2] e, float[2] f) => (float[2] g, float[2] h) { g = Add(e, f) h = Tanh(g) }>(start, p)",
        outer={"start": (2,)},
        why="Scan needs all of it",
    ),
    "scan_that_stacks_nothing": Nest(
        "last = Scan<num_scan_inputs = 1, body = b (float[8] e, float[8] f) => (float[8] g) "
        "{ g = Add(e, f) }>(start, p) q = Add(p, last)",
        outer={"start": (8,)},
        free=("w1[1]", "w2[1]", "w3[1]"),
    ),
    "scan_of_an_axis_from_the_end": Nest(
        "last, q = Scan<num_scan_inputs = 1, scan_input_axes = [-2], "
        "body = b (float[8] e, float[8] f) => (float[8] g, float[8] h) { g = Add(e, f) h = Tanh(g) }>(start, p)",
        outer={"start": (8,)},
        why="enters or leaves a branch or body of Scan",
    ),
    "sequence_map": Nest(
        "ps = SequenceConstruct(p) qs = SequenceMap(ps) <body = b (float[2,8] e) => (float[2,8] f) "
        "{ f = MatMul(e, wm) }> "
        "q = SequenceAt(qs, none)",
        {"wm": (8, 8)},
        why="no coupling rule for operator SequenceAt",
    ),
    "optional": Nest(
        "o = Optional(p) q = OptionalGetElement(o)", why="no coupling rule for operator OptionalGetElement"
    ),
}


def weight(name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32), name)


def built(nest: Nest) -> onnx.ModelProto:
    graph = f"nest (float[2,6] x) => (float[2,4] y) <bool yes = {{1}}, {NUMBERS}, {VECTORS}>"
    proto = parser.parse_model(f"{HEAD}\n{graph} {{ {BEFORE} {nest.nodes} {AFTER} }}")
    for value in [v for v in proto.graph.input if v.name != "x"]:
        proto.graph.input.remove(value)
    proto.graph.initializer.extend(weight(name, shape) for name, shape in (OUTER | nest.outer).items())
    for node in proto.graph.node:
        for attribute in (a for a in node.attribute if a.type == AttributeProto.GRAPH):
            read = {name for inner in attribute.g.node for name in inner.input}
            attribute.g.initializer.extend(weight(name, shape) for name, shape in nest.inner.items() if name in read)
    return proto
