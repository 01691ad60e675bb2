"""Gemm, MatMul, attention, reductions and what tells tokens apart."""

from nets.build import Build, net, tokens


def _gemm(attributes: str, bias: str, *, trans_a: bool, trans_b: bool) -> Build:
    hidden = "h = Transpose<perm=[1,0]>(g)" if trans_a else "h = Identity(g)"
    shape = "7,8" if trans_b else "8,7"
    return net(
        "float[3,6] x",
        f"float[6,8] w1, float[8] b1, float[{shape}] w2, float[{bias}] b2, float[7,4] w3",
        f"g = Gemm(x, w1, b1) {hidden} z = Gemm<{attributes}>(h, w2, b2) y = MatMul(z, w3)",
    )


_HEADS = (
    "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) q4 = Reshape(q, split) k4 = Reshape(k, split) "
    "v4 = Reshape(v, split) "
    "qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4) "
    "s = MatMul(qt, kt) p = Softmax(s) o = MatMul(p, vt) ot = Transpose<perm=[0,2,1,3]>(o) z = Reshape(ot, merge) "
    "y = MatMul(z, wo)"
)

NETS: dict[str, Build] = {
    **{
        f"reduce_{operator}": tokens(f"e = Softplus(a) z = {operator}<axes=[1], keepdims=0>(e)")
        for operator in ("ReduceL1", "ReduceLogSum", "ReduceLogSumExp", "ReduceMin", "ReduceProd", "ReduceSumSquare")
    },
    "log_softmax_positions": tokens("z = LogSoftmax<axis=1>(a)"),
    "hardmax_positions": tokens("z = Hardmax<axis=1>(a)"),
    "arg_min_positions": tokens("i = ArgMin<axis=1>(a) c = Cast<to=1>(i) z = Mul(c, s2)", "float[8] s2"),
    "gemm": _gemm("alpha=0.5, beta=2.0", "7", trans_a=False, trans_b=False),
    "gemm_trans_a": _gemm("transA=1", "1,7", trans_a=True, trans_b=False),
    "gemm_trans_b": _gemm("transB=1", "3,1", trans_a=False, trans_b=True),
    "gemm_trans_both": _gemm("transA=1, transB=1", "3,7", trans_a=True, trans_b=True),
    "gemm_scalar_bias": _gemm("transB=1", "1", trans_a=False, trans_b=True),
    "gemm_constant_left": net(
        "float[6,3] x", "float[8,6] w1, float[8,1] b1, float[4,8] w2", "a = Gemm(w1, x, b1) y = Gemm(w2, a)"
    ),
    "matmul_right": tokens("z = Relu(a)"),
    "matmul_left": net(
        "float[2,6,5] x",
        "float[8,6] w1, float[8,1] b1, float[4,8] w2",
        "m = MatMul(w1, x) a = Add(m, b1) y = MatMul(w2, a)",
    ),
    "matmul_batched_weights": net(
        "float[2,3,5,6] x",
        "float[3,6,8] w1, float[3,1,8] b1, float[3,8,4] w2",
        "m = MatMul(x, w1) a = Add(m, b1) y = MatMul(a, w2)",
    ),
    "matmul_stretched_batch": net(
        "float[2,1,5,6] x",
        "float[3,6,8] w1, float[1,8,4] w2, float[3,4,2] w3",
        "a = MatMul(x, w1) b = MatMul(a, w2) y = MatMul(b, w3)",
    ),
    "matmul_vector_right": net(
        "float[2,5,6] x",
        "float[6,8] w1, float[8] b1, float[8] w2",
        "m = MatMul(x, w1) a = Add(m, b1) y = MatMul(a, w2)",
    ),
    "matmul_vector_left": net(
        "float[2,5,6] x",
        "float[6,8] w1, float[8] b1, float[5] v, float[8,4] w2",
        "m = MatMul(x, w1) a = Add(m, b1) z = MatMul(v, a) y = MatMul(z, w2)",
    ),
    "matmul_vector_input": net(
        "float[6] x", "float[6,8] w1, float[8] b1, float[8,4] w2", "m = MatMul(x, w1) a = Add(m, b1) y = MatMul(a, w2)"
    ),
    "matmul_dot_product": net(
        "float[6] x", "float[6,8] w1, float[6,8] w2", "a = MatMul(x, w1) b = MatMul(x, w2) y = MatMul(a, b)"
    ),
    "matmul_two_activations": net(
        "float[2,5,6] x",
        "float[6,8] wq, float[6,8] wk, float[6,7] wv, float[7,4] wo",
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) "
        "p = Softmax(s) "
        "o = MatMul(p, v) y = MatMul(o, wo)",
    ),
    "attention_heads": net(
        "float[2,5,6] x",
        "float[6,12] wq, float[6,12] wk, float[6,12] wv, float[12,4] wo, int64[4] split = {0, 0, 4, 3}, "
        "int64[3] merge = {0, 0, -1}",
        _HEADS,
    ),
    "attention_literal_merge": net(
        "float[2,5,6] x",
        "float[6,12] wq, float[6,12] wk, float[6,12] wv, float[12,4] wo, int64[4] split = {2, 5, 4, 3}, "
        "int64[3] merge = {2, 5, 12}",
        _HEADS,
    ),
    "attention_symbolic": net(
        "float[N,5,6] x",
        "float[6,12] wq, float[6,12] wk, float[6,12] wv, float[12,4] wo, int64[1] i = {0}, int64[1] j = {2}, "
        "int64[1] heads = {4}, "
        "int64[1] time = {5}",
        "d0 = Shape(x) n = Gather(d0, i) "
        + _HEADS.replace(
            "q4 =",
            "d = Shape(q) c = Gather(d, j) w = Div(c, heads) split = Concat<axis=0>(n, time, heads, w) "
            "merge = Concat<axis=0>(n, time, c) q4 =",
        ),
        outputs="float[N,5,4] y",
    ),
    "attention_batch_times_heads": net(
        "float[T,N,6] x",
        "float[6,12] wq, float[6,12] wk, float[6,12] wv, float[12,4] wo, int64 i = {0}, int64 j = {1}, "
        "int64 l = {2}, int64[1] o = {0}, "
        "int64 heads = {4}",
        "d = Shape(x) t0 = Gather(d, i) n0 = Gather(d, j) nh0 = Mul(n0, heads) tn0 = Mul(t0, n0) q = MatMul(x, wq) "
        "k = MatMul(x, wk) "
        "v = MatMul(x, wv) c = Shape(q) c0 = Gather(c, l) w0 = Div(c0, heads) t = Unsqueeze(t0, o) "
        "n = Unsqueeze(n0, o) "
        "nh = Unsqueeze(nh0, o) tn = Unsqueeze(tn0, o) w = Unsqueeze(w0, o) a = Unsqueeze(c0, o) "
        "split = Concat<axis=0>(t, nh, w) merge = Concat<axis=0>(tn, a) "
        "q3 = Reshape(q, split) k3 = Reshape(k, split) v3 = Reshape(v, split) qt = Transpose<perm=[1,0,2]>(q3) "
        "kt = Transpose<perm=[1,2,0]>(k3) vt = Transpose<perm=[1,0,2]>(v3) s = MatMul(qt, kt) p = Softmax(s) "
        "b = MatMul(p, vt) "
        "bt = Transpose<perm=[1,0,2]>(b) r = Reshape(bt, merge) g = Gemm(r, wo) e = Shape(g) f0 = Gather(e, l2) "
        "f = Unsqueeze(f0, o) "
        "back = Concat<axis=0>(t, n, f) y = Reshape(g, back)".replace("l2", "j"),
        outputs="float[T,N,4] y",
    ),
    "attention_fused_qkv": net(
        "float[2,5,6] x",
        "float[6,36] w1, float[36] b1, float[12,4] wo, int64[5] split = {2, 5, 3, 4, 3}, "
        "int64[3] merge = {2, 5, 12}, int64 zero = {0}, int64 one = {1}, "
        "int64 two = {2}",
        "m = MatMul(x, w1) a = Add(m, b1) r = Reshape(a, split) t = Transpose<perm=[2,0,3,1,4]>(r) "
        "q = Gather<axis=0>(t, zero) k = Gather<axis=0>(t, one) "
        "v = Gather<axis=0>(t, two) kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) p = Softmax(s) "
        "o = MatMul(p, v) "
        "ot = Transpose<perm=[0,2,1,3]>(o) z = Reshape(ot, merge) y = MatMul(z, wo)",
    ),
    "attention_split_qkv": net(
        "float[2,5,6] x",
        "float[6,36] w1, float[12,4] wo, int64[4] split = {0, 0, 4, -1}, int64[3] merge = {0, 0, -1}",
        "a = MatMul(x, w1) q, k, v = Split<axis=2>(a) " + _HEADS.split("wv) ")[1],
    ),
    "attention_multi_query": net(
        "float[2,5,6] x",
        "float[6,12] wq, float[6,3] wk, float[6,3] wv, float[12,4] wo, int64[4] split = {0, 0, 4, 3}, "
        "int64[4] single = {0, 0, 1, 3}, int64[3] merge = {0, 0, 12}",
        _HEADS.replace("(k, split)", "(k, single)").replace("(v, split)", "(v, single)"),
    ),
    "einsum_weights": tokens('z = Einsum<equation="bti,oi->bto">(a, w2)', "float[7,8] w2", into=7),
    "einsum_heads": net(
        "float[2,5,6] x",
        "float[6,4,3] wq, float[6,4,3] wk, float[6,4,3] wv, float[4,3,4] wo",
        'q = Einsum<equation="bti,ihd->bhtd">(x, wq) k = Einsum<equation="bti,ihd->bhtd">(x, wk) '
        'v = Einsum<equation="bti, ihd -> bhtd">(x, wv) s = Einsum<equation="bhqd,bhkd->bhqk">(q, k) p = Softmax(s) '
        'o = Einsum<equation="bhqk,bhkd->bqhd">(p, v) y = Einsum<equation="bqhd,hdo->bqo">(o, wo)',
    ),
    "embedding": net(
        "int64[2,5] x",
        "float[20,8] table, float[5,8] place, float[8,4] w2",
        "e = Gather(table, x) a = Add(e, place) y = MatMul(a, w2)",
    ),
    "layer_normalization_mlp": net(
        "float[2,5,6] x",
        "float[6] scale, float[6] b1, float[6,8] w1, float[8] b2, float[8,6] w2",
        "n = LayerNormalization(x, scale, b1) m = MatMul(n, w1) a = Add(m, b2) r = Gelu(a) o = MatMul(r, w2) "
        "y = Add(x, o)",
        opset=20,
    ),
    "rms_normalization_mlp": net(
        "float[2,5,6] x",
        "float[6] scale, float[6,8] w1, float[6,8] w2, float[8,6] w3",
        "n = RMSNormalization(x, scale) m = MatMul(n, w1) g = MatMul(n, w2) t = Sigmoid(g) r = Mul(m, t) "
        "o = MatMul(r, w3) y = Add(x, o)",
        opset=23,
    ),
    "layer_normalization_inside": tokens(
        "n = LayerNormalization(a, scale) b = MatMul(n, w2) z = Relu(b)", "float[8] scale, float[8,7] w2", into=7
    ),
    "reduce_mean_positions": tokens("z = ReduceMean<axes=[1], keepdims=0>(a)"),
    "reduce_mean_keeps": tokens("z = ReduceMean<axes=[-2], keepdims=1>(a)"),
    "reduce_sum_axes_input": tokens("z = ReduceSum<keepdims=0>(a, axes)", "int64[1] axes = {1}"),
    "reduce_max_axes_input": tokens("z = ReduceMax<keepdims=1>(a, axes)", "int64[1] axes = {-2}", opset=18),
    "reduce_positions_of_images": net(
        "float[2,3,4,4] x",
        "float[8,3,1,1] w1, float[8] b1, float[8,4] w2",
        "a = Conv(x, w1, b1) g = ReduceMean<axes=[2,3], keepdims=0>(a) y = Gemm(g, w2)",
    ),
    "reduce_nothing": tokens("z = ReduceSum<noop_with_empty_axes=1>(a)"),
    "reduce_l2_channels": tokens(
        "s = Sigmoid(a) n = ReduceL2<axes=[2]>(s) d = Div(a, n) b = MatMul(d, w2) z = Tanh(b)", "float[8,7] w2", into=7
    ),
    "reduce_to_scalar": tokens(
        "r = ReduceMean<keepdims=0>(a) b = MatMul(a, w2) z = Mul(b, r)", "float[8,7] w2", into=7
    ),
    "cum_sum_positions": tokens("z = CumSum(a, one)", "int64 one = {1}"),
    "cum_sum_channels": tokens(
        "s = Sigmoid(a) c = CumSum(s, two) b = MatMul(c, w2) z = Tanh(b)", "int64 two = {2}, float[8,7] w2", into=7
    ),
    "softmax_positions": tokens("z = Softmax<axis=1>(a)"),
    "softmax_channels": tokens("p = Softmax(a) b = MatMul(p, w2) z = Tanh(b)", "float[8,7] w2", into=7),
    "softmax_opset_11": tokens(
        "t = Transpose<perm=[2,0,1]>(a) p = Softmax<axis=1>(t) z = Transpose<perm=[1,2,0]>(p)", opset=11
    ),
    "softmax_opset_11_over_all": tokens(
        "p = Softmax<axis=1>(a) b = MatMul(p, w2) z = Tanh(b)", "float[8,7] w2", into=7, opset=11
    ),
    "arg_max_positions": tokens("i = ArgMax<axis=1, keepdims=0>(a) c = Cast<to=1>(i) z = Mul(c, s2)", "float[8] s2"),
    "arg_max_channels": tokens(
        "i = ArgMax<axis=2>(a) c = Cast<to=1>(i) b = MatMul(a, w2) z = Mul(b, c)", "float[8,7] w2", into=7
    ),
    "top_k_positions": tokens("z, i = TopK<axis=1>(a, k)", "int64[1] k = {3}"),
    "top_k_channels": tokens(
        "t, i = TopK(a, k) b = MatMul(t, w2) z = Tanh(b)", "int64[1] k = {3}, float[3,7] w2", into=7
    ),
    **{
        f"linear_attention_{name}": net(
            "float[2,5,6] x",
            "float[6,8] wq, float[6,8] wk, float[6,8] wv, float[8,4] wo, float one, float low = {-0.5}, "
            "float high = {0.5}",
            f"q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) {maps} "
            "t = Transpose<perm=[0,2,1]>(f) s = MatMul(e, t) o = MatMul(s, v) y = MatMul(o, wo)",
        )
        for name, maps in {
            "exp": "e = Exp(q) f = Exp(k)",
            "elu_plus_one": "g = Elu(q) e = Add(g, one) h = Elu(k) f = Add(h, one)",
            "relu": "e = Relu(q) f = Relu(k)",
            "one_linear": "e = Exp(q) f = Identity(k)",
            "scaled_by_itself": "g = Sigmoid(q) e = Mul(g, q) f = Exp(k)",
            "clipped_around_zero": "e = Clip(q, low, high) f = Exp(k)",
            "clipped_above_zero": "e = Clip(q, high) f = Exp(k)",
        }.items()
    },
    "einsum_of_what_is_not_zero": net(
        "float[2,5,6] x",
        "float[6,8] wq, float[6,8] wk, float[6,8] wv, float[8,4] wo",
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) e = Sigmoid(q) f = Softplus(k) "
        'o = Einsum<equation="bnd,bmd,bmv->bnv">(e, f, v) y = MatMul(o, wo)',
    ),
}
