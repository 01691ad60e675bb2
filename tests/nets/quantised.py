"""Quantised networks: QDQ of many types, integer operators, dynamic quantisation, weights of few bits."""

from nets.build import Build, image, net, tokens

_MS = {"domains": ', "com.microsoft": 1'}
_NEW = {"opset": 21, "ir": 10}


def _qdq(kind: str, per: str = "tensor", point: str = "0", **options) -> Build:
    """Two convolutions with quantised weights and biases, activations rounded to 8 bits between them."""
    scales = {
        "tensor": ("float s{} = {{0.01}}", kind + " z{} = {{" + point + "}}"),
        "axis": ("float[{n}] scale{}", kind + "[{n}] z{}"),
    }[per]
    pairs = ", ".join(part.format(i, n=n) for i, n in ((2, 6), (3, 4)) for part in scales)
    name = "scale" if per == "axis" else "s"
    axis = "<axis=0>" if per == "axis" else ""
    return image(
        f"qa = QuantizeLinear(a, sa, za) da = DequantizeLinear(qa, sa, za) "
        f"w2 = DequantizeLinear{axis}(q2, {name}2, z2) "
        f"b2 = DequantizeLinear(bias2, sb, zb) b = Conv(da, w2, b2) r = Relu(b) qr = QuantizeLinear(r, sa, za) "
        f"dr = DequantizeLinear(qr, sa, za) "
        f"w3 = DequantizeLinear{axis}(q3, {name}3, z3) z = Conv(dr, w3)",
        f"float sa = {{0.05}}, uint8 za = {{100}}, {kind}[6,8,1,1] q2, int32[6] bias2, float sb = {{0.001}}, "
        f"int32 zb = {{0}}, "
        f"{kind}[4,6,3,3] q3, {pairs}",
        into=4,
        size=6,
        **options,
    )


