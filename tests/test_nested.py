"""Branches, bodies, functions, sparse constants, sequences: what crosses them stays, with the reason; the rest is cut, and exact."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper, parser

import spa_onnx
from spa_onnx.errors import RefusedError
from spa_onnx.model import Model, parameters
from spa_onnx.pipeline import inspect

HEAD = '<ir_version: 8, opset_import: ["": 17, "local": 1]>'
BEFORE = "a = MatMul(x, w1) b = Relu(a) p = MatMul(b, w2)"
AFTER = "r = MatMul(q, w3) s = Relu(r) y = MatMul(s, w4)"
OUTER = {"w1": (6, 8), "w2": (8, 8), "w3": (8, 10), "w4": (10, 4)}
"""w1[1] and w3[1] can always be cut; w2[1] and w3[0] touch what is nested."""

THEN = "then_branch = one () => (float[2,8] t) {{ {} }}"
ELSE = "else_branch = two () => (float[2,8] u) {{ {} }}"


@dataclass(frozen=True)
class Nest:
    """nodes: between p and q. inner: weights, by the nested graph they go into; with none, they are the outer graph's."""

    nodes: str
    inner: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outer: dict[str, tuple[int, ...]] = field(default_factory=dict)
    why: str = "enters or leaves a branch or body"
    functions: str = ""
    free: tuple[str, ...] = ("w1[1]", "w3[1]")


NESTS = {
    "if_inner_weights": Nest(
        f"q = If(yes) <{THEN.format('t = MatMul(p, wt)')}, {ELSE.format('u = MatMul(p, we)')}>", {"wt": (8, 8), "we": (8, 8)}
    ),
    "if_outer_weight": Nest(
        f"q = If(yes) <{THEN.format('t = MatMul(p, wo)')}, {ELSE.format('u = Neg(p)')}>", outer={"wo": (8, 8)}, why="enters or leaves"
    ),
    "loop": Nest(
        "q = Loop(two, yes, p) <body = b (int64 i, bool c, float[2,8] e) => (bool d, float[2,8] f) { f = MatMul(e, wb) d = Identity(c) }>",
        {"wb": (8, 8)},
        why="its size depends on data",
        free=("w1[1]",),
    ),
    "scan": Nest(
        "last, q = Scan<num_scan_inputs = 1, body = b (float[8] e, float[8] f) => (float[8] g, float[8] h) "
        "{ g = Add(e, f) h = Mul(g, ws) }>(start, p)",
        {"ws": (8,)},
        {"start": (8,)},
    ),
    "sequence_map": Nest(
        "ps = SequenceConstruct(p) qs = SequenceMap(ps) <body = b (float[2,8] e) => (float[2,8] f) { f = MatMul(e, wm) }> "
        "q = SequenceAt(qs, none)",
        {"wm": (8, 8)},
        why="no coupling rule for operator SequenceAt",
    ),
    "optional": Nest("o = Optional(p) q = OptionalGetElement(o)", why="no coupling rule for operator OptionalGetElement"),
    "function": Nest(
        "q = local.twice(p, wf)",
        outer={"wf": (8, 8)},
        why="local.twice is a function of the model",
        functions='<domain: "local", opset_import: ["": 17]> twice (e, w) => (g) { f = MatMul(e, w) g = MatMul(f, w) }',
    ),
}


def weight(name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32), name)


def built(nest: Nest) -> onnx.ModelProto:
    graph = "nest (float[2,6] x) => (float[2,4] y) <bool yes = {1}, int64 two = {2}, int64 none = {0}>"
    proto = parser.parse_model(f"{HEAD}\n{graph} {{ {BEFORE} {nest.nodes} {AFTER} }}\n{nest.functions}")
    for value in [v for v in proto.graph.input if v.name != "x"]:
        proto.graph.input.remove(value)
    proto.graph.initializer.extend(weight(name, shape) for name, shape in (OUTER | nest.outer).items())
    for node in proto.graph.node:
        for attribute in (a for a in node.attribute if a.type == AttributeProto.GRAPH):
            read = {name for inner in attribute.g.node for name in inner.input}
            attribute.g.initializer.extend(weight(name, shape) for name, shape in nest.inner.items() if name in read)
    return proto


@pytest.mark.parametrize("name", NESTS)
def test_what_is_beside_a_nested_graph_is_cut_and_what_crosses_it_stays(name):
    nest = NESTS[name]
    proto = built(nest)
    analysis = inspect(proto)
    assert [group.name for group in analysis.prunable()] == list(nest.free)
    reasons = {group.name: group.pinned for group in analysis.pinned()}
    assert reasons["w3[0]"].startswith(nest.why)
    found = spa_onnx.prune(proto, 0.5, criterion="l1")
    assert found.report.validation.gap < 1e-5
    assert [node.name for node in found.model.graph.node] == [node.name for node in proto.graph.node]
    assert [tuple(node.output) for node in found.model.graph.node] == [tuple(node.output) for node in proto.graph.node]


