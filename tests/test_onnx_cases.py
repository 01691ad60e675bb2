"""ONNX's own test models: whatever the graph, a result that is verified or a refusal with its reason."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from onnx_cases import VARIANTS, Case, driven, framed, frozen, node_cases, outcomes, stored_cases, tally

from spa_onnx.operators import OPERATORS

pytestmark = pytest.mark.slow  # making the node tests alone takes seconds

SHARDS = 8

LEAST = {"as it is": 0, "frozen": 0, "framed": 600, "driven": 200}
"""Node tests of which at least so many are pruned: refusing everything is no way to pass."""


def case(name: str) -> Case:
    return next(case for case in node_cases() if case.name == name)


def check(cases: tuple[Case, ...], variant: str) -> int:
    """The number of models that were pruned; none may be wrong."""
    found = list(outcomes(cases, variant))
    assert [(name, each) for name, each in found if each.kind in ("wrong", "traceback")] == []
    return tally(found)["verified"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_node_test(variant, shard):
    assert check(node_cases()[shard::SHARDS], variant) >= LEAST[variant] / SHARDS / 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stored_model(variant):
    check(stored_cases(), variant)


FOUND = (
    "framed test_attention_4d",
    "framed test_attention_3d_gqa_attn_mask",
    "framed test_attention_4d_with_qk_matmul",
    "framed test_rotary_embedding",
    "framed test_rotary_embedding_no_position_ids",
    "framed test_log_example",
    "framed test_slice_neg_steps",
    "framed test_affine_grid_2d_expanded",
    "frozen test_attention_bidirectional_window_expanded",
    "driven test_div_example",
)
"""What these models were the first to show."""


@pytest.mark.parametrize("which", FOUND)
def test_a_model_that_was_wrong_once(which):
    variant, name = which.split()
    check((case(name),), variant)


def test_there_are_more_than_two_thousand():
    assert len(node_cases()) + len(stored_cases()) > 2000


def test_freezing_leaves_the_first_float_input():
    made = frozen(case("test_gemm_default_vector_bias"))
    assert [value.name for value in made.graph.input] == ["a"]
    assert [tensor.name for tensor in made.graph.initializer] == ["b", "c"]
    assert frozen(case("test_relu")) is None


def test_a_frame_is_a_valid_model_around_the_same_operator():
    for made in (framed(case("test_concat_3d_axis_1")), driven(case("test_concat_3d_axis_1"))):
        onnx.checker.check_model(made, full_check=True)
        assert [node.op_type for node in made.graph.node].count("Concat") == 1


@pytest.mark.parametrize("operator", ["Concat", "Slice", "Transpose", "Tile", "Reshape"])
def test_a_rule_that_frees_everything_is_caught(operator, monkeypatch):
    def careless(node, model):
        from spa_onnx.model.facts import Axis, Free  # noqa: PLC0415 - only the wrong rule needs them

        yield from (Free(Axis(n, d)) for n in (node.inputs[0], *node.outputs) for d in range(len(model.shape(n))))

    monkeypatch.setitem(OPERATORS, operator, replace(OPERATORS[operator], coupling=careless))
    cases = tuple(c for c in node_cases() if c.proto.graph.node[0].op_type == operator)
    kinds = tally(list(outcomes(cases, "framed")))
    assert kinds["wrong"] + kinds["traceback"] > 0
