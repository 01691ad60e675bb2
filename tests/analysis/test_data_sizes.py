"""Sizes that depend on data: only the number of rows is unknown, and every channel can be pruned."""

from __future__ import annotations

import pytest
from nets.build import Build, net

import spa_onnx
from spa_onnx.analysis import analyse
from spa_onnx.model.model import Model
from spa_onnx.operators import DATA_SIZE
from spa_onnx.pipeline import inspect

ROWS = "n = NonZero(gate) rows = Transpose<perm=[1,0]>(n) found = GatherND(x, rows)"
"""The rows of `x` at which `gate`, a vector, is positive."""

GATE = "lg = MatMul(x, r) rl = Relu(lg) gate = Squeeze(rl, last)"

MLP = "p = MatMul({}, u1) q = Relu(p) o = MatMul(q, u2)"
WEIGHTS = "float[16,1] r, float[16,24] u1, float[24,16] u2, int64[1] last = {1}"

BOXES = (
    "f = Conv<pads=[1,1,1,1]>(x, w1) g = Relu(f) "
    "score = Conv(g, ws) flat = Reshape(score, tens) "
    "sel = NonMaxSuppression(boxes, flat, most, iou) which = Gather<axis=1>(sel, two) "
    "plain = Squeeze(boxes, first) chosen = Gather<axis=0>(plain, which) "
    "zeros = Mul(which, none) "
    "roi = RoiAlign<output_height=2, output_width=2>(g, chosen, zeros) "
)
BOX_WEIGHTS = (
    "float[12,3,3,3] w1, float[1,12,1,1] ws, int64[3] tens = {1,1,-1}, int64 most = {5}, "
    "float iou = {0.4}, int64 two = {2}, int64[1] first = {0}, int64 none = {0}"
)

