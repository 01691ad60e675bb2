"""Zero propagation of each operator, compared with onnxruntime for every set of inputs that is zero in a channel."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from nets.build import net
from runtimes import runs

from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model
from spa_onnx.operators import knowledge

MS = {"domains": ', "com.microsoft": 1'}

CASES = {
    "BatchNormalization(x, s, b, m, v)": (
        "float[2,6,4] x:1, float[6] s:0, float[6] b:0, float[6] m:0, float[6] v:0",
        1,
        [{"s", "b"}],
        {},
    ),
    "InstanceNormalization(x, s, b)": ("float[2,6,4] x:1, float[6] s:0, float[6] b:0", 1, [{"s", "b"}], {}),
    "GroupNormalization<num_groups=2>(x, s, b)": (
        "float[2,6,4] x:1, float[6] s:0, float[6] b:0",
        1,
        [{"s", "b"}],
        {"opset": 21, "ir": 10},
    ),
    "LayerNormalization(x, s, b)": ("float[2,4,6] x:2, float[6] s:0, float[6] b:0", 2, [{"s", "b"}], {}),
    "LayerNormalization(x, s)": ("float[2,4,6] x:2, float[6] s:0", 2, [{"s"}], {}),
    "RMSNormalization(x, s)": ("float[2,4,6] x:2, float[6] s:0", 2, [{"s"}], {"opset": 23, "ir": 11}),
    "SimplifiedLayerNormalization(x, s)": ("float[2,4,6] x:2, float[6] s:0", 2, [{"s"}], {}),
    "com.microsoft.SkipLayerNormalization(x, r, s, b, c)": (
        "float[2,4,6] x:2, float[2,4,6] r:2, float[6] s:0, float[6] b:0, float[6] c:0",
        2,
        [{"s", "b"}],
        MS,
    ),
    "com.microsoft.SkipSimplifiedLayerNormalization(x, r, s, c)": (
        "float[2,4,6] x:2, float[2,4,6] r:2, float[6] s:0, float[6] c:0",
        2,
        [{"s"}],
        MS,
    ),
    "LRN<size=3>(x)": ("float[2,6,4,4] x:1", 1, [{"x"}], {}),
    "LpNormalization(x)": ("float[2,4,6] x:2", 2, [{"x"}], {}),
    "Conv(x, w, b)": ("float[2,3,4,4] x, float[6,3,1,1] w:0, float[6] b:0", 1, [{"w", "b"}], {}),
    "Conv(x, w)": ("float[2,3,4,4] x, float[6,3,1,1] w:0", 1, [{"w"}], {}),
    "ConvTranspose(x, w, b)": ("float[2,3,4,4] x, float[3,6,1,1] w:1, float[6] b:0", 1, [{"w", "b"}], {}),
    "DeformConv(x, w, o, b, k)": (
        "float[2,3,4,4] x, float[6,3,1,1] w:0, float[2,2,4,4] o, float[6] b:0, float[2,1,4,4] k",
        1,
        [{"w", "b"}],
        {"opset": 22, "ir": 10},
    ),
    "DeformConv(x, w, o)": (
        "float[2,3,4,4] x, float[6,3,1,1] w:0, float[2,2,4,4] o",
        1,
        [{"w"}],
        {"opset": 22, "ir": 10},
    ),
    "Gemm<transB=1>(x, w, b)": ("float[4,3] x, float[6,3] w:0, float[6] b:0", 1, [{"w", "b"}], {}),
    "MatMul(x, w)": ("float[4,3] x, float[3,6] w:1", 1, [{"w"}], {}),
    "Add(x, r)": ("float[4,6] x:1, float[4,6] r:1", 1, [{"x", "r"}], {}),
    "Mul(x, r)": ("float[4,6] x:1, float[4,6] r:1", 1, [{"x"}, {"r"}], {}),
    "Div(x, r)": ("float[4,6] x:1, float[4,6] r", 1, [{"x"}], {}),
    "PRelu(x, r)": ("float[4,6] x:1, float[6] r:0", 1, [{"x"}], {}),
    "Where(q, x, r)": ("bool[4,6] q, float[4,6] x:1, float[4,6] r:1", 1, [{"x", "r"}], {}),
    "Concat<axis=0>(x, r)": ("float[4,6] x:1, float[4,6] r:1", 1, [{"x", "r"}], {}),
    'Einsum<equation="bi,oi->bo">(x, w)': ("float[4,3] x, float[6,3] w:0", 1, [{"w"}], {}),
    "y, n = com.microsoft.EmbedLayerNormalization(i, , t, p, , s, b)": (
        "int32[2,4] i, float[9,6] t:1, float[9,6] p:1, float[6] s:0, float[6] b:0",
        2,
        [{"s", "b"}],
        MS,
    ),
    "ScatterND(x, i, u)": ("float[4,6] x:1, int64[2,1] i, float[2,6] u:1", 1, [{"x", "u"}], {}),
    "GatherND(x, i)": ("float[4,6] x:1, int64[2,1] i", 1, [{"x"}], {}),
    "CumSum(x, a)": ("float[4,6] x:1, int64 a", 1, [{"x"}], {}),
    "Trilu(x)": ("float[4,6] x:1", 1, [{"x"}], {}),
}
"""Node -> (inputs, each with its channel axis behind a colon; the channel axis of the output; the smallest sets of
inputs whose zeros the rule says to be kept; options of the net)."""


def inputs_of(declared: str) -> dict[str, tuple[str, int | None]]:
    """Return input name -> (its declaration, its channel axis or None)."""
    parts = [part.partition(":") for part in declared.split(", ")]
    return {head.split()[1]: (head, int(axis) if axis else None) for head, _, axis in parts}


def values(declaration: str, axis: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return random values of the declared type and shape that are at least 0.5; zero in channel 0 if axis is given."""
    kind, _, shape = declaration.split(maxsplit=1)[0].partition("[")
    sizes = [int(size) for size in shape.rstrip("]").split(",") if size]
    if kind != "float":
        return np.asarray(rng.integers(0, 2, sizes), {"bool": bool, "int32": np.int32, "int64": np.int64}[kind])
    drawn = (0.5 + rng.random(sizes)).astype(np.float32)
    if axis is not None:
        np.moveaxis(drawn, axis, 0)[0] = 0
    return drawn


@pytest.mark.parametrize("node", CASES)
def test_a_channel_is_zero_in_the_output_for_the_inputs_that_the_rule_names(node):
    declared, channel, smallest, options = CASES[node]
    inputs = inputs_of(declared)
    text = node if node.startswith("y, ") else f"y = {node}"
    proto = net(", ".join(head for head, _ in inputs.values()), "float[1] unread", text, **options)()
    if not runs(proto):
        pytest.skip("this onnxruntime has no kernel for it")
    session, model = open_session(proto), Model.of(proto)
    (only,) = model.nodes
    with_channel = [name for name, (_, axis) in inputs.items() if axis is not None]
    for zeros in map(set, chain.from_iterable(combinations(with_channel, n) for n in range(len(with_channel) + 1))):
        held = [(name in zeros) if name in with_channel else None for name in only.inputs]
        said = knowledge(only.op).zero(only, model, held)
        assert said == any(least <= zeros for least in smallest), zeros
        rng = np.random.default_rng(0)
        feed = {name: values(head, axis if name in zeros else None, rng) for name, (head, axis) in inputs.items()}
        y = session.run(feed)[0]
        if said:
            assert not np.take(y, 0, channel).any(), zeros
        assert np.take(y, 1, channel).any()
