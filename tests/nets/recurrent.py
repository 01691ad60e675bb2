"""LSTM, GRU and RNN as exporters write them, and the unrolled form."""

from nets.build import Build, net

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

_BACK = "t = Transpose<perm=[0,2,1,3]>(h) z = Reshape(t, merge)"


def _sizes(operator: str, directions: int, inputs: int = 6, hidden: int = 8, suffix: str = "") -> str:
    rows = GATES[operator] * hidden
    return (
        f"float[{directions},{rows},{inputs}] wi{suffix}, float[{directions},{rows},{hidden}] wr{suffix}, "
        f"float[{directions},{2 * rows}] b{suffix}"
    )


def _layer(operator: str, attributes: str = "", states: str = "", more: str = "", behind: str = "", **options) -> Build:
    """A linear layer, the recurrent one, and a linear layer over its states at all steps."""
    directions = 2 if "bidirectional" in attributes else 1
    merge = f"int64[3] merge = {{5, 2, {8 * directions}}}"
    return net(
        "float[5,2,3] x",
        f"float[3,6] w1, {_sizes(operator, directions)}, {merge}, float[{8 * directions},4] w9{more and ', '}{more}",
        f"a = MatMul(x, w1) {states} h = {operator}<hidden_size=8{attributes and ', '}{attributes}>(a, wi, wr, b) "
        f"{behind or _BACK} y = MatMul(z, w9)".replace("(a, wi, wr, b)", f"(a, wi, wr, b{options.pop('further', '')})"),
        **options,
    )


_STATE = "float[1,2,8] h0, float[1,2,8] c0"
_UNROLLED_STEP = (
    "s{t} = Gather<axis=0>(x, i{t}) p{t} = MatMul(s{t}, wi) q{t} = MatMul(h{p}, wr) r{t} = Add(p{t}, q{t}) n{t} = "
    "Add(r{t}, b) "
    "g{t}, f{t}, o{t}, u{t} = Split<axis=1>(n{t}) gs{t} = Sigmoid(g{t}) fs{t} = Sigmoid(f{t}) os{t} = Sigmoid(o{t}) "
    "us{t} = Tanh(u{t}) "
    "k{t} = Mul(fs{t}, c{p}) l{t} = Mul(gs{t}, us{t}) c{t} = Add(k{t}, l{t}) v{t} = Tanh(c{t}) h{t} = Mul(os{t}, v{t})"
)

