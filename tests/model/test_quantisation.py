"""Quantised constants: what they stand for, what counts as zero in them, and what scores see of them."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import NETS
from onnx import numpy_helper
from runtimes import needs_runtime

import spa_onnx
from spa_onnx.analysis import analyse
from spa_onnx.errors import ValidationError
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model, parameters
from spa_onnx.model.quantisation import packed, unpacked
from spa_onnx.operators.macs import macs
from spa_onnx.operators.zeros import is_zero_when_masked
from spa_onnx.plan.mask import mask
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.aggregate import score_groups
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.synthetic.working import WorkingInputs, working_inputs
from spa_onnx.validation.validate import validate

SHARED = Path(os.environ.get("SHARED_MODELS", Path(__file__).parents[1] / ".." / "shared" / "models"))
QDQ = [
    name
    for name in NETS
    if name.startswith("qdq")
    and not any(word in name for word in ("rounded_in", "activations", "embedding", "bias_axis"))
]


def dequantised_by_onnx(proto: onnx.ModelProto, weight: str) -> np.ndarray:
    """What onnxruntime makes of the DequantizeLinear that reads a weight."""
    (node,) = (n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == weight)
    used = [t for t in proto.graph.initializer if t.name in node.input]
    output = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], "one", [], [output], used)
    alone = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    return open_session(alone).run({})[0]


@pytest.mark.parametrize("name", QDQ)
def test_a_quantised_weight_is_what_it_is_dequantised_to(name):
    proto = NETS[name]()
    model = Model.of(proto)
    assert model.is_weight("q2")
    np.testing.assert_allclose(model.weight("q2"), dequantised_by_onnx(proto, "q2"), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name", [*QDQ, "conv_integer", "matmul_integer", "matmul_of_4_bits_zero_points", "matmul_of_8_bits", "qgemm"]
)
def test_storing_what_a_weight_stands_for_gives_the_weight(name):
    model = Model.of(NETS[name]())
    weights = [weight for weight in model.quantised if weight in ("q2", "q3", "w2")]
    assert weights
    for weight in weights:
        stored = model.stored(weight, model.weight(weight))
        assert stored.dtype == model.constant(weight).dtype
        assert np.array_equal(stored.astype(float), model.constant(weight).astype(float))


@pytest.mark.parametrize(
    "name", [*QDQ, "conv_integer", "matmul_integer", "matmul_of_4_bits_zero_points", "matmul_of_8_bits", "qgemm"]
)
def test_nothing_stands_for_zeros(name):
    model = Model.of(NETS[name]())
    for weight, found in model.quantised.items():
        array = model.constant(weight)
        assert not found.numbers(found.nothing(array.shape)).any()
        assert found.nothing(array.shape).shape == array.shape


def test_numbers_out_of_range_are_stored_as_the_largest():
    model = Model.of(NETS["qdq_int8"]())
    shape = model.constant("q2").shape
    assert (model.stored("q2", np.full(shape, 9.9)) == 127).all()
    assert (model.stored("q2", np.full(shape, -9.9)) == -128).all()


def test_a_factor_behind_an_integer_product_is_its_scale():
    model = Model.of(NETS["conv_integer"]())
    np.testing.assert_allclose(model.weight("w2"), model.constant("w2") * 0.01, rtol=1e-6)
    model = Model.of(NETS["matmul_integer"]())
    wanted = (model.constant("w2").astype(float) - model.constant("z2")) * model.constant("scale2")
    np.testing.assert_allclose(model.weight("w2"), wanted, rtol=1e-6)


@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([2, 4, 8]), st.integers(0, 99))
def test_unpacking_is_the_inverse_of_packing(rows, columns, bits, seed):
    numbers = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns)).astype(np.uint8)
    assert np.array_equal(unpacked(packed(numbers, bits), bits)[:, :columns], numbers)


def test_bytes_hold_the_low_bits_first():
    assert unpacked(np.array([[0x21, 0x43]], np.uint8), 4).tolist() == [[1, 2, 3, 4]]


def test_removed_weights_are_at_their_zero_point_in_the_masked_model():
    analysis = analyse(Model.of(NETS["qdq_uint8"]()))
    cut = rewrite(analysis, Plan.removing({"q2[0]": np.array([1])}, ""))
    masked = {t.name: numpy_helper.to_array(t) for t in mask(analysis.model, cut.removal).graph.initializer}
    (weight,) = (array for name, array in masked.items() if name.startswith("q2__masked"))
    assert (weight[1] == 120).all()
    (bias,) = (array for name, array in masked.items() if name.startswith("bias2__masked"))
    assert bias[1] == 0
    assert not [name for name in masked if name.startswith(("s2__", "z2__"))]


@pytest.mark.parametrize("criterion", ["l1", "l2", "linf", "fpgm", "lamp"])
@pytest.mark.parametrize("name", ["qdq_uint8", "qdq_int8_per_axis", "qdq_int4"])
def test_scores_are_those_of_the_dequantised_network(name, criterion):
    proto = NETS[name]()
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    floats = {
        n.output[0]: dequantised_by_onnx(proto, n.input[0])
        for n in proto.graph.node
        if n.output[0] in ("w2", "w3", "b2")
    }
    nodes = [n for n in plain.graph.node if n.output[0] not in floats]
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    plain.graph.initializer.extend(numpy_helper.from_array(array, n) for n, array in floats.items())
    found = [
        score_groups(analysis.prunable(), CRITERIA[criterion], ScoringContext(analysis.model))
        for analysis in (analyse(Model.of(proto)), analyse(Model.of(plain)))
    ]
    assert [n.replace("q", "w") for n in found[0]] == list(found[1])
    for a, b in zip(found[0].values(), found[1].values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_quantised_weights_are_parameters_and_scales_are_scored_by_nobody():
    model = Model.of(NETS["qdq_int8_per_axis"]())
    assert parameters(model.proto) > sum(model.constant(name).size for name in ("q2", "q3", "w1", "w9"))
    assert not model.is_weight("scale2")
    group = next(group for group in analyse(model).groups if group.name == "q2[0]")
    assert {axis.tensor for axis in group.weights(model)} == {"q2", "q3", "bias2"}


@pytest.mark.parametrize(
    ("name", "plain"), [("qlinear_conv", 0), ("conv_integer", 0), ("matmul_integer", 0), ("matmul_of_4_bits", 0)]
)
def test_quantised_products_count_like_those_in_float(name, plain):
    wanted = {
        "qlinear_conv": (6 * 8 + 6 * 9 + 8 * 3 + 4 * 6) * 72,
        "conv_integer": (6 * 8 * 9 + 8 * 3 + 4 * 6) * 72,
        "matmul_integer": 10 * (6 * 8 + 8 * 6 + 6 * 4),
        "matmul_of_4_bits": 10 * (6 * 64 + 64 * 6 + 6 * 4),
    }[name]
    assert macs(Model.of(NETS[name]())) == wanted + plain


@pytest.mark.parametrize(
    ("name", "tensor", "zero"), [("conv_integer", "z", True), ("conv_integer", "u", False), ("clip", "z", None)]
)
def test_channels_vanish_behind_operators_that_keep_zero(name, tensor, zero):
    model = Model.of(NETS[name]())
    if zero is not None:
        assert is_zero_when_masked(tensor, model) is zero
    assert is_zero_when_masked("a", model)


def test_a_scale_taken_from_a_tensor_whose_masked_channels_are_not_zero_pins_it_with_that_reason():
    groups = {group.name: group.pinned for group in analyse(Model.of(NETS["conv_integer_behind_cosine"]())).groups}
    assert "DynamicQuantizeLinear takes its scale from all of it" in groups["w3[0]"]
    assert groups["w2[0]"] == ""


@pytest.mark.parametrize("name", ["qdq_uint8", "qlinear_conv_per_axis", "conv_integer", "matmul_of_4_bits"])
def test_quantised_networks_pass_validation(name):
    needs_runtime(name)
    proto = NETS[name]()
    analysis = analyse(Model.of(proto))
    cut = rewrite(
        analysis, Plan.removing({group.name: np.arange(group.size // 2) for group in analysis.prunable()}, "")
    )
    assert validate(analysis.model, cut, WorkingInputs(analysis.model.inference.dims)).gap is not None


def test_a_wrong_quantised_weight_does_not_pass_validation():
    analysis = analyse(Model.of(NETS["qdq_uint8"]()))
    cut = rewrite(analysis, Plan.removing({"q2[0]": np.array([1, 2])}, ""))
    (tensor,) = (t for t in cut.proto.graph.initializer if t.name == "q3")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, ::-1].copy(), "q3"))
    with pytest.raises(ValidationError):
        validate(analysis.model, cut, working_inputs(analysis.model, open_session(cut.proto), {}))


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_a_network_loses_the_same_channels_whether_its_weights_are_quantised_or_not(ratio, criterion):
    paths = [SHARED / f"mbv2_100_224_tfl_{form}.onnx" for form in ("qdq", "dq")]
    if not all(path.exists() for path in paths):
        pytest.skip("the shared models are not here")
    plans = [
        spa_onnx.prune(path, ratio, criterion=criterion, scope="local", repair="none", check=False).plan
        for path in paths
    ]
    first, second = ([group["removed"] for group in plan["groups"]] for plan in plans)
    assert sorted(map(tuple, first)) == sorted(map(tuple, second))
