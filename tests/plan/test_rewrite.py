"""The rewriter keeps all that a plan does not touch.

Names, metadata, documentation, versions, annotations, dead nodes.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from carried_out import PATHS, WEIGHTS, carry_out, shuffled
from nets.build import net
from onnx import TensorProto, helper, numpy_helper, parser

from spa_onnx.analysis import analyse
from spa_onnx.model.model import Model
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.synthetic.working import WorkingInputs
from spa_onnx.validation.validate import validate


def decorate(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Something at every level that a rewriter may lose."""

    def mark(entry: object, what: str) -> None:
        entry.doc_string = f"about {what}"
        entry.metadata_props.add(key="level", value=what)

    mark(proto, "model")
    proto.producer_name, proto.producer_version, proto.domain, proto.model_version = "maker", "7.1", "org.example", 42
    proto.opset_import.append(helper.make_opsetid("org.example", 3))
    proto.functions.append(
        parser.parse_function('<opset_import: ["" : 17], domain: "org.example"> Twice (p) => (q) { q = Add(p, p) }')
    )
    mark(proto.functions[0], "function")
    graph = proto.graph
    mark(graph, "graph")
    for number, node in enumerate(graph.node):
        node.name = node.name or f"node_{number}"
        mark(node, node.name)
    for entry in (*graph.initializer, *graph.input, *graph.output):
        mark(entry, entry.name)
    for name, sizes in (("a", ["N", 8, 4, 4]), ("z", ["N", 8, 4, 4])):
        graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
        mark(graph.value_info[-1], name)
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    annotation = graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b1")
    return proto


@pytest.fixture(params=PATHS)
def case(request):
    """(way, original, rewritten)"""
    build, drop = PATHS[request.param]
    model, rewritten = carry_out(decorate(build()), drop)
    return request.param, model, rewritten


def test_each_net_takes_its_way_and_computes_the_masked_function(case):
    way, model, rewritten = case
    operators = {node.op_type for node in rewritten.proto.graph.node}
    assert any(node.op_type == "Gather" and node.output[0] == "s" for node in rewritten.proto.graph.node) == (
        way == "take"
    )
    assert ("Where" in operators) == (way == "blend")
    assert ({"Mul", "Div"} <= operators) == (way == "scale")
    verdict = validate(model, rewritten, WorkingInputs(model.inference.dims))
    assert verdict.gap < 1e-5
    assert Model.of(rewritten.proto).shape("a")[1] == 5


def test_model_level_fields_survive(case):
    _, model, rewritten = case
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(rewritten.proto, name) == getattr(model.proto, name), name
    for name in ("metadata_props", "opset_import", "functions"):
        assert list(getattr(rewritten.proto, name)) == list(getattr(model.proto, name)), name


def test_graph_level_fields_survive(case):
    _, model, rewritten = case
    old, new = model.proto.graph, rewritten.proto.graph
    assert (new.name, new.doc_string) == (old.name, old.doc_string)
    for name in ("metadata_props", "input", "output", "quantization_annotation"):
        assert list(getattr(new, name)) == list(getattr(old, name)), name


def test_every_surviving_node_keeps_its_name_outputs_documentation_and_metadata(case):
    way, model, rewritten = case
    nodes = {tuple(node.output): node for node in rewritten.proto.graph.node}
    gone = {"take": {"r", "t"}}.get(way, set())
    for old in model.proto.graph.node:
        if old.output[0] in gone:
            assert tuple(old.output) not in nodes
            continue
        new = nodes[tuple(old.output)]
        assert (new.name, new.doc_string) == (old.name, old.doc_string)
        assert list(new.metadata_props) == list(old.metadata_props)
        assert (new.op_type == old.op_type) != (way == "take" and old.output[0] == "s")


def test_every_surviving_initializer_keeps_its_name_documentation_and_metadata(case):
    way, model, rewritten = case
    stored = {tensor.name: tensor for tensor in rewritten.proto.graph.initializer}
    gone = {"take": {"apart", "back"}}.get(way, set())
    for old in model.proto.graph.initializer:
        assert (old.name in stored) != (old.name in gone)
        if old.name in stored:
            assert stored[old.name].doc_string == old.doc_string
            assert list(stored[old.name].metadata_props) == list(old.metadata_props)


