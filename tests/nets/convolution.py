"""Convolutions, pooling, resizing and normalisation."""

from nets.build import Build, image, net


def _grouped(op: str, weight: str, nodes_attributes: str, into: int = 8, bias: int = 8) -> Build:
    return image(f"z = {op}<{nodes_attributes}>(a, w2, b2)", f"float[{weight}] w2, float[{bias}] b2", into=into)


def _resized_rows(nodes: str, weights: str, opset: int = 17) -> Build:
    """A linear layer makes `m` of the rows of an image, which `nodes` resize, another reads them."""
    return net(
        "float[2,3,6,6] x",
        f"float[6,8] w1, {weights}, float[8,4] w9",
        f"m = MatMul(x, w1) {nodes} y = MatMul(z, w9)",
        opset=opset,
    )


NETS: dict[str, Build] = {
    "conv": image(
        "b = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w2, b2) r = LeakyRelu(b) z = Conv(r, w3)",
        "float[6,8,3,3] w2, float[6] b2, float[10,6,1,1] w3",
        into=10,
    ),
    "conv_1d": net(
        "float[2,3,9] x",
        "float[6,3,3] w1, float[6] b1, float[4,6,2] w2",
        "a = Conv<pads=[1,1]>(x, w1, b1) y = Conv<strides=[2]>(a, w2)",
    ),
    "conv_3d": net(
        "float[1,2,4,4,4] x",
        "float[6,2,2,2,2] w1, float[6] b1, float[3,6,1,1,2] w2",
        "a = Conv(x, w1, b1) y = Conv(a, w2)",
    ),
    "conv_dilated": image(
        'b = Conv<dilations=[2,2]>(a, w2, b2) z = Conv<auto_pad="SAME_UPPER">(b, w3)',
        "float[6,8,3,3] w2, float[6] b2, float[8,6,3,3] w3",
    ),
    "conv_grouped_same_channel": _grouped("Conv", "12,4,1,1", "group=2", into=12, bias=12),
    "conv_grouped_whole_groups": _grouped("Conv", "12,2,1,1", "group=4", into=12, bias=12),
    "conv_grouped_twice": image(
        "b = Conv<group=2>(a, w2, b2) c = Relu(b) z = Conv<group=4>(c, w3)",
        "float[8,4,1,1] w2, float[8] b2, float[8,2,1,1] w3",
    ),
    "conv_grouped_residual": image("b = Conv<group=2>(a, w2, b2) z = Add(a, b)", "float[8,4,1,1] w2, float[8] b2"),
    "conv_grouped_shifted": image(
        "l, r = Split<axis=1>(a, s) t = Concat<axis=1>(r, l) b = Add(a, t) z = Conv<group=2>(b, w2, b2)",
        "float[12,4,1,1] w2, float[12] b2, int64[2] s = {4, 4}",
        into=12,
    ),
    "conv_grouped_in_other_numbers": image(
        "b = Conv<group=2>(a, w2) z = Conv<group=3>(b, w3)", "float[24,4,1,1] w2, float[12,8,1,1] w3", into=12
    ),
    "conv_grouped_in_turn": image(
        "b = Conv<group=2, pads=[1,1,1,1]>(a, w2, b2) c = Relu(b) z = Conv<group=2>(c, w3)",
        "float[12,4,3,3] w2, float[12] b2, float[16,6,1,1] w3",
        into=16,
    ),
    "conv_grouped_shared_weight": image(
        "b = Conv<group=2>(a, w2) c = Relu(b) d = Conv<group=2>(c, w2) z = Sigmoid(d)", "float[8,4,1,1] w2"
    ),
    "conv_grouped_weight_computed": image(
        "m = Sigmoid(w2) v = Mul(m, s) z = Conv<group=2>(a, v)", "float[12,4,1,1] w2, float[12,1,1,1] s", into=12
    ),
    "conv_grouped_weight_scaled_per_input": image(
        "v = Mul(w2, s) z = Conv<group=2>(a, v)", "float[12,4,1,1] w2, float[1,4,1,1] s", into=12
    ),
    "conv_grouped_weight_transposed": image(
        "v = Transpose<perm=[1,0,2,3]>(w2) z = Conv<group=2>(a, v)", "float[4,12,1,1] w2", into=12
    ),
    "conv_grouped_gated": image(
        "b = Conv<group=2>(a, w2) g = GlobalAveragePool(b) h = Conv(g, f1) i = Relu(h) j = Conv(i, f2) "
        "k = Sigmoid(j) z = Mul(b, k)",
        "float[8,4,1,1] w2, float[5,8,1,1] f1, float[8,5,1,1] f2",
    ),
    "conv_grouped_writes_output": net(
        "float[2,3,5,5] x",
        "float[8,3,1,1] w1, float[8] b1, float[6,4,1,1] w2, float[6] b2",
        "a = Conv(x, w1, b1) y = Conv<group=2>(a, w2, b2)",
    ),
    "conv_depthwise": _grouped("Conv", "8,1,3,3", 'group=8, auto_pad="SAME_LOWER"'),
    "conv_depthwise_multiplier": _grouped("Conv", "24,1,3,3", "group=8", into=24, bias=24),
    "conv_depthwise_on_input": net(
        "float[2,3,5,5] x",
        "float[12,1,3,3] w1, float[12] b1, float[4,12,1,1] w2",
        "a = Conv<group=3>(x, w1, b1) y = Conv(a, w2)",
    ),
    "conv_transpose": image(
        "z = ConvTranspose<strides=[2,2], output_padding=[1,1]>(a, w2, b2)", "float[8,6,3,3] w2, float[6] b2", into=6
    ),
    "conv_transpose_writes_output": net(
        "float[2,3,5,5] x",
        "float[8,3,1,1] w1, float[8,2,2,2] w2, float[2] b2",
        "a = Conv(x, w1) y = ConvTranspose(a, w2, b2)",
    ),
    "conv_transpose_1d": net(
        "float[2,3,5] x",
        "float[3,8,2] w1, float[8] b1, float[8,2,2] w2",
        "a = ConvTranspose(x, w1, b1) y = ConvTranspose(a, w2)",
    ),
    "conv_transpose_same_channel": _grouped("ConvTranspose", "8,6,2,2", "group=2", into=12, bias=12),
    "conv_transpose_whole_groups": _grouped("ConvTranspose", "8,3,2,2", "group=4", into=12, bias=12),
    "conv_transpose_grouped_writes_output": net(
        "float[2,3,5,5] x",
        "float[8,3,1,1] w1, float[8,3,1,1] w2, float[6] b2",
        "a = Conv(x, w1) y = ConvTranspose<group=2>(a, w2, b2)",
    ),
    "conv_transpose_depthwise": _grouped("ConvTranspose", "8,1,3,3", "group=8, strides=[2,2]"),
    "conv_transpose_depthwise_multiplier": _grouped("ConvTranspose", "8,2,3,3", "group=8", into=16, bias=16),
    "max_pool": image("z = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)"),
    "max_pool_indices": image(
        "b = Conv(a, w2) z, i = MaxPool<kernel_shape=[2,2]>(b)", "float[6,8,1,1] w2", into=6, outputs="y, i"
    ),
    "max_pool_then_product_over_width": net(
        "float[2,3,9] x",
        "float[8,3,2] w1, float[5,8,1] w2, float[7,4] w9",
        "a = Conv(x, w1) b = Conv(a, w2) c = MaxPool<kernel_shape=[2]>(b) y = MatMul(c, w9)",
    ),
    "average_pool": image("z = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(a)"),
    "lp_pool": image("z = LpPool<kernel_shape=[2,2], p=2>(a)"),
    "global_average_pool": image("z = GlobalAveragePool(a)"),
    "global_max_pool": image("z = GlobalMaxPool(a)"),
    "global_lp_pool": image("z = GlobalLpPool<p=2>(a)"),
    "grid_sample": image("z = GridSample(a, grid)", "float[2,5,4,2] grid"),
    "grid_sample_computed": image("g = Tanh(flow) z = GridSample<align_corners=1>(a, g)", "float[2,6,6,2] flow"),
    "grid_sample_then_product_over_height": net(
        "float[2,3,6,6] x",
        "float[8,3,1,1] w1, float[5,8,1,1] w2, float[2,5,4,2] grid, float[5,7] w9",
        "a = Conv(x, w1) b = Conv(a, w2) c = GridSample(b, grid) d = Transpose<perm=[0,1,3,2]>(c) y = MatMul(d, w9)",
    ),
    "roi_align_then_product_over_height": net(
        "float[2,3,6,6] x",
        "float[8,3,1,1] w1, float[5,8,1,1] w2, float[2,4] boxes = {0.0, 0.0, 5.0, 5.0, 1.0, 1.0, 4.0, 4.0}, "
        "int64[2] which = {0, 1}, float[3,7] w9",
        "a = Conv(x, w1) b = Conv(a, w2) c = RoiAlign<output_height=3, output_width=2>(b, boxes, which) "
        "d = Transpose<perm=[0,1,3,2]>(c) y = MatMul(d, w9)",
    ),
    "roi_align": image(
        "r = RoiAlign<output_height=3, output_width=3, spatial_scale=1.0>(a, boxes, which) z = Relu(r)",
        "float[3,4] boxes = {0.0, 0.0, 5.0, 5.0, 1.0, 1.0, 4.0, 4.0, 0.0, 2.0, 3.0, 5.0}, int64[3] which = {0, 1, 1}",
    ),
    "max_roi_pool": image(
        "z = MaxRoiPool<pooled_shape=[2,2]>(a, boxes)",
        "float[2,5] boxes = {0.0, 0.0, 0.0, 5.0, 5.0, 1.0, 1.0, 1.0, 4.0, 4.0}",
    ),
    "resize_nearest": image('z = Resize<mode="nearest">(a, , s)', "float[4] s = {1.0, 1.0, 2.0, 2.0}"),
    "resize_linear_sizes": image('z = Resize<mode="linear">(a, , , s)', "int64[4] s = {2, 8, 9, 4}"),
    "resize_axes": image('z = Resize<mode="linear", axes=[2,3]>(a, , , s)', "int64[2] s = {9, 4}", opset=18),
    "resize_opset_10": image('z = Resize<mode="linear">(a, s)', "float[4] s = {1.0, 1.0, 1.5, 2.0}", opset=10),
    "resize_sizes_from_shape": image(
        "d = Shape(a) e = Slice(d, zero, two, zero) s = Concat<axis=0>(e, hw) z = Resize(a, , , s)",
        "int64[1] zero = {0}, int64[1] two = {2}, int64[2] hw = {12, 12}",
        batch="N",
    ),
    "resize_channels": image(
        'b = Conv(a, w2) z = Resize<mode="nearest">(b, , s)',
        "float[6,8,1,1] w2, float[4] s = {1.0, 2.0, 1.0, 1.0}",
        into=12,
    ),
    "resize_height_alone": _resized_rows('z = Resize<mode="nearest">(m, , s)', "float[4] s = {1.0, 1.0, 2.0, 1.0}"),
    "resize_height_alone_by_sizes": _resized_rows('z = Resize<mode="nearest">(m, , , s)', "int64[4] s = {2, 3, 12, 8}"),
    "resize_height_alone_opset_10": _resized_rows(
        'z = Resize<mode="nearest">(m, s)', "float[4] s = {1.0, 1.0, 2.0, 1.0}", opset=10
    ),
    "resize_height_by_computed_sizes": net(
        "float[N,3,6,6] x",
        "float[6,8] w1, float[8,5] w2, int64[4] twice = {1, 1, 2, 1}, float[5,4] w9",
        'l = MatMul(x, w1) m = MatMul(l, w2) d = Shape(m) e = Mul(d, twice) z = Resize<mode="nearest">(m, , , e) '
        "y = MatMul(z, w9)",
    ),
    "upsample": image('z = Upsample<mode="nearest">(a, s)', "float[4] s = {1.0, 1.0, 2.0, 3.0}", opset=9),
    "batch_normalization": image(
        "z = BatchNormalization(a, scale, b2, m2, var)", "float[8] scale, float[8] b2, float[8] m2, float[8] var"
    ),
    "batch_normalization_shared_vectors": image(
        "b = BatchNormalization(a, scale, m2, m2, scale) c = Conv(b, w2) z = BatchNormalization(c, scale, b1, m2, var)",
        "float[8] scale, float[8] m2, float[8] var, float[8,8,1,1] w2",
    ),
    "group_normalization_by_hand": image(
        "b = Conv(a, w2) r = Reshape(b, s) n = InstanceNormalization(r, scale, m2) z = Reshape(n, t)",
        "float[6,8,1,1] w2, int64[3] s = {0, 2, -1}, float[2] scale, float[2] m2, int64[4] t = {2, 6, 6, 6}",
        into=6,
    ),
    "instance_normalization": image("z = InstanceNormalization(a, scale, b2)", "float[8] scale, float[8] b2"),
    "lrn": image("b = Conv(a, w2) z = LRN<size=3>(b)", "float[6,8,1,1] w2", into=6),
    "lp_normalization": image(
        "b = Conv(a, w2) s = Sigmoid(b) z = LpNormalization<axis=1>(s)", "float[6,8,1,1] w2", into=6
    ),
    "lp_normalization_over_width": image("z = LpNormalization<axis=-1>(a)"),
    "layer_normalization_over_width": image("z = LayerNormalization(a, scale, b2)", "float[6] scale, float[6] b2"),
    "layer_normalization_scale_per_channel": image("z = LayerNormalization(a, scale)", "float[8,1,6] scale"),
    "deform_conv": image(
        "o = Conv<pads=[1,1,1,1]>(a, w3, b3) b = DeformConv<pads=[1,1,1,1], kernel_shape=[3,3]>(a, w2, o, b2) "
        "z = Relu(b)",
        "float[6,8,3,3] w2, float[6] b2, float[18,8,3,3] w3, float[18] b3",
        into=6,
        opset=19,
    ),
    "deform_conv_mask": image(
        "o = Conv<pads=[1,1,1,1]>(a, w3) m = Conv<pads=[1,1,1,1]>(a, w4) "
        "z = DeformConv<pads=[1,1,1,1], kernel_shape=[3,3], offset_group=2>(a, w2, o, , m)",
        "float[6,8,3,3] w2, float[36,8,3,3] w3, float[18,8,3,3] w4",
        into=6,
        opset=19,
    ),
    "residual": image(
        "b = Conv(a, w2, b2) c = Relu(b) d = Conv(c, w3) z = Add(d, a)",
        "float[6,8,1,1] w2, float[6] b2, float[8,6,1,1] w3",
    ),
    "shortcut_option_a": image(
        "b = Conv<strides=[2,2]>(a, w2, b2) c = Slice(a, s, e, d, t) p = Pad(c, pads) z = Add(b, p)",
        "float[14,8,1,1] w2, float[14] b2, int64[2] s = {0, 0}, int64[2] e = {6, 6}, int64[2] d = {2, 3}, "
        "int64[2] t = {2, 2}, "
        "int64[8] pads = {0, 3, 0, 0, 0, 3, 0, 0}",
        into=14,
    ),
    "two_heads": net(
        "float[2,3,5,5] x",
        "float[8,3,1,1] w1, float[8] b1, float[2,8,1,1] w2, float[5,8] w3",
        "a = Conv(x, w1, b1) y = Conv(a, w2) g = GlobalAveragePool(a) f = Flatten(g) v = Gemm<transB=1>(f, w3)",
        outputs="y, v",
    ),
}
