"""Operators that move elements or put axes together: Transpose, Reshape, Concat, Split, Slice, Gather and Pad."""

from nets.build import Build, image, net, tokens

NETS: dict[str, Build] = {
    # --- ReverseSequence ---
    "reverse_sequence": tokens(
        "z = ReverseSequence<batch_axis=0, time_axis=1>(a, lengths)", "int64[2] lengths = {3, 5}"
    ),
    # --- Pad ---
    "pad_positions": image(
        "p = Pad(a, pads) z = Conv(p, w2)", "int64[8] pads = {0, 0, 1, 1, 0, 0, 2, 0}, float[8,8,2,2] w2"
    ),
    "pad_reflect": image('z = Pad<mode="reflect">(a, pads)', "int64[8] pads = {0, 0, 1, 2, 0, 0, 2, 1}"),
    "pad_channels_attribute": image("z = Pad<pads=[0,2,0,0,0,3,0,0]>(a)", into=13, opset=9),
    "pad_channels_input": image(
        "z = Pad(a, pads, v)", "int64[8] pads = {0, 2, 1, 0, 0, 3, 0, 1}, float v = {0.5}", into=13
    ),
    "pad_channels_axes": image(
        "z = Pad(a, pads, , axes)", "int64[2] pads = {1, 2}, int64[1] axes = {-3}", into=11, opset=18
    ),
    "pad_channels_computed": image(
        "d = Shape(x) h = Gather(d, two) f = Div(h, four) p = Concat<axis=0>(o, five, f, f, o, two, f, f) "
        "z = Pad(a, p)",
        "int64[1] four = {4}, int64[1] o = {0}, int64[1] five = {5}, int64[1] two = {2}",
        into=15,
    ),
    "pad_positions_by_channels": image(
        "b = Conv(a, w2) d = Shape(a) n = Gather(d, one) f = Div(n, four) p = Concat<axis=0>(o, o, f, f, o, o, f, f) "
        "z = Pad(b, p)",
        "int64[1] one = {1}, int64[1] four = {4}, int64[1] o = {0}, float[6,8,1,1] w2",
        into=6,
    ),
    "pad_positions_computed": image(
        "d = Shape(x) h = Gather(d, two) f = Div(h, four) p = Concat<axis=0>(o, o, f, f, o, o, f, f) q = Pad(a, p) "
        "z = Relu(q)",
        "int64[1] two = {2}, int64[1] four = {4}, int64[1] o = {0}",
    ),
    "pad_reflect_channels": image(
        'b = Conv(a, w2) z = Pad<mode="reflect">(b, pads)',
        "float[6,8,1,1] w2, int64[8] pads = {0, 1, 0, 0, 0, 2, 0, 0}",
        into=9,
    ),
    "pad_crops_channels": image(
        "b = Conv(a, w2) z = Pad(b, pads)", "float[6,8,1,1] w2, int64[8] pads = {0, -1, 0, 0, 0, 2, 0, 0}", into=7
    ),
    # --- Concat, Split ---
    "concat": image(
        "b = Conv(x, w2) c = Sigmoid(b) d = Concat<axis=1>(a, c, a) z = Relu(d)", "float[5,3,1,1] w2", into=21
    ),
    "concat_with_input": image("z = Concat<axis=-3>(x, a)", into=11),
    "concat_constant": image("z = Concat<axis=1>(a, c)", "float[2,3,6,6] c", into=11),
    "concat_positions": image("b = Conv(x, w2) z = Concat<axis=3>(a, b)", "float[8,3,1,1] w2"),
    "dense_block": image(
        "b = Conv(a, w2) c = Concat<axis=1>(a, b) d = Conv(c, w3) e = Relu(d) z = Concat<axis=1>(c, e)",
        "float[4,8,1,1] w2, float[5,12,1,1] w3",
        into=17,
    ),
    "split_sizes": image(
        "b, c = Split<axis=1>(a, s) d = Conv(b, w2) e = Sigmoid(c) z = Concat<axis=1>(d, e)",
        "int64[2] s = {3, 5}, float[4,3,1,1] w2",
        into=9,
    ),
    "split_equal_gate": image("b, c = Split<axis=1>(a) d = Sigmoid(c) z = Mul(b, d)", into=4),
    "split_num_outputs": image("b, c, d = Split<axis=1, num_outputs=3>(a) z = Concat<axis=1>(d, b, c)", opset=18),
    "split_num_outputs_uneven": image(
        "b, c = Split<axis=1, num_outputs=2>(a) z = Tanh(c)", into=4, opset=18, outputs="y, b"
    ),
    "split_attribute": image("b, c = Split<axis=1, split=[2,6]>(a) d = Tanh(c) z = Concat<axis=1>(d, b)", opset=11),
    "split_sizes_computed": image(
        "h = Shape<start=1, end=2>(a) f = Div(h, two) s = Concat<axis=0>(f, f) b, c = Split<axis=1>(a, s) "
        "d = Sigmoid(c) z = Concat<axis=1>(d, b)",
        "int64[1] two = {2}",
        outputs="float[2,4,6,6] y",
    ),
    "split_sizes_from_other": image(
        "g = Conv(a, w2) h = Shape<start=1, end=2>(g) s = Concat<axis=0>(h, two) k = Conv(g, w3) "
        "b, c = Split<axis=1>(k, s) d = Tanh(c) z = Concat<axis=1>(d, b)",
        "float[5,8,1,1] w2, float[7,5,1,1] w3, int64[1] two = {2}",
        into=7,
        outputs="float[2,4,6,6] y",
    ),
    "split_attribute_default": image(
        "b, c = Split<axis=1>(a) d = Tanh(c) e = Conv(d, w2) f = Conv(b, w3) z = Add(e, f)",
        "float[6,4,1,1] w2, float[6,4,1,1] w3",
        into=6,
        opset=11,
    ),
    "split_positions": tokens(
        "b, c = Split<axis=1>(a, s) d = ReduceMean<axes=[1]>(c) z = Mul(b, d)", "int64[2] s = {2, 3}"
    ),
    # --- Slice ---
    "slice_attribute": image("b = Slice<axes=[1], starts=[2], ends=[7]>(a) z = Relu(b)", into=5, opset=9),
    "slice_attribute_no_axes": image("z = Slice<starts=[0,1], ends=[2,-2]>(a)", into=5, opset=9),
    "slice_inputs": image(
        "b = Slice(a, zero, three, one) c = Slice(a, three, end, one) d = Tanh(c) z = Concat<axis=1>(d, b)",
        "int64[1] zero = {0}, int64[1] three = {3}, int64[1] one = {1}, int64[1] end = {9223372036854775807}",
    ),
    "slice_no_axes": image("z = Slice(a, s, e)", "int64[2] s = {0, 2}, int64[2] e = {9, 7}", into=5),
    "slice_step_two": image(
        "z = Slice(a, s, e, d, t)", "int64[1] s = {1}, int64[1] e = {8}, int64[1] d = {1}, int64[1] t = {2}", into=4
    ),
    "slice_interleaved": image(
        "b = Slice(a, zero, end, d, two) c = Slice(a, d, end, d, two) e = Sigmoid(b) z = Mul(c, e)",
        "int64[1] zero = {0}, int64[1] end = {8}, int64[1] d = {1}, int64[1] two = {2}",
        into=4,
    ),
    "slice_backwards": image(
        "z = Slice(a, s, e, d, t)",
        "int64[1] s = {-1}, int64[1] e = {-9223372036854775807}, int64[1] d = {1}, int64[1] t = {-1}",
    ),
    "slice_step_two_and_positions": image(
        "b = Slice(a, s, e, d, t) z = Conv(b, w2)",
        "int64[2] s = {1, 1}, int64[2] e = {8, 5}, int64[2] d = {1, 3}, int64[2] t = {2, 1}, float[6,4,1,1] w2",
        into=6,
    ),
    "slice_backwards_beside_others": image(
        "b = Slice(a, s, e, d, t) z = Conv(b, w2)",
        "int64[2] s = {-1, 4}, int64[2] e = {1, 1}, int64[2] d = {1, 2}, int64[2] t = {-1, -3}, float[5,6,1,1] w2",
        into=5,
    ),
    "slice_backwards_beside_whole": image(
        "z = Slice(a, s, e, d, t)",
        "int64[2] s = {-1, 0}, int64[2] e = {1, 99}, int64[2] d = {1, 2}, int64[2] t = {-1, 1}",
        into=6,
    ),
    "slice_negative_bounds": image(
        "z = Slice(a, s, e, d)", "int64[2] s = {-6, 0}, int64[2] e = {-1, -1}, int64[2] d = {-3, 3}", into=5
    ),
    "slice_positions_step": image(
        "z = Slice(a, s, e, d, t)", "int64[1] s = {0}, int64[1] e = {6}, int64[1] d = {2}, int64[1] t = {2}"
    ),
    "slice_half_by_shape": image(
        "b = Conv(a, w2) h = Shape<start=1, end=2>(b) c = Conv(b, w3) z = Slice(c, zero, h, one)",
        "float[6,8,1,1] w2, float[7,6,1,1] w3, int64[1] zero = {0}, int64[1] one = {1}",
        into=6,
    ),
    "slice_positions_by_shape": tokens(
        "h = Shape<start=1, end=2>(x) e = Sub(h, one) z = Slice(a, zero, e, one)",
        "int64[1] zero = {0}, int64[1] one = {1}",
    ),
    # --- Gather ---
    "gather_constant": image("z = Gather<axis=1>(a, i)", "int64[5] i = {6, 0, 3, -1, 2}", into=5),
    "gather_repeated": image("z = Gather<axis=1>(a, i)", "int64[10] i = {6, 0, 3, 6, 2, 2, 1, 5, 4, 7}", into=10),
    "gather_int32": image("z = Gather<axis=1>(a, i)", "int32[8] i = {7, 6, 5, 4, 3, 2, 1, 0}"),
    "gather_strided": image(
        "p = GlobalAveragePool(a) f = Reshape(p, all) z = Gather(f, i)",
        "int64[1] all = {-1}, int64[2,8,1,1] i = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}",
    ),
    "gather_strided_heads": tokens(
        "g = Gather<axis=2>(a, i) r = Relu(g) z = Reshape(r, s)",
        "int64[2,4] i = {0, 1, 2, 3, 4, 5, 6, 7}, int64[3] s = {0, 0, 8}",
    ),
    "gather_scalar_position": tokens("z = Gather<axis=1>(a, i)", "int64 i = {0}"),
    "gather_scalar_channel": tokens(
        "s = Gather<axis=2>(a, i) u = Unsqueeze(s, last) b = MatMul(a, w2) z = Mul(b, u)",
        "int64 i = {3}, int64[1] last = {2}, float[8,7] w2",
        into=7,
    ),
    "gather_matrix_of_channels": tokens(
        "g = Gather<axis=2>(a, i) r = ReduceMean<axes=[3], keepdims=0>(g) b = MatMul(a, w2) c = MatMul(r, w3) "
        "z = Add(b, c)",
        "int64[2,3] i = {0, 1, 2, 3, 4, 5}, float[8,7] w2, float[2,7] w3",
        into=7,
    ),
    # --- Transpose, Reshape and the like ---
    "transpose": image("t = Transpose<perm=[0,2,3,1]>(a) n = Mul(t, c) z = Transpose<perm=[0,3,1,2]>(n)", "float[8] c"),
    "transpose_reverses": tokens("t = Transpose(a) n = Add(t, c) z = Transpose(n)", "float[8,1,1] c"),
    "flatten": net(
        "float[2,3,4,4] x",
        "float[6,3,1,1] w1, float[6] b1, float[96,5] w2",
        "a = Conv(x, w1, b1) f = Flatten(a) y = Gemm(f, w2)",
    ),
    "flatten_axis": net(
        "float[2,3,4,4] x",
        "float[6,3,1,1] w1, float[12,5] w2",
        "a = Conv(x, w1) f = Flatten<axis=2>(a) v = Transpose(f) y = MatMul(v, w2)",
    ),
    "reshape_minus_one": net(
        "float[2,3,4,4] x",
        "float[6,3,1,1] w1, int64[2] s = {0, -1}, float[96,5] w2",
        "a = Conv(x, w1) f = Reshape(a, s) y = MatMul(f, w2)",
    ),
    "reshape_literal": net(
        "float[2,3,4,4] x",
        "float[6,3,1,1] w1, int64[2] s = {2, 96}, float[96,5] w2",
        "a = Conv(x, w1) f = Reshape(a, s) y = MatMul(f, w2)",
    ),
    "reshape_positions": image(
        "t = Reshape(a, s) u = Mul(t, c) z = Reshape(u, r)",
        "int64[3] s = {0, 0, -1}, int64[4] r = {2, -1, 6, 6}, float[8,1] c",
    ),
    "reshape_splits_channels": image(
        "t = Reshape(a, s) r = ReduceMax<axes=[2], keepdims=0>(t) z = Relu(r)", "int64[5] s = {2, 4, 2, 6, 6}", into=4
    ),
    "reshape_batch_into_channels": image(
        "t = Reshape(a, s) u = Relu(t) z = Reshape(u, r)", "int64[4] s = {1, 16, 6, 6}, int64[4] r = {2, 8, 6, 6}"
    ),
    "squeeze": image(
        "g = GlobalAveragePool(a) s = Squeeze(g, axes) t = Mul(s, c) z = Unsqueeze(t, axes)",
        "int64[2] axes = {2, 3}, float[8] c",
    ),
    "squeeze_opset_11": image(
        "g = GlobalAveragePool(a) s = Squeeze<axes=[2,3]>(g) t = Mul(s, c) z = Unsqueeze<axes=[2,-1]>(t)",
        "float[8] c",
        opset=11,
    ),
    "expand_channels": image(
        "g = Conv(x, w2) e = Expand(g, s) z = Mul(a, e)", "float[1,3,1,1] w2, int64[4] s = {2, 8, 6, 6}"
    ),
    "expand_positions": image("g = GlobalAveragePool(a) z = Expand(g, s)", "int64[2] s = {3, 3}"),
    "expand_literal": image("g = GlobalAveragePool(a) z = Expand(g, s)", "int64[4] s = {2, 8, 3, 3}"),
    "expand_to_shape": image("g = Conv(x, w2) s = Shape(a) e = Expand(g, s) z = Add(a, e)", "float[1,3,1,1] w2"),
    "expand_constant": image(
        "e = Expand(c, s) z = Concat<axis=1>(a, e)", "float[1,3,1,1] c, int64[4] s = {2, 3, 6, 6}", into=11
    ),
    "constant_of_shape": image(
        "s = Shape(a) e = ConstantOfShape<value = float[1] {1.5}>(s) z = Add(a, e)", batch=1, size=24
    ),
    "constant_of_shape_literal_large": image(
        "e = ConstantOfShape<value = float[1] {1.5}>(s) z = Add(e, a)", "int64[4] s = {1, 8, 24, 24}", batch=1, size=24
    ),
    "constant_of_shape_literal": image(
        "e = ConstantOfShape<value = float[1] {1.5}>(s) z = Concat<axis=1>(e, a)", "int64[4] s = {2, 3, 6, 6}", into=11
    ),
    "tile_positions": image("z = Tile(a, r)", "int64[4] r = {1, 1, 2, 1}"),
    "tile_channels": image("z = Tile(a, r)", "int64[4] r = {1, 3, 1, 1}", into=24),
    "depth_to_space": image('z = DepthToSpace<blocksize=2, mode="DCR">(a)', wide=16, into=4),
    "depth_to_space_crd": image('z = DepthToSpace<blocksize=2, mode="CRD">(a)', wide=16, into=4),
    "space_to_depth": image("z = SpaceToDepth<blocksize=2>(a)", wide=4, into=16),
    "reshape_folds_tokens": tokens(
        "f = Reshape(a, s) m2 = MatMul(f, w2) g = Relu(m2) z = Reshape(g, r)",
        "int64[2] s = {-1, 8}, float[8,7] w2, int64[3] r = {2, 5, 7}",
        into=7,
    ),
    "reshape_splits_and_merges_positions": image(
        "t = Reshape(a, s) u = Relu(t) z = Reshape(u, r)", "int64[4] s = {2, 48, 3, 2}, int64[4] r = {2, 8, 6, 6}"
    ),
    "reshape_deals_positions_out_over_batch_and_channels": image(
        "t = Reshape(a, s) e = Mul(t, c) u = Transpose<perm=[0,2,1,3]>(e) v = Reshape(u, p) q = Relu(v) "
        "w = Reshape(q, f) k = Transpose<perm=[0,2,1,3]>(w) z = Reshape(k, r)",
        "int64[4] s = {48, 2, 3, 2}, int64[4] p = {2, 8, 9, 4}, int64[4] f = {48, 3, 2, 2}, "
        "int64[4] r = {2, 8, 6, 6}, float[48,1,1,1] c",
    ),
    "reshape_unfolds_patches_to_tokens": image(
        "t = Reshape(a, s) u = Transpose<perm=[0,2,1,3]>(t) v = Reshape(u, p) k = Transpose<perm=[0,3,2,1]>(v) "
        "q = Reshape(k, f) m = MatMul(q, w2) g = Relu(m) b = Reshape(g, h) c = Transpose<perm=[0,3,2,1]>(b) "
        "z = Conv(c, w3)",
        "int64[4] s = {-1, 2, 3, 2}, int64[4] p = {2, 8, 9, 4}, int64[3] f = {8, 9, 8}, int64[4] h = {2, 4, 9, 7}, "
        "float[8,7] w2, float[5,7,1,1] w3",
        into=5,
    ),
    "space_to_depth_by_hand": image(
        "t = Reshape(a, s) u = Transpose<perm=[0,1,3,5,2,4]>(t) z = Reshape(u, r)",
        "int64[6] s = {2, 4, 3, 2, 3, 2}, int64[4] r = {2, 16, 3, 3}",
        wide=4,
        into=16,
    ),
    "depth_to_space_by_hand": image(
        "t = Reshape(a, s) u = Transpose<perm=[0,1,4,2,5,3]>(t) z = Reshape(u, r)",
        "int64[6] s = {2, 4, 2, 2, 6, 6}, int64[4] r = {2, 4, 12, 12}",
        wide=16,
        into=4,
    ),
    "concat_flatten": net(
        "float[2,3,4,4] x",
        "float[3,3,1,1] w1, float[5,3,1,1] w2, float[128,5] w3",
        "a = Conv(x, w1) b = Conv(x, w2) c = Concat<axis=1>(a, b) f = Flatten(c) y = MatMul(f, w3)",
    ),
    "class_token": tokens(
        "e = Expand(c, s) t = Concat<axis=1>(e, a) z = Mul(t, p)",
        "float[1,1,8] c, int64[3] s = {2, 1, 8}, float[6,8] p",
    ),
    "symbolic_folds_tokens": tokens(
        "d = Shape(a) n = Gather(d, i) f = Reshape(a, s) q = MatMul(f, w2) g = Relu(q) "
        "p = Concat<axis=0>(n, five, seven) z = Reshape(g, p)",
        "int64[1] i = {0}, int64[1] five = {5}, int64[1] seven = {7}, int64[2] s = {-1, 8}, float[8,7] w2",
        into=7,
        batch="N",
        outputs="float[N,5,4] y",
    ),
    "symbolic_spatial": net(
        "float[N,3,H,W] x",
        "float[6,3,3,3] w1, float[6,6,2,2] w2, float[4,6,1,1] w3, int64[1] zero = {0}, int64[1] two = {2}, "
        "int64[1] four = {4}",
        "a = Conv<pads=[1,1,1,1]>(x, w1) b = Conv<strides=[2,2]>(a, w2) s = Shape(a) "
        "hw = Slice(s, two, four, zero) t = Shape(b) nc = Slice(t, zero, two, zero) "
        "u = Concat<axis=0>(nc, hw) r = Resize(b, , , u) m = Add(a, r) y = Conv(m, w3)",
        outputs="float[N,4,H,W] y",
    ),
    "symbolic_flatten": image(
        "d = Shape(a) n = Gather(d, i) c = Concat<axis=0>(n, m) r = Reshape(a, c) g = Mul(r, k) "
        "q = Concat<axis=0>(n, t) z = Reshape(g, q)",
        "int64[1] i = {0}, int64[1] m = {-1}, float[288] k, int64[3] t = {8, 6, 6}",
        batch="N",
    ),
    "symbolic_literal": net(
        "float[N,3,4,4] x",
        "float[6,3,1,1] w1, float[6] b1, int64 zero = {0}, int64[1] first = {0}, int64[1] width = {96}, float[96,5] w2",
        "a = Conv(x, w1, b1) d = Shape(a) n = Gather(d, zero) u = Unsqueeze(n, first) c = Concat<axis=0>(u, width) "
        "f = Reshape(a, c) y = MatMul(f, w2)",
        outputs="float[N,5] y",
    ),
    "symbolic_minus_one": net(
        "float[N,3,4,4] x",
        "float[6,3,1,1] w1, float[6] b1, int64 zero = {0}, int64[1] first = {0}, int64[1] rest = {-1}, float[96,5] w2",
        "a = Conv(x, w1, b1) d = Shape(a) n = Gather(d, zero) u = Unsqueeze(n, first) c = Concat<axis=0>(u, rest) "
        "f = Reshape(a, c) y = MatMul(f, w2)",
        outputs="float[N,5] y",
    ),
    "symbolic_product": net(
        "float[N,3,4,4] x",
        "float[6,3,1,1] w1, int64[1] i = {0}, int64[1] j = {1}, int64[1] rest = {-1}, float[6,5] w2",
        "a = Conv(x, w1) d = Shape(a) n = Gather(d, i) c = Gather(d, j) s = Concat<axis=0>(n, c, rest) "
        "f = Reshape(a, s) "
        "t = Transpose<perm=[0,2,1]>(f) y = MatMul(t, w2)",
        outputs="float[N,16,5] y",
    ),
}
