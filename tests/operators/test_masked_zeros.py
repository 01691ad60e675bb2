"""Where a masked channel is zero in an activation: what is said, and that it is so when the masked model runs."""

import numpy as np
import pytest
from nets.build import tokens

from spa_onnx.analysis import analyse
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model
from spa_onnx.operators.zeros import is_zero_when_masked
from spa_onnx.plan.mask import mask
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.statistics.collect import with_outputs
from spa_onnx.synthetic.feeds import random_feed

MS = {"domains": ', "com.microsoft": 1'}
CLIP = "float low = {-1.0}, float high = {0.75}, float above = {0.25}, float below = {-0.25}"
PADDING = "int64[6] longer = {0, 1, 0, 0, 1, 0}, float nil = {0}, float one = {1}"
OLD = {"opset": 10}
HEADS = "com.microsoft.MultiHeadAttention<num_heads=4>"

ZERO = {
    "what a layer makes": tokens("z = Identity(a)"),
    "clip without bounds": tokens("z = Clip(a)"),
    "clip around zero": tokens("z = Clip(a, low, high)", CLIP),
    "clip from below": tokens("z = Clip(a, below)", CLIP),
    "clip from above": tokens("z = Clip(a, , above)", CLIP),
    "clip by attributes": tokens("z = Clip<min=-1.0, max=0.5>(a)", **OLD),
    "clip at zero": tokens("z = Clip<min=0.0, max=0.5>(a)", **OLD),
    "of another domain": tokens("z = com.microsoft.QuickGelu(a)", **MS),
    "a product with what does not vanish": tokens("c = Cos(a) z = Mul(c, a)"),
    "a sum of what vanishes": tokens("s = Sin(a) z = Add(s, a)"),
    "padding with zeros": tokens("z = Pad(a, longer, nil)", PADDING),
    "padding with zeros by default": tokens("z = Pad(a, longer)", PADDING),
    "padding with zeros by attribute": tokens("z = Pad<pads=[0,1,0,0,1,0]>(a)", **OLD),
    "values of attention": tokens(f"c = Cos(a) z = {HEADS}(c, c, a)", **MS),
}
NOT_ZERO = {
    "bent away from zero": tokens("z = Cos(a)"),
    "clip above zero": tokens("z = Clip(a, above, high)", CLIP),
    "clip below zero": tokens("z = Clip(a, low, below)", CLIP),
    "clip by attributes above zero": tokens("z = Clip<min=0.25, max=0.5>(a)", **OLD),
    "clip by attributes below zero": tokens("z = Clip<min=-1.0, max=-0.25>(a)", **OLD),
    "clip to what is computed": tokens("c = ReduceMax<keepdims=0>(x) z = Clip(a, , c)"),
    "a sum with what does not vanish": tokens("c = Cos(a) z = Add(c, a)"),
    "padding with ones": tokens("z = Pad(a, longer, one)", PADDING),
    "padding with ones by attribute": tokens("z = Pad<pads=[0,1,0,0,1,0], value=1.0>(a)", **OLD),
    "queries and keys of attention": tokens(f"c = Cos(a) z = {HEADS}(a, a, c)", **MS),
}


@pytest.mark.parametrize("name", ZERO)
def test_a_masked_channel_is_zero_behind(name):
    analysis = analyse(Model.of(ZERO[name]()))
    assert is_zero_when_masked("z", analysis.model)
    cut = rewrite(
        analysis, Plan.removing({group.name: np.arange(group.size // 2) for group in analysis.prunable()}, "")
    )
    masked = with_outputs(mask(analysis.model, cut.removal), ["z"])
    z = open_session(masked).run(random_feed(analysis.model, analysis.model.inference.dims, 0))[-1]
    assert (np.abs(z).max(axis=(0, 1)) == 0).sum() == 4


@pytest.mark.parametrize("name", NOT_ZERO)
def test_a_masked_channel_may_be_anything_behind(name):
    assert not is_zero_when_masked("z", Model.of(NOT_ZERO[name]()))


def test_packed_attention_is_zero_where_queries_keys_and_values_are():
    """onnxruntime's CPU kernel does not run this form."""
    nodes = f"s = Reshape(a, apart) z = {HEADS}(s)"
    build = tokens(nodes, "int64[5] apart = {2, 5, 4, 3, 2}", wide=24, into=8, **MS)
    assert is_zero_when_masked("z", Model.of(build()))
