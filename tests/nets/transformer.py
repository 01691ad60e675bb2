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
    return fused(
        f"m = MatMul(x, w1) a = Add(m, b1) {nodes}",
        "float[6,8] w1, float[8] b1" + (f", {weights}" if weights else ""),
        into=into,
    )


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
        "s = com.microsoft.FusedMatMul<transB=1>(a, a) p = Softmax(s) t = com.microsoft.FusedMatMul<transA=1>(p, a) "
        "z = Relu(t)"
    ),
    "fused_matmul_old_name": one("z = com.microsoft.TransposeMatMul<transB=1>(a, w2)", "float[7,8] w2", into=7),
    "fused_matmul_batch_of_the_left": net(
        "float[2,5,3,6] x",
        "float[6,8] w1, float[8] b1, float[7,4] w9, float[5,3,8,7] w2",
        "m = MatMul(x, w1) a = Add(m, b1) z = com.microsoft.FusedMatMul<transBatchA=1>(a, w2) y = MatMul(z, w9)",
        outputs="float[5,3,2,4] y",
        domains=', "com.microsoft": 1',
    ),
    "fused_matmul_batch_of_the_right": net(
        "float[5,3,6] x",
        "float[6,8] w1, float[8] b1, float[7,4] w9, float[8,5,7] w2",
        "m = MatMul(x, w1) a = Add(m, b1) z = com.microsoft.FusedMatMul<transBatchB=1>(a, w2) y = MatMul(z, w9)",
        outputs="float[5,3,4] y",
        domains=', "com.microsoft": 1',
    ),
    "fused_matmul_both_swaps": net(
        "float[5,3,6] x",
        "float[6,8] w1, float[8] b1, float[7,4] w9, float[7,5,8] w2",
        "m = MatMul(x, w1) a = Add(m, b1) z = com.microsoft.FusedMatMul<transBatchB=1, transB=1>(a, w2) "
        "y = MatMul(z, w9)",
        outputs="float[5,3,4] y",
        domains=', "com.microsoft": 1',
    ),
    "experts": one(
        "r = MatMul(x, w8) f = Reshape(r, rows) "
        'z = com.microsoft.MoE<k=1, activation_type="gelu">(a, f, w2, b2, w3, b3)',
        "float[6,3] w8, int64[2] rows = {-1, 3}, float[3,5,8] w2, float[3,5] b2, float[3,8,5] w3, float[3,8] b3",
    ),
    "experts_gated_beside": one(
        "r = MatMul(x, w8) f = Reshape(r, rows) "
        'z = com.microsoft.MoE<k=2, activation_type="swiglu", swiglu_fusion=1>(a, f, w2, b2, w3)',
        "float[6,3] w8, int64[2] rows = {-1, 3}, float[3,10,8] w2, float[3,10] b2, float[3,8,5] w3",
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
        'a = Conv(x, w1, b1) z = com.microsoft.FusedConv<pads=[1,1,1,1], activation="Relu">(a, w2, b2, a) '
        "y = Conv(z, w9)",
        outputs="float[2,4,6,6] y",
        domains=', "com.microsoft": 1',
    ),
    "fused_conv_grouped": net(
        "float[2,3,6,6] x",
        "float[8,3,1,1] w1, float[8] b1, float[8,1,3,3] w2, float[4,8,1,1] w9",
        'a = Conv(x, w1, b1) z = com.microsoft.FusedConv<pads=[1,1,1,1], group=8, activation="Relu">(a, w2) '
        "y = Conv(z, w9)",
        outputs="float[2,4,6,6] y",
        domains=', "com.microsoft": 1',
    ),
    "skip_layer_normalization": one(
        "b = MatMul(a, w2) n, i, j, s = com.microsoft.SkipLayerNormalization(x, b, scale, b2) c = MatMul(n, w3) "
        "d = MatMul(s, w3) "
        "e = Relu(c) z = Add(d, e)",
        "float[8,6] w2, float[6] scale, float[6] b2, float[6,8] w3",
    ),
    "skip_rms_normalization": one(
        "b = MatMul(a, w2) n, i, j, s = com.microsoft.SkipSimplifiedLayerNormalization(x, b, scale) "
        "c = MatMul(n, w3) e = Relu(c) z = Add(e, c)",
        "float[8,6] w2, float[6] scale, float[6,8] w3",
    ),
    "embed_layer_normalization": fused(
        "e, i = com.microsoft.EmbedLayerNormalization(ids, , word, place, , scale, b2) m = MatMul(e, w1) r = Relu(m) "
        "s = MatMul(x, w2) z = Add(r, s)",
        "float[50,6] word, float[5,6] place, float[6] scale, float[6] b2, float[6,8] w1, float[6,8] w2",
        more=", int32[2,5] ids",
    ),
    "embed_layer_normalization_all": net(
        "int32[2,5] ids, int32[2,5] parts",
        "float[50,8] word, float[5,8] place, float[50,8] part, float[8] scale, float[8] b2, float[8,6] w1, "
        "float[8,6] w2, float[6,4] w9, "
        "int32[2,5] given = {1, 1, 1, 1, 0, 1, 1, 1, 0, 0}, int32[2,5] order = {4, 3, 2, 1, 0, 0, 1, 2, 3, 4}",
        "e, i, s = com.microsoft.EmbedLayerNormalization<mask_index_type=1>(ids, parts, word, place, part, scale, "
        "b2, given, order) "
        "p = MatMul(e, w1) q = MatMul(s, w2) r = Add(p, q) a = Relu(r) y = MatMul(a, w9)",
        outputs="float[2,5,4] y",
        domains=', "com.microsoft": 1',
    ),
    "multi_head_attention": fused(_MADE + "z = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v)", _QKV),
    "multi_head_attention_bias": fused(
        _MADE + "z = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, b, , added)",
        _QKV + ", float[24] b, float[1,4,5,5] added",
    ),
    "multi_head_attention_narrow_values": fused(
        _MADE + "z = com.microsoft.MultiHeadAttention<num_heads=4, unidirectional=1, scale=0.3>(q, k, v, b, given)",
        "float[6,16] wq, float[6,16] wk, float[6,8] wv, float[40] b, int32[2,5] given = {1, 1, 1, 1, 0, 1, 1, 1, 0, 0}",
    ),
    "multi_head_attention_cache": fused(
        _MADE + "z, kp, vp = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, , , , pk, pv)",
        f"{_QKV}, float[2,4,3,2] pk, float[2,4,3,2] pv",
    ),
    "multi_head_attention_keys_with_heads": fused(
        _MADE + "z = com.microsoft.MultiHeadAttention<num_heads=4>(q, pk, pv)",
        f"{_QKV}, float[2,4,3,2] pk, float[2,4,3,2] pv",
    ),
    "decoder_attention": fused(
        "l = Slice(x, start, stop, axis) q = MatMul(l, wq) k = MatMul(l, wk) v = MatMul(l, wv) "
        "ko = MatMul(x, wk) k4 = Reshape(ko, split) pk = Transpose<perm=[0,2,1,3]>(k4) "
        "vo = MatMul(x, wv) v4 = Reshape(vo, split) pv = Transpose<perm=[0,2,1,3]>(v4) "
        "z, kn, vn = com.microsoft.DecoderMaskedMultiHeadAttention<num_heads=4, past_present_share_buffer=1>(q, k, "
        "v, , added, pk, pv, length, , , b)",
        f"{_QKV}, float[1,4,1,4] added, int64[4] split = {{2, 5, 4, 2}}, int32[1] length = {{3}}, float[24] b, "
        "int64[1] start = {4}, int64[1] stop = {5}, int64[1] axis = {1}",
    ),
    "group_query_attention_packed": fused(
        "q = MatMul(x, wq) "
        "z, ko, vo = com.microsoft.GroupQueryAttention<num_heads=6, kv_num_heads=3, do_rotary=1, rotary_interleaved=1>"
        "(q, , , , , length, total, cosine, sine)",
        "float[6,192] wq, int32[2] length = {4, 4}, int32 total = {5}, float[9,8] cosine, float[9,8] sine",
        into=96,
    ),
    "group_query_attention_softcap": fused(
        _MADE
        + "z, ko, vo = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, softcap=2.0, "
        + "local_window_size=3, scale=0.5>"
        "(q, k, v, , , length, total, , , , added, sink)",
        "float[6,32] wq, float[6,16] wk, float[6,16] wv, int32[2] length = {4, 4}, int32 total = {5}, "
        "float[2,4,5,5] added, float[4] sink",
        into=32,
    ),
    "group_query_attention_cache": fused(
        "l = Slice(x, start, stop, axis) q = MatMul(l, wq) k = MatMul(l, wk) v = MatMul(l, wv) "
        "z, ko, vo = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v, pk, pv, length, total)",
        "float[6,32] wq, float[6,16] wk, float[6,16] wv, int32[2] length = {3, 3}, int32 total = {4}, "
        "float[2,2,3,8] pk, float[2,2,3,8] pv, "
        "int64[1] start = {4}, int64[1] stop = {5}, int64[1] axis = {1}",
        into=32,
    ),
    "group_query_attention_single_key": fused(
        _MADE
        + "z, ko, vo = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=1, smooth_softmax=1>(q, k, v, , "
        + ", length, total)",
        "float[6,32] wq, float[6,8] wk, float[6,8] wv, int32[2] length = {4, 4}, int32 total = {5}",
        into=32,
    ),
    "group_query_attention": fused(
        _MADE
        + "z, ko, vo = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v, , , length, total)",
        "float[6,32] wq, float[6,16] wk, float[6,16] wv, int32[2] length = {4, 4}, int32 total = {5}",
        into=32,
    ),
    "attention_with_weights": one(
        "z = com.microsoft.Attention<num_heads=4>(a, w2, b2)", "float[8,24] w2, float[24] b2"
    ),
    "attention_with_weights_narrow_values": one(
        "z = com.microsoft.Attention<num_heads=4, qkv_hidden_sizes=[16, 16, 8], unidirectional=1>(a, w2, b2, given, "
        ", added)",
        "float[8,40] w2, float[40] b2, int32[2,5] given = {1, 1, 1, 1, 0, 1, 1, 1, 0, 0}, float[2,4,5,5] added",
    ),
    "attention_with_weights_cache": one(
        "z, now = com.microsoft.Attention<num_heads=4>(a, w2, b2, , past)",
        "float[8,24] w2, float[24] b2, float[2,2,4,3,2] past",
    ),
    "rotary_embedding_fused_four_axes": fused(
        _MADE
        + "q4 = Reshape(q, heads) qt = Transpose<perm=[0,2,1,3]>(q4) "
        + "r = com.microsoft.RotaryEmbedding<interleaved=1>(qt, place, cosine, sine) "
        "rt = Transpose<perm=[0,2,1,3]>(r) r3 = Reshape(rt, merge) "
        "z = com.microsoft.MultiHeadAttention<num_heads=2>(r3, k, v)",
        f"{_QKV}, {_ANGLES}, int64[4] heads = {{0, 0, 2, 4}}, int64[3] merge = {{0, 0, 8}}",
    ),
    "rotary_embedding_of_part": fused(
        _MADE + "r = com.microsoft.RotaryEmbedding<num_heads=2, rotary_embedding_dim=4>(q, place, cosine, sine) "
        "z = com.microsoft.MultiHeadAttention<num_heads=2>(r, k, v)",
        f"{_QKV.replace('8]', '16]')}, {_ANGLES}",
        into=16,
    ),
    "rotary_embedding_of_images": fused(
        _MADE + "r = com.microsoft.MRotaryEmbedding<num_heads=2, mrope_section=[1, 1, 0]>(q, places, cosine, sine) "
        "z = com.microsoft.MultiHeadAttention<num_heads=2>(r, k, v)",
        f"{_QKV}, {_ANGLES}, int64[3,2,5] places = {{{', '.join(str(i % 7) for i in range(30))}}}",
    ),
    "rotary_embedding_fused": fused(
        _MADE + "r = com.microsoft.RotaryEmbedding<num_heads=2>(q, place, cosine, sine) "
        "t = com.microsoft.RotaryEmbedding(k, place, cosine, sine) "
        "z = com.microsoft.MultiHeadAttention<num_heads=2>(r, t, v)",
        f"{_QKV}, {_ANGLES}",
    ),
    "attention_operator": fused(_MADE + "z = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v)", _QKV, opset=23),
    "attention_operator_batch": net(
        "float[2,5,6] x",
        "float[7,2] w1, float[6,8] w2, float[6,8] w3, float[8,2] w4, float[5,7] w5, float[9,4] cosine, "
        "float[9,4] sine, "
        "int64[3] s = {7, 5, 6}, "
        "int64[7,5] place = {0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 8, 7, 6, 5, 4, 0, 1, 2, 3, "
        "4, 0, 1, 2, 3, 4}",
        "f = Flatten<axis=1>(x) g = MatMul(w1, f) h = Reshape(g, s) q = MatMul(h, w2) k = MatMul(h, w3) "
        "r = RotaryEmbedding<num_heads=1>(q, cosine, sine, place) "
        "a = Attention<q_num_heads=1, kv_num_heads=1>(r, k, k) "
        "o = MatMul(a, w4) p = Flatten<axis=1>(o) y = MatMul(w5, p)",
        opset=23,
    ),
    "attention_operator_mask": fused(
        _MADE
        + "z = Attention<q_num_heads=4, kv_num_heads=4, softcap=3.0, scale=0.4, softmax_precision=1>(q, k, v, given)",
        f"{_QKV}, bool[5,5] given",
        opset=24,
    ),
    "attention_operator_cache": fused(
        _MADE
        + "o, kn, vn, s = Attention<q_num_heads=4, kv_num_heads=2, qk_matmul_output_mode=0, is_causal=1>(q, k, v, "
        + "added, pk, pv) "
        "st = Transpose<perm=[0,2,1,3]>(s) sr = Reshape(st, scores) z = Concat<axis=2>(o, sr)",
        f"{_SHARED}, float[4,5,8] added, float[2,2,3,4] pk, float[2,2,3,4] pv, int64[3] scores = {{0, 0, -1}}",
        into=48,
        opset=23,
    ),
    "attention_operator_narrow_values": fused(
        _MADE + "z = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v, , , , length)",
        f"{_SHARED.replace('8] wv', '4] wv')}, int64[2] length = {{5, 3}}",
        opset=24,
    ),
    "attention_operator_single_key": fused(
        _MADE + "z = Attention<q_num_heads=4, kv_num_heads=1>(q, k, v, added)",
        "float[6,16] wq, float[6,4] wk, float[6,4] wv, float[2,4,5,5] added",
        into=16,
        opset=23,
    ),
    "rotary_operator_of_part": fused(
        _MADE + "r = RotaryEmbedding<num_heads=2, rotary_embedding_dim=4, interleaved=1>(q, cosine, sine, place) "
        "z = Attention<q_num_heads=2, kv_num_heads=2>(r, k, v)",
        f"{_QKV.replace('8]', '16]')}, {_ANGLES}",
        into=16,
        opset=23,
    ),
    "attention_operator_grouped": fused(
        _MADE
        + "r = RotaryEmbedding<num_heads=4>(q, cosine, sine, place) t = RotaryEmbedding<num_heads=2>(k, cosine, "
        + "sine, place) "
        "z = Attention<q_num_heads=4, kv_num_heads=2, is_causal=1>(r, t, v)",
        f"{_SHARED}, {_ANGLES}",
        into=16,
        opset=23,
    ),
    "attention_operator_four_axes": fused(
        _MADE + _SPLIT + "r = RotaryEmbedding(qt, cosine, sine, place) o = Attention(r, kt, vt, added) "
        "ot = Transpose<perm=[0,2,1,3]>(o) z = Reshape(ot, merge)",
        f"{_SHARED}, {_ANGLES}, float[1,4,5,5] added, int64[4] heads = {{0, 0, 4, 4}}, "
        f"int64[4] shared = {{0, 0, 2, 4}}, int64[3] merge = {{0, 0, 16}}",
        into=16,
        opset=23,
    ),
}
