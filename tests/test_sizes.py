"""Sizes of symbolic dimensions: those at which rules and runs succeed, and the smallest of these."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from nets.build import Build, net
from runtimes import needs_runtime

import spa_onnx
from spa_onnx.config import Settings
from spa_onnx.errors import RefusedError, RuleError
from spa_onnx.model.source import open_source
from spa_onnx.pipeline import inspect, resolved
from spa_onnx.steps import Original, RunOptions, runnable

if TYPE_CHECKING:
    import onnx

CONV = "c = Conv<pads=[1,1]>(x, w1) r = Relu(c) t = Reshape(r, target)"

STREAMS: dict[str, Build] = {
    "lstm": net(
        "float[bx,3,20] x, float[bh,8] h, float[bc,8] c0",
        "float[12,3,3] w1, float[1,32,240] W, float[1,32,8] R, float[8,6] w2, float[6,2] w3, "
        "int64[3] target = {-1,1,240}, int64[1] zero = {0}, int64[1] one = {1}",
        f"{CONV} h1 = Unsqueeze(h, zero) c1 = Unsqueeze(c0, zero) "
        "o, hn, cn = LSTM<hidden_size=8>(t, W, R, , , h1, c1) q = Squeeze(o, one) d = MatMul(q, w2) e = Relu(d) "
        "y = MatMul(e, w3) last = Squeeze(hn, zero)",
        "float[t,1,2] y, float[1,8] last",
    ),
    "gru_in_two_directions": net(
        "float[bx,3,20] x, float[2,bh,8] h",
        "float[12,3,3] w1, float[2,24,240] W, float[2,24,8] R, float[8,6] w2, float[6,2] w3, "
        "int64[3] target = {-1,1,240}",
        f'{CONV} o = GRU<hidden_size=8, direction="bidirectional">(t, W, R, , , h) d = MatMul(o, w2) e = Relu(d) '
        "y = MatMul(e, w3)",
    ),
    "offsets_of_one_sample": net(
        "float[bx,3,h,w] x, float[1,18,h,w] offsets",
        "float[12,3,3,3] w1, float[9,12,3,3] w2, float[2,9,1,1] w3",
        "c = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(c) "
        "d = DeformConv<pads=[1,1,1,1], kernel_shape=[3,3]>(r, w2, offsets) e = Relu(d) y = Conv(e, w3)",
        opset=19,
    ),
}
"""Nets that run only if the batch is 1. Shape inference accepts any batch, and the coupling rules do not."""


@pytest.mark.parametrize("name", STREAMS)
def test_a_model_that_runs_only_at_batch_1_is_pruned_there(name):
    if name == "offsets_of_one_sample":
        needs_runtime("deform_conv")
    sizes = inspect(STREAMS[name]()).model.inference.dims
    assert {sizes[batch] for batch in sizes.keys() & {"bx", "bh", "bc"}} == {1}
    report = spa_onnx.prune(STREAMS[name](), ratio=0.5, criterion="l1").report
    assert len(report.groups) >= 2
    assert report.validation.gap < 1e-4


@pytest.mark.parametrize("name", STREAMS)
def test_without_a_run_the_sizes_still_fit_the_rules(name):
    assert len(spa_onnx.prune(STREAMS[name](), ratio=0.5, criterion="l1", check=False).report.groups) >= 2


def test_when_no_size_fits_the_message_names_the_dimensions_and_the_option():
    proto = net(
        "float[T,2,6] x, float[1,M,8] h",
        "float[6,6] w1, float[1,24,6] W, float[1,24,8] R, float[8,6] w2",
        "a = MatMul(x, w1) o = GRU<hidden_size=8>(a, W, R, , , h) y = MatMul(o, w2)",
    )()
    with pytest.raises(RefusedError, match=r"batch of GRU .* sizes with --dim NAME=SIZE \(dimensions: T\)"):
        inspect(proto, dims={"M": 3})
    with pytest.raises(RuleError, match=r"^batch of GRU"):
        inspect(proto, dims={"M": 3, "T": 4})
    with pytest.raises(RefusedError, match=r"GRU .* sizes with --dim NAME=SIZE \(dimensions: T, M\)"):
        spa_onnx.prune(proto, ratio=0.5, criterion="l1", dims={"M": 1})
    assert spa_onnx.prune(proto, ratio=0.5, criterion="l1").report.validation.gap < 1e-4


def test_when_no_size_leads_to_known_shapes_the_message_names_the_dimensions_too():
    proto = net(
        "float[N,3,T] x",
        "float[12,3,3] w1, float[36,6] w2, float[6,2] w3, int64[2] target = {-1,36}, int64[2] fixed = {7,3}",
        "c = Conv<pads=[1,1]>(x, w1) r = Relu(c) f = Reshape(r, target) d = MatMul(f, w2) e = Relu(d) "
        "v = MatMul(e, w3) y = Reshape(v, fixed)",
    )()
    with pytest.raises(RefusedError, match=r"sizes with --dim NAME=SIZE \(dimensions: N, T\)"):
        spa_onnx.prune(proto, ratio=0.5, criterion="l1")


# --- smaller sizes ---------------------------------------------------------------------------------------------------

LARGE: dict[str, tuple[Build, dict[str, int]]] = {
    "kernel_of_100": (
        net(
            "float[N,3,H,W] x",
            "float[8,3,3,3] w1, float[4,8,1,1] w2",
            "c = Conv<strides=[2,2]>(x, w1) r = Relu(c) p = MaxPool<kernel_shape=[50,20]>(r) y = Conv(p, w2)",
        ),
        {"N": 1, "H": 128, "W": 64},
    ),
    "long_sound": (
        net(
            "float[N,1,T] x, float[N,3,H,W] image",
            "float[8,1,400] w1, float[8,3,3,3] w2, float[4,8,1,1] w3",
            "c = Conv<strides=[20]>(x, w1) r = Relu(c) p = GlobalAveragePool(r) "
            "shape = Constant<value_ints=[0,0,1,1]>() q = Reshape(p, shape) "
            "d = Conv<pads=[1,1,1,1]>(image, w2) e = Add(d, q) f = Relu(e) y = Conv(f, w3)",
        ),
        {"N": 1, "T": 512, "H": 64, "W": 64},
    ),
    "a_multiple_of_96": (
        net(
            "float[N,3,H,W] x",
            "float[8,3,3,3] w1, float[4,8,1,1] w2, int64[6] blocks = {0,8,-1,96,1,192}",
            "c = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(c) s = Reshape(r, blocks) "
            "t = ReduceMax<axes=[2,3,4], keepdims=0>(s) shape = Constant<value_ints=[0,0,1,-1]>() "
            "u = Reshape(t, shape) y = Conv(u, w2)",
        ),
        {"N": 1, "H": 96, "W": 192},
    ),
}
"""Nets that do not run at the first guesses, and the sizes at which they are pruned."""


@pytest.mark.parametrize("name", LARGE)
def test_sizes_above_the_first_guess_are_as_small_as_the_model_allows(name):
    build, expected = LARGE[name]
    assert sizes(build()) == expected


def sizes(proto: onnx.ModelProto, **dims: int) -> dict[str, int]:
    """The sizes of symbolic dimensions at which a model is pruned."""
    source, settings = open_source(proto), resolved(Settings(ratio=0.5, criterion="l1"))
    original = Original.of(source, RunOptions(dims=dims), settings)
    analysis, original = runnable(source, dims, settings, original)
    assert analysis.model.inference.dims == original.inputs.dims
    return dict(original.inputs.dims)


def test_given_sizes_stay():
    build, _ = LARGE["kernel_of_100"]
    assert sizes(build(), H=400) == {"N": 2, "H": 400, "W": 64}
    assert sizes(build(), H=400, W=300) == {"N": 2, "H": 400, "W": 300}


def test_a_size_that_is_computed_from_a_smaller_one_follows_it():
    proto = net(
        "float[N,1,T] x, float[N,1,U] z",
        "float[8,1,100] w1, float[8,1,3] w2, float[4,8,1] w3",
        "c = Conv<strides=[2]>(x, w1) p = MaxPool<kernel_shape=[25]>(c) d = Conv<strides=[2]>(z, w2) "
        "m = GlobalMaxPool(p) e = Add(d, m) f = Relu(e) y = Conv(f, w3)",
    )()
    proto.graph.input[1].type.tensor_type.shape.dim[2].dim_param = "T // 2"
    assert sizes(proto) == {"N": 1, "T": 160, "T // 2": 80}
