"""What attention may lose, by its setting and by how it is written."""

import numpy as np
import pytest
from nets import NETS
from nets.build import net
from nets.transformer import fused

from spa_onnx.analysis import analyse
from spa_onnx.execution.session import open_session
from spa_onnx.model.facts import Coupling
from spa_onnx.model.model import Model
from spa_onnx.operators import facts
from spa_onnx.plan.mask import mask
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.synthetic.feeds import random_feed
from spa_onnx.validation.masked import difference

ONE_OPERATOR = ("multi_head_attention", "group_query_attention", "attention_with_weights", "attention_operator_grouped")
DECOMPOSED = ("attention_heads", "attention_fused_qkv", "attention_multi_query")


def sizes(build, **options):
    return {group.name: group.size for group in analyse(Model.of(build()), **options).prunable()}


@pytest.mark.parametrize("name", [*ONE_OPERATOR, *DECOMPOSED])
def test_none_leaves_every_head_and_every_index_in_it(name):
    kept = {"w1[1]", "b1[0]"} if name == "attention_with_weights" else set()
    assert set(sizes(NETS[name], attention="none")) <= kept


@pytest.mark.parametrize("name", ONE_OPERATOR)
def test_an_operator_that_is_all_of_attention_loses_no_width(name):
    assert not set(sizes(NETS[name], attention="width")) - {"w1[1]"}
    pins = {group.cause for group in analyse(Model.of(NETS[name]()), attention="width").pinned()}
    assert "kept by --attention width" in pins


@pytest.mark.parametrize("name", ["attention_heads", "attention_symbolic", "attention_literal_merge"])
def test_width_takes_the_same_index_of_every_head(name):
    for group in analyse(Model.of(NETS[name]()), attention="width").prunable():
        (axis, owner), *_ = group.owner.items()
        assert group.size == 3
        assert (np.bincount(owner[owner >= 0]) == 4).all(), axis


@pytest.mark.parametrize(
    ("name", "heads"), [("group_query_attention_single_key", 4), ("attention_operator_single_key", 4)]
)
def test_query_heads_go_one_by_one_where_all_share_a_single_key(name, heads):
    assert sizes(NETS[name]) == {"wq[1]": heads}


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        (
            "z = com.microsoft.MultiHeadAttention<num_heads=4>(r, , , b)",
            "float[6,48] w1, int64[5] packed = {2, 5, 4, 3, 4}, float[48] b",
        ),
        (
            "z = com.microsoft.MultiHeadAttention<num_heads=4>(q, r)",
            "float[6,32] w1, int64[5] packed = {2, 5, 4, 2, 4}, float[6,16] wq",
        ),
    ],
)
def test_packed_queries_keys_and_values_lose_whole_heads(nodes, weights):
    """No provider on a CPU runs these, so the groups are all there is to look at."""
    build = fused(
        f"m = MatMul(x, w1) r = Reshape(m, packed) {'q = MatMul(x, wq) ' if 'wq' in weights else ''}{nodes}",
        weights,
        into=16,
    )
    (group,) = analyse(Model.of(build())).prunable()
    assert group.size == 4
    assert {"w1", "w9"} <= {axis.tensor for axis in group.owner}


@pytest.mark.parametrize("sizes", [{"T": 5, "N": 1}, {"T": 4, "N": 3}, {"T": 7, "N": 2}])
def test_heads_that_share_an_axis_with_the_batch_go_and_the_batch_stays_free(sizes):
    model = Model.of(NETS["attention_batch_times_heads"]())
    analysis = analyse(model)
    assert {group.name: group.size for group in analysis.prunable()} == {"wq[1]": 4}
    rewritten = rewrite(analysis, Plan.removing({"wq[1]": np.asarray([0, 2, 3])}, ""))
    feed = random_feed(model, sizes, seed=0)
    want, got = (open_session(proto).run(feed) for proto in (mask(model, rewritten.removal), rewritten.proto))
    assert difference(want[0], got[0]) < 1e-5


def test_heads_of_a_cache_that_the_caller_holds_stay_and_the_reason_names_it():
    """The past keys are a graph input, so that its heads stay, and those of queries and values with them.

    Nothing else stays.
    """
    build = net(
        "float[N,S,6] x, float[N,4,P,3] past",
        "float[6,12] wq, float[6,12] wk, float[6,12] wv, float[12,6] wo, int64[4] split = {0, 0, 4, 3}, "
        "int64[3] merge = {0, 0, 12}, "
        "float[6,16] w1, float[16,4] w2",
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) q4 = Reshape(q, split) k4 = Reshape(k, split) "
        "v4 = Reshape(v, split) "
        "qt = Transpose<perm=[0,2,1,3]>(q4) kh = Transpose<perm=[0,2,1,3]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4) "
        "kk = Concat<axis=2>(past, kh) vv = Concat<axis=2>(past, vt) kt = Transpose<perm=[0,1,3,2]>(kk) "
        "s = MatMul(qt, kt) p = Softmax(s) "
        "o = MatMul(p, vv) ot = Transpose<perm=[0,2,1,3]>(o) m = Reshape(ot, merge) z = MatMul(m, wo) "
        "h = MatMul(z, w1) r = Relu(h) "
        "y = MatMul(r, w2)",
        outputs="float[N,S,4] y, float[N,4,T,3] kk, float[N,4,T,3] vv",
    )
    analysis = analyse(Model.of(build()))
    assert {group.name: group.size for group in analysis.prunable()} == {"wo[1]": 6, "w1[1]": 16}
    causes = {group.name: group.cause for group in analysis.pinned()}
    assert {causes[name] for name in ("wq[1]", "wk[1]", "wv[1]")} <= {"graph input", "graph output"}