NETS: dict[str, tuple[Build, set[str]]] = {
    "experts": (
        net(
            "float[T,16] x",
            WEIGHTS + ", float[16,2] r2, int64 zero = {0}, int64 one = {1}, float[16,20] v1, float[20,16] v2",
            "lg = MatMul(x, r2) g = Relu(lg) gate = Gather<axis=1>(g, zero) other = Gather<axis=1>(g, one) "
            f'{ROWS} {MLP.format("found")} acc = ScatterND<reduction = "add">(x, rows, o) '
            "n2 = NonZero(other) rows2 = Transpose<perm=[1,0]>(n2) found2 = GatherND(x, rows2) "
            "p2 = MatMul(found2, v1) q2 = Relu(p2) o2 = MatMul(q2, v2) "
            'y = ScatterND<reduction = "add">(acc, rows2, o2)',
            "float[T,16] y",
            opset=18,
        ),
        {"u1[1]", "v1[1]"},
    ),
    "box_head": (
        net(
            "float[1,3,16,16] x, float[1,256,4] boxes",
            BOX_WEIGHTS + ", float[48,20] u1, float[20,5] u2",
            BOXES + "h = Flatten(roi) p = MatMul(h, u1) q = Relu(p) y = MatMul(q, u2)",
            "float[N,5] y",
            opset=16,
        ),
        {"w1[0]", "u1[1]"},
    ),
    "box_head_of_convolutions": (
        net(
            "float[1,3,16,16] x, float[1,256,4] boxes",
            BOX_WEIGHTS + ", float[20,12,1,1] u1, float[20] var, float[20] b, float[20] m, float[20] s, "
            "float[5,20,1,1] u2",
            BOXES + "p = Conv(roi, u1) k = BatchNormalization(p, s, b, m, var) q = Relu(k) y = Conv(q, u2)",
            "float[N,5,2,2] y",
            opset=16,
        ),
        {"w1[0]", "u1[0]"},
    ),
    "points": (
        net(
            "float[T,16] x",
            "float[2,24] u1, float[24,16] u2, float[16,3] u3",
            "n = NonZero(x) t = Transpose<perm=[1,0]>(n) c = Cast<to=1>(t) p = MatMul(c, u1) q = Relu(p) "
            "o = MatMul(q, u2) a = Relu(o) y = MatMul(a, u3)",
            "float[N,3] y",
        ),
        {"u1[1]", "u2[1]"},
    ),
    "heads_of_rows": (
        net(
            "float[T,16] x",
            WEIGHTS + ", float[16,16] wq, float[16,16] wk, float[16,16] wv, float[16,6] u3, "
            "int64[3] split = {-1,4,4}, int64[2] whole = {-1,16}",
            f"{GATE} {ROWS} "
            + " ".join(
                f"m{k} = MatMul(found, w{k}) s{k} = Reshape(m{k}, split) t{k} = Transpose<perm=[{order}]>(s{k})"
                for k, order in (("q", "1,0,2"), ("k", "1,2,0"), ("v", "1,0,2"))
            )
            + " sc = MatMul(tq, tk) pr = Softmax(sc) mix = MatMul(pr, tv) back = Transpose<perm=[1,0,2]>(mix) "
            f"z = Reshape(back, whole) {MLP.format('z')} y = MatMul(o, u3)",
            "float[N,6] y",
        ),
        {"wq[1]", "u1[1]", "u2[1]"},
    ),
    "rows_of_a_list": (
        net(
            "float[T,6] x, float[S,6] z",
            "float[6,16] w1, float[6,16] w2, float[16,24] u1, float[24,3] u2",
            "a = MatMul(x, w1) b = Relu(a) c = MatMul(z, w2) d = Relu(c) l = SequenceConstruct(b, d) "
            "k = ConcatFromSequence<axis=0>(l) p = MatMul(k, u1) q = Relu(p) y = MatMul(q, u2)",
            "float[N,3] y",
        ),
        {"u1[1]", "w1[1]"},
    ),
    "runs_of_a_loop": (
        net(
            "float[T,6] x, int64 times",
            "float[6,16] w1, float[16,16] w2, float[16,24] u1, float[24,3] u2, bool yes = {1}",
            "a = MatMul(x, w1) b = Relu(a) last, all = Loop(times, yes, b) "
            "<body = body (int64 i, bool c, float[T,16] e) => (bool d, float[T,16] f, float[T,16] g) "
            "{ h = MatMul(e, w2) f = Tanh(h) g = Relu(f) d = Identity(c) }> "
            "p = MatMul(all, u1) q = Relu(p) y = MatMul(q, u2)",
            "float[L,T,3] y",
        ),
        {"w1[1]", "u1[1]"},
    ),
    "sizes_of_rows": (
        net(
            "float[T,16] x",
            WEIGHTS + ", float[16,6] u3, int64[1] zero = {0}, int64[2] pieces = {2,12}, int64[1] one = {1}",
            f"{GATE} {ROWS} p = MatMul(found, u1) q = Relu(p) sh = Shape(q) count = Gather(sh, zero) "
            "target = Concat<axis=0>(count, pieces) s = Reshape(q, target) e = Sigmoid(s) "
            "width = Gather(sh, one) flat = Concat<axis=0>(count, width) f = Reshape(e, flat) o = MatMul(f, u2) "
            "y = MatMul(o, u3)",
            "float[N,6] y",
        ),
        {"u1[1]", "u2[1]"},
    ),
}
"""Nets with rows that are found, and the groups that can lose channels."""

HEAD = f"{GATE} {ROWS} p = MatMul(found, u1) q = Relu(p)"
INTO = "float[16,1] r, float[16,24] u1, int64[1] last = {1}"

RESHAPED: dict[str, tuple[Build, set[str]]] = {
    "two_rows_of_one": (
        net(
            "float[T,16] x",
            INTO + ", float[12,20] u2, float[20,3] u3, int64[2] target = {-1,12}",
            f"{HEAD} s = Reshape(q, target) o = MatMul(s, u2) a = Relu(o) y = MatMul(a, u3)",
            "float[N,3] y",
        ),
        {"u1[1]", "u2[1]"},
    ),
    "one_row_of_all": (
        net(
            "float[T,16] x",
            INTO + ", float[24,20] u2, float[20,3] u3, int64[1] one = {-1}, int64[2] target = {-1,24}",
            f"{HEAD} s = Reshape(q, one) e = Tanh(s) t = Reshape(e, target) o = MatMul(t, u2) a = Relu(o) "
            "y = MatMul(a, u3)",
            "float[N,3] y",
        ),
        {"u2[1]"},
    ),
    "rows_beside_channels": (
        net(
            "float[T,16] x",
            INTO + ", float[6,20] u2, float[20,3] u3, int64[2] target = {6,-1}",
            f"{HEAD} t = Transpose<perm=[1,0]>(q) s = Reshape(t, target) m = ReduceMax<axes=[1], keepdims=0>(s) "
            "o = MatMul(m, u2) a = Relu(o) y = MatMul(a, u3)",
            "float[3] y",
        ),
        {"u1[1]", "u2[1]"},
    ),
    "channels_shuffled_in_rows": (
        net(
            "float[T,16] x",
            INTO + ", float[24,20] u2, float[20,3] u3, int64[3] target = {-1,4,6}, int64[2] back = {-1,24}",
            f"{HEAD} s = Reshape(q, target) t = Transpose<perm=[0,2,1]>(s) b = Reshape(t, back) o = MatMul(b, u2) "
            "a = Relu(o) y = MatMul(a, u3)",
            "float[N,3] y",
        ),
        {"u1[1]", "u2[1]"},
    ),
}
"""Nets that reshape such rows, and the groups that can lose channels."""

