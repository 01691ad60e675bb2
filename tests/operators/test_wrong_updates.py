"""Shape updates and shuffle orders that are wrong on purpose: the law catches each."""

from dataclasses import replace

import numpy as np
import pytest
from bent import caught

from spa_onnx.analysis.shuffle import Chain
from spa_onnx.operators import OPERATORS
from spa_onnx.operators.updates import SetAttribute, SetInput


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        ("Conv", "conv_grouped_whole_groups"),
        ("ConvTranspose", "conv_transpose_depthwise"),
        ("Split", "split_sizes"),
        ("Split", "split_num_outputs_uneven"),
        ("Split", "split_attribute"),
        ("Slice", "slice_inputs"),
        ("Slice", "slice_attribute"),
        ("Slice", "slice_step_two"),
        ("Gather", "gather_constant"),
        ("Pad", "pad_channels_input"),
        ("Pad", "pad_channels_attribute"),
        ("Reshape", "reshape_literal"),
        ("Reshape", "symbolic_literal"),
        ("Expand", "expand_literal"),
        ("ConstantOfShape", "constant_of_shape_literal_large"),
        ("Resize", "resize_linear_sizes"),
        ("GroupNormalization", "group_normalization"),
        ("com.microsoft.MultiHeadAttention", "multi_head_attention"),
        ("Attention", "attention_operator_grouped"),
        ("LSTM", "lstm"),
        ("com.microsoft.MatMulNBits", "matmul_of_4_bits"),
        ("QLinearConv", "qlinear_conv"),
        ("GRU", "gru_both_directions"),
        ("RNN", "rnn"),
        ("com.microsoft.RotaryEmbedding", "rotary_embedding_fused"),
        ("com.microsoft.RotaryEmbedding", "rotary_embedding_of_part"),
        ("com.microsoft.GroupQueryAttention", "group_query_attention_single_key"),
        ("com.microsoft.Attention", "attention_with_weights_narrow_values"),
    ],
)
def test_a_missing_shape_update_is_caught(monkeypatch, operator, name):
    monkeypatch.setitem(OPERATORS, operator, replace(OPERATORS[operator], update=None))
    assert caught(name)


@pytest.mark.parametrize(
    ("operator", "name", "edit"),
    [
        ("Conv", "conv_grouped_whole_groups", SetAttribute("group", 1)),
        ("Slice", "slice_inputs", SetInput(1, np.asarray([0]))),
        ("Pad", "pad_channels_axes", SetInput(1, np.asarray([1, 1]))),
        ("Gather", "gather_int32", SetInput(1, np.arange(4))),
        ("Split", "split_equal_gate", SetInput(1, np.asarray([1, 3]))),
    ],
)
def test_a_wrong_shape_update_is_caught(monkeypatch, operator, name, edit):
    wrong = replace(OPERATORS[operator], update=lambda _node, _model, _cut: iter([edit]))
    monkeypatch.setitem(OPERATORS, operator, wrong)
    assert caught(name)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("shuffle", np.sort),
        ("shuffle", np.flip),
        ("shuffle_dynamic_batch", np.sort),
        ("shuffle_pairs", np.flip),
        ("shuffle_v2_stage", np.flip),
        ("shuffle_twice", np.flip),
    ],
)
def test_a_wrong_order_of_a_shuffle_is_caught(monkeypatch, name, how):
    right = Chain.order
    monkeypatch.setattr(
        Chain,
        "order",
        lambda chain, output, dim: how(right(chain, output, dim)) if dim == 1 else right(chain, output, dim),
    )
    assert caught(name)
