"""Branches and bodies of nested graphs are cut like the graph around them.

What crosses other borders stays, with the reason; all of it is exact.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from law import violation
from nests import HEAD, NESTS, OUTER, Nest, built, weight
from onnx import TensorProto, helper, numpy_helper, parser

import spa_onnx
from spa_onnx.analysis import analyse
from spa_onnx.errors import RefusedError, ValidationError
from spa_onnx.model.model import Model, parameters
from spa_onnx.pipeline import inspect
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.synthetic.working import WorkingInputs
from spa_onnx.validation.validate import validate


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
    assert validate(analysis.model, rewritten, WorkingInputs()).gap < 1e-5
    node = next(node for node in rewritten.proto.graph.node if node.op_type == "If")
    (other,) = (attribute.g for attribute in node.attribute if attribute.name == "else_branch")
    damaged = numpy_helper.to_array(other.initializer[0])[::-1]
    other.initializer[0].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(damaged), "we"))
    with pytest.raises(ValidationError, match="pruned != masked where every If takes its else branch"):
        validate(analysis.model, rewritten, WorkingInputs())


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
    with pytest.raises(RefusedError, match="xs is not a tensor"):
        spa_onnx.prune(proto, 0.5, criterion="l1")
    assert spa_onnx.prune(proto, 0.5, criterion="l1", check=False).report.params[1] < parameters(proto)