@pytest.mark.parametrize("name", [name for name, nest in NESTS.items() if nest.inner])
def test_weights_of_a_nested_graph_are_counted_and_listed_with_their_reason(name):
    proto = built(NESTS[name])
    inner = sum(int(np.prod(shape)) for shape in NESTS[name].inner.values())
    assert parameters(proto) == inner + sum(int(np.prod(s)) for s in (OUTER | NESTS[name].outer).values())
    reasons = {group.name: group.pinned for group in inspect(proto).pinned()}
    for weight_name in NESTS[name].inner:
        assert reasons[f"{weight_name}[0]"].startswith("a weight in a branch or body")
    kept = spa_onnx.prune(proto, 0.5, criterion="l1").report.params[1]
    assert kept > inner


@pytest.mark.parametrize("behind", ["g = Conv<group=2>(q, w3)", "g, h = Split<axis=1>(q)", "c = Clip(q, low, high) g = Pad(c, ends)"])
def test_what_follows_a_loop_has_no_known_size_and_is_left_alone(behind):
    """Rules that set numbers right where channels are gone have nothing to set right there."""
    loop = "Loop(two, yes, p) <body = b (int64 i, bool c, float[2,8,5,5] e) => (bool d, float[2,8,5,5] f) { f = Tanh(e) d = Identity(c) }>"
    values = "bool yes = {1}, int64 two = {2}, float low = {-1}, float high = {1}, int64[8] ends = {0,0,1,1,0,0,1,1}"
    nodes = f"a = Conv(x, w1) b = Relu(a) p = Conv(b, w2) q = {loop} {behind} y = Relu(g)"
    proto = parser.parse_model(f"{HEAD}\nnest (float[2,3,5,5] x) => (float[2,M,K,L] y) <{values}> {{ {nodes} }}")
    shapes = {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1), "w3": (6, 4, 1, 1)}
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(weight(name, shape) for name, shape in shapes.items() if name in read)
    found = spa_onnx.prune(proto, 0.5, criterion="l1")
    assert [group["name"] for group in found.plan["groups"]] == ["w1[0]"]
    assert found.report.validation.gap < 1e-5


def test_a_weight_of_the_outer_graph_that_a_branch_reads_stays():
    reasons = {group.name: group.pinned for group in inspect(built(NESTS["if_outer_weight"])).pinned()}
    assert reasons["wo[0]"] == "read inside a branch or body: If 'If(q)'"


def test_a_model_that_is_all_branches_is_refused_with_the_reason():
    then = "then_branch = one () => (float[2,4] t) { h = MatMul(x, w1) t = MatMul(h, w9) }"
    other = "else_branch = two () => (float[2,4] u) { k = MatMul(x, w1) u = MatMul(k, w9) }"
    proto = parser.parse_model(f"{HEAD}\nall (float[2,6] x) => (float[2,4] y) <bool yes = {{1}}> {{ y = If(yes) <{then}, {other}> }}")
    for attribute in proto.graph.node[0].attribute:
        attribute.g.initializer.extend([weight("w1", (6, 8)), weight("w9", (8, 4))])
    with pytest.raises(RefusedError, match="a weight in a branch or body"):
        spa_onnx.prune(proto, 0.5, criterion="l1")


def sparse(*, as_node: bool) -> onnx.ModelProto:
    """w2 is stored by three of its values."""
    values = numpy_helper.from_array(np.asarray([1.0, -2.0, 3.0], np.float32), "w2")
    stored = helper.make_sparse_tensor(values, numpy_helper.from_array(np.asarray([1, 9, 20])), [8, 8])
    proto = built(Nest("q = Relu(p)"))
    (dense,) = (tensor for tensor in proto.graph.initializer if tensor.name == "w2")
    proto.graph.initializer.remove(dense)
    if as_node:
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w2"], sparse_value=stored))
    else:
        proto.graph.sparse_initializer.append(stored)
    return proto


@pytest.mark.parametrize("as_node", [False, True])
def test_a_sparse_constant_stays_whole_and_so_does_what_meets_it(as_node):
    proto = sparse(as_node=as_node)
    analysis = inspect(proto)
    assert [group.name for group in analysis.prunable()] == ["w3[1]"]
    assert {g.name: g.pinned for g in analysis.pinned()}["w1[1]"].startswith("stored as a sparse tensor")
    found = spa_onnx.prune(proto, 0.5, criterion="l1")
    assert found.report.validation.gap < 1e-5
    assert list(found.model.graph.sparse_initializer) == list(proto.graph.sparse_initializer)


def test_a_sequence_as_graph_input_is_refused_or_left_alone():
    proto = built(Nest("q = Relu(p)"))
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 6])
    proto.graph.input[0].CopyFrom(helper.make_value_info("xs", helper.make_sequence_type_proto(element)))
    proto.graph.node.insert(0, helper.make_node("SequenceAt", ["xs", "none"], ["x"]))
    assert Model.of(proto).shape("a") in ((2, 8), None)
    with pytest.raises(RefusedError, match="xs is not a tensor of numbers"):
        spa_onnx.prune(proto, 0.5, criterion="l1")
    assert spa_onnx.prune(proto, 0.5, criterion="l1", check=False).report.params[1] < parameters(proto)
