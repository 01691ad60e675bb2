"""A wrong rule must be caught: each test here breaks one and expects the law, a shape or onnxruntime to object.

Spans are bent in one operator's couplings at a time; dropping a coupling means saying `Free` about its two axes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from bent import caught

from spa_onnx.model.facts import Axis, Choice, Coupling, Fact, Free, Normalises, Option, Pin, Span
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators import OPERATORS

Bend = Callable[[Node, Model, Fact], Iterator[Fact]]


def bend(monkeypatch, operator: str, how: Bend) -> None:
    """Let every fact of an operator's rule go through `how`."""
    right = OPERATORS[operator]

    def wrong(node: Node, model: Model) -> Iterator[Fact]:
        for fact in right.coupling(node, model):
            yield from how(node, model, fact)

    monkeypatch.setitem(OPERATORS, operator, replace(right, coupling=wrong))


def each(change: Callable[[Coupling], Coupling]) -> Bend:
    """Change every coupling with more than two channels, inside choices too."""

    def bent(_node: Node, _model: Model, fact: Fact) -> Iterator[Fact]:
        if isinstance(fact, Choice):
            yield replace(fact, options=tuple(Option(o.name, tuple(map(_changed, o.facts))) for o in fact.options))
        else:
            yield _changed(fact)

    def _changed(fact: Fact) -> Fact:
        return change(fact) if isinstance(fact, Coupling) and fact.a.count > 2 else fact

    return bent


def turned(coupling: Coupling) -> Coupling:
    """Channel k of one axis meets channel k + 1 of the other."""
    order = np.arange(coupling.b.count) if coupling.b.order is None else np.asarray(coupling.b.order)
    return replace(coupling, b=replace(coupling.b, order=tuple(np.roll(order, 1).tolist())))


def at_start(coupling: Coupling) -> Coupling:
    """Both spans begin at index 0."""
    return replace(coupling, a=replace(coupling.a, start=0), b=replace(coupling.b, start=0))


def in_natural_order(coupling: Coupling) -> Coupling:
    """Both spans count up."""
    return replace(coupling, a=replace(coupling.a, order=None), b=replace(coupling.b, order=None))


def _inside_out(span: Span) -> Span:
    """Blocks of neighbours become indices far apart, and the other way round."""
    if span.inner > 1:
        return replace(span, inner=1, outer=span.inner * span.outer, period=span.count)
    return replace(span, inner=span.outer, outer=1, period=0)


def inside_out(coupling: Coupling) -> Coupling:
    """The same number of indices for each channel, but others."""
    return replace(coupling, a=_inside_out(coupling.a), b=_inside_out(coupling.b))


def untied(*tensors: int) -> Bend:
    """No coupling to the inputs at these positions."""

    def bent(node: Node, _model: Model, fact: Fact) -> Iterator[Fact]:
        names = {node.inputs[slot] for slot in tensors}

        def touches(found: Fact) -> bool:
            return isinstance(found, Coupling) and bool({axis.tensor for axis in found.axes()} & names)

        if isinstance(fact, Choice):
            yield from (Free(axis) for axis in fact.axes())
            left = (Option(o.name, tuple(found for found in o.facts if not touches(found))) for o in fact.options)
            yield replace(fact, options=tuple(left))
        elif touches(fact):
            yield from (Free(axis) for axis in fact.axes())
        else:
            yield fact

    return bent


def without(kind: type) -> Bend:
    """Statistics and pins are forgotten."""

    def bent(_node: Node, _model: Model, fact: Fact) -> Iterator[Fact]:
        yield Free(fact.axis) if isinstance(fact, kind) else fact

    return bent


def all_axes_through(node: Node, model: Model) -> Iterator[Fact]:
    """As for an operator that works element by element."""
    for output in filter(None, node.outputs):
        yield from _matched(node, model, output)


def _matched(node: Node, model: Model, output: str) -> Iterator[Fact]:
    before, after = model.shape(node.inputs[0]), model.shape(output)
    for dim, size in enumerate(before):
        pair = (Axis(node.inputs[0], dim), Axis(output, dim))
        if dim < len(after) and size == after[dim]:
            yield Coupling(Span(pair[0], size), Span(pair[1], size), "wrong")
        else:
            yield Free(pair[0])
            yield from [Free(pair[1])] if dim < len(after) else []


