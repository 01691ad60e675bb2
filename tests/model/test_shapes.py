"""Sizes for every tensor: symbolic dimensions, guesses for them, and recorded shapes that never go stale."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser
from random_graphs import CI, build, recipes
from random_net import BATCH

from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import open_session
from spa_onnx.model.data_sizes import STAND_INS
from spa_onnx.model.facts import Axis
from spa_onnx.model.inference import literals
from spa_onnx.model.model import Model
from spa_onnx.model.shapes import GUESSES, UNKNOWN, choose_dims, refresh_value_info, symbolic_dims
from spa_onnx.model.skeleton import skeleton


def parse(inputs: str, nodes: str, outputs: str = "float y", stored: str = "", opset: int = 17) -> onnx.ModelProto:
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) <{stored}> {{ {nodes} }}'
    )


def recorded(proto: onnx.ModelProto) -> dict[str, tuple[int, ...] | None]:
    return {
        value.name: tuple(d.dim_value or UNKNOWN for d in value.type.tensor_type.shape.dim)
        if value.type.tensor_type.HasField("shape")
        else None
        for value in proto.graph.value_info
    }


# --- symbolic dimensions --------------------------------------------------------------------------------------------


def test_named_unnamed_and_zero_dimensions_are_symbolic():
    proto = parse("float[N,3,H,H] x, float[?,4] z", "y = Identity(x)")
    proto.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 0
    assert list(symbolic_dims(proto.graph.input)) == [
        ("N", True, 4),
        ("H", False, 4),
        ("H", False, 4),
        ("z:0", True, 2),
        ("z:1", False, 2),
    ]


def test_the_middle_of_a_state_counts_samples():
    proto = parse("float[N,T,7] x, float[2,M,8] state, float[2,L,K] other", "y = Identity(x)")
    found = {name: counts for name, counts, _ in symbolic_dims(proto.graph.input)}
    assert found == {"N": True, "T": False, "M": True, "L": False, "K": False}


def test_the_users_sizes_win_over_guesses_and_a_name_has_one_size_everywhere():
    proto = parse("float[N,3,H,W] x, float[N,T] z", "y = Identity(x)")
    assert choose_dims(proto.graph.input, {"W": 33}, (2, 64, 16)) == {"N": 2, "H": 64, "W": 33, "T": 16}
    model = Model.of(proto, {"W": 33})
    assert model.shape("x") == (2, 3, 64, 33)
    assert model.shape("y") == (2, 3, 64, 33)
    assert model.shape("z") == (2, 16)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("past + sequence", 32),
        ("2*past", 32),
        ("past + 1", 17),
        ("(past - 4) // 2", 6),
        ("past - sequence", 16),
        ("past + x", 16),
        ("a(b)", 16),
    ],
)
def test_a_name_that_computes_with_other_dimensions_gets_what_it_computes(name, size):
    proto = parse("float[B,past] p, float[B,sequence] s, float[B,T] m", "y = Identity(m)")
    proto.graph.input[2].type.tensor_type.shape.dim[1].dim_param = name
    assert choose_dims(proto.graph.input, {}, (2, 64, 16))[name] == size
    assert choose_dims(proto.graph.input, {name: 5}, (2, 64, 16))[name] == 5
    assert choose_dims(proto.graph.input, {"past": 20}, (2, 64, 16))["past"] == 20


def test_a_guess_that_leaves_nothing_of_an_image_is_passed_over():
    model = Model.of(parse("float[N,3,H,W] x", "y = AveragePool<kernel_shape=[100,100]>(x)"))
    assert model.shape("y") == (1, 3, 125, 125)
    assert model.inference.dims["H"] == 224


def test_when_no_guess_fits_the_first_is_kept_and_nothing_is_raised():
    model = Model.of(parse("float[N,3,H,W] x", "y = AveragePool<kernel_shape=[999,999]>(x)"))
    assert model.inference.dims["H"] == GUESSES[0][1]


def test_a_graph_that_onnx_cannot_infer_is_refused_with_the_reason():
    with pytest.raises(RefusedError, match="No opset import for domain mine"):
        Model.of(parse("float[2,3] x", "y = mine.Unknown(x)"))


def test_operators_that_do_not_fit_leave_sizes_unknown_rather_than_wrong():
    model = Model.of(parse("float[2,3] x, float[4,5] z", "a = MatMul(x, z) y = Relu(a)"))
    assert model.shape("y") is None


def test_sizes_that_depend_on_data_have_a_stand_in():
    model = Model.of(parse("float[2,3] x", "i = NonZero(x) y = Cast<to=1>(i)"))
    assert model.shape("y") == (2, STAND_INS[0])
    assert [model.depends_on_data(Axis("y", dim)) for dim in range(2)] == [False, True]
    assert model.shape("nowhere") is None


def test_declared_output_shapes_do_not_overrule_what_is_inferred():
    model = Model.of(parse("float[2,3] x", "y = Relu(x)", outputs="float[2,99] y"))
    assert model.shape("y") == (2, 3)


def test_a_reshape_to_a_computed_shape_is_resolved_by_folding():
    model = Model.of(
        parse(
            "float[N,12,H,W] x",
            """s = Shape(x) zero = Constant<value_ints=[0]>() one = Constant<value_ints=[1]>()
               four = Constant<value_ints=[4]>() three = Constant<value_ints=[3]>() two = Constant<value_ints=[2]>()
               n = Gather(s, zero) c = Gather(s, one) rest = Slice(s, two, four) part = Div(c, three)
               shape = Concat<axis=0>(n, three, part, rest) r = Reshape(x, shape) y = Transpose<perm=[0,2,1,3,4]>(r)""",
        ),
        {"N": 5, "H": 6, "W": 7},
    )
    assert model.shape("r") == (5, 3, 4, 6, 7)
    assert model.shape("y") == (5, 4, 3, 6, 7)
    assert model.value("shape").array.tolist() == [5, 3, 4, 6, 7]
    assert model.constant("shape") is None
    assert all(model.is_folded(model.producer[name]) for name in ("s", "n", "c", "rest", "part", "shape"))
    assert not model.is_folded(model.producer["r"])


def test_shapes_computed_from_shapes_of_computed_reshapes_are_found_too():
    model = Model.of(
        parse(
            "float[N,12] x",
            """s = Shape(x) zero = Constant<value_ints=[0]>() rest = Constant<value_ints=[3,4]>() n = Gather(s, zero)
               a = Concat<axis=0>(n, rest) r = Reshape(x, a) s2 = Shape(r) two = Constant<value_ints=[2]>()
               k = Gather(s2, two) three = Constant<value_ints=[3]>() b = Concat<axis=0>(n, k, three)
               y = Reshape(r, b)""",
        )
    )
    assert model.shape("y") == (2, 4, 3)


def test_however_long_the_chain_every_unit_slices_at_half_the_size_that_the_one_before_it_left():
    # chunk(2) as TorchScript writes it: ONNX does not follow computed bounds, so each unit is resolved only after the
    # one before it
    units = 24
    nodes = "".join(f"{name} = Constant<value_ints=[{i}]>() " for i, name in enumerate(("zero", "one", "two")))
    nodes += "t0 = Identity(x) "
    for i in range(units):
        nodes += f"""s{i} = Shape(t{i}) c{i} = Gather(s{i}, one) h{i} = Div(c{i}, two)
                     a{i} = Slice(t{i}, zero, h{i}, one)
                     b{i} = Slice(t{i}, h{i}, c{i}, one) t{i + 1} = Concat<axis=1>(b{i}, a{i}) """
    model = Model.of(parse("float[N,12] x", nodes + f"y = Relu(t{units})"))
    assert [model.shape(f"a{i}") for i in range(units)] == [(2, 6)] * units
    assert model.shape("y") == (2, 12)


@given(recipes(), st.integers(1, 3))
@settings(CI, max_examples=40)
def test_inferred_sizes_are_those_of_the_real_tensors(recipe, batch):
    size = batch if recipe.symbolic else BATCH
    model = Model.of(build(recipe), {"N": size})
    names = [name for name, node in model.producer.items() if not (model.is_folded(node) or node.inside)]
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    have = set(model.outputs)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    session = open_session(proto)
    found = session.run({"x": np.zeros((size, 3, 6, 6), np.float32)})
    for name, array in zip(session.outputs, found, strict=True):
        assert model.shape(name) == array.shape, name


# --- the skeleton ---------------------------------------------------------------------------------------------------


def test_the_skeleton_holds_no_large_weight_and_leaves_the_model_alone():
    proto = parse("float[1,3,64,64] x", "y = Conv(x, w)")
    proto.graph.initializer.append(onnx.helper.make_tensor("w", 1, [64, 3, 5, 5], [0.5] * 4800))
    before = proto.SerializeToString()
    bare = skeleton(proto, proto.graph.input, {})
    assert bare.ByteSize() < 500
    assert proto.SerializeToString() == before


def test_literals_are_integers_and_short_vectors_of_scales():
    proto = parse(
        "float[1] x",
        "y = Identity(x)",
        stored="int64[2] shape = {1, 2}, float[4] scales = {1, 1, 2, 2}, "
        "float[2,2] matrix = {1, 2, 3, 4}, bool[1] flag = {1}",
    )
    assert set(literals(proto.graph)) == {"shape", "scales", "flag"}


# --- recorded shapes ------------------------------------------------------------------------------------------------


def with_records(text: str = "a = Conv(x, w) b = Relu(a) y = GlobalAveragePool(b)") -> onnx.ModelProto:
    proto = parse("float[N,3,8,8] x", text)
    proto.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    proto.graph.initializer.append(onnx.helper.make_tensor("w", 1, [6, 3, 3, 3], [0.1] * 162))
    return onnx.shape_inference.infer_shapes(proto)


def test_stale_shapes_are_replaced_and_documentation_stays():
    proto = with_records()
    for value in proto.graph.value_info:
        value.type.tensor_type.shape.dim[1].dim_value = 99
        value.doc_string = f"about {value.name}"
    refresh_value_info(proto)
    assert recorded(proto) == {"a": (UNKNOWN, 6, 6, 6), "b": (UNKNOWN, 6, 6, 6)}
    assert [value.doc_string for value in proto.graph.value_info] == ["about a", "about b"]
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in proto.graph.value_info] == ["N", "N"]


def test_records_of_tensors_that_are_gone_go_too_and_none_are_added():
    proto = with_records()
    gone = onnx.helper.make_tensor_value_info("gone", 1, [1, 2])
    del proto.graph.value_info[1:]
    proto.graph.value_info.append(gone)
    refresh_value_info(proto)
    assert set(recorded(proto)) == {"a"}


def test_a_graph_without_records_gets_none():
    proto = with_records()
    del proto.graph.value_info[:]
    refresh_value_info(proto)
    assert not proto.graph.value_info


def test_a_shape_that_cannot_be_inferred_again_is_forgotten():
    proto = with_records("a = mine.Unknown(x) b = Relu(a) y = Identity(b)")
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("a", 1, [1, 99, 8, 8]))
    refresh_value_info(proto)
    assert recorded(proto)["a"] is None
    assert proto.graph.value_info[0].type.tensor_type.elem_type == 1
