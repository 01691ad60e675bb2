"""Slices whose parameters are computed from the sizes of what they slice."""

from __future__ import annotations

from law import violation
from nets.build import image

from spa_onnx.pipeline import inspect

BOUNDS = "int64[1] none = {0}, int64[1] all = {8}, int64[1] one = {1}, int64[1] seven = {7}"


def test_a_step_that_is_computed_from_the_number_of_channels_keeps_them():
    """With fewer channels it would be another step, and no longer 1."""
    steps = image("s = Shape(a) c = Gather(s, one) t = Sub(c, seven) z = Slice(a, none, all, one, t)", BOUNDS)()
    assert "w1[0]" not in {group.name for group in inspect(steps).prunable()}
    fixed = image("z = Slice(a, none, all, one, one)", BOUNDS)()
    assert "w1[0]" in {group.name for group in inspect(fixed).prunable()}
    assert violation(fixed, 0) == ""