BENT: list[tuple[str, str, Bend]] = [
    ("Conv", "conv", each(turned)),
    ("Conv", "conv", untied(2)),
    ("Conv", "conv", untied(0)),
    ("Conv", "conv_grouped_same_channel", each(turned)),
    ("Conv", "conv_grouped_same_channel", each(inside_out)),
    ("Conv", "conv_grouped_whole_groups", each(turned)),
    ("Conv", "conv_grouped_whole_groups", each(inside_out)),
    ("Conv", "conv_depthwise", each(turned)),
    ("Conv", "conv_depthwise_multiplier", each(inside_out)),
    ("ConvTranspose", "conv_transpose", each(turned)),
    ("ConvTranspose", "conv_transpose", untied(1)),
    ("ConvTranspose", "conv_transpose_same_channel", each(inside_out)),
    ("ConvTranspose", "conv_transpose_whole_groups", each(turned)),
    ("Gemm", "gemm", each(turned)),
    ("Gemm", "gemm_trans_b", untied(2)),
    ("MatMul", "matmul_right", each(turned)),
    ("MatMul", "matmul_left", each(turned)),
    ("MatMul", "matmul_two_activations", each(turned)),
    ("MatMul", "attention_heads", untied(0)),
    ("Add", "residual", each(turned)),
    ("Add", "residual", untied(1)),
    ("Mul", "binary_channel_and_width", untied(1)),
    ("PRelu", "binary_PRelu_per_channel", each(turned)),
    ("GridSample", "grid_sample", each(turned)),
    ("RoiAlign", "roi_align", untied(0)),
    ("ReverseSequence", "reverse_sequence", each(turned)),
    ("If", "branch_that_returns_what_is_outside", each(turned)),
    ("If", "branch_of_its_own_channels", each(turned)),
    ("Loop", "loop_mixes", each(turned)),
    ("Loop", "loop", untied(2)),
    ("Loop", "loop_from_a_constant", untied(2)),
    ("Scan", "scan_rows_alone", untied(1)),
    ("Scan", "scan_of_its_own_channels", untied(1)),
    ("Scan", "scan_with_a_constant_state", untied(0)),
    ("Where", "where_constant_condition", untied(0)),
    ("Relu", "residual", each(turned)),
    ("Clip", "clip", each(turned)),
    ("CumSum", "cum_sum_positions", each(turned)),
    ("BatchNormalization", "batch_normalization", each(turned)),
    ("BatchNormalization", "batch_normalization", untied(3)),
    ("InstanceNormalization", "instance_normalization", each(turned)),
    ("LRN", "lrn", without(Normalises)),
    ("LayerNormalization", "layer_normalization_inside", without(Normalises)),
    ("LpNormalization", "lp_normalization", without(Normalises)),
    ("ReduceL2", "reduce_l2_channels", without(Normalises)),
    ("ReduceMean", "reduce_to_scalar", without(Normalises)),
    ("ReduceMean", "reduce_mean_keeps", each(turned)),
    ("MaxPool", "max_pool", each(turned)),
    ("MaxPool", "max_pool_indices", without(Pin)),
    ("Resize", "resize_nearest", each(turned)),
    ("Concat", "concat", each(at_start)),
    ("Concat", "concat", each(turned)),
    ("Split", "split_sizes", each(at_start)),
    ("Slice", "slice_inputs", each(at_start)),
    ("Slice", "slice_step_two", each(in_natural_order)),
    ("Slice", "slice_backwards", each(in_natural_order)),
    ("Gather", "gather_constant", each(in_natural_order)),
    ("Gather", "gather_repeated", each(turned)),
    ("Pad", "pad_channels_input", each(at_start)),
    ("Reshape", "reshape_literal", each(inside_out)),
    ("Reshape", "attention_heads", each(inside_out)),
    ("Reshape", "reshape_splits_channels", each(inside_out)),
    ("Reshape", "reshape_deals_positions_out_over_batch_and_channels", each(inside_out)),
    ("Flatten", "flatten", each(inside_out)),
    ("Transpose", "transpose", each(turned)),
    ("Expand", "expand_literal", each(turned)),
    ("Tile", "tile_channels", each(inside_out)),
    ("DepthToSpace", "depth_to_space", each(inside_out)),
    ("DepthToSpace", "depth_to_space_crd", each(inside_out)),
    ("SpaceToDepth", "space_to_depth", each(inside_out)),
    ("Reshape", "group_normalization_decomposed", each(inside_out)),
    ("GroupNormalization", "group_normalization", each(inside_out)),
    ("GroupNormalization", "group_normalization_of_all", without(Normalises)),
    ("BatchNormalization", "batch_normalization_of_weights", without(Normalises)),
    ("GatherElements", "gather_elements", each(turned)),
    ("ScatterElements", "scatter_elements", untied(2)),
    ("ScatterND", "scatter_nd", each(turned)),
    ("GatherND", "gather_nd", each(turned)),
    ("Trilu", "trilu", each(turned)),
    ("Slice", "slice_chunks", each(at_start)),
    ("DequantizeLinear", "qdq_int8_per_axis", each(turned)),
    ("DequantizeLinear", "qdq_int8_per_axis", untied(1)),
    ("DequantizeLinear", "qdq_matmul_blocks_of_inputs", each(turned)),
    ("QuantizeLinear", "qdq_activations_per_axis", untied(2)),
    ("QLinearConv", "qlinear_conv", each(turned)),
    ("QLinearConv", "qlinear_conv_per_axis", untied(4)),
    ("QLinearMatMul", "qlinear_matmul", untied(4)),
    ("ConvInteger", "conv_integer", each(turned)),
    ("MatMulInteger", "matmul_integer", untied(3)),
    ("DynamicQuantizeLinear", "conv_integer_behind_cosine", without(Normalises)),
    ("com.microsoft.MatMulNBits", "matmul_of_4_bits", each(turned)),
    ("com.microsoft.MatMulNBits", "matmul_of_4_bits_by_blocks_in_one_row", each(turned)),
    ("com.microsoft.QGemm", "qgemm", untied(6)),
    ("com.microsoft.QLinearConcat", "qlinear_microsoft", each(at_start)),
    ("LSTM", "lstm", each(turned)),
    ("LSTM", "lstm", each(inside_out)),
    ("LSTM", "lstm_both_directions", each(inside_out)),
    ("LSTM", "lstm_peepholes", untied(7)),
    ("LSTM", "lstm_initial_states", untied(6)),
    ("GRU", "gru", untied(2)),
    ("GRU", "gru_linear_before_reset", each(turned)),
    ("GRU", "gru_linear_before_reset", untied(3)),
    ("RNN", "rnn_relu", untied(0)),
    ("RNN", "rnn_relu", each(turned)),
    ("Einsum", "einsum_weights", each(turned)),
    ("Einsum", "einsum_heads", each(turned)),
    ("com.microsoft.FusedMatMul", "fused_matmul", each(turned)),
    ("com.microsoft.FusedConv", "fused_conv", untied(3)),
    ("com.microsoft.BiasGelu", "bias_gelu", untied(1)),
    ("com.microsoft.MultiHeadAttention", "multi_head_attention", each(inside_out)),
    ("com.microsoft.MultiHeadAttention", "multi_head_attention_bias", untied(3)),
    ("com.microsoft.MultiHeadAttention", "multi_head_attention_narrow_values", untied(3)),
    ("com.microsoft.MultiHeadAttention", "multi_head_attention_cache", untied(6)),
    ("com.microsoft.DecoderMaskedMultiHeadAttention", "decoder_attention", untied(10)),
    ("com.microsoft.GroupQueryAttention", "group_query_attention_softcap", untied(10)),
    ("com.microsoft.GroupQueryAttention", "group_query_attention_softcap", untied(11)),
    ("com.microsoft.GroupQueryAttention", "group_query_attention_packed", each(at_start)),
    ("com.microsoft.GroupQueryAttention", "group_query_attention_single_key", each(turned)),
    ("com.microsoft.Attention", "attention_with_weights", each(inside_out)),
    ("com.microsoft.Attention", "attention_with_weights_narrow_values", untied(5)),
    ("com.microsoft.Attention", "attention_with_weights_cache", untied(4)),
    ("com.microsoft.FusedMatMul", "fused_matmul_batch_of_the_right", each(turned)),
    ("com.microsoft.MoE", "experts", untied(3)),
    ("com.microsoft.MoE", "experts_gated_beside", each(inside_out)),
    ("Attention", "attention_operator", each(inside_out)),
    ("Attention", "attention_operator_cache", untied(3)),
    ("Attention", "attention_operator_cache", untied(4)),
    ("TensorScatter", "tensor_scatter", each(turned)),
]
"""Operator, net, how its rule is bent."""