NETS: dict[str, Build] = {
    "qdq_int8": _qdq("int8"),
    "qdq_uint8": _qdq("uint8", point="120"),
    "qdq_int8_per_axis": _qdq("int8", "axis"),
    "qdq_uint8_per_axis": _qdq("uint8", "axis"),
    "qdq_int4": _qdq("int4", point="1", **_NEW),
    "qdq_uint4_per_axis": _qdq("uint4", "axis", **_NEW),
    "qdq_float8": _qdq("float8e4m3fn", opset=19, ir=9),
    "qdq_weights_rounded_in_the_graph": image(
        "qw = QuantizeLinear<axis=0>(w2, scale2, z2) dw = DequantizeLinear<axis=0>(qw, scale2, z2) z = Conv(a, dw)",
        "float[6,8,1,1] w2, float[6] scale2, int8[6] z2 = {0, 0, 0, 0, 0, 0}",
        into=6,
    ),
    "qdq_bias_axis_from_the_end": tokens(
        "m2 = MatMul(a, w2) c = DequantizeLinear<axis=-1>(bias2, scale2) z = Add(m2, c)",
        "float[8,6] w2, int32[6] bias2, float[6] scale2",
        into=6,
    ),
    "qdq_matmul_per_column": tokens(
        "w = DequantizeLinear<axis=1>(q2, scale2) b = MatMul(a, w) z = Relu(b)", "int8[8,6] q2, float[6] scale2", into=6
    ),
    "qdq_matmul_blocks_of_inputs": tokens(
        "w = DequantizeLinear<axis=0, block_size=4>(q2, scale2) z = MatMul(a, w)",
        "int8[16,6] q2, float[4,6] scale2",
        wide=16,
        into=6,
        **_NEW,
    ),
    "qdq_int4_blocks_with_zero_points": tokens(
        "w = DequantizeLinear<axis=1, block_size=4>(q2, scale2, z2) t = Transpose<perm=[1,0]>(w) z = MatMul(a, t)",
        "uint4[6,16] q2, float[6,4] scale2, uint4[6,4] z2",
        wide=16,
        into=6,
        **_NEW,
    ),
    "qdq_embedding": net(
        "int64[2,5] x",
        "uint8[20,8] table, float s = {0.02}, uint8 z = {100}, float[8,4] w2",
        "q = Gather(table, x) a = DequantizeLinear(q, s, z) y = MatMul(a, w2)",
    ),
    "qdq_activations_per_axis": image(
        "q = QuantizeLinear<axis=1>(a, scale, z1) z = DequantizeLinear<axis=1>(q, scale, z1)",
        "float[8] scale, uint8[8] z1",
    ),
    "quantize_of_microsoft": image(
        "q = com.microsoft.QuantizeLinear(a, s, z1) z = com.microsoft.DequantizeLinear(q, s, z1)",
        "float s = {0.03}, uint8 z1 = {110}",
        **_MS,
    ),
    "qlinear_conv": image(
        "q = QuantizeLinear(a, sa, za) b = QLinearConv(q, sa, za, w2, s2, z2, sb, zb, bias2) "
        "c = QLinearConv<group=6, pads=[1,1,1,1]>(b, sb, zb, w3, s3, z2, sb, zb) z = DequantizeLinear(c, sb, zb)",
        "float sa = {0.05}, uint8 za = {100}, int8[6,8,1,1] w2, float s2 = {0.01}, int8 z2 = {0}, float sb = {0.2}, "
        "uint8 zb = {128}, "
        "int32[6] bias2, int8[6,1,3,3] w3, float s3 = {0.02}",
        into=6,
    ),
    "qlinear_conv_per_axis": image(
        "q = QuantizeLinear(a, sa, za) b = QLinearConv(q, sa, za, w2, scale2, z2, sb, za, bias2) "
        "z = DequantizeLinear(b, sb, za)",
        "float sa = {0.05}, uint8 za = {100}, int8[6,8,1,1] w2, float[6] scale2, int8[6] z2 = {0, 0, 0, 0, 0, 0}, "
        "float sb = {2.0}, int32[6] bias2",
        into=6,
    ),
    "dequantised_conv_groups": image(
        "v = DequantizeLinear<axis=0>(w2, scale2, z2) z = Conv<group=2>(a, v, b2)",
        "int8[6,4,1,1] w2, float[6] scale2, int8[6] z2 = {0, 0, 0, 0, 0, 0}, float[6] b2",
        into=6,
    ),
    "qlinear_conv_groups": image(
        "q = QuantizeLinear(a, sa, za) b = QLinearConv<group=2>(q, sa, za, w2, s2, z2, sb, za) "
        "z = DequantizeLinear(b, sb, za)",
        "float sa = {0.05}, uint8 za = {100}, uint8[6,4,1,1] w2, float s2 = {0.01}, uint8 z2 = {128}, float sb = {0.1}",
        into=6,
    ),
    "qlinear_matmul": tokens(
        "q = QuantizeLinear(a, sa, za) b = QLinearMatMul(q, sa, za, w2, scale2, z2, sb, za) "
        "z = DequantizeLinear(b, sb, za)",
        "float sa = {0.05}, uint8 za = {100}, int8[8,6] w2, float[6] scale2, int8[6] z2 = {0, 0, 0, 0, 0, 0}, "
        "float sb = {2.0}",
        into=6,
    ),
    "qgemm": net(
        "float[3,6] x",
        "float[6,8] w1, float sa = {0.05}, uint8 za = {100}, int8[7,8] w2, float[7] scale2, "
        "int8[7] z2 = {0, 0, 0, 0, 0, 0, 0}, "
        "int32[7] bias2, float sb = {2.0}, float[7,4] w9",
        "a = MatMul(x, w1) q = QuantizeLinear(a, sa, za) "
        "b = com.microsoft.QGemm<transB=1>(q, sa, za, w2, scale2, z2, bias2, sb, za) "
        "z = DequantizeLinear(b, sb, za) y = MatMul(z, w9)",
        outputs="float[3,4] y",
        **_MS,
    ),
    "qlinear_microsoft": image(
        "q = QuantizeLinear(a, sa, za) b = com.microsoft.QLinearLeakyRelu<alpha=0.3>(q, sa, za, sa, za) "
        "c = com.microsoft.QLinearSigmoid(q, sa, za, sc, zc) "
        "d = com.microsoft.QLinearMul(b, sa, za, c, sc, zc, sa, za) "
        "e = com.microsoft.QLinearAdd(d, sa, za, k, sk, za, sa, za) "
        "f = com.microsoft.QLinearConcat<axis=1>(sa, za, d, sa, za, e, sa, za) "
        "g = com.microsoft.QLinearAveragePool<kernel_shape=[2,2]>(f, sa, za, sa, za) "
        "h = com.microsoft.QLinearGlobalAveragePool(g, sa, za, sa, za) z = DequantizeLinear(h, sa, za)",
        "float sa = {0.05}, uint8 za = {100}, float sc = {0.00390625}, uint8 zc = {0}, uint8[1,8,1,1] k, "
        "float sk = {0.02}",
        into=16,
        outputs="float[2,4,1,1] y",
        **_MS,
    ),
    "qlinear_where_and_softmax": image(
        "q = QuantizeLinear(a, sa, za) b = com.microsoft.QLinearSoftmax<axis=3, opset=13>(q, sa, za, sc, zc) "
        "c = com.microsoft.QLinearWhere(m, q, sa, za, b, sc, zc, sa, za) z = DequantizeLinear(c, sa, za)",
        "float sa = {0.05}, uint8 za = {100}, float sc = {0.00390625}, uint8 zc = {0}, bool[1,8,1,1] m",
        outputs="float[2,4,6,6] y",
        **_MS,
    ),
    "conv_integer": image(
        "q, s, p = DynamicQuantizeLinear(a) i = ConvInteger<pads=[1,1,1,1]>(q, w2, p, z2) f = Cast<to=1>(i) "
        "t = Mul(s, s2) g = Mul(f, t) "
        "h = Add(g, b2) u = Sigmoid(h) z = Mul(h, u)",
        "int8[6,8,3,3] w2, int8 z2 = {0}, float s2 = {0.01}, float[1,6,1,1] b2",
        into=6,
    ),
    "conv_integer_depthwise": image(
        "q, s, p = DynamicQuantizeLinear(a) i = ConvInteger<group=8>(q, w2, p, z2) f = Cast<to=1>(i) t = Mul(s, s2) "
        "z = Mul(f, t)",
        "uint8[8,1,3,3] w2, uint8 z2 = {128}, float s2 = {0.01}",
    ),
    "conv_integer_behind_cosine": image(
        "b = Conv(a, w3) c = Cos(b) q, s, p = DynamicQuantizeLinear(c) i = ConvInteger(q, w2, p) f = Cast<to=1>(i) "
        "z = Mul(f, s)",
        "float[5,8,1,1] w3, int8[6,5,1,1] w2",
        into=6,
    ),
    "matmul_integer": tokens(
        "q, s, p = DynamicQuantizeLinear(a) i = MatMulInteger(q, w2, p, z2) f = Cast<to=1>(i) t = Mul(s, scale2) "
        "g = Mul(f, t) z = Add(g, b2)",
        "uint8[8,6] w2, uint8[6] z2, float[6] scale2, float[6] b2",
        into=6,
    ),
    "matmul_integer_to_float": tokens(
        "q, s, p = DynamicQuantizeLinear(a) z = com.microsoft.MatMulIntegerToFloat(q, w2, s, scale2, p, z2, b2)",
        "uint8[8,6] w2, uint8[6] z2, float[6] scale2, float[6] b2",
        into=6,
        outputs="float[2,5,4] y",
        **_MS,
    ),
    "dynamic_quantize_matmul": tokens(
        "z = com.microsoft.DynamicQuantizeMatMul(a, w2, s2, z2, b2)",
        "uint8[8,6] w2, uint8 z2 = {120}, float s2 = {0.01}, float[6] b2",
        into=6,
        outputs="float[2,5,4] y",
        **_MS,
    ),
    "matmul_of_4_bits_by_blocks_in_one_row": net(
        "float[2,5,6] x",
        "float[6,96] w1, float[96] b1, uint8[6,6,8] q2, float[36] scale2, uint8[18] z2",
        "m = MatMul(x, w1) a = Add(m, b1) "
        "y = com.microsoft.MatMulNBits<K=96, N=6, bits=4, block_size=16>(a, q2, scale2, z2)",
        outputs="float[2,5,6] y",
        **_MS,
    ),
    **{
        f"matmul_of_{bits}_bits{'_' if words else ''}{words}": tokens(
            f"z = com.microsoft.MatMulNBits<K=64, N=6, bits={bits}, block_size=16>(a, q2, {scales})",
            f"uint8[6,4,{2 * bits}] q2, {kinds}",
            wide=64,
            into=6,
            outputs="float[2,5,4] y",
            **_MS,
        )
        for bits, words, scales, kinds in (
            (4, "", "scale2", "float[6,4] scale2"),
            (4, "in_one_row", "scale2", "float[24] scale2"),
            (4, "zero_points", "scale2, z2", "float[24] scale2, uint8[12] z2"),
            (4, "zero_points_by_row", "scale2, z2", "float[6,4] scale2, uint8[6,2] z2"),
            (4, "bias", "scale2, , , b2", "float[6,4] scale2, float[6] b2"),
            (8, "", "scale2", "float[6,4] scale2"),
        )
    },
}
