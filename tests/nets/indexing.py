"""Gathering and scattering by indices that come as data, and bounds, pads and counts that are computed from sizes."""

from nets.build import Build, image, tokens

NETS: dict[str, Build] = {
    "gather_elements": tokens("z = GatherElements<axis=1>(a, index)", "int64[2,3,8] index"),
    "gather_elements_computed": tokens("i = ArgMax<axis=1>(a) z = GatherElements<axis=-2>(a, i)"),
    "gather_elements_channels": tokens(
        "g = GatherElements<axis=2>(a, index) b = MatMul(g, w2) z = Tanh(b)",
        "int64[2,5,8] index, float[8,7] w2",
        into=7,
    ),
    "scatter_elements": tokens("z = ScatterElements<axis=1>(a, index, u)", "int64[2,3,8] index, float[2,3,8] u"),
    "scatter_old": tokens("z = Scatter<axis=1>(a, index, u)", "int64[2,3,8] index, float[2,3,8] u", opset=10),
    "gather_nd": tokens("z = GatherND<batch_dims=1>(a, index)", "int64[2,3,1] index"),
    "gather_nd_two_axes": tokens(
        "g = GatherND(a, index) z = Relu(g)", "int64[6,2] index = {0,0, 1,1, 0,2, 1,3, 0,4, 1,0}"
    ),
    "scatter_nd": tokens("z = ScatterND(a, index, u)", "int64[4,2] index = {0,0, 1,1, 0,2, 1,3}, float[4,8] u"),
    "tensor_scatter": tokens(
        "z = TensorScatter<axis=1>(cache, a, place)", "float[2,7,8] cache, int64[2] place = {0, 2}", opset=24
    ),
    "tensor_scatter_circular": tokens(
        'z = TensorScatter<mode="circular">(cache, a, place)', "float[2,7,8] cache, int64[2] place = {4, 6}", opset=24
    ),
    "gather_expanded": tokens(
        "q = Reshape(a, heads) h = Transpose<perm=[0,2,1,3]>(q) s = Shape(h) n = Gather(s, parts) "
        "t = Concat<axis=0>(n, last) "
        "r = Range(zero, five, one) r0 = Sub(five, r) r1 = Sub(r0, one) i = Unsqueeze(r1, axes) e = Expand(i, t) "
        "g = GatherElements<axis=2>(h, e) b = Transpose<perm=[0,2,1,3]>(g) z = Reshape(b, merge)",
        "int64[4] heads = {0, 0, 4, 2}, int64[3] parts = {0, 1, 2}, int64[1] last = {2}, int64 zero = {0}, "
        "int64 one = {1}, int64 five = {5}, "
        "int64[3] axes = {0, 1, 3}, int64[3] merge = {0, 0, -1}",
    ),
    "gather_whose_shape_is_read": tokens(
        "f = Gather<axis=2>(a, minus) s = Shape(f) n = Gather(s, zero) l = Gather(s, one) r = Range(zero, l, one) "
        "e = Gather(table, r) z = Add(a, e)",
        "int64 minus = {-1}, int64 zero = {0}, int64 one = {1}, float[9,8] table",
    ),
    "gather_whose_shape_is_read_from_the_end": tokens(
        "f = Gather<axis=2>(a, seven) s = Shape(f) l = Gather(s, one) r = Range(zero, l, one) e = Gather(table, r) "
        "z = Add(a, e)",
        "int64 seven = {7}, int64 zero = {0}, int64 one = {1}, float[9,8] table",
    ),
    "one_hot": tokens(
        "i = ArgMax<axis=1, keepdims=0>(a) h = OneHot<axis=1>(i, depth, values) z = Mul(a, h)",
        "int64 depth = {5}, float[2] values = {0.25, 1.5}",
    ),
    "one_hot_at_the_end": tokens(
        "i = ArgMax<axis=1, keepdims=0>(a) h = OneHot(i, depth, values) t = Transpose<perm=[0,2,1]>(h) z = Mul(a, t)",
        "int64 depth = {5}, float[2] values = {0.25, 1.5}",
    ),
    "one_hot_of_two_axes_at_the_end": image(
        "i = ArgMax<axis=2, keepdims=0>(a) h = OneHot<axis=-1>(i, depth, values) t = Transpose<perm=[0,1,3,2]>(h) "
        "z = Mul(a, t)",
        "int64 depth = {6}, float[2] values = {0.25, 1.5}",
    ),
    "gather_elements_from_the_end": image("z = GatherElements<axis=-1>(a, index)", "int64[2,8,6,3] index"),
    "scatter_elements_from_the_end": image(
        "z = ScatterElements<axis=-1>(a, index, u)", "int64[2,8,6,3] index, float[2,8,6,3] u"
    ),
    "tensor_scatter_four_axes": image(
        "z = TensorScatter(cache, a, place)", "float[2,8,9,6] cache, int64[2] place = {0, 2}", opset=24
    ),
    "tensor_scatter_channels_in_front": tokens(
        "t = Transpose<perm=[2,1,0]>(a) s = TensorScatter<axis=1>(cache, t, place) z = Transpose<perm=[2,1,0]>(s)",
        "float[8,7,2] cache, int64[8] place = {0, 1, 2, 0, 1, 2, 0, 1}",
        opset=24,
    ),
    "trilu": tokens("t = Transpose<perm=[2,0,1]>(a) l = Trilu(t) z = Transpose<perm=[1,2,0]>(l)"),
    "trilu_channels": tokens("l = Trilu(a) b = MatMul(l, w2) z = Tanh(b)", "float[8,7] w2", into=7),
    "range_positions": tokens(
        "d = Shape(a) n = Gather(d, one) r = Range(zero, n, one) e = Gather(table, r) z = Add(a, e)",
        "int64 zero = {0}, int64 one = {1}, float[9,8] table",
    ),
    "slice_chunks": tokens(
        "d = Shape(a) n = Gather(d, two) up = Add(n, one) h = Div(up, both) m0 = Mul(h, one) m1 = Mul(h, both) "
        "p = Slice(a, zero, m0, two) q = Slice(a, m0, m1, two) s = Sigmoid(q) z = Mul(p, s)",
        "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] both = {2}",
        into=4,
    ),
    "slice_three_quarters": tokens(
        "d = Shape(a) n = Gather(d, two) t = Mul(n, three) e = Div(t, four) z = Slice(a, zero, e, two)",
        "int64[1] zero = {0}, int64[1] two = {2}, int64[1] three = {3}, int64[1] four = {4}",
        into=6,
    ),
    "pad_channels_to_sixteen": image(
        "b = Conv(a, w2) d = Shape(b) n = Gather(d, one) c = Sub(sixteen, n) "
        "p = Concat<axis=0>(nought, nought, nought, nought, nought, c, nought, nought) z = Pad(b, p)",
        "float[6,8,1,1] w2, int64[1] one = {1}, int64[1] sixteen = {16}, int64[1] nought = {0}",
        into=16,
    ),
    "pad_by_reflection_of_two_axes": image(
        'z = Pad<mode="reflect">(a, p, , axes)', "int64[4] p = {1, 1, 1, 1}, int64[2] axes = {2, 3}", opset=18
    ),
    "slice_of_nothing": image(
        "b = Conv(a, w2) e = Slice(b, start, end, one) z = Concat<axis=1>(b, e)",
        "float[6,8,1,1] w2, int64[1] start = {0}, int64[1] end = {-20}, int64[1] one = {1}",
        into=6,
    ),
    "pad_to_same": image(
        "d = Shape(a) h = Gather(d, two) f = Cast<to=1>(h) g = Sub(f, five) c = Clip(g, none) i = Cast<to=7>(c) "
        "p = Concat<axis=0>(nought, nought, nought, nought, nought, nought, i, i) z = Pad(a, p)",
        "int64[1] two = {2}, float five = {5.0}, float none = {0.0}, int64[1] nought = {0}",
    ),
    "group_normalization": image(
        "z = GroupNormalization<num_groups=4>(a, scale, b2)",
        "float[8] scale, float[8] b2",
        opset=21,
        outputs="float[2,4,6,6] y",
    ),
    "group_normalization_per_group": image(
        "z = GroupNormalization<num_groups=4>(a, scale, b2)",
        "float[4] scale, float[4] b2",
        opset=18,
        outputs="float[2,4,6,6] y",
    ),
    "group_normalization_of_all": image(
        "b = Conv(a, w2) z = GroupNormalization<num_groups=1>(b, scale, b2)",
        "float[6,8,1,1] w2, float[6] scale, float[6] b2",
        into=6,
        opset=21,
        size=5,
        outputs="float[2,4,5,5] y",
    ),
    "group_normalization_decomposed": image(
        "r = Reshape(a, s) n = InstanceNormalization(r, scale, b2) d = Shape(a) b = Reshape(n, d) z = Mul(b, g)",
        "int64[3] s = {0, 4, -1}, float[4] scale, float[4] b2, float[8,1,1] g",
    ),
    "batch_normalization_of_weights": image(
        "r = Reshape(w2, s) n, mean, spread = BatchNormalization<training_mode=1>(r, scale, b2, mean0, var0) "
        "w = Reshape(n, t) z = Conv(a, w)",
        "float[7,8,1,1] w2, int64[3] s = {1, 7, 8}, int64[4] t = {7, 8, 1, 1}, float[7] scale, float[7] b2, "
        "float[7] mean0, float[7] var0",
        into=7,
    ),
}