NETS: dict[str, Build] = {
    **{operator.lower(): _layer(operator) for operator in GATES},
    **{f"{operator.lower()}_both_directions": _layer(operator, 'direction="bidirectional"') for operator in GATES},
    "lstm_reverse": _layer("LSTM", 'direction="reverse"'),
    "lstm_squeezed": _layer(
        "LSTM", behind="s = Squeeze(h, one) z = Transpose<perm=[1,0,2]>(s)", more="int64[1] one = {1}"
    ),
    "lstm_no_bias": net(
        "float[5,2,3] x",
        "float[3,6] w1, float[1,32,6] wi, float[1,32,8] wr, int64[1] one = {1}, float[8,4] w9",
        "a = MatMul(x, w1) h = LSTM<hidden_size=8>(a, wi, wr) z = Squeeze(h, one) y = MatMul(z, w9)",
    ),
    "lstm_initial_states": _layer("LSTM", further=", , h0, c0", more=_STATE),
    "lstm_peepholes": _layer("LSTM", further=", , h0, c0, p", more=f"{_STATE}, float[1,24] p"),
    "lstm_peepholes_both_directions": _layer(
        "LSTM", 'direction="bidirectional"', further=", , , , p", more="float[2,24] p"
    ),
    "lstm_lengths": _layer("LSTM", further=", lengths", more="int32[2] lengths = {5, 3}"),
    "lstm_clipped": _layer("LSTM", "clip=0.4, input_forget=1"),
    "lstm_other_activations": _layer("LSTM", 'activations=["HardSigmoid","Softsign","Softplus"]'),
    "gru_linear_before_reset": _layer("GRU", "linear_before_reset=1"),
    "gru_linear_before_reset_both_directions": _layer("GRU", 'linear_before_reset=1, direction="bidirectional"'),
    "gru_initial_state": _layer("GRU", further=", , h0", more="float[1,2,8] h0"),
    "gru_other_activations": _layer("GRU", 'activations=["Sigmoid","Elu"], clip=0.7'),
    "rnn_relu": _layer("RNN", 'activations=["Relu"]'),
    "rnn_initial_state_both_directions": _layer(
        "RNN", 'direction="bidirectional"', further=", , h0", more="float[2,2,8] h0"
    ),
    "lstm_last_states": net(
        "float[5,2,3] x",
        f"float[3,6] w1, {_sizes('LSTM', 1)}, int64[1] zero = {{0}}, float[16,4] w9",
        "a = MatMul(x, w1) none, h, c = LSTM<hidden_size=8>(a, wi, wr, b) s = Squeeze(h, zero) t = Squeeze(c, zero) "
        "z = Concat<axis=1>(s, t) y = MatMul(z, w9)",
    ),
    "lstm_last_state_only": net(
        "float[5,2,3] x",
        f"float[3,6] w1, {_sizes('LSTM', 2)}, int64[2] merge = {{2, 16}}, float[16,4] w9",
        'a = MatMul(x, w1) , h = LSTM<hidden_size=8, direction="bidirectional">(a, wi, wr, b) '
        "t = Transpose<perm=[1,0,2]>(h) "
        "z = Reshape(t, merge) y = MatMul(z, w9)",
    ),
    "gru_last_of_both_directions": net(
        "float[5,2,3] x",
        f"float[3,6] w1, {_sizes('GRU', 2)}, int64[1] zero = {{0}}, int64 first = {{0}}, int64 second = {{1}}, "
        f"float[16,4] w9",
        'a = MatMul(x, w1) all, h = GRU<hidden_size=8, direction="bidirectional">(a, wi, wr, b) '
        "f = Gather<axis=0>(h, first) "
        "g = Gather<axis=0>(h, second) z = Concat<axis=1>(f, g) y = MatMul(z, w9)",
    ),
    "lstm_stacked": net(
        "float[5,2,3] x",
        f"{_sizes('LSTM', 2, 3, 4)}, {_sizes('LSTM', 1, 8, 8, '2')}, int64[3] merge = {{0, 0, -1}}, "
        f"int64[1] one = {{1}}, float[8,4] w9",
        f'h = LSTM<hidden_size=4, direction="bidirectional">(x, wi, wr, b) {_BACK} '
        "h2 = LSTM<hidden_size=8>(z, wi2, wr2, b2) z2 = Squeeze(h2, one) y = MatMul(z2, w9)",
    ),
    "gru_between_convolutions": net(
        "float[2,3,6,1] x",
        f"float[6,3,1,1] w1, float[6] b1, {_sizes('GRU', 1)}, int64[1] three = {{3}}, int64[1] one = {{1}}, "
        f"float[4,8,1] w9",
        "a = Conv(x, w1, b1) s = Squeeze(a, three) t = Transpose<perm=[2,0,1]>(s) h = GRU<hidden_size=8>(t, wi, wr, b) "
        "u = Squeeze(h, one) z = Transpose<perm=[1,2,0]>(u) y = Conv(z, w9)",
    ),
    "rnn_into_gemm": net(
        "float[5,2,3] x",
        f"float[3,6] w1, {_sizes('RNN', 1)}, int64[2] flat = {{10, 8}}, float[4,8] w9, float[4] b9",
        "a = MatMul(x, w1) h = RNN<hidden_size=8>(a, wi, wr, b) z = Reshape(h, flat) y = Gemm<transB=1>(z, w9, b9)",
    ),
    "lstm_state_from_encoder": net(
        "float[5,2,3] x, float[2,6] u",
        f"float[3,6] w1, float[6,8] w2, float[6,8] w3, {_sizes('LSTM', 1)}, int64[1] zero = {{0}}, "
        f"int64[1] one = {{1}}, float[8,4] w9",
        "a = MatMul(x, w1) e = MatMul(u, w2) f = MatMul(u, w3) h0 = Unsqueeze(e, zero) c0 = Unsqueeze(f, zero) "
        "h = LSTM<hidden_size=8>(a, wi, wr, b, , h0, c0) z = Squeeze(h, one) y = MatMul(z, w9)",
    ),
    "lstm_state_of_computed_size": net(
        "float[5,N,3] x",
        f"float[3,6] w1, {_sizes('LSTM', 1)}, int64[1] at = {{1}}, int64[1] ends = {{2}}, int64[1] lead = {{1}}, "
        f"int64[1] units = {{8}}, "
        "float[8,4] w9",
        "a = MatMul(x, w1) d = Shape(x) n = Slice(d, at, ends) s = Concat<axis=0>(lead, n, units) "
        "h0 = ConstantOfShape(s) "
        "h = LSTM<hidden_size=8>(a, wi, wr, b, , h0, h0) z = Squeeze(h, at) y = MatMul(z, w9)",
        outputs="float[5,N,4] y",
    ),
    "lstm_state_expanded": net(
        "float[5,N,3] x",
        f"float[3,6] w1, {_sizes('LSTM', 1)}, int64[1] at = {{1}}, int64[1] ends = {{2}}, int64[1] lead = {{2}}, "
        f"int64[1] units = {{8}}, "
        "int64[1] zero = {0}, float nought = {0.0}, float[8,4] w9",
        "a = MatMul(x, w1) d = Shape(x) n = Slice(d, at, ends) s = Concat<axis=0>(lead, n, units) "
        "all = Expand(nought, s) "
        "h0 = Slice(all, zero, at, zero) c0 = Slice(all, at, ends, zero) "
        "h = LSTM<hidden_size=8>(a, wi, wr, b, , h0, c0) "
        "z = Squeeze(h, at) y = MatMul(z, w9)",
        outputs="float[5,N,4] y",
    ),
    "lstm_then_product_over_time": net(
        "float[5,2,3] x",
        f"float[3,6] w1, {_sizes('LSTM', 1)}, int64[1] one = {{1}}, float[5,4] w9",
        "a = MatMul(x, w1) h = LSTM<hidden_size=8>(a, wi, wr, b) s = Squeeze(h, one) t = Transpose<perm=[1,2,0]>(s) "
        "y = MatMul(t, w9)",
    ),
    "lstm_state_outside": net(
        "float[5,2,3] x, float[1,2,8] h0",
        f"float[3,6] w1, {_sizes('LSTM', 1)}, float[1,2,8] c0, int64[1] one = {{1}}, float[8,4] w9",
        "a = MatMul(x, w1) h, last = LSTM<hidden_size=8>(a, wi, wr, b, , h0, c0) z = Squeeze(h, one) y = MatMul(z, w9)",
        outputs="y, last",
    ),
    "lstm_weights_put_together": net(
        "float[5,2,3] x",
        "float[3,6] w1, float[1,32,6] f, float[1,32,6] g, float[2,32,8] wr, int64[1] one = {1}, "
        "int64[3] merge = {5, 2, 16}, float[16,4] w9",
        f"a = MatMul(x, w1) wi = Concat<axis=0>(f, g) "
        f'h = LSTM<hidden_size=8, direction="bidirectional">(a, wi, wr) {_BACK} y = MatMul(z, w9)',
    ),
    **{
        f"lstm_quantised{name}": net(
            "float[5,2,3] x",
            f"float[3,6] w1, int8[{count},6,32] wi, int8[{count},8,32] wr, float[{count},64] b, {scales}, "
            f"int64[3] merge = {{5, 2, {8 * count}}}, "
            f"float[{8 * count},4] w9",
            f"a = MatMul(x, w1) "
            f'h = com.microsoft.DynamicQuantizeLSTM<hidden_size=8, direction="{direction}">(a, wi, wr, b, , , , , '
            f"{given}) "
            f"{_BACK} y = MatMul(z, w9)",
            outputs="float[5,2,4] y",
            domains=', "com.microsoft": 1',
        )
        for name, count, direction, given, scales in (
            ("", 1, "forward", "s1, z1, s1, z1", "float[1] s1 = {0.01}, int8[1] z1 = {0}"),
            (
                "_both_directions",
                2,
                "bidirectional",
                "scale1, z1, scale2, z1",
                "float[2] scale1, float[2] scale2, int8[2] z1 = {0, 0}",
            ),
            (
                "_per_row",
                1,
                "forward",
                "scale1, z1, scale2, z2",
                (
                    f"float[1,32] scale1, float[1,32] scale2, int8[1,32] z1 = {{{', '.join('0' * 32)}}}, "
                    f"int8[1,32] z2 = {{{', '.join('0' * 32)}}}"
                ),
            ),
        )
    },
    "lstm_unrolled": net(
        "float[3,2,6] x",
        "float[6,32] wi, float[8,32] wr, float[32] b, float[2,8] h0, float[2,8] c0, int64 i1 = {0}, int64 i2 = {1}, "
        "int64 i3 = {2}, "
        "float[8,4] w9",
        " ".join(_UNROLLED_STEP.format(t=t, p=t - 1) for t in (1, 2, 3)) + " y = MatMul(h3, w9)",
    ),
}
