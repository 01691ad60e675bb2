"""Everything that is known about an operator is stated once, and nothing that has to be known is missing."""

from __future__ import annotations

import ast
from collections import defaultdict
from itertools import permutations
from pathlib import Path

import pytest
from nets import NETS

import spa_onnx
from spa_onnx.layers.find import LAYERS
from spa_onnx.model.facts import Coupling
from spa_onnx.model.model import Model
from spa_onnx.model.quantisation import float_form
from spa_onnx.model.traits import TRAITS
from spa_onnx.operators import OPERATORS, facts, knowledge

ROOT = Path(spa_onnx.__file__).parent

LOOKUPS = {"Gather", "Scatter", "ScatterElements", "com.microsoft.EmbedLayerNormalization"}
"""Operators that take or place elements of a matrix and multiply by none."""


def float_name(operator: str) -> str:
    """The operator that a quantised one computes in float, or the operator itself."""
    form = TRAITS[operator].quantised
    return form.operator if form and form.operator else operator


def reading_a_matrix() -> dict[str, set[str]]:
    """Return operator -> nets in which it sums over an axis of a constant with two axes or more.

    Such an axis is tied to an input and to no output.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for name, build in NETS.items():
        model = Model.of(build())
        for node in model.nodes:
            plain = (float_form(node) or (node.op, node))[1]
            ties = [(a, b) for f in facts(node, model) if isinstance(f, Coupling) for a, b in permutations(f.axes())]
            written = {a for a, b in ties if b.tensor in plain.outputs}
            if any(_is_summed(model, a.tensor) and b.tensor in plain.inputs and a not in written for a, b in ties):
                found[node.op].add(name)
    return found


def _is_summed(model: Model, tensor: str) -> bool:
    return model.is_weight(tensor) and sum(size > 1 for size in model.shape(tensor)) > 1


READING = reading_a_matrix()


def test_the_nets_hold_the_operators_that_multiply_by_weights():
    assert {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "LSTM", "com.microsoft.MoE", "QLinearConv"} <= set(
        READING
    )


@pytest.mark.parametrize("operator", sorted(set(READING) - LOOKUPS))
def test_an_operator_that_sums_over_a_weight_counts_its_multiplications(operator):
    assert knowledge(float_name(operator)).macs is not None


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_an_operator_with_multiplications_is_a_linear_layer_or_says_why_it_is_not_refitted(operator):
    if OPERATORS[operator].macs is None:
        assert operator not in LAYERS
        assert OPERATORS[operator].not_refitted == ""
    else:
        assert (operator in LAYERS) != bool(OPERATORS[operator].not_refitted)


def test_every_room_knows_the_same_operators():
    assert set(OPERATORS) == set(TRAITS)
    assert set(LAYERS) <= set(OPERATORS)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_parameters_that_a_shape_update_sets_right_are_parameters_of_an_operator_that_has_one(operator):
    entry = OPERATORS[operator]
    assert entry.corrects <= entry.parameters
    assert entry.update is not None or not entry.corrects


def quoted(path: Path) -> set[str]:
    """The strings of a file, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in prose)
    return {word for node in strings if isinstance(node.value, str) for word in node.value.split()}


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Reshape", "DeformConv"])
def test_an_operator_is_named_in_its_family_alone(operator):
    named = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if operator in quoted(path)}
    assert len(named) == 1, named
    assert named.pop().startswith("operators/")
