"""Functions of a model are inlined when it is opened: the result is an ordinary file."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import spa_onnx
from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import open_session
from spa_onnx.model import functions
from spa_onnx.model.functions import inlined

DENSE = (
    '<domain: "local", opset_import: ["": 17]> dense (e, w, c) => (g) { f = MatMul(e, w) h = Add(f, c) g = Relu(h) }'
)

SHAPES = {"w1": (6, 40), "b1": (40,), "w2": (40, 32), "b2": (32,), "w3": (32, 3)}


def model(nodes: str, *defined: str, domains: str = '"local": 1') -> onnx.ModelProto:
    """A model of x (N, 6) and y, with weights `SHAPES`."""
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 17, {domains}]> g (float[N,6] x) => (float[N,3] y) {{ {nodes} }}\n'
        + "\n".join(defined)
    )
    rng = np.random.default_rng(0)
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in SHAPES.items()
        if name in used
    )
    return proto


MODELS: dict[str, onnx.ModelProto] = {
    "called_twice": model("a = local.dense(x, w1, b1) z = local.dense(a, w2, b2) y = MatMul(z, w3)", DENSE),
    "nested_with_an_attribute": model(
        "a = local.block<slope=0.2>(x, w1, b1) z = local.block<slope=0.1>(a, w2, b2) y = MatMul(z, w3)",
        '<domain: "local", opset_import: ["": 17, "more": 1]> block <slope> (e, w, c) => (g) '
        "{ f = MatMul(e, w) h = Add(f, c) g = more.bend<slope: float = @slope>(h) }",
        '<domain: "more", opset_import: ["": 17]> bend <slope> (e) => (g) { g = LeakyRelu<alpha: float = @slope>(e) }',
        domains='"local": 1, "more": 1',
    ),
    "weights_inside": model(
        "a = MatMul(x, w1) z = local.scaled(a) y = MatMul(z, w4)",
        '<domain: "local", opset_import: ["": 17]> scaled (e) => (g) '
        "{ s = Constant<value = float[40] {" + ", ".join(["0.5"] * 40) + "}>() f = Mul(e, s) g = Relu(f) }",
    ),
    "of_an_older_operator_set": model(
        "a = local.dense(x, w1, b1) z = local.dense(a, w2, b2) y = MatMul(z, w3)", DENSE.replace("17", "14")
    ),
    "with_operators_of_onnxruntime": model(
        "a = local.dense(x, w1, b1) z = Relu(a) b = MatMul(z, w2) y = MatMul(b, w3)",
        '<domain: "local", opset_import: ["": 17, "com.microsoft": 1]> dense (e, w, c) => (g) '
        "{ f = MatMul(e, w) g = com.microsoft.BiasGelu(f, c) }",
    ),
}
MODELS["weights_inside"].graph.initializer.append(
    numpy_helper.from_array(np.random.default_rng(1).standard_normal((40, 3)).astype(np.float32), "w4")
)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_functions_is_pruned_like_one_without(name):
    before = MODELS[name].SerializeToString()
    result = spa_onnx.prune(MODELS[name], ratio=0.5, criterion="l1")
    assert MODELS[name].SerializeToString() == before
    assert result.report.validation.gap < 1e-4
    assert result.report.params[1] < 0.6 * result.report.params[0]
    assert not result.report.pinned or {cause for *_, cause in result.report.pinned} <= {"graph input", "graph output"}
    assert not result.model.functions
    assert {entry.domain for entry in result.model.opset_import} <= {"", "com.microsoft"}


@pytest.mark.parametrize("name", MODELS)
def test_inlining_changes_no_output_and_no_weight(name):
    x = np.random.default_rng(2).standard_normal((4, 6)).astype(np.float32)
    plain = inlined(MODELS[name])
    (want,), (got,) = (open_session(proto).run({"x": x}) for proto in (MODELS[name], plain))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert [t.SerializeToString() for t in plain.graph.initializer] == [
        t.SerializeToString() for t in MODELS[name].graph.initializer
    ]


def test_a_plan_lists_weights_of_functions_as_computed_and_can_be_applied(tmp_path):
    onnx.save(MODELS["weights_inside"], tmp_path / "m.onnx")
    result = spa_onnx.prune(tmp_path / "m.onnx", ratio=0.5, criterion="l1")
    assert {entry["source"] for entry in result.plan["tensors"]} == {"w1", "w4"}
    assert [entry["shape"] for entry in result.plan["computed"]] == [[40]]
    (tmp_path / "plan.json").write_text(json.dumps(result.plan))
    again = spa_onnx.apply_plan(tmp_path / "m.onnx", spa_onnx.read_plan(tmp_path / "plan.json"))
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_a_function_that_needs_another_version_stays_and_pins_what_it_reads():
    proto = model(
        "a = MatMul(x, w1) b = local.top(a) z = Relu(b) c = MatMul(z, w2) d = Relu(c) y = MatMul(d, w3)",
        '<domain: "local", opset_import: ["": 18]> top (e) => (g) '
        "{ axes = Constant<value_ints=[1]>() m = ReduceMax(e, axes) g = Sub(e, m) }",
    )
    assert inlined(proto).functions
    report = spa_onnx.prune(proto, ratio=0.5, criterion="l1", check=False).report
    assert [name for name, *_ in report.groups] == ["w2[1]"]
    assert any("needs another version of an operator set" in cause for *_, cause in report.pinned)


def test_a_function_that_calls_itself_is_refused():
    ring = (
        '<domain: "local", opset_import: ["": 17, "local": 1]> one (e) => (g) { g = local.two(e) }',
        '<domain: "local", opset_import: ["": 17, "local": 1]> two (e) => (g) { g = local.one(e) }',
    )
    with pytest.raises(RefusedError, match=r"the function local\.one calls itself"):
        spa_onnx.prune(model("a = local.one(x) y = MatMul(a, w1)", *ring), ratio=0.5)


def test_functions_that_double_again_and_again_are_refused_without_being_inlined():
    steps = [
        f'<domain: "local", opset_import: ["": 17, "local": 1]> f{k} (e) => (g) {{ h = local.f{k + 1}(e) '
        f"g = local.f{k + 1}(h) }}"
        for k in range(40)
    ]
    last = '<domain: "local", opset_import: ["": 17]> f40 (e) => (g) { g = Relu(e) }'
    with pytest.raises(RefusedError, match=r"the functions of the model expand to 1\d{12} nodes"):
        spa_onnx.prune(model("a = local.f0(x) y = MatMul(a, w1)", *steps, last), ratio=0.5)


def test_the_size_of_what_functions_add_is_limited(monkeypatch):
    monkeypatch.setattr(functions, "MOST_BYTES", 100)
    with pytest.raises(RefusedError, match="more than"):
        inlined(MODELS["weights_inside"])
    assert inlined(model("a = MatMul(x, w1) z = Relu(a) b = MatMul(z, w2) y = MatMul(b, w3)")) is not None