def test_recorded_shapes_are_those_of_the_pruned_model_and_keep_their_documentation(case):
    _, _, rewritten = case
    values = {value.name: value for value in rewritten.proto.graph.value_info}
    assert set(values) == {"a", "z"}
    for name, value in values.items():
        assert value.type.tensor_type.shape.dim[1].dim_value in (5, 0)
        assert value.doc_string == f"about {name}"
        assert value.metadata_props[0].value == name
    assert values["a"].type.tensor_type.shape.dim[1].dim_value == 5


def test_the_original_is_not_changed_by_a_single_byte():
    for build, drop in PATHS.values():
        proto = decorate(build())
        before = proto.SerializeToString()
        carry_out(proto, drop)
        assert proto.SerializeToString() == before


def test_the_same_plan_gives_the_same_bytes(case):
    way, _, rewritten = case
    build, drop = PATHS[way]
    assert carry_out(decorate(build()), drop)[1].proto.SerializeToString() == rewritten.proto.SerializeToString()


def test_nothing_is_printed_while_rewriting(capfd):
    for build, drop in PATHS.values():
        carry_out(decorate(build()), drop)
    assert capfd.readouterr() == ("", "")


def test_an_aligned_drop_keeps_the_shuffle():
    model, rewritten = carry_out(shuffled(), [0, 4])
    assert [node.op_type for node in rewritten.proto.graph.node] == [node.op_type for node in model.proto.graph.node]
    assert validate(model, rewritten, WorkingInputs({"N": 2})).gap < 1e-5


def test_a_shape_recorded_for_a_constant_node_that_was_cut_is_refreshed():
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2,3] x) => (float[2,2] y) {
           w = Constant<value = float[3,4] {1,2,3,4,5,6,7,8,9,1,2,3}>() a = MatMul(x, w)
           v = Constant<value = float[4,2] {1,2,3,4,5,6,7,8}>()
           y = MatMul(a, v) }"""
    )
    proto.graph.value_info.extend(
        [helper.make_tensor_value_info("w", 1, [3, 4]), helper.make_tensor_value_info("a", 1, [2, 4])]
    )
    analysis = analyse(Model.of(proto))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([1])}, ""))
    for value in rewritten.proto.graph.value_info:
        assert [d.dim_value for d in value.type.tensor_type.shape.dim] in ([3, 3], [2, 3], [])
    assert validate(analysis.model, rewritten, WorkingInputs()).gap < 1e-6


def test_constants_in_short_forms_are_cut_too():
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2,3] x) => (float[2,2] y) <float[3,4] w, float[4,2] v> {
           a = MatMul(x, w) b = Constant<value_floats=[1.0, 2.0, 3.0, 4.0]>() c = Add(a, b) y = MatMul(c, v) }"""
    )
    for name, shape in (("w", (3, 4)), ("v", (4, 2))):
        proto.graph.initializer.append(
            numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), name)
        )
    del proto.graph.value_info[:]
    analysis = analyse(Model.of(proto))
    rewritten = rewrite(analysis, Plan.removing({analysis.prunable()[0].name: np.asarray([1])}, ""))
    assert Model.of(rewritten.proto).constant("b").tolist() == [1, 3, 4]
    assert validate(analysis.model, rewritten, WorkingInputs()).gap < 1e-6


def test_what_was_dead_before_stays_and_what_rewriting_kills_is_gone():
    proto = shuffled()
    proto.graph.node.insert(1, helper.make_node("Relu", ["a"], ["unread"], name="dead"))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "never_read"))
    proto.graph.node.append(helper.make_node("Identity", ["back"], ["also_unread"], name="dead_too"))
    _, rewritten = carry_out(proto, [0, 1, 6])
    assert {"unread", "also_unread"} <= {node.output[0] for node in rewritten.proto.graph.node}
    assert {"r", "t"}.isdisjoint({node.output[0] for node in rewritten.proto.graph.node})
    stored = {tensor.name for tensor in rewritten.proto.graph.initializer}
    assert {"never_read", "back"} <= stored
    assert "apart" not in stored


