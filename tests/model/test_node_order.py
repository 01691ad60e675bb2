"""Nodes in any order that onnxruntime accepts."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets.build import as_constant_nodes, net
from onnx import helper
from random_graphs import CI, build, recipes

import spa_onnx
from spa_onnx.execution.session import open_session
from spa_onnx.model.node_order import sort_nodes, unsorted_graphs
from spa_onnx.model.source import open_source

CHAIN = net(
    "float[N,3,8,8] x",
    "float[16,3,3,3] w1, float[16,16,3,3] w2, float[4,16,1,1] w3",
    "a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w2) d = Relu(c) y = Conv(d, w3)",
)

BRANCHES = net(
    "float[N,6] x, bool flag",
    "float[6,16] w1, float[16,16] w2, float[16,3] w3",
    "a = MatMul(x, w1) b = Relu(a) c = If(flag) "
    "<then_branch = t () => (float[N,16] o) { e = MatMul(b, w2) o = Relu(e) }, "
    "else_branch = f () => (float[N,16] p) { p = Sigmoid(b) }> y = MatMul(c, w3)",
)

WITH_CONSTANTS = as_constant_nodes(CHAIN)


def reordered(proto: onnx.ModelProto, order: list[int] | None = None) -> onnx.ModelProto:
    """A copy with the nodes of all its graphs in reverse, or those of the main graph in an order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    inner = [a.g for node in copy.graph.node for a in node.attribute if a.HasField("g")]
    for graph in [copy.graph, *(inner if order is None else ())]:
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        del graph.node[:]
        graph.node.extend(nodes[::-1] if order is None else [nodes[number] for number in order])
    return copy


@pytest.mark.parametrize("build_net", [CHAIN, BRANCHES, WITH_CONSTANTS], ids=["chain", "branches", "constants"])
def test_nodes_in_reverse_are_pruned_like_those_in_order(build_net):
    proto = build_net()
    backwards = reordered(proto)
    stored = backwards.SerializeToString()
    one, other = (spa_onnx.prune(model, ratio=0.5, criterion="l1") for model in (proto, backwards))
    assert backwards.SerializeToString() == stored
    assert other.report.groups == one.report.groups
    assert other.report.params == one.report.params
    assert other.report.validation.gap < 1e-4
    assert not unsorted_graphs(other.model)


@settings(CI, max_examples=25)
@given(recipe=recipes(), data=st.data())
def test_any_order_is_sorted_into_one_that_can_be_executed(recipe, data):
    proto = build(recipe)
    order = data.draw(st.permutations(range(len(proto.graph.node))))
    shuffled = reordered(proto, list(order))
    source = open_source(shuffled)
    assert not unsorted_graphs(source.proto)
    assert sorted(n.SerializeToString() for n in source.proto.graph.node) == sorted(
        n.SerializeToString() for n in shuffled.graph.node
    )


def test_nodes_that_are_in_order_already_keep_it():
    for build_net in (CHAIN, BRANCHES, WITH_CONSTANTS):
        proto = build_net()
        assert open_source(proto).proto is proto
        before = proto.SerializeToString()
        sort_nodes(proto.graph)
        assert proto.SerializeToString() == before


def test_sorting_moves_as_few_nodes_as_the_order_of_execution_allows():
    """Nodes that do not wait for each other stay in the order of the file."""
    names = "abcdef"
    nodes = [helper.make_node("Relu", ["x"], [name]) for name in names]
    nodes[1].input[0] = "e"  # b waits for e
    graph = helper.make_graph(nodes, "g", [], [])
    sort_nodes(graph)
    assert [node.output[0] for node in graph.node] == ["a", "c", "d", "e", "b", "f"]


def test_a_circle_is_left_to_onnxruntime_to_refuse():
    nodes = [helper.make_node("Add", [b, "x"], [a]) for a, b in itertools.pairwise("yaby")]
    value = [helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    proto = helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:]))
    before = proto.SerializeToString()
    with pytest.raises(spa_onnx.SpaError):
        spa_onnx.prune(proto, ratio=0.5, criterion="l1")
    assert proto.SerializeToString() == before


def test_the_outputs_do_not_depend_on_the_order():
    feed = {"x": np.ones((2, 6), np.float32), "flag": np.asarray(True)}
    proto = BRANCHES()
    (want,), (got,) = (open_session(open_source(m).proto).run(feed) for m in (proto, reordered(proto)))
    np.testing.assert_array_equal(got, want)
