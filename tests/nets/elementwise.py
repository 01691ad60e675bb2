"""Operators that work element by element, one net per unary operator and per way to broadcast."""

from nets.build import Build, image, tokens

FLOAT_TO_FLOAT = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
"""Operators that take and return floats; `_domain` keeps their inputs where they are finite and not constant."""

_SHIFTED = {"Acosh": 1.1, "ThresholdedRelu": 0.6, "Ceil": 0.5, "Floor": 0.5, "Round": 0.0, "Sign": -0.5}


def _unary(operator: str) -> Build:
    shift = _SHIFTED.get(operator, 0.05)
    return image(
        f"s = Sigmoid(a) m = Mul(s, d) b = Add(m, c) z = {operator}(b)",
        f"float d = {{0.8}}, float c = {{{shift}}}",
        opset=20,
    )


def _binary(operator: str, shape: str) -> Build:
    return image(f"z = {operator}(a, c)", f"float[{shape}] c")


_TO_FLOAT = "z = Cast<to=1>(t)"

NETS: dict[str, Build] = (
    {f"unary_{operator}": _unary(operator) for operator in FLOAT_TO_FLOAT}
    | {
        "unary_Swish": image("z = Swish(a)", opset=24),
        "unary_Not": image(f"n = Greater(a, zero) t = Not(n) {_TO_FLOAT}", "float zero = {0.0}"),
        "unary_IsInf": image(
            f"e = Exp(a) f = Mul(e, big) g = Mul(f, big) t = IsInf(g) {_TO_FLOAT}", "float big = {1.0e19}", opset=20
        ),
        "unary_IsNaN": image(f"b = Log(a) t = IsNaN(b) {_TO_FLOAT}"),
        "unary_BitwiseNot": image(
            f"m = Mul(a, ten) i = Cast<to=6>(m) t = BitwiseNot(i) {_TO_FLOAT}", "float ten = {10.0}", opset=18
        ),
        "unary_Cast": image("d = Cast<to=11>(a) z = Cast<to=1>(d)"),
    }
    | {
        f"binary_{op}_per_channel": _binary(op, "8,1,1")
        for op in ("Add", "Sub", "Mul", "PRelu", "Max", "Min", "Sum", "Mean")
    }
    | {
        "binary_scalar": _binary("Add", ""),
        "binary_single": _binary("Mul", "1"),
        "binary_width": _binary("Mul", "6"),
        "binary_full": _binary("Add", "2,8,6,6"),
        "binary_channel_and_width": _binary("Mul", "1,8,1,6"),
        "binary_constant_first": image("z = Sub(c, a)", "float[8,1,1] c"),
        "binary_constant_larger": tokens("z = Mul(a, c)", "float[3,2,1,8] c"),
        "binary_two_activations": image("b = Conv(x, w2) z = Mul(a, b)", "float[8,3,1,1] w2"),
        "binary_stretched_activation": image("g = GlobalAveragePool(a) s = Sigmoid(g) z = Mul(a, s)"),
        "squeeze_and_excite": image(
            "g = GlobalAveragePool(a) r = Conv(g, w2, b2) s = Sigmoid(r) t = Conv(s, w3, b3) e = HardSigmoid(t) "
            "z = Mul(a, e)",
            "float[5,8,1,1] w2, float[5] b2, float[8,5,1,1] w3, float[8] b3",
        ),
        "binary_single_channel_gate": image("g = Conv(x, w2) z = Mul(a, g)", "float[1,3,1,1] w2"),
        "binary_Div": image("z = Div(a, scale)", "float[8,1,1] scale"),
        "binary_Pow": image("b = Sigmoid(a) z = Pow(b, scale)", "float[8,1,1] scale"),
        "binary_Mod": image("z = Mod<fmod=1>(a, scale)", "float[8,1,1] scale"),
        "cast_like_scalar": image("d = CastLike(one, a) z = Mul(a, d)", "float16 one"),
        "cast_like_wider": image("b = Conv(a, w2) z = CastLike(a, b)", "float[5,8,1,1] w2"),
        "binary_CastLike": image("d = Cast<to=11>(a) z = CastLike(d, a)"),
        "compare_Greater": image(f"t = Greater(a, c) {_TO_FLOAT}", "float[8,1,1] c"),
        "compare_LessOrEqual": image(f"t = LessOrEqual(c, a) {_TO_FLOAT}", "float[8,1,1] c"),
        "compare_GreaterOrEqual": image(f"t = GreaterOrEqual(a, c) {_TO_FLOAT}", "float[1,8,1,1] c"),
        "compare_Equal": image(f"f = Floor(a) t = Equal(f, c) {_TO_FLOAT}", "float c = {0.0}"),
        "logic": image(
            f"p = Greater(a, c) q = Less(a, d) r = And(p, q) s = Or(p, q) u = Xor(r, s) t = Or(u, r) {_TO_FLOAT}",
            "float[8,1,1] c, float[8,1,1] d",
        ),
        "bitwise": image(
            f"m = Mul(a, ten) i = Cast<to=7>(m) j = BitwiseAnd(i, k) l = BitwiseXor(j, i) "
            f"t = BitwiseOr(l, k) {_TO_FLOAT}",
            "float ten = {10.0}, int64[8,1,1] k = {1, 2, 3, 4, 5, 6, 7, 8}",
            opset=18,
        ),
        "bit_shift": image(
            f'm = Abs(a) n = Mul(m, ten) i = Cast<to=13>(n) t = BitShift<direction="LEFT">(i, k) {_TO_FLOAT}',
            "float ten = {10.0}, uint64[8,1,1] k = {1, 2, 3, 4, 5, 6, 7, 8}",
        ),
        "where_constant_condition": image("z = Where(m, a, c)", "bool[8,1,1] m, float[8,1,1] c"),
        "where_computed_condition": image(
            "m = Greater(a, c) b = Conv(x, w2) z = Where(m, b, d)", "float[8,1,1] c, float[8,3,1,1] w2, float d"
        ),
        "prelu_shared_slope": _binary("PRelu", "1"),
        "clip": image("z = Clip(a, low, high)", "float low = {-0.5}, float high = {0.75}"),
        "clip_no_lower_bound": image("z = Clip(a, , high)", "float high = {0.75}"),
        "clip_opset_6": image("z = Clip<min=-0.5, max=0.75>(a)", opset=9),
        "dropout": image("z = Dropout(a, ratio)", "float ratio = {0.3}"),
        "dropout_mask": image("d, m = Dropout(a) n = Cast<to=1>(m) z = Mul(d, n)"),
        "variadic": image(
            "b = Conv(x, w2) s = Sum(a, b, c) m = Mean(s, a, d) n = Max(m, b) o = Min(n, e, a) z = Sum(o)",
            "float[8,3,1,1] w2, float[8,1,1] c, float[1,8,1,1] d, float[8,1,1] e",
        ),
    }
)
