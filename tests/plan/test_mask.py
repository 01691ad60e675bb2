"""The masked model: which constants it holds at zero, and which have to stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
from nets import NETS
from nets.build import image

from spa_onnx.analysis import analyse
from spa_onnx.model.model import Model
from spa_onnx.plan.mask import losing
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite

WIDE = "float[8,1,1] var1"
ALWAYS = {("Conv", "w1"), ("Conv", "b1"), ("Conv", "w9")}

MASKED = {
    "gather_constant": (NETS["gather_constant"], set()),
    "scaled": (image("z = Mul(a, var1)", WIDE), {("Mul", "var1")}),
    "divided": (image("z = Div(a, var1)", WIDE), set()),
    "divided by what is computed from a constant": (image("r = Sqrt(var1) s = Identity(r) z = Div(a, s)", WIDE), set()),
    "divided by what is computed from the input": (
        image("b = Exp(a) c = Mul(b, var1) d = Add(c, var1) z = Div(a, d)", WIDE),
        {("Mul", "var1"), ("Add", "var1")},
    ),
}
"""Net, and what is masked of it beside the two convolutions: operator and constant."""


@pytest.mark.parametrize("name", MASKED)
def test_divisors_and_indices_stay_and_all_else_that_loses_channels_is_masked(name):
    build, wanted = MASKED[name]
    analysis = analyse(Model.of(build()))
    drop = {group.name: np.arange(group.size // 2) for group in analysis.prunable()}
    removal = rewrite(analysis, Plan.removing(drop, "")).removal
    assert drop
    found = set()
    for node, slot, _ in losing(analysis.model, removal):
        name = node.inputs[slot]
        found.add((node.op, analysis.model.source.get(name, name)))
    assert found == ALWAYS | wanted
