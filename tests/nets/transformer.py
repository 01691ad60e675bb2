"""Attention as one operator, and what onnxruntime's optimiser writes in the place of standard operators."""

from nets.build import Build, net


def fused(nodes: str, weights: str, more: str = "", into: int = 8, opset: int = 17) -> Build:
    """Three linear layers make `q`, `k` and `v` (2, 5, 8 or 4); `nodes` make `z` (2, 5, into)."""
    return net(
        "float[2,5,6] x" + more,
        f"{weights}, float[{into},4] w9",
        f"{nodes} y = MatMul(z, w9)",
        outputs="float[2,5,4] y",
        domains=', "com.microsoft": 1',
        opset=opset,
    )


def one(nodes: str, weights: str = "", into: int = 8) -> Build:
    """A linear layer makes `a` (2, 5, 8), `nodes` make `z` of it."""
    return fused(f"m = MatMul(x, w1) a = Add(m, b1) {nodes}", "float[6,8] w1, float[8] b1" + (f", {weights}" if weights else ""), into=into)


_QKV = "float[6,8] wq, float[6,8] wk, float[6,8] wv"
_MADE = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
_SHARED = "float[6,16] wq, float[6,8] wk, float[6,8] wv"
_ANGLES = "float[9,2] cosine, float[9,2] sine, int64[2,5] place = {0, 1, 2, 3, 4, 0, 1, 2, 3, 4}"
_SPLIT = (
    "q4 = Reshape(q, heads) k4 = Reshape(k, shared) v4 = Reshape(v, shared) qt = Transpose<perm=[0,2,1,3]>(q4) "
    "kt = Transpose<perm=[0,2,1,3]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4) "
)

NETS: dict[str, Build] = {
    "bias_gelu": one("z = com.microsoft.BiasGelu(a, b2)", "float[8] b2"),
    "fast_gelu": one("z = com.microsoft.FastGelu(a)"),
    "fast_gelu_bias": one("z = com.microsoft.FastGelu(a, b2)", "float[8] b2"),
    "quick_gelu": one("z = com.microsoft.QuickGelu(a)"),
    "gelu_fused": one("z = com.microsoft.Gelu(a)"),
    "fused_matmul": one("z = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(a, w2)", "float[7,8] w2", into=7),
    "fused_matmul_activations": one(
        "s = com.microsoft.FusedMatMul<transB=1>(a, a) p = Softmax(s) t = com.microsoft.FusedMatMul<transA=1>(p, a) z = Relu(t)"
    ),
    "fused_gemm": net(
        "float[3,6] x",
        "float[6,8] w1, float[8] b1, float[7,8] w2, float[7] b2, float[7,4] w9",
        'a = Gemm(x, w1, b1) z = com.microsoft.FusedGemm<transB=1, activation="Relu">(a, w2, b2) y = MatMul(z, w9)',
        outputs="float[3,4] y",
        domains=', "com.microsoft": 1',
    ),
    "fused_conv": net(
        "float[2,3,6,6] x",
        "float[8,3,1,1] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[4,8,1,1] w9",
        'a = Conv(x, w1, b1) z = com.microsoft.FusedConv<pads=[1,1,1,1], activation="Relu">(a, w2, b2, a) y = Conv(z, w9)',
        outputs="float[2,4,6,6] y",
        domains=', "com.microsoft": 1',
    ),
    "fused_conv_grouped": net(
        "float[2,3,6,6] x",
        "float[8,3,1,1] w1, float[8] b1, float[8,1,3,3] w2, float[4,8,1,1] w9",
        'a = Conv(x, w1, b1) z = com.microsoft.FusedConv<pads=[1,1,1,1], group=8, activation="Relu">(a, w2) y = Conv(z, w9)',
        outputs="float[2,4,6,6] y",
        domains=', "com.microsoft": 1',
    ),
    "skip_layer_normalization": one(
        "b = MatMul(a, w2) n, i, j, s = com.microsoft.SkipLayerNormalization(x, b, scale, b2) c = MatMul(n, w3) d = MatMul(s, w3) "
        "e = Relu(c) z = Add(d, e)",
        "float[8,6] w2, float[6] scale, float[6] b2, float[6,8] w3",
    ),
    "skip_rms_normalization": one(
        "b = MatMul(a, w2) n, i, j, s = com.microsoft.SkipSimplifiedLayerNormalization(x, b, scale) c = MatMul(n, w3) e = Relu(c) z = Add(e, c)",
        "float[8,6] w2, float[6] scale, float[6,8] w3",
    ),
    "embed_layer_normalization": fused(
        "e, i = com.microsoft.EmbedLayerNormalization(ids, , word, place, , scale, b2) m = MatMul(e, w1) r = Relu(m) s = MatMul(x, w2) z = Add(r, s)",
        "float[50,6] word, float[5,6] place, float[6] scale, float[6] b2, float[6,8] w1, float[6,8] w2",
        more=", int32[2,5] ids",
    ),
    "multi_head_attention": fused(_MADE + "z = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v)", _QKV),
    "multi_head_attention_bias": fused(
        _MADE + "z = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, b, , added)", _QKV + ", float[24] b, float[1,4,5,5] added"
    ),
    "group_query_attention": fused(
        _MADE + "z, ko, vo = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v, , , length, total)",
        "float[6,32] wq, float[6,16] wk, float[6,16] wv, int32[2] length = {4, 4}, int32 total = {5}",
        into=32,
    ),
    "attention_with_weights": one("z = com.microsoft.Attention<num_heads=4>(a, w2, b2)", "float[8,24] w2, float[24] b2"),
    "rotary_embedding_fused": fused(
        _MADE + "r = com.microsoft.RotaryEmbedding<num_heads=2>(q, place, cosine, sine) "
        "t = com.microsoft.RotaryEmbedding(k, place, cosine, sine) z = com.microsoft.MultiHeadAttention<num_heads=2>(r, t, v)",
        f"{_QKV}, {_ANGLES}",
    ),
    "attention_operator": fused(_MADE + "z = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v)", _QKV, opset=23),
    "attention_operator_grouped": fused(
        _MADE + "r = RotaryEmbedding<num_heads=4>(q, cosine, sine, place) t = RotaryEmbedding<num_heads=2>(k, cosine, sine, place) "
        "z = Attention<q_num_heads=4, kv_num_heads=2, is_causal=1>(r, t, v)",
        f"{_SHARED}, {_ANGLES}",
        into=16,
        opset=23,
    ),
    "attention_operator_four_axes": fused(
        _MADE + _SPLIT + "r = RotaryEmbedding(qt, cosine, sine, place) o = Attention(r, kt, vt, added) "
        "ot = Transpose<perm=[0,2,1,3]>(o) z = Reshape(ot, merge)",
        f"{_SHARED}, {_ANGLES}, float[1,4,5,5] added, int64[4] heads = {{0, 0, 4, 4}}, int64[4] shared = {{0, 0, 2, 4}}, int64[3] merge = {{0, 0, 16}}",
        into=16,
        opset=23,
    ),
}
