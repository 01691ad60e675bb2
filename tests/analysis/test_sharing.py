"""What exporters share between layers.

A table for tokens and logits, biases merged because they are equal, one constant behind many Reshapes.
"""

import numpy as np
import pytest
from law import random_drop
from nets.build import net
from onnx import numpy_helper

from spa_onnx.analysis import analyse
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model
from spa_onnx.plan.mask import mask
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.synthetic.feeds import random_feed
from spa_onnx.validation.masked import difference

WIDTH, HEADS = 12, 4


def block(x: str, y: str, layer: str) -> str:
    """Attention and a gated layer, each behind a norm.

    Both layers share every constant but the weights, and all their biases.
    """
    q, k, v = (f"{part}{layer}" for part in "qkv")
    return " ".join(
        [
            f"n{layer} = LayerNormalization({x}, scale, zero{layer})",
            *(
                f"m{p} = MatMul(n{layer}, w{p}) b{p} = Identity(zero) a{p} = Add(m{p}, b{p}) "
                f"r{p} = Reshape(a{p}, split)"
                for p in (q, k, v)
            ),
            (
                f"t{q} = Transpose<perm=[0,2,1,3]>(r{q}) t{k} = Transpose<perm=[0,2,3,1]>(r{k}) "
                f"t{v} = Transpose<perm=[0,2,1,3]>(r{v})"
            ),
            f"s{layer} = MatMul(t{q}, t{k}) p{layer} = Softmax(s{layer}) o{layer} = MatMul(p{layer}, t{v})",
            (
                f"ot{layer} = Transpose<perm=[0,2,1,3]>(o{layer}) c{layer} = Reshape(ot{layer}, merge) "
                f"d{layer} = MatMul(c{layer}, wo{layer})"
            ),
            (
                f"e{layer} = Add(d{layer}, zero) x{layer} = Add({x}, e{layer}) "
                f"l{layer} = LayerNormalization(x{layer}, scale, zero)"
            ),
            (
                f"u{layer} = MatMul(l{layer}, wu{layer}) g{layer} = MatMul(l{layer}, wg{layer}) "
                f"h{layer} = Sigmoid(g{layer})"
            ),
            f"i{layer} = Mul(u{layer}, h{layer}) j{layer} = MatMul(i{layer}, wd{layer}) {y} = Add(x{layer}, j{layer})",
        ]
    )


def weights(layer: str) -> str:
    square = ", ".join(f"float[{WIDTH},{WIDTH}] w{part}{layer}" for part in "qkvo")
    return f"{square}, float[{WIDTH},20] wu{layer}, float[{WIDTH},20] wg{layer}, float[20,{WIDTH}] wd{layer}"


language = net(
    "int64[N,S] ids",
    f"float[30,{WIDTH}] table, float[{WIDTH}] zero, float[{WIDTH}] scale, {weights('1')}, {weights('2')}, "
    f"int64[4] split = {{0, 0, {HEADS}, {WIDTH // HEADS}}}, int64[3] merge = {{0, 0, {WIDTH}}}",
    f"x = Gather(table, ids) zero1 = Identity(zero) zero2 = Identity(zero1) "
    f"{block('x', 'y1', '1')} {block('y1', 'y2', '2')} "
    "f = LayerNormalization(y2, scale) t = Transpose(table) logits = MatMul(f, t)",
    outputs="float[N,S,30] logits",
)
"""Two layers of a language model."""

SIZES = ({"N": 2, "S": 16}, {"N": 3, "S": 5}, {"N": 1, "S": 7})


@pytest.fixture(scope="module", params=[False, True], ids=["heads", "width"])
def case(request):
    """(whether the width goes, analysis, rewritten)"""
    analysis = analyse(Model.of(language()), inexact=request.param)
    return request.param, analysis, rewrite(analysis, Plan.removing(random_drop(analysis.prunable(), 0, 0.5), ""))


def shapes(proto):
    return {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


def test_each_layer_loses_its_own_heads_and_features_and_all_share_one_width(case):
    wide, analysis, _ = case
    sizes = sorted(group.size for group in analysis.prunable())
    assert sizes == sorted([HEADS] * 2 + [20] * 2 + [WIDTH] * wide)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_pruned_model_runs_on_batches_and_sequences_of_any_size(case, sizes):
    wide, analysis, rewritten = case
    feed = random_feed(analysis.model, sizes, seed=1)
    (got,) = open_session(rewritten.proto).run(feed)
    assert got.shape == (sizes["N"], sizes["S"], 30)
    (want,) = open_session(mask(analysis.model, rewritten.removal)).run(feed)
    assert wide or difference(want, got) < 1e-5


def test_a_bias_that_uses_share_is_cut_for_each_of_them(case):
    """Queries, keys and values of two layers and four norms read one vector of zeros.

    They read it directly or through an Identity.
    """
    wide, _, rewritten = case
    zeros = {cut.name: cut.kept[0] for cut in rewritten.tensors if cut.source == "zero"}
    assert {len(kept) for kept in zeros.values()} == {6}
    assert len(zeros) == (3 if wide else 2)  # the heads of either layer, and the width
    made = shapes(rewritten.proto)
    assert all(made[name] == (6,) for name in zeros)


def test_the_table_of_tokens_stays_one_table(case):
    wide, _, rewritten = case
    made = shapes(rewritten.proto)
    assert [name for name in made if name.startswith("table")] == ["table"]
    assert made["table"] == (30, WIDTH // 2 if wide else WIDTH)


def test_one_constant_behind_many_reshapes_follows_once(case):
    _, _, rewritten = case
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in rewritten.proto.graph.initializer}
    targets = {node.input[1] for node in rewritten.proto.graph.node if node.op_type == "Reshape"}
    assert sorted(stored[name].tolist() for name in targets) == sorted(
        [[0, 0, HEADS // 2, WIDTH // HEADS], [0, 0, WIDTH // 2]]
    )


def test_layers_that_lose_different_numbers_of_heads_get_targets_of_their_own():
    analysis = analyse(Model.of(language()))
    heads = [group.name for group in analysis.prunable() if group.size == HEADS]
    plan = Plan.removing({heads[0]: np.asarray([1]), heads[1]: np.asarray([0, 1, 3])}, "")
    rewritten = rewrite(analysis, plan)
    feed = random_feed(analysis.model, SIZES[1], seed=2)
    want, got = (open_session(proto).run(feed) for proto in (mask(analysis.model, rewritten.removal), rewritten.proto))
    assert difference(want[0], got[0]) < 1e-5
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in rewritten.proto.graph.initializer}
    targets = {node.input[1] for node in rewritten.proto.graph.node if node.op_type == "Reshape"}
    assert sorted(stored[name].tolist() for name in targets) == [[0, 0, 1, 3], [0, 0, 3], [0, 0, 3, 3], [0, 0, 9]]
