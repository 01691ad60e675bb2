"""The shapes of operators that ONNX shape inference does not know, compared with those that onnxruntime computes."""

from __future__ import annotations

import pytest
from nets import NETS
from nets.build import net, tokens
from runtimes import runs

from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.traits import traits
from spa_onnx.statistics.collect import with_outputs
from spa_onnx.synthetic.feeds import random_feed

MS = {"domains": ', "com.microsoft": 1'}
HEADS = "com.microsoft.MultiHeadAttention<num_heads=4>"
GROUPED = "com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>"

FURTHER = {
    "keys and values of another length": net(
        "float[2,5,8] q, float[2,7,8] k, float[2,7,12] v", "float[1] unread", f"y, kp, vp = {HEADS}(q, k, v)", **MS
    ),
    "cross attention with heads on an axis": net(
        "float[2,5,8] q, float[2,4,7,2] k, float[2,4,7,2] v", "float[1] unread", f"y = {HEADS}(q, k, v)", **MS
    ),
    "a cache that the packed weights fill": tokens(
        "z, c = com.microsoft.Attention<num_heads=4>(a, w2, b2)", "float[8,24] w2, float[24] b2", **MS
    ),
    "a cache that goes on": net(
        "float[2,5,8] x, float[2,2,4,3,2] p",
        "float[8,24] w2, float[24] b2",
        "y, c = com.microsoft.Attention<num_heads=4>(x, w2, b2, , p)",
        **MS,
    ),
    "lengths of embedded sequences": net(
        "int32[2,5] ids, int32[2,5] given",
        "float[9,8] word, float[9,8] place, float[8] scale, float[8] b2",
        "y, n, s = com.microsoft.EmbedLayerNormalization<mask_index_type=1>(ids, , word, place, , scale, b2, given)",
        "float[2,5,8] y",
        **MS,
    ),
}


def nodes_with_equivalents(model: Model) -> list[Node]:
    return [node for node in model.nodes if traits(node.op).shape is not None]


CASES = {
    **{name: build for name, build in NETS.items() if nodes_with_equivalents(Model.of(build()))},
    **FURTHER,
}


@pytest.mark.parametrize("name", CASES)
def test_every_known_shape_is_that_of_onnxruntime(name):
    proto = CASES[name]()
    model = Model.of(proto)
    nodes = nodes_with_equivalents(model)
    names = list(dict.fromkeys(out for node in nodes for out in node.outputs if out))
    shown = with_outputs(proto, names)
    if not runs(shown):
        pytest.skip("this onnxruntime has no kernel for it")
    session = open_session(shown)
    arrays = dict(zip(session.outputs, session.run(random_feed(model, model.inference.dims, 0)), strict=True))
    known = {out: shape for out in names if (shape := model.shape(out)) is not None}
    assert known == {out: arrays[out].shape for out in known}
    assert {node.outputs[0] for node in nodes} <= set(known)
    if name in FURTHER:
        assert set(known) == set(names)


def test_a_cache_of_fixed_length_keeps_its_shape():
    """onnxruntime's CPU kernel does not run this form."""
    proto = net(
        "float[2,1,8] x, float[2,2,4,9,2] p, int32 n",
        "float[8,24] w2, float[24] b2",
        "y, c = com.microsoft.Attention<num_heads=4, past_present_share_buffer=1>(x, w2, b2, , p, , n)",
        **MS,
    )()
    model = Model.of(proto)
    assert (model.shape("y"), model.shape("c")) == ((2, 1, 8), (2, 2, 4, 9, 2))