def owners(build, group):
    """Axis -> the channel of each of its indices, in the named group."""
    (found,) = (one for one in analyse(Model.of(build())).groups if one.name == group)
    return {str(axis): owner.tolist() for axis, owner in found.owner.items()}


def test_packed_queries_keys_and_values_of_a_decoder_lose_the_same_heads():
    """onnxruntime's CPU kernel does not run this form, so that only the groups can be looked at."""
    build = fused(
        "l = Slice(x, start, stop, axis) q = MatMul(l, wq) z, kn, vn = com.microsoft.DecoderMaskedMultiHeadAttention"
        "<num_heads=4, past_present_share_buffer=1>(q, , , , , pk, pv, length, , , b)",
        "float[6,24] wq, float[2,4,5,2] pk, float[2,4,5,2] pv, int32[1] length = {3}, float[24] b, "
        "int64[1] start = {4}, int64[1] stop = {5}, int64[1] axis = {1}",
    )
    heads = [0, 0, 1, 1, 2, 2, 3, 3]
    found = owners(build, "wq[1]")
    assert found["wq[1]"] == found["b[0]"] == heads * 3
    assert found["w9[0]"] == heads
    assert found["pk[1]"] == found["pv[1]"] == [0, 1, 2, 3]


def test_experts_with_a_gate_of_its_own_lose_one_inner_width_in_all_weights_and_biases():
    build = net(
        "float[2,5,6] x",
        "float[6,8] w1, float[8,3] wr, int64[2] rows = {-1, 3}, float[3,7,8] e1, float[3,7] b1, float[3,8,7] e2, "
        "float[3,8] b2, "
        "float[3,7,8] e3, float[3,7] b3, float[8,4] w9",
        "a = MatMul(x, w1) r = MatMul(a, wr) f = Reshape(r, rows) "
        "z = com.microsoft.MoE<k=1>(a, f, e1, b1, e2, b2, e3, b3) y = MatMul(z, w9)",
        outputs="float[2,5,4] y",
        domains=', "com.microsoft": 1',
    )
    inner = owners(build, "e1[1]")
    assert inner == {axis: list(range(7)) for axis in ("e1[1]", "b1[1]", "e2[2]", "e3[1]", "b3[1]")}


@pytest.mark.parametrize("fusion", [0, 1, 2])
def test_experts_lose_the_inner_width_as_it_is_fused_with_its_gate(fusion):
    """The gate's rows are in a weight of their own, interleaved with the others, or behind them."""
    rows = 14 if fusion else 7
    build = net(
        "float[2,5,6] x",
        "float[6,8] w1, float[8,3] wr, int64[2] rows = {-1, 3}, float[3,8,7] e2, float[8,4] w9, "
        f"float[3,{rows},8] e1",
        "a = MatMul(x, w1) r = MatMul(a, wr) f = Reshape(r, rows) "
        f"z = com.microsoft.MoE<k=1, swiglu_fusion={fusion}>(a, f, e1, , e2) y = MatMul(z, w9)",
        outputs="float[2,5,4] y",
        domains=', "com.microsoft": 1',
    )
    inner = owners(build, "e1[1]")
    places = np.arange(7)
    assert inner["e2[2]"] == list(places)
    assert inner["e1[1]"] == list((places, places.repeat(2), np.tile(places, 2))[fusion])


ROWS = (
    "z = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v)",
    "z = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, h, h, , , n, t)",
    "z = com.microsoft.Attention<num_heads=4>(q, w, b)",
    "z = com.microsoft.DecoderMaskedMultiHeadAttention<num_heads=4>(q, k, v)",
)


@pytest.mark.parametrize("nodes", ROWS)
def test_attention_works_on_each_sequence_and_position_separately(nodes):
    build = net(
        "float[2,5,32] q, float[2,5,32] k, float[2,5,32] v, float[2,5,16] h, int32[2] n, int32 t",
        "float[32,96] w, float[96] b",
        nodes,
        outputs="float[2,5,32] z",
        domains=', "com.microsoft": 1',
    )
    model = Model.of(build())
    (node,) = model.nodes
    stated = list(facts(node, model))
    tied = {frozenset(map(str, fact.axes())) for fact in stated if isinstance(fact, Coupling)}
    assert {frozenset(("q[0]", "z[0]")), frozenset(("q[1]", "z[1]"))} <= tied