@pytest.mark.parametrize(("operator", "name", "how"), BENT, ids=lambda value: value if isinstance(value, str) else "")
def test_a_bent_rule_is_caught(monkeypatch, operator, name, how):
    bend(monkeypatch, operator, how)
    assert caught(name)


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        ("Softmax", "softmax_channels"),
        ("Softmax", "softmax_opset_11_over_all"),
        ("ArgMax", "arg_max_channels"),
        ("TopK", "top_k_channels"),
        ("CumSum", "cum_sum_channels"),
        ("Transpose", "transpose_reverses"),
        ("ReduceL2", "reduce_l2_channels"),
        ("Pad", "pad_reflect_channels"),
        ("Trilu", "trilu_channels"),
        ("GatherElements", "gather_elements_channels"),
    ],
)
def test_a_rule_that_takes_its_operator_for_elementwise_is_caught(monkeypatch, operator, name):
    monkeypatch.setitem(OPERATORS, operator, replace(OPERATORS[operator], coupling=all_axes_through))
    assert caught(name)


@pytest.mark.parametrize("name", sorted({name for _, name, _ in BENT}))
def test_the_rules_as_they_are_keep_the_law_on_the_same_seeds(name):
    assert caught(name) == ""


def test_a_net_without_prunable_channels_catches_nothing(monkeypatch):
    monkeypatch.setitem(OPERATORS, "Conv", replace(OPERATORS["Conv"], coupling=lambda _node, _model: iter(())))
    assert caught("conv") == ""
