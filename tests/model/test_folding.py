"""Shape arithmetic in numpy: against onnx's own evaluator, and where each element came from."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from random_graphs import CI

from spa_onnx.model.facts import Axis
from spa_onnx.model.folding import LIMIT, Value, fold, slices
from spa_onnx.model.model import Model
from spa_onnx.model.traits import traits


def folded(text: str, sizes: str = "2,12,5,7", opset: int = 17) -> dict[str, Value]:
    """The values found in a graph with input `x` of the given sizes."""
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[{sizes}] x) => (int64 out) {{ {text} }}'
    )
    return dict(Model.of(proto).inference.values)


def origins(value: Value) -> list[str]:
    return ["+".join(sorted(map(str, axes))) for axes in value.origin]


# --- chains as exporters write them ---------------------------------------------------------------------------------


def test_shape_gather_div_concat_is_folded_with_the_axes_that_it_came_from():
    values = folded(
        """s = Shape(x) zero = Constant<value_int=0>() n = Gather<axis=0>(s, zero)
           one = Constant<value_int=1>() c = Gather<axis=0>(s, one) two = Constant<value_int=2>() half = Div(c, two)
           axes = Constant<value_ints=[0]>() n1 = Unsqueeze(n, axes) two1 = Unsqueeze(two, axes)
           half1 = Unsqueeze(half, axes) a = Constant<value_ints=[2]>() b = Constant<value_ints=[99]>()
           rest = Slice(s, a, b) out = Concat<axis=0>(n1, two1, half1, rest)"""
    )
    assert values["out"].array.tolist() == [2, 2, 6, 5, 7]
    assert origins(values["out"]) == ["x[0]", "", "x[1]", "x[2]", "x[3]"]


def test_arithmetic_merges_the_origins_of_all_that_enters():
    values = folded(
        """s = Shape(x) lo = Constant<value_ints=[2]>() hi = Constant<value_ints=[3]>() a = Slice(s, lo, hi)
           c = ReduceProd(s) out = Mul(a, c)"""
    )
    assert values["out"].array.tolist() == [5 * 2 * 12 * 5 * 7]
    assert origins(values["out"]) == ["x[0]+x[1]+x[2]+x[3]"]


def test_size_depends_on_every_axis_and_shape_windows_on_their_own():
    values = folded(
        """zero = Constant<value_ints=[0]>() n = Size(x) s = Shape<start=1, end=-1>(x) m = Unsqueeze(n, zero)
           out = Concat<axis=0>(s, m)"""
    )
    assert values["out"].array.tolist() == [12, 5, 840]
    assert origins(values["out"]) == ["x[1]", "x[2]", "x[0]+x[1]+x[2]+x[3]"]


@pytest.mark.parametrize("window", [(0, 4), (-3, 4), (1, -1), (-2, 99), (3, 1)])
def test_windows_of_shape_follow_python_slicing(window):
    out = folded(f"out = Shape<start={window[0]}, end={window[1]}>(x)")["out"]
    assert out.array.tolist() == [2, 12, 5, 7][slice(*window)]
    assert origins(out) == ["x[0]", "x[1]", "x[2]", "x[3]"][slice(*window)]


def test_elements_keep_their_origin_through_reversal_and_repetition():
    values = folded(
        """s = Shape(x) a = Constant<value_ints=[-1]>() b = Constant<value_ints=[-5]>() z = Constant<value_ints=[0]>()
           back = Slice(s, a, b, z, a) i = Constant<value_ints=[0, 0, -1]>() out = Gather<axis=0>(back, i)"""
    )
    assert values["back"].array.tolist() == [7, 5, 12, 2]
    assert origins(values["out"]) == ["x[3]", "x[3]", "x[0]"]


def test_the_shape_of_a_short_constant_is_a_literal():
    values = folded("pads = Constant<value_ints=[0, 0, 1, 1]>() out = Shape(pads)")
    assert values["out"].is_literal
    assert not folded("out = Shape(x)")["out"].is_literal


def test_unknown_shapes_and_unknown_operators_yield_no_value():
    values = folded("i = MatMul(x, x) out = Shape(i) s = Shape(x) f = Cast<to=1>(s) e = Erf(f)")
    assert "out" not in values
    assert "e" not in values
    assert "f" in values


def test_failures_and_large_results_yield_no_value():
    values = folded(
        """s = Shape(x) z = Sub(s, s) bad = Div(s, z) big = ConstantOfShape(s) nine = Constant<value_ints=[9]>()
           far = Gather<axis=0>(s, nine) out = Identity(s)"""
    )
    assert {"bad", "far"}.isdisjoint(values)
    assert "out" in values
    assert all(value.array.size <= LIMIT for value in values.values())


def test_a_slice_without_axes_but_with_steps_keeps_its_parameters_apart():
    values = folded(
        """s = Shape(x) a = Constant<value_ints=[0]>() b = Constant<value_ints=[4]>() two = Constant<value_ints=[2]>()
           out = Slice(s, a, b, , two)"""
    )
    assert values["out"].array.tolist() == [2, 5]


@pytest.mark.parametrize(
    ("a", "b", "quotient"), [(7, 2, 3), (-7, 2, -3), (7, -2, -3), (-7, -2, 3), (-1, 2, 0), (6, -3, -2)]
)
def test_integer_division_truncates_towards_zero(a, b, quotient):
    values = folded(f"a = Constant<value_int={a}>() b = Constant<value_int={b}>() out = Div(a, b)")
    assert values["out"].array.item() == quotient
    assert values["out"].array.dtype == np.int64


@pytest.mark.parametrize(("fmod", "remainder"), [(0, 1), (1, -1)])
def test_the_remainder_takes_the_sign_that_the_attribute_asks_for(fmod, remainder):
    values = folded(f"a = Constant<value_int=-7>() b = Constant<value_int=2>() out = Mod<fmod={fmod}>(a, b)")
    assert values["out"].array.item() == remainder


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("out = ReduceSum(s)", [26]),
        ("out = ReduceSum<keepdims=0>(s)", 26),
        ("out = ReduceSum<noop_with_empty_axes=1>(s)", [2, 12, 5, 7]),
        ("z = Constant<value_ints=[0]>() out = ReduceSum(s, z)", [26]),
        ("out = ReduceMax(s)", [12]),
        ("k = Constant<value_ints=[6]>() out = Max(s, k)", [6, 12, 6, 7]),
        ("k = Constant<value_ints=[6]>() j = Constant<value_int=5>() out = Min(s, k, j)", [2, 5, 5, 5]),
        ("out, b, c = Split<num_outputs=3, axis=0>(s)", [2, 12]),
        ("a, out, c = Split<num_outputs=3, axis=0>(s)", [5, 7]),
    ],
)
def test_optional_inputs_may_be_left_out(node, expected):
    assert folded(f"s = Shape(x) {node}", opset=18)["out"].array.tolist() == expected


def test_slices_reads_attributes_and_inputs_alike():
    old = helper.make_node("Slice", ["x"], ["y"], starts=[1, 0], ends=[3, 2**31], axes=[2, 0])
    proto = helper.make_model(
        helper.make_graph(
            [old],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        ),
        opset_imports=[helper.make_opsetid("", 9)],
        ir_version=4,
    )
    (node,) = Model.of(proto).nodes
    assert slices(node, []) == [(2, 1, 3, 1), (0, 0, 2**31, 1)]
    new = [np.asarray([1, 0]), np.asarray([3, 2**31]), np.asarray([2, 0])]
    assert slices(Model.of(proto).nodes[0].__class__(0, "n", "Slice", (), (), {}), new) == slices(node, [])


# --- random chains against onnx.reference ---------------------------------------------------------------------------

SMALL = st.integers(-3, 6)


class Chain:
    """A graph of small integer tensors; every method adds a node that is valid for what is there."""

    def __init__(self, sizes: list[int]) -> None:
        self.nodes, self.stored, self.sizes = [], [], sizes
        self.vectors = [self.op("Shape", "x")]

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def const(self, *values: int, kind: type = np.int64) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(values, kind), f"c{len(self.stored)}"))
        return self.stored[-1].name

    def model(self) -> onnx.ModelProto:
        outputs = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in self.vectors]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.sizes)
        graph = helper.make_graph(self.nodes, "chain", [x], outputs, self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def rounded(chain: Chain, a: str, kind: str) -> str:
    half = chain.op("Div", chain.op("Cast", a, to=TensorProto.FLOAT), chain.const(2.0, kind=np.float32))
    return chain.op("Cast", chain.op(kind, half), to=TensorProto.INT64)


def selected(chain: Chain, a: str, k: int) -> str:
    return chain.op("Where", chain.op("Less", a, chain.const(k)), a, chain.const(k))


def squared(chain: Chain, a: str, k: int) -> str:
    column = chain.op("Unsqueeze", a, chain.const(k % 2))
    return chain.op("Squeeze", chain.op("Transpose", column, perm=[1, 0]), chain.const(1 - k % 2))


LINKS = {
    "gather": lambda g, a, _, k: g.op("Gather", a, g.const(0, -1, -(k % 2)), axis=0),
    "slice": lambda g, a, _, k: g.op("Concat", g.op("Slice", a, g.const(k), g.const(k + 2), g.const(0)), a, axis=0),
    "backwards": lambda g, a, _, k: g.op("Slice", a, g.const(-1), g.const(-(10**9)), g.const(0), g.const(-1 - k % 2)),
    "concat": lambda g, a, b, _: g.op("Concat", a, b, axis=0),
    "add": lambda g, a, _, k: g.op("Add", a, g.const(k)),
    "subtract": lambda g, a, _, k: g.op("Sub", g.const(k), a),
    "multiply": lambda g, a, _, k: g.op("Mul", a, g.const(k)),
    "modulo": lambda g, a, _, k: g.op("Mod", a, g.const(abs(k) + 1)),
    "negate": lambda g, a, *_: g.op("Neg", a),
    "floor": lambda g, a, *_: rounded(g, a, "Floor"),
    "ceil": lambda g, a, *_: rounded(g, a, "Ceil"),
    "where": lambda g, a, _, k: selected(g, a, k),
    "transpose": lambda g, a, _, k: squared(g, a, k),
    "larger": lambda g, a, _, k: g.op("Max", a, g.const(k)),
    "smaller": lambda g, a, _, k: g.op("Min", a, g.const(k)),
    "product": lambda g, a, _, k: (
        g.op("ReduceProd", a, g.const(0), keepdims=1) if k % 2 else g.op("ReduceSum", a, g.const(0))
    ),
    "extreme": lambda g, a, _, k: g.op(("ReduceMax", "ReduceMin")[k % 2], a, g.const(0), keepdims=1),
    "expand": lambda g, a, *_: g.op("Reshape", g.op("Expand", a, g.const(2, 1)), g.const(-1)),
    "tile": lambda g, a, _, k: g.op("Tile", a, g.const(1 + k % 2)),
    "identity": lambda g, a, *_: g.op("Identity", a),
}
LINK = st.tuples(st.sampled_from(list(LINKS)), st.integers(0, 9), st.integers(0, 9), SMALL)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.lists(LINK, min_size=1, max_size=8))
@settings(CI, max_examples=300)
def test_random_chains_fold_to_what_onnx_computes(sizes, links):
    chain = Chain(sizes)
    for name, first, second, k in links:
        a, b = (chain.vectors[-1 - n % min(len(chain.vectors), 3)] for n in (first, second))
        chain.vectors.append(LINKS[name](chain, a, b, k))
    model = chain.model()
    expected = ReferenceEvaluator(model).run(None, {"x": np.zeros(sizes, np.float32)})
    values = Model.of(model).inference.values
    note(onnx.printer.to_text(model))
    for name, want in zip(chain.vectors, expected, strict=True):
        if max(np.shape(want), default=0) <= LIMIT:
            assert values[name].array.tolist() == np.asarray(want).tolist(), name
            assert len(values[name].origin) == values[name].array.size


def test_random_chains_use_most_operators_that_fold():
    used: set[str] = set()
    for link in LINKS.values():
        chain = Chain([2, 3])
        link(chain, chain.vectors[0], chain.vectors[0], 1)
        link(chain, chain.vectors[0], chain.vectors[0], 2)
        used |= {node.op_type for node in chain.nodes}
    assert sum(traits(operator).fold is not None for operator in used) >= 20


def test_an_element_changes_only_with_the_axes_of_its_origin():
    """Every element of a chain is recomputed with each axis one larger: those that change name that axis."""
    text = """s = Shape(x) a = Constant<value_ints=[1]>() b = Constant<value_ints=[3]>() t = Slice(s, a, b)
              two = Constant<value_ints=[2]>()
              h = Div(t, two) p = ReduceProd(t) out = Concat<axis=0>(h, two, p, s)"""
    sizes = [2, 12, 6, 8]
    base = folded(text, "2,12,6,8")["out"]
    for dim in range(4):
        grown = [size + 2 * (place == dim) for place, size in enumerate(sizes)]
        after = folded(text, ",".join(map(str, grown)))["out"].array
        changed = {k for k, (a, b) in enumerate(zip(base.array, after, strict=True)) if a != b}
        assert changed <= {k for k, axes in enumerate(base.origin) if Axis("x", dim) in axes}


def test_fold_takes_given_literals_and_shapes_only():
    (node,) = Model.of(
        parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[2,3] x) => (int64[2] out) { out = Shape(x) }'
        )
    ).nodes
    assert fold([node], {"x": (4, 5)}, {})["out"].array.tolist() == [4, 5]
    assert fold([node], {"x": (4, -1)}, {}) == {}


@pytest.mark.parametrize(
    ("move", "order"),
    [
        ("Slice(s, one, three)", [1, 2]),
        ("Gather(s, three)", [3]),
        ("Concat<axis=0>(s, s)", [0, 1, 2, 3, 0, 1, 2, 3]),
        ("Tile(s, two)", [0, 1, 2, 3, 0, 1, 2, 3]),
        ("Expand(s, table)", [0, 1, 2, 3, 0, 1, 2, 3]),
        ("Reshape(s, square)", [0, 1, 2, 3]),
        ("Unsqueeze(s, one)", [0, 1, 2, 3]),
    ],
)
def test_an_element_that_is_only_moved_keeps_its_value_and_its_origin(move, order):
    constants = {"one": [1], "two": [2], "three": [3], "table": [2, 4], "square": [2, 2]}
    text = " ".join(f"{name} = Constant<value_ints={value}>()" for name, value in constants.items())
    values = folded(f"s = Shape(x) {text} moved = {move} out = ReduceSum<keepdims=0>(moved)", "2,12,6,8")
    base, out = values["s"], values["moved"]
    assert out.array.ravel().tolist() == [int(base.array[k]) for k in order]
    assert list(out.origin) == [base.origin[k] for k in order]
