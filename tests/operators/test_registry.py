from dataclasses import replace

import pytest
from nets.build import image, net

from spa_onnx.analysis import analyse
from spa_onnx.errors import RuleError
from spa_onnx.model.facts import Axis, Coupling, Free, Pin, Positions, Span, whole
from spa_onnx.model.model import Model
from spa_onnx.operators import OPERATORS, facts, register

RELU = image("z = Relu(a)")
UNKNOWN_OPERATOR = image(
    "b = Conv(a, w2) z = MeanVarianceNormalization(b)",
    "float[6,8,1,1] w2, float[6] g, float[6] h",
    into=6,
    opset=21,
    outputs="float[2,4,6,6] y",
)


def _node(model, operator):
    return next(node for node in model.nodes if node.op == operator)


def _use(monkeypatch, operator, function, parameters=()):
    monkeypatch.setitem(
        OPERATORS, operator, replace(OPERATORS[operator], coupling=function, parameters=frozenset(parameters))
    )


def test_an_operator_is_registered_once():
    before = OPERATORS["Relu"]
    with pytest.raises(ValueError, match="operator Relu is registered twice"):
        register("Relu", coupling=lambda _node, _model: iter(()))
    assert OPERATORS["Relu"] is before


def test_an_operator_without_rule_pins_all_its_axes_and_is_named_in_the_reason():
    model = Model.of(UNKNOWN_OPERATOR())
    pins = list(facts(_node(model, "MeanVarianceNormalization"), model))
    assert {pin.axis for pin in pins} >= {Axis("b", dim) for dim in range(4)}
    assert all(
        isinstance(pin, Pin) and "no coupling rule for operator MeanVarianceNormalization" in str(pin) for pin in pins
    )


def test_an_operator_without_rule_holds_the_channels_before_it_and_no_others():
    groups = {group.name: group for group in analyse(Model.of(UNKNOWN_OPERATOR())).groups}
    assert "MeanVarianceNormalization" in groups["w2[0]"].pinned
    assert groups["w1[0]"].pinned == ""


def test_an_axis_that_a_rule_leaves_unsaid_is_pinned(monkeypatch):
    def says_nothing_about_positions(node, _model):
        yield Coupling(whole(Axis(node.inputs[0], 1), 8), whole(Axis(node.outputs[0], 1), 8), "channels")

    _use(monkeypatch, "Relu", says_nothing_about_positions)
    model = Model.of(RELU())
    pins = {fact.axis for fact in facts(_node(model, "Relu"), model) if isinstance(fact, Pin)}
    assert pins == {Axis(tensor, dim) for tensor in ("a", "z") for dim in (0, 2, 3)}


def test_an_axis_without_a_second_index_needs_no_pin(monkeypatch):
    _use(monkeypatch, "Relu", lambda _node, _model: iter(()))
    model = Model.of(image("z = Relu(a)", size=1)())
    assert {fact.axis for fact in facts(_node(model, "Relu"), model)} == {
        Axis(t, dim) for t in ("a", "z") for dim in (0, 1)
    }


def test_a_rule_that_says_nothing_pins_its_channels(monkeypatch):
    _use(monkeypatch, "Relu", lambda _node, _model: iter(()))
    assert not analyse(Model.of(RELU())).prunable()


@pytest.mark.parametrize(
    "span",
    [
        Span(Axis("z", 1), 9),
        Span(Axis("z", 1), 8, start=1),
        Span(Axis("z", 1), 4, inner=3),
        Span(Axis("z", 1), 4, outer=3, period=4),
        Span(Axis("z", 1), 2, order=(0, 8)),
    ],
)
def test_a_span_beyond_its_axis_is_an_error(monkeypatch, span):
    def reaches_too_far(node, _model):
        yield Free(Axis(node.inputs[0], 1))
        yield Coupling(Span(Axis("w9", 0), span.count, order=(0,) * span.count), span, "too far")

    _use(monkeypatch, "Relu", reaches_too_far)
    with pytest.raises(RuleError, match=r"too far: index \d+ is outside z\[1\], which has 8"):
        analyse(Model.of(RELU()))


def test_spans_of_different_counts_are_an_error():
    with pytest.raises(RuleError, match=r"a\[1\] has 8 channels but z\[1\] has 7"):
        Coupling(whole(Axis("a", 1), 8), whole(Axis("z", 1), 7), "unequal")


def test_an_order_of_another_length_is_an_error():
    with pytest.raises(RuleError, match="3 channels but an order of 2"):
        Span(Axis("a", 1), 3, order=(0, 1))


def test_a_computed_parameter_is_pinned():
    build = net(
        "float[2,3,4,4] x, int64[4] p",
        "float[8,3,1,1] w1, float[4,8,1,1] w2",
        "a = Conv(x, w1) b = Pad(a, p) y = Conv(b, w2)",
        outputs="float[A,4,B,C] y",
    )
    model = Model.of(build())
    groups = {group.name: group for group in analyse(model).groups}
    assert groups["w1[0]"].pinned
    assert groups["w2[1]"].cause == "its size depends on data"
    pins = {fact.axis: fact.why for fact in facts(_node(model, "Pad"), model) if isinstance(fact, Pin)}
    assert {Axis(name, dim) for name in "ab" for dim in range(4)} <= pins.keys()


def test_a_range_counts_positions_and_holds_none_of_its_inputs():
    build = net(
        "float[2,5,6] x",
        "float[6,8] w1, int64 zero = {0}, int64 one = {1}",
        "d = Shape(x) n = Gather(d, one) r = Range(zero, n, one) f = Cast<to=1>(r) a = MatMul(x, w1) y = Identity(a) "
        "z = Identity(f)",
        outputs="y, z",
    )
    model = Model.of(build())
    assert list(facts(_node(model, "Range"), model)) == [Positions(Axis("r", 0))]
