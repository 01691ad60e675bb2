"""Channel shuffles in the forms that exporters write."""

from nets.build import Build, image, net, tokens

_STATIC = "int64[5] s = {2, 2, 4, 6, 6}, int64[4] r = {2, 8, 6, 6}"
_MIX = "t = Reshape(a, s) u = Transpose<perm=[0,2,1,3,4]>(t) b = Reshape(u, r)"

NETS: dict[str, Build] = {
    "shuffle": image(f"{_MIX} z = Relu(b)", _STATIC),
    "shuffle_three_parts": image(
        f"{_MIX} z = Mul(b, c)",
        "int64[5] s = {2, 3, 4, 6, 6}, int64[4] r = {2, 12, 6, 6}, float[12,1,1] c",
        wide=12,
        into=12,
    ),
    "shuffle_minus_one": image(f"{_MIX} z = Relu(b)", "int64[5] s = {0, 2, -1, 6, 6}, int64[4] r = {0, -1, 6, 6}"),
    "shuffle_aligned": image(
        "g = Conv<group=2>(a, w2) t = Reshape(g, s) u = Transpose<perm=[0,2,1,3,4]>(t) b = Reshape(u, r) z = Relu(b)",
        "float[8,4,1,1] w2, int64[5] s = {2, 2, 4, 6, 6}, int64[4] r = {2, 8, 6, 6}",
    ),
    "shuffle_dynamic_batch": image(
        "d = Shape(a) n = Gather(d, i) p = Concat<axis=0>(n, parts) q = Concat<axis=0>(n, back) t = Reshape(a, p) "
        "u = Transpose<perm=[0,2,1,3,4]>(t) b = Reshape(u, q) z = Relu(b)",
        "int64[1] i = {0}, int64[4] parts = {2, 4, 6, 6}, int64[3] back = {8, 6, 6}",
        batch="N",
        outputs="float[N,4,6,6] y",
    ),
    "shuffle_batch_inferred": image(f"{_MIX} z = Relu(b)", "int64[5] s = {-1, 2, 4, 6, 6}, int64[4] r = {-1, 8, 6, 6}"),
    "shuffle_twice": image(
        f"{_MIX} e = Mul(b, c) dt = Reshape(e, s) du = Transpose<perm=[0,2,1,3,4]>(dt) d = Reshape(du, r) z = Relu(d)",
        f"{_STATIC}, float[8,1,1] c",
    ),
    "shuffle_pairs": image(
        "t = Reshape(a, s) u = Transpose<perm=[1,0,2]>(t) v = Reshape(u, r) b = Gather<axis=0>(v, zero) "
        "c = Gather<axis=0>(v, one) "
        "e = Conv(c, w2) f = Relu(e) z = Concat<axis=1>(b, f)",
        "int64[3] s = {8, 2, 36}, int64[5] r = {2, 2, 4, 6, 6}, int64 zero = {0}, int64 one = {1}, float[4,4,1,1] w2",
    ),
    "shuffle_v2_stage": image(
        "t = Reshape(a, s) u = Transpose<perm=[1,0,2]>(t) v = Reshape(u, r) b = Gather<axis=0>(v, zero) "
        "c = Gather<axis=0>(v, one) "
        "e = Conv<group=4>(c, w2) f = Conv(e, w3) g = Relu(f) h = Concat<axis=1>(b, g) "
        "ht = Reshape(h, s) hu = Transpose<perm=[1,0,2]>(ht) hv = Reshape(hu, r) k = Gather<axis=0>(hv, zero) "
        "l = Gather<axis=0>(hv, one) "
        "m = Conv(l, w4) z = Concat<axis=1>(k, m)",
        "int64[3] s = {8, 2, 36}, int64[5] r = {2, 2, 4, 6, 6}, int64 zero = {0}, int64 one = {1}, "
        "float[4,1,1,1] w2, float[4,4,1,1] w3, "
        "float[4,4,1,1] w4",
    ),
    "shuffle_then_split": image(
        f"{_MIX} e, f = Split<axis=1>(b) g = Conv(e, w2) z = Concat<axis=1>(f, g)", f"{_STATIC}, float[4,4,1,1] w2"
    ),
    "shuffle_positions": image(
        "t = Reshape(a, s) u = Transpose<perm=[0,1,3,2,4]>(t) b = Reshape(u, r) z = Relu(b)",
        "int64[5] s = {2, 8, 2, 3, 6}, int64[4] r = {2, 8, 6, 6}",
    ),
    "shuffle_channels_and_positions": image(
        "t = Reshape(a, s) u = Transpose<perm=[0,2,1,4,3,5]>(t) b = Reshape(u, r) z = Relu(b)",
        "int64[6] s = {2, 2, 4, 2, 3, 6}, int64[4] r = {2, 8, 6, 6}",
    ),
    "shuffle_gathers_position": image(
        "t = Reshape(a, s) b = Gather<axis=3>(t, one) z = Relu(b)",
        "int64[5] s = {2, 8, 3, 2, 6}, int64 one = {1}",
    ),
    "shuffle_read_inside": image(
        f"{_MIX} m = ReduceMax<axes=[1], keepdims=0>(t) z = Concat<axis=1>(b, m)", _STATIC, into=12
    ),
    "shuffle_by_transpose_without_order": net(
        "float[1,6] x",
        "float[6,8] w1, int64[2] apart = {2, 4}, int64[2] back = {1, 8}, float[8,5] w9",
        "a = MatMul(x, w1) r = Reshape(a, apart) t = Transpose(r) z = Reshape(t, back) y = MatMul(z, w9)",
    ),
    "reshape_that_divides_no_axis": tokens(
        "b = MatMul(a, w2) r = Reshape(b, first) q = Reshape(r, second) t = Transpose<perm=[0,1,3,2]>(q) "
        "z = Reshape(t, back)",
        "float[8,24] w2, int64[4] first = {2, 5, 6, 4}, int64[4] second = {2, 5, 8, 3}, int64[3] back = {2, 5, 24}",
        into=24,
    ),
}