LOST: dict[str, tuple[Build, set[str]]] = {
    "padded_by_a_computed_number": (
        net(
            "float[2,3,6,6] x, int64[8] pads",
            "float[12,3,1,1] w1, float[12,12,1,1] w2, float[4,12,1,1] w3",
            "a = Conv(x, w1) b = Pad(a, pads) c = Conv(b, w2) d = Relu(c) y = Conv(d, w3)",
            "float[N,4,H,W] y",
        ),
        {"w2[0]"},
    ),
    "a_computed_part": (
        net(
            "float[2,6] x, int64[1] end",
            "float[6,16] w1, float[12,20] w2, float[20,3] w3, int64[1] zero = {0}, int64[1] one = {1}",
            "a = MatMul(x, w1) b = Slice(a, zero, end, one) c = MatMul(b, w2) d = Relu(c) y = MatMul(d, w3)",
            "float[2,3] y",
        ),
        set(),
    ),
    "a_computed_number_of_groups": (
        net(
            "float[2,6] x, int64[3] target",
            "float[6,16] w1, float[4,4,20] w2, float[20,3] w3",
            "a = MatMul(x, w1) b = Reshape(a, target) c = MatMul(b, w2) d = Relu(c) y = MatMul(d, w3)",
            "float[A,B,3] y",
        ),
        set(),
    ),
    "normalised_channels": (
        net(
            "float[2,3,6,6] x, int64[4] target",
            "float[12,3,1,1] w1, float[12] s, float[12] b, float[12] m, float[12] var, float[20,12,1,1] w2, "
            "float[4,20,1,1] w3",
            "a = Conv(x, w1) r = Reshape(a, target) n = BatchNormalization(r, s, b, m, var) c = Conv(n, w2) "
            "d = Relu(c) y = Conv(d, w3)",
            "float[N,4,H,W] y",
        ),
        set(),
    ),
}
"""Nets in which shape inference loses a number of channels, which layers have fixed, and the groups beside it."""


@pytest.mark.parametrize("name", LOST)
def test_channels_whose_number_is_lost_are_pinned_on_both_sides(name):
    build, free = LOST[name]
    analysis = analyse(Model.of(build()))
    assert {group.name for group in analysis.prunable()} == free
    assert DATA_SIZE in {group.cause for group in analysis.pinned()}
    pinned = {group.name.partition("[")[0] for group in analysis.pinned()}
    assert {"w1", "w2"} <= pinned


@pytest.mark.parametrize("name", [*NETS, *RESHAPED])
def test_only_the_number_of_rows_is_pinned(name):
    build, free = (NETS | RESHAPED)[name]
    analysis = inspect(build())
    assert {group.name for group in analysis.prunable()} == free
    for group in analysis.prunable():
        assert not any(analysis.model.depends_on_data(axis) for axis in group.owner)
    sizes = {name: 24 for name in analysis.model.inference.dims if name in "TS"}
    report = spa_onnx.prune(build(), ratio=0.5, criterion="l1", dims=sizes).report
    assert report.validation.gap < 1e-4
    assert {name for name, *_ in report.groups} == free


@pytest.mark.parametrize("name", ["experts", "box_head", "points"])
def test_rows_that_are_found_are_samples_of_their_layers(name):
    build, free = NETS[name]
    result = spa_onnx.prune(build(), ratio=0.5, samples=16, dims={"T": 24} if "T" in _dims(build) else {})
    assert result.plan["repaired"]
    assert {group for group, *_ in result.report.groups} <= free


def _dims(build: Build) -> set[str]:
    return set(Model.of(build()).inference.dims)
