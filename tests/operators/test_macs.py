"""Multiply-accumulates: counted one by one on small operators, and predicted for plans before they are carried out."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import NETS
from nets.build import net
from random_graphs import CI, build, recipes
from random_net import BATCH

from spa_onnx.analysis import analyse
from spa_onnx.model.model import Model
from spa_onnx.operators import knowledge
from spa_onnx.operators.macs import batch_size, macs, uncounted_operators
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.selection.budgets import PlanCost
from spa_onnx.selection.select import select

DECODER = "com.microsoft.DecoderMaskedMultiHeadAttention"

if TYPE_CHECKING:
    from spa_onnx.analysis.groups import Group


def convolution_by_hand(size, channels, filters, kernel, groups, stride, pad) -> int:
    """One multiplication per output element, channel of its group and place of the kernel, padding included."""
    side = (size + 2 * pad - kernel) // stride + 1
    count = 0
    for _out, _y, _x in product(range(filters), range(side), range(side)):
        for _channel, _dy, _dx in product(range(channels // groups), range(kernel), range(kernel)):
            count += 1
    return count


@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "groups", "stride", "pad"),
    [(3, 4, 3, 1, 1, 1), (4, 6, 1, 1, 1, 0), (4, 8, 3, 2, 2, 1), (6, 6, 3, 6, 1, 0), (6, 12, 2, 3, 2, 0)],
)
def test_convolutions_count_one_per_output_channel_and_kernel_place(channels, filters, kernel, groups, stride, pad):
    proto = net(
        f"float[1,{channels},5,5] x",
        f"float[{filters},{channels // groups},{kernel},{kernel}] w",
        f"y = Conv<group={groups},strides=[{stride},{stride}],pads=[{pad},{pad},{pad},{pad}]>(x, w)",
    )()
    assert macs(Model.of(proto)) == convolution_by_hand(5, channels, filters, kernel, groups, stride, pad)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (2, 2), (4, 2)])
def test_transposed_convolutions_count_one_per_input_element_filter_and_kernel_place(groups, stride):
    proto = net(
        "float[1,4,3,3] x",
        f"float[4,{8 // groups},2,2] w",
        f"y = ConvTranspose<group={groups},strides=[{stride},{stride}]>(x, w)",
    )()
    count = sum(1 for _ in product(range(4), range(3), range(3), range(8 // groups), range(2), range(2)))
    assert macs(Model.of(proto)) == count


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_counts_rows_columns_and_depth(trans_a, trans_b):
    a, b = ("5,3" if trans_a else "3,5"), ("7,5" if trans_b else "5,7")
    proto = net(f"float[{a}] x", f"float[{b}] w, float[7] c", f"y = Gemm<transA={trans_a},transB={trans_b}>(x, w, c)")()
    assert macs(Model.of(proto)) == 3 * 7 * 5


@pytest.mark.parametrize(
    ("a", "b", "count"),
    [
        ("3,5", "5,7", 3 * 5 * 7),
        ("2,3,5", "5,7", 2 * 3 * 5 * 7),
        ("2,4,3,5", "2,4,5,7", 2 * 4 * 3 * 5 * 7),
        ("1,4,3,5", "6,1,5,7", 6 * 4 * 3 * 5 * 7),
        ("5", "5,7", 5 * 7),
        ("3,5", "5", 3 * 5),
    ],
)
def test_matmul_counts_broadcast_batches_rows_columns_and_depth(a, b, count):
    proto = net(f"float[{a}] x, float[{b}] z", "float[1] unused", "y = MatMul(x, z)")()
    assert macs(Model.of(proto)) == count


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize(("direction", "directions"), [("forward", 1), ("bidirectional", 2)])
def test_recurrent_layers_count_every_gate_of_every_step_in_every_direction(operator, gates, direction, directions):
    proto = net(
        "float[5,1,3] x",
        f"float[{directions},{4 * gates},3] w, float[{directions},{4 * gates},4] r",
        f'y = {operator}<hidden_size=4, direction="{direction}">(x, w, r)',
    )()
    steps = list(product(range(directions), range(5), range(gates), range(4)))
    assert macs(Model.of(proto)) == len(steps) * (3 + 4)


LINEAR = 2 * 5 * 6
"""Rows times inputs of one linear layer in front of the attention of the nets."""


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("attention_operator", LINEAR * 24 + 2 * (2 * 5 * 8 * 5) + 2 * 5 * 8 * 4),
        ("attention_operator_narrow_values", LINEAR * 28 + 2 * 5 * 5 * (16 + 8) + 2 * 5 * 8 * 4),
        ("attention_operator_four_axes", LINEAR * 32 + 2 * (2 * 5 * 16 * 5) + 2 * 5 * 16 * 4),
        ("multi_head_attention_narrow_values", LINEAR * 40 + 2 * 5 * 5 * (16 + 8) + 2 * 5 * 8 * 4),
        ("group_query_attention", LINEAR * 64 + 2 * (2 * 5 * 32 * 5) + 2 * 5 * 32 * 4),
        ("group_query_attention_packed", LINEAR * 192 + 2 * (2 * 5 * 96 * 5) + 2 * 5 * 96 * 4),
        ("attention_with_weights", LINEAR * 8 + 2 * 5 * 8 * 24 + 2 * (2 * 5 * 8 * 5) + 2 * 5 * 8 * 4),
        ("fused_matmul", LINEAR * 8 + 2 * 5 * 8 * 7 + 2 * 5 * 7 * 4),
        ("fused_matmul_activations", LINEAR * 8 + 2 * (2 * 5 * 5 * 8) + 2 * 5 * 8 * 4),
        ("fused_matmul_batch_of_the_left", 2 * 5 * 3 * 6 * 8 + 5 * 3 * 2 * 8 * 7 + 5 * 3 * 2 * 7 * 4),
        ("fused_gemm", 3 * 6 * 8 + 3 * 8 * 7 + 3 * 7 * 4),
        ("fused_conv", 36 * 2 * (3 * 8 + 8 * 8 * 9 + 8 * 4)),
    ],
)
def test_fused_operators_count_what_they_are_made_of(name, count):
    assert macs(Model.of(NETS[name]())) == count


def test_other_operators_are_free():
    proto = net("float[1,3,4,4] x", "float[3,1,1] s", "a = Mul(x, s) b = Relu(a) y = GlobalAveragePool(b)")()
    assert macs(Model.of(proto)) == 0


@pytest.mark.parametrize(
    ("equation", "shapes", "count"),
    [
        ("bij,bjk->bik", ("2,3,4", "2,4,5"), 2 * 3 * 4 * 5),
        ("...ij,jk->...ik", ("2,3,4", "4,5"), 2 * 3 * 4 * 5),
        ("...ij,...jk->...ik", ("1,3,4", "2,4,5"), 2 * 3 * 4 * 5),
        ("i,j->ij", ("3", "4"), 12),
        ("ij->ji", ("3,4",), 0),
        ("ij,jk,kl->il", ("2,3", "3,4", "4,5"), 2 * 2 * 3 * 4 * 5),
        ("ij,jk", ("2,3", "3,4"), 2 * 3 * 4),
    ],
)
def test_an_einsum_multiplies_every_combination_of_indices(equation, shapes, count):
    names = [f"x{number}" for number in range(len(shapes))]
    inputs = ", ".join(f"float[{shape}] {name}" for name, shape in zip(names, shapes, strict=True))
    proto = net(inputs, "float[1] c", f'y = Einsum<equation="{equation}">({", ".join(names)})')()
    assert macs(Model.of(proto)) == count


def test_a_net_of_two_einsums_has_the_multiplications_of_two_products():
    proto = net(
        "float[5,6] x",
        "float[6,8] w1, float[8,3] w2",
        'a = Einsum<equation="bi,ij->bj">(x, w1) b = Relu(a) y = Einsum<equation="bj,jk->bk">(b, w2)',
        "float[5,3] y",
    )()
    assert macs(Model.of(proto)) == 5 * 6 * 8 + 5 * 8 * 3


@pytest.mark.parametrize("name", sorted(name for name in NETS if name.startswith(("experts", "decoder_attention"))))
def test_experts_and_decoder_attention_are_counted(name):
    model = Model.of(NETS[name]())
    (node,) = (node for node in model.nodes if node.op in ("com.microsoft.MoE", DECODER))
    rest = sum(
        math.prod(model.shape(axis.tensor)[axis.dim] for axis in axes)
        for other in model.nodes
        if other is not node and (count := knowledge(other.op).macs)
        for axes in count(other, model)
    )
    x, out = model.shape(node.inputs[0]), model.shape(node.outputs[0])
    if node.op == DECODER:
        keys = model.shape(node.inputs[1])[1] if node.input(1) else out[1]
        own = 2 * math.prod(out) * keys
    else:
        weights = [math.prod(model.shape(node.inputs[slot])[1:]) for slot in (2, 4, 6) if node.input(slot)]
        own = math.prod(x[:-1]) * int(node.attributes.get("k", 1)) * sum(weights)
    assert own > 0
    assert macs(model) == (rest + own) // batch_size(model)


def test_weights_of_operators_that_nobody_registered_are_said_not_to_count():
    proto = net(
        "float[2,3] x",
        "float[3,4] w",
        "y = unknown.domain.Mixes(x, w)",
        "float[2,4] y",
        domains=', "unknown.domain": 1',
    )()
    assert uncounted_operators(Model.of(proto)) == ["unknown.domain.Mixes"]
    assert uncounted_operators(Model.of(NETS["conv"]())) == []


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_symbolic_batch_is_divided_out(batch):
    proto = net("float[N,3,4,4] x", "float[8,3,3,3] w", "y = Conv(x, w)")()
    model = Model.of(proto, {"N": batch})
    assert batch_size(model) == batch
    assert macs(model) == 8 * 3 * 9 * 4


def test_a_fixed_batch_is_part_of_the_model():
    proto = net("float[4,3,4,4] x", "float[8,3,3,3] w", "y = Conv(x, w)")()
    assert macs(Model.of(proto)) == 4 * 8 * 3 * 9 * 4


def test_operators_whose_sizes_depend_on_data_are_left_out():
    proto = net(
        "float[4,6] x",
        "float[6,5] w",
        "i = NonZero(x) t = Transpose(i) f = Cast<to=1>(t) y = MatMul(x, w) z = Identity(f)",
        outputs="y, z",
    )()
    assert macs(Model.of(proto)) == 4 * 6 * 5


def channels_are_alike(group: Group) -> bool:
    """Whether each channel owns as many indices of an axis as any other: a Gather may repeat some."""
    return all(
        len(set(np.bincount(owner[owner >= 0], minlength=group.size).tolist())) == 1 for owner in group.owner.values()
    )


@given(recipes(), st.floats(0.1, 0.9), st.integers(0, 3))
@settings(CI, max_examples=60)
def test_the_cost_of_a_plan_is_that_of_the_model_that_it_makes(recipe, ratio, seed):
    analysis = analyse(Model.of(build(recipe), {"N": BATCH}))
    groups, rng = analysis.prunable(), np.random.default_rng(seed)
    assume(groups and all(channels_are_alike(group) for group in groups))
    drop = select(groups, analysis.model, {group.name: rng.random(group.size) for group in groups}, ratio)
    removed = np.asarray([len(drop.get(group.name, ())) for group in groups], dtype=np.int64)
    real = macs(Model.of(rewrite(analysis, Plan.removing(drop, "")).proto, {"N": BATCH}))
    assert int(PlanCost(analysis.model, groups)(removed)) == real


def test_a_plan_that_removes_nothing_costs_what_the_model_costs():
    model = Model.of(net("float[1,3,4,4] x", "float[8,3,3,3] w, float[5,8,1,1] v", "a = Conv(x, w) y = Conv(a, v)")())
    groups = analyse(model).prunable()
    assert PlanCost(model, groups)(np.zeros(len(groups), np.int64)) == macs(model)


def test_every_further_channel_costs_less():
    model = Model.of(net("float[1,3,4,4] x", "float[8,3,3,3] w, float[5,8,1,1] v", "a = Conv(x, w) y = Conv(a, v)")())
    cost = PlanCost(model, analyse(model).prunable())
    costs = [cost(np.asarray([gone])) for gone in range(8)]
    assert np.diff(costs).tolist() == [-(4 * 27 + 4 * 5)] * 7


def test_experts_that_do_not_say_how_many_they_select_select_one():
    text = 'r = MatMul(x, w8) f = Reshape(r, rows) y = com.microsoft.MoE<{}activation_type="gelu">(x, f, w2, , w3)'
    weights = "float[6,3] w8, int64[2] rows = {-1, 3}, float[3,5,6] w2, float[3,6,5] w3"
    silent, one = (
        net("float[2,5,6] x", weights, text.format(k), "float[2,5,6] y", domains=', "com.microsoft": 1')()
        for k in ("", "k=1, ")
    )
    assert macs(Model.of(silent)) == macs(Model.of(one)) == 2 * 5 * 6 * 3 + 2 * 5 * 6 * 5 * 2
