"""Operators of signals: Fourier transforms, blocks that become images, and pools that are taken back."""

from nets.build import Build, image, net

NETS: dict[str, Build] = {
    "dft": net(
        "float[2,7,3] x",
        "float[3,8] w1, float[8,4] w9, int64[1] last = {3}, int64[1] front = {-1}",
        "a = MatMul(x, w1) b = Unsqueeze(a, last) c = DFT<axis=1>(b) d = ReduceSum<keepdims=0>(c, front) "
        "y = MatMul(d, w9)",
    ),
    "dft_20": net(
        "float[2,7,3] x",
        "float[3,8] w1, float[8,4] w9, int64[1] last = {3}, int64[1] front = {-1}, int64 one = {1}",
        "a = MatMul(x, w1) b = Unsqueeze(a, last) c = DFT(b, , one) d = ReduceSum<keepdims=0>(c, front) "
        "y = MatMul(d, w9)",
        opset=20,
    ),
    "col2im": net(
        "float[2,5,9] x",
        "float[24,5,1] w1, float[4,6,1,1] w9, int64[2] size = {4, 4}, int64[2] block = {2, 2}",
        "a = Conv(x, w1) z = Col2Im(a, size, block) y = Conv(z, w9)",
        opset=18,
    ),
    "max_unpool": image(
        "b, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) r = Relu(b) "
        "z = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(r, i)"
    ),
    "max_unpool_to_a_shape": image(
        "b, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) "
        "z = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(b, i, shape)",
        "int64[4] shape = {2, 8, 6, 6}",
    ),
}
