"""Constants: shared ones, and every type and field that can store them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from carried_out import PATHS, blended, carry_out, plain, scaled, shuffled
from nets import NETS
from nets.build import net
from onnx import TensorProto, helper, numpy_helper, parser

from spa_onnx.analysis import analyse
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model, graphs
from spa_onnx.plan.mask import mask
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.synthetic.working import WorkingInputs
from spa_onnx.validation.masked import difference
from spa_onnx.validation.validate import validate

shared = net(
    "float[N,3,4,4] x",
    "float[8,3,1,1] w, float[8] b, float[2,8,1,1] r1, float[2,8,1,1] r2, float[2,8,1,1] r3",
    """a1 = Conv(x, w, b) a2 = Conv(x, w, b) a3 = Conv(x, w, b) z1 = Relu(a1) z2 = Relu(a2) z3 = Relu(a3)
       y1 = Conv(z1, r1) y2 = Conv(z2, r2) y3 = Conv(z3, r3) s = Add(y1, y2) y = Add(s, y3)""",
)


def test_a_bias_that_loses_different_channels_is_duplicated_once_each():
    proto = net(
        "float[N,3,4,4] x",
        "float[8,3,1,1] w1, float[8,3,1,1] w2, float[8,3,1,1] w3, float[8] b, float[2,8,1,1] r1, float[2,8,1,1] r2, "
        "float[2,8,1,1] r3",
        """a1 = Conv(x, w1, b) a2 = Conv(x, w2, b) a3 = Conv(x, w3, b) z1 = Relu(a1) z2 = Relu(a2) z3 = Relu(a3)
           y1 = Conv(z1, r1) y2 = Conv(z2, r2) y3 = Conv(z3, r3) s = Add(y1, y2) y = Add(s, y3)""",
    )()
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    analysis = analyse(Model.of(proto))
    drop = {"w1[0]": np.asarray([0, 1]), "w2[0]": np.asarray([5]), "w3[0]": np.asarray([5])}
    assert {group.name for group in analysis.prunable()} == set(drop)
    rewritten = rewrite(analysis, Plan.removing(drop, ""))
    biases = {
        tensor.name: tuple(tensor.dims) for tensor in rewritten.proto.graph.initializer if tensor.name.startswith("b")
    }
    assert sorted(biases.values()) == [(6,), (7,)]
    read = [node.input[2] for node in rewritten.proto.graph.node if len(node.input) == 3]
    assert read[1] == read[2] != read[0]
    assert {tensor.source for tensor in rewritten.tensors if tensor.name in biases} == {"b"}
    assert validate(analysis.model, rewritten, WorkingInputs({"N": 2})).gap < 1e-5


def test_an_uncut_use_of_a_shared_tensor_keeps_it_as_it_was():
    proto = net(
        "float[N,3,4,4] x",
        "float[8,3,1,1] w1, float[8,3,1,1] w2, float[8] b, float[2,8,1,1] r1, float[2,8,1,1] r2",
        "a1 = Conv(x, w1, b) a2 = Conv(x, w2, b) z1 = Relu(a1) z2 = Relu(a2) y1 = Conv(z1, r1) y2 = Conv(z2, r2) "
        "y = Add(y1, y2)",
    )()
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    original = Model.of(proto).constant("b")
    analysis = analyse(Model.of(proto))
    rewritten = rewrite(analysis, Plan.removing({"w2[0]": np.asarray([3])}, ""))
    after = Model.of(rewritten.proto)
    assert (after.constant("b") == original).all()
    assert rewritten.proto.graph.node[0].input[2] == "b"
    assert (after.constant(rewritten.proto.graph.node[1].input[2]) == np.delete(original, 3)).all()


def test_a_matrix_read_twice_is_one_tensor_and_both_readers_lose_the_same():
    analysis = analyse(Model.of(shared()))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([0, 7])}, ""))
    assert {t.name: tuple(t.dims) for t in rewritten.proto.graph.initializer}["w"] == (6, 3, 1, 1)
    assert validate(analysis.model, rewritten, WorkingInputs({"N": 2})).gap < 1e-5


@pytest.mark.parametrize(
    ("build", "drop"),
    [(plain, [1, 2, 5]), (shuffled, [0, 1, 6]), (shuffled, [0, 4]), (blended, [1, 2, 5]), (scaled, [1, 2, 5])],
)
def test_before_ir_4_initializers_and_graph_inputs_stay_in_step(build, drop):
    proto = build()
    proto.ir_version = 3
    proto.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
    )
    model, rewritten = carry_out(proto, drop)
    graph = rewritten.proto.graph
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input if v.name != "x"}
    assert declared == {t.name: list(t.dims) for t in graph.initializer}
    onnx.checker.check_model(rewritten.proto, full_check=True)
    assert validate(model, rewritten, WorkingInputs({"N": 2, "H": 4})).gap < 1e-5


@pytest.mark.parametrize("ir", [4, 5, 8])
@pytest.mark.parametrize("name", ["take", "blend", "scale", "twice"])
def test_from_ir_4_on_constants_that_are_added_are_no_graph_inputs(name, ir):
    build, drop = (NETS["bias_shared"], [0, 3]) if name == "twice" else PATHS[name]
    proto = build()
    proto.ir_version = ir
    analysis = analyse(Model.of(proto, {"N": 2, "H": 4}))
    rewritten = rewrite(
        analysis, Plan.removing({group.name: np.asarray(drop) for group in analysis.prunable()[:1]}, "")
    )
    assert {tensor.name for tensor in rewritten.proto.graph.initializer} - {
        tensor.name for tensor in proto.graph.initializer
    }
    assert [value.name for value in rewritten.proto.graph.input] == ["x"]
    masked = mask(analysis.model, rewritten.removal)
    assert len(masked.graph.initializer) > len(proto.graph.initializer)
    assert [value.name for value in masked.graph.input] == ["x"]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_half_and_double_weights_keep_their_type_and_values(kind):
    proto = typed(kind)
    analysis = analyse(Model.of(proto))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([0, 3])}, ""))
    for old, new in zip(proto.graph.initializer, rewritten.proto.graph.initializer, strict=True):
        assert new.data_type == old.data_type == kind
    assert (Model.of(rewritten.proto).constant("w") == np.delete(Model.of(proto).constant("w"), [0, 3], axis=1)).all()
    assert validate(analysis.model, rewritten, WorkingInputs()).gap < 2e-2


def test_bfloat16_weights_are_cut_bit_for_bit():
    proto = typed(TensorProto.BFLOAT16)
    analysis = analyse(Model.of(proto))
    (group,) = analysis.prunable()
    rewritten = rewrite(analysis, Plan.removing({group.name: np.asarray([0, 3])}, ""))
    bits = {
        t.name: np.frombuffer(t.raw_data, np.uint16).reshape(tuple(t.dims)) for t in rewritten.proto.graph.initializer
    }
    before = {t.name: np.frombuffer(t.raw_data, np.uint16).reshape(tuple(t.dims)) for t in proto.graph.initializer}
    assert {t.data_type for t in rewritten.proto.graph.initializer} == {TensorProto.BFLOAT16}
    assert (bits["w"] == np.delete(before["w"], [0, 3], axis=1)).all()
    assert (bits["v"] == np.delete(before["v"], [0, 3], axis=0)).all()
    onnx.checker.check_model(rewritten.proto, full_check=True)


@pytest.mark.parametrize("field", ["float_data", "raw_data"])
def test_weights_are_cut_whichever_field_holds_them(field):
    proto = typed(TensorProto.FLOAT)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            helper.make_tensor(
                tensor.name,
                1,
                array.shape,
                array.ravel() if field == "float_data" else array.tobytes(),
                raw=field == "raw_data",
            )
        )
    analysis = analyse(Model.of(proto))
    rewritten = rewrite(analysis, Plan.removing({analysis.prunable()[0].name: np.asarray([2])}, ""))
    want, got = (
        open_session(p).run({"x": np.ones((2, 3), np.float32)})
        for p in (mask(analysis.model, rewritten.removal), rewritten.proto)
    )
    assert difference(want[0], got[0]) < 1e-6


def typed(kind: int) -> onnx.ModelProto:
    """Two linear layers and a bias in a given float type."""
    rng = np.random.default_rng(1)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    stored = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(dtype), name)
        for name, shape in (("w", (3, 6)), ("b", (6,)), ("v", (6, 2)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Add", ["a", "b"], ["c"], name="bias"),
        helper.make_node("MatMul", ["c", "v"], ["y"], name="last"),
    ]
    x, y = helper.make_tensor_value_info("x", kind, [2, 3]), helper.make_tensor_value_info("y", kind, [2, 2])
    graph = helper.make_graph(nodes, "typed", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_graphs_inside_branches_are_left_as_they_are():
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2,3] x, bool c) => (float[2,2] y)
           <float[3,4] w, float[4,2] v> {
           a = MatMul(x, w) b = Relu(a) d = MatMul(b, v) y = If(c)
           <then_branch = yes () => (float[2,2] p) { p = Identity(d) },
            else_branch = no () => (float[2,2] q) { q = Neg(d) }> }"""
    )
    for name, shape in (("w", (3, 4)), ("v", (4, 2))):
        proto.graph.initializer.append(
            numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), name)
        )
    del proto.graph.value_info[:]
    analysis = analyse(Model.of(proto))
    rewritten = rewrite(analysis, Plan.removing({"w[1]": np.asarray([0])}, ""))
    assert [g.name for g in graphs(rewritten.proto.graph)] == [g.name for g in graphs(proto.graph)]
    assert rewritten.proto.graph.node[-1] == proto.graph.node[-1]
    assert validate(analysis.model, rewritten, WorkingInputs()).gap < 1e-6