def test_shape_arithmetic_that_only_fed_a_replaced_shuffle_is_removed():
    proto = net(
        "float[N,3,4,4] x",
        f"{WEIGHTS}, int64[1] zero = {{0}}, int64[4] rest = {{2, 4, 4, 4}}, int64[4] back = {{0, 8, 4, 4}}",
        """a = Conv(x, w1, b1) n = Shape(a) batch = Gather(n, zero) target = Concat<axis=0>(batch, rest)
           r = Reshape(a, target)
           t = Transpose<perm=[0,2,1,3,4]>(r) s = Reshape(t, back) z = Relu(s) y = Conv(z, w9, b9)""",
    )()
    model, rewritten = carry_out(proto, [0, 1, 6])
    assert [node.op_type for node in rewritten.proto.graph.node] == ["Conv", "Gather", "Relu", "Conv"]
    assert validate(model, rewritten, WorkingInputs({"N": 3})).gap < 1e-5


def test_shape_arithmetic_that_is_a_graph_output_too_survives_beside_a_replaced_shuffle():
    proto = net(
        "float[N,3,4,4] x",
        f"{WEIGHTS}, int64[1] zero = {{0}}, int64[4] rest = {{2, 4, 4, 4}}, int64[4] back = {{0, 8, 4, 4}}",
        """a = Conv(x, w1, b1) n = Shape(x) batch = Gather(n, zero) target = Concat<axis=0>(batch, rest)
           r = Reshape(a, target)
           t = Transpose<perm=[0,2,1,3,4]>(r) s = Reshape(t, back) z = Relu(s) y = Conv(z, w9, b9)""",
        outputs="float[N,4,4,4] y, int64[5] target",
    )()
    model, rewritten = carry_out(proto, [0, 1, 6])
    assert [node.op_type for node in rewritten.proto.graph.node] == [
        "Conv",
        "Shape",
        "Gather",
        "Concat",
        "Gather",
        "Relu",
        "Conv",
    ]
    assert validate(model, rewritten, WorkingInputs({"N": 3})).gap < 1e-5


@pytest.mark.parametrize(("gone", "named"), [("w1[1]", ("norm",)), ("w2[1]", ())])
def test_a_cut_is_inexact_only_where_a_statistic_loses_something(gone, named):
    proto = net(
        "float[2,5,6] x",
        "float[6,8] w1, float[8] scale1, float[8,6] w2, float[6,4] w3",
        "a = MatMul(x, w1) b = LayerNormalization(a, scale1) c = MatMul(b, w2) y = MatMul(c, w3)",
    )()
    proto.graph.node[1].name = "norm"
    analysis = analyse(Model.of(proto), inexact=True)
    assert rewrite(analysis, Plan.removing({gone: np.array([1, 3])}, "")).inexact == named


def test_what_only_a_branch_reads_survives_beside_a_replaced_shuffle():
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2,3,4,4] x, bool c) => (float[2,4,4,4] y) {
           a = Conv(x, w1, b1) r = Reshape(a, apart) t = Transpose<perm=[0,2,1,3,4]>(r) s = Reshape(t, back)
           z = Conv(s, w9, b9) y = If(c) <then_branch = yes () => (float[2,4,4,4] p) { p = Add(z, outer) },
                      else_branch = no () => (float[2,4,4,4] q) { q = Mul(z, outer) }> }"""
    )
    proto.graph.initializer.extend(shuffled().graph.initializer)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 1, 1), np.float32), "outer"))
    model, rewritten = carry_out(proto, [0, 1, 6])
    assert "Gather" in {node.op_type for node in rewritten.proto.graph.node}
    assert rewritten.proto.graph.node[-1] == proto.graph.node[-1]
    assert validate(model, rewritten, WorkingInputs()).gap < 1e-5
