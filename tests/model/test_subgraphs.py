"""Branches and bodies of nested graphs are cut like the graph around them.

What crosses other borders stays, with the reason; all of it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from law import violation
from onnx import AttributeProto, TensorProto, helper, numpy_helper, parser

import spa_onnx
from spa_onnx.analysis import analyse
from spa_onnx.errors import RefusedError, ValidationError
from spa_onnx.model.model import Model, parameters
from spa_onnx.pipeline import inspect
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.validation.validate import validate

HEAD = '<ir_version: 8, opset_import: ["": 17, "local": 1]>'
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
    functions: str = ""
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
        why="its size depends on data",
        free=("w1[1]", "wb[1]", "w3[1]"),
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
    graph = f"nest (float[2,6] x) => (float[2,4] y) <bool yes = {{1}}, {NUMBERS}, {VECTORS}>"
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
    if nest.why:
        assert reasons.get("w3[0]", reasons.get("w2[1]", "")).startswith(nest.why)
    found = spa_onnx.prune(proto, 0.5, criterion="l1")
    assert found.report.validation.gap < 1e-5
    assert [node.name for node in found.model.graph.node] == [node.name for node in proto.graph.node]
    assert [tuple(node.output) for node in found.model.graph.node] == [tuple(node.output) for node in proto.graph.node]


@pytest.mark.parametrize("name", [name for name, nest in NESTS.items() if nest.inner])
def test_weights_of_a_nested_graph_are_counted_and_listed_with_their_reason(name):
    nest = NESTS[name]
    proto = built(nest)
    inner = sum(int(np.prod(shape)) for shape in nest.inner.values())
    assert parameters(proto) == inner + sum(int(np.prod(s)) for s in (OUTER | nest.outer).values())
    analysis = inspect(proto)
    assert {axis.tensor for group in analysis.groups for axis in group.owner} >= set(nest.inner)
    if analysis.model.opened:
        free = {axis.tensor for group in analysis.prunable() for axis in group.owner}
        assert free >= set(nest.inner)
        return
    reasons = {group.name: group.pinned for group in analysis.pinned()}
    for weight_name in nest.inner:
        assert reasons[f"{weight_name}[0]"].startswith("a weight in a branch or body")
    kept = spa_onnx.prune(proto, 0.5, criterion="l1").report.params[1]
    assert kept > inner


@pytest.mark.parametrize("name", [name for name, nest in NESTS.items() if name.startswith(("if", "loop", "scan"))])
@pytest.mark.parametrize("seed", range(4))
def test_branches_and_bodies_obey_the_law(name, seed):
    """With the condition as it is: which branch that is depends on the net."""
    assert not violation(built(NESTS[name]), seed)


@pytest.mark.parametrize("name", ["if_private", "loop_private"])
def test_what_is_private_to_a_nested_graph_is_stored_there_and_its_sizes_are_declared_anew(name):
    proto = onnx.shape_inference.infer_shapes(built(NESTS[name]))
    pruned = spa_onnx.prune(proto, 0.5, criterion="l1").model
    node = next(node for node in pruned.graph.node if node.op_type in ("If", "Loop"))
    graph = node.attribute[0].g
    stored = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert stored in ({"wt": [4, 3], "ws": [3, 4]}, {"wb": [4, 3], "wc": [3, 4]})
    declared = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    assert declared["h"] == declared["k"] == [2, 3]
    assert [2, 4] in declared.values()
    onnx.checker.check_model(pruned, full_check=True)


def test_a_fault_in_a_branch_that_is_not_taken_is_caught():
    """Validation runs both, whatever the condition says."""
    nest = NESTS["if_inner_weights"]
    analysis = analyse(Model.of(built(nest)))
    rewritten = rewrite(analysis, Plan.removing({"w2[1]": np.asarray([1, 4]), "wt[1]": np.asarray([0])}, ""))
    assert validate(analysis.model, rewritten, {}).gap < 1e-5
    node = next(node for node in rewritten.proto.graph.node if node.op_type == "If")
    (other,) = (attribute.g for attribute in node.attribute if attribute.name == "else_branch")
    damaged = numpy_helper.to_array(other.initializer[0])[::-1]
    other.initializer[0].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(damaged), "we"))
    with pytest.raises(ValidationError, match="pruned != masked where every If takes its else branch"):
        validate(analysis.model, rewritten, {})


def test_the_default_prunes_and_repairs_around_nested_graphs():
    for name in ("if_private", "loop_private"):
        found = spa_onnx.prune(built(NESTS[name]), 0.4)
        assert {group["name"] for group in found.plan["groups"]} >= {"w1[1]"}
        assert found.report.repair.startswith("obs: fitted on")


def test_names_that_two_branches_share_close_both():
    """Tensors are known by their names."""
    nest = NESTS["if_private"]
    proto = built(Nest(nest.nodes.replace("u = Identity(p)", "h = Neg(p) u = Neg(h)"), nest.inner))
    assert not inspect(proto).model.opened
    found = spa_onnx.prune(proto, 0.5, criterion="l1")
    assert [group["name"] for group in found.plan["groups"]] == ["w1[1]", "w3[1]"]


@pytest.mark.parametrize(
    "behind", ["g = Conv<group=2>(q, w3)", "g, h = Split<axis=1>(q)", "c = Clip(q, low, high) g = Pad(c, ends)"]
)
@pytest.mark.parametrize("grows", [False, True])
def test_what_follows_a_loop_is_cut_where_every_run_leaves_the_same_shape(behind, grows):
    """Where sizes are not known, rules that set numbers right where channels are gone have nothing to set right."""
    made = "t = Tanh(e) f = Concat<axis=2>(t, t)" if grows else "f = Tanh(e)"
    body = f"b (int64 i, bool c, float[2,8,Q,5] e) => (bool d, float[2,8,R,5] f) {{ {made} d = Identity(c) }}"
    loop = f"Loop(two, yes, p) <body = {body}>"
    values = "bool yes = {1}, int64 two = {2}, float low = {-1}, float high = {1}, int64[8] ends = {0,0,1,1,0,0,1,1}"
    nodes = f"a = Conv(x, w1) b = Relu(a) p = Conv(b, w2) q = {loop} {behind} y = Relu(g)"
    proto = parser.parse_model(f"{HEAD}\nnest (float[2,3,5,5] x) => (float[2,M,K,L] y) <{values}> {{ {nodes} }}")
    shapes = {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1), "w3": (6, 4, 1, 1)}
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(weight(name, shape) for name, shape in shapes.items() if name in read)
    found = spa_onnx.prune(proto, 0.5, criterion="l1")
    more = [] if grows or "Pad" in behind else ["w2[0]#2" if "Split" in behind else "w2[0]"]
    assert [group["name"] for group in found.plan["groups"]] == ["w1[0]", *more]
    assert found.report.validation.gap < 1e-5


def test_a_model_that_is_all_branches_is_refused_with_the_reason():
    then = "then_branch = one () => (float[2,4] t) { h = MatMul(x, w1) t = MatMul(h, w9) }"
    other = "else_branch = two () => (float[2,4] u) { k = MatMul(x, w1) u = MatMul(k, w9) }"
    proto = parser.parse_model(
        f"{HEAD}\nall (float[2,6] x) => (float[2,4] y) <bool yes = {{1}}> {{ y = If(yes) <{then}, {other}> }}"
    )
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
