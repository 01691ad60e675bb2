"""Operators that run graphs of their own: branches and bodies that hand channels over, or have some of their own."""

from nets.build import Build, image, net

_YES, _TWICE = "bool yes = {1}", "bool yes = {1}, int64 two = {2}"


def _branches(then: str, other: str) -> str:
    return (
        f"z = If(yes) <then_branch = first () => (float[2,8,6,6] t) {{ {then} }}, "
        f"else_branch = second () => (float[2,8,6,6] u) {{ {other} }}>"
    )


def _loop(body: str, state: str = "a") -> str:
    return (
        f"z = Loop(two, yes, {state}) <body = again (int64 i, bool c, float[2,8,6,6] e) => (bool d, float[2,8,6,6] f) "
        f"{{ {body} d = Identity(c) }}>"
    )


def _scan(body: str, first: str, state: str = "float[2,8,6]", backwards: int = 0) -> str:
    """Rows, one after the other, with what is made of those before as the state."""
    return (
        f"{first} last, z = Scan<num_scan_inputs=1, scan_input_axes=[2], scan_output_axes=[2], "
        f"scan_input_directions=[{backwards}], "
        f"body = row ({state} e, float[2,8,6] f) => ({state} g, float[2,8,6] h) {{ {body} }}>(s, a)"
    )


_MIDDLE = "s = ReduceMax<axes=[2], keepdims=0>(a)"

NETS: dict[str, Build] = {
    "branches": image(_branches("t = Relu(a)", "u = Neg(a)"), _YES),
    "branch_that_returns_what_is_outside": image(
        _branches("t = Conv(a, w2)", "u = Identity(a)"), f"{_YES}, float[8,8,1,1] w2"
    ),
    "branch_that_returns_a_constant": net(
        "float[1,3,1,1] x",
        f"{_YES}, float[8,3,1,1] w1, float[6,8,1,1] w2, float[4,6,1,1] w9",
        "a = Conv(x, w1) z = If(yes) <then_branch = first () => (float[1,6,1,1] t) { t = Conv(a, w2) }, "
        "else_branch = second () => (float[1,6,1,1] u) { u = Constant<value = float[1,6,1,1] {1.0, 2.0, 3.0, 4.0, "
        "5.0, 6.0}>() }> "
        "y = Conv(z, w9)",
    ),
    "branch_of_its_own_channels": image(
        _branches("k = Conv(a, w2) m = Relu(k) t = Conv(m, w3)", "u = Tanh(a)"),
        f"{_YES}, float[6,8,1,1] w2, float[8,6,1,1] w3",
    ),
    "branches_shuffle": image(
        _branches(
            "s1 = Constant<value_ints=[2,2,4,6,6]>() s2 = Constant<value_ints=[2,8,6,6]>() r = Reshape(a, s1) "
            "q = Transpose<perm=[0,2,1,3,4]>(r) t = Reshape(q, s2)",
            "u = Sigmoid(a)",
        ),
        _YES,
    ),
    "branch_splits": image(_branches("l, r = Split<axis=1>(a) t = Concat<axis=1>(r, l)", "u = Relu(a)"), _YES),
    "loop": image(_loop("f = Tanh(e)"), _TWICE),
    "loop_mixes": image(_loop("f = Conv(e, w2)"), f"{_TWICE}, float[8,8,1,1] w2"),
    "loop_of_its_own_channels": image(
        _loop("k = Conv(e, w2) m = Relu(k) g = Conv(m, w3) f = Add(g, a)"),
        f"{_TWICE}, float[6,8,1,1] w2, float[8,6,1,1] w3",
    ),
    "loop_from_a_constant": image(_loop("f = Add(e, a)", "start"), f"{_TWICE}, float[2,8,6,6] start"),
    "scan": image(_scan("g = Add(e, f) h = Tanh(g)", _MIDDLE)),
    "scan_backwards": image(_scan("g = Mul(e, f) h = Neg(e)", _MIDDLE, backwards=1)),
    "scan_rows_alone": image(_scan("g = Neg(e) h = Tanh(f)", "s = Neg(start)", "float[2,6]"), "float[2,6] start"),
    "scan_of_its_own_channels": image(
        _scan("k = MatMul(w2, f) m = Relu(k) n = MatMul(w3, m) g = Add(n, e) h = Tanh(g)", _MIDDLE),
        "float[6,8] w2, float[8,6] w3",
    ),
    "scan_with_a_constant_state": image(_scan("g = Add(e, f) h = Sigmoid(e)", "s = Neg(start)"), "float[2,8,6] start"),
}
