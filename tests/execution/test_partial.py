"""Partial execution gives the same tensors as one run.

It runs each node once, and keeps nothing that is not read again.
"""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import net
from onnx import numpy_helper

from spa_onnx.errors import RefusedError
from spa_onnx.execution import partial
from spa_onnx.execution.partial import PartialExecution
from spa_onnx.execution.session import open_session
from spa_onnx.statistics.collect import with_outputs

RESIDUAL = net(
    "float[N,6] x",
    "float[6,8] w1, float[8,8] w2, float[8,3] w3",
    "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) e = Add(b, d) y = MatMul(e, w3)",
    "float[N,3] y",
)
TENSORS = ("a", "b", "c", "d", "e", "y")


def feeds(batches=3):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((2 + number, 6)).astype(np.float32)} for number in range(batches)]


def whole(proto, names, feed):
    return dict(zip(names, open_session(with_outputs(proto, names)).run(feed), strict=True))


@pytest.mark.parametrize("asked", [TENSORS, ("y",), ("b", "e"), ("d", "y")])
def test_tensors_are_those_of_one_run(asked):
    proto, given = RESIDUAL(), feeds()
    walk = PartialExecution(proto, given)
    for name in asked:
        for got, feed in zip(walk.tensor(name), given, strict=True):
            np.testing.assert_allclose(got, whole(proto, (name,), feed)[name], rtol=1e-6, atol=1e-6)


def test_inputs_are_there_from_the_start_and_can_be_asked_for_again():
    walk = PartialExecution(RESIDUAL(), feeds())
    for _ in range(2):
        assert [len(array) for array in walk.tensor("x")] == [2, 3, 4]


def test_nothing_is_kept_that_nobody_ahead_reads():
    walk = PartialExecution(RESIDUAL(), feeds(1))
    walk.tensor("b")
    assert set(walk.batches[0]) == {"b"}
    walk.tensor("d")
    assert set(walk.batches[0]) == {"b", "d"}
    walk.tensor("y")
    assert set(walk.batches[0]) == {"y"}


def test_no_node_runs_twice(monkeypatch):
    ran = []

    def watched(proto, **how):
        ran.extend(node.output[0] for node in proto.graph.node)
        return open_session(proto, **how)

    monkeypatch.setattr(partial, "open_session", watched)
    walk = PartialExecution(RESIDUAL(), feeds())
    for name in TENSORS:
        walk.tensor(name)
    assert sorted(ran) == sorted(TENSORS)


def test_a_replaced_constant_counts_from_there_on():
    proto, given = RESIDUAL(), feeds()
    walk = PartialExecution(proto, given)
    before = walk.tensor("b")
    walk.replace("w2", np.zeros((8, 8), np.float32))
    walk.replace("w1", np.zeros((6, 8), np.float32))  # too late: what reads it has run
    for kept, sums in zip(before, walk.tensor("e"), strict=True):
        np.testing.assert_array_equal(kept, sums)


def test_branches_see_tensors_of_the_graph_around_them():
    proto = net(
        "float[N,4] x, bool c",
        "float[4,4] w",
        "a = MatMul(x, w) b = Relu(a) y = If(c) <then_branch = t () => (float[N,4] p) { p = Neg(b) }, "
        "else_branch = e () => (float[N,4] q) { q = MatMul(b, w) }>",
        "float[N,4] y",
    )()
    feed = {"x": np.ones((2, 4), np.float32), "c": np.array([False]).reshape(())}
    walk = PartialExecution(proto, [feed])
    walk.tensor("a")
    np.testing.assert_allclose(walk.tensor("y")[0], whole(proto, ("y",), feed)["y"], rtol=1e-6)


def test_a_part_that_cannot_run_is_named():
    walk = PartialExecution(RESIDUAL(), feeds())
    walk.replace("w2", np.zeros((5, 8), np.float32))
    with pytest.raises(RefusedError, match="cannot run"):
        walk.tensor("c")


FOLDED = net(
    "float[N,6] x",
    "float[8,6] w1, float[8,8] w2, float[8,3] w3",
    "t = Transpose(w1) a = MatMul(x, t) b = Relu(a) s = Neg(w2) c = MatMul(b, s) d = Relu(c) e = Add(b, d) "
    "y = MatMul(e, w3)",
    "float[N,3] y",
)
"""Weights behind operators of their own."""


@pytest.mark.parametrize("build", [RESIDUAL, FOLDED])
@pytest.mark.parametrize("names", [("w1",), ("w2",), ("w3",), ("w2", "w3")])
def test_what_is_ahead_computes_the_outputs_with_other_constants(build, names):
    proto, given = build(), feeds()
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    changed = {name: 2 * numpy_helper.to_array(stored[name]) for name in names}
    walk = PartialExecution(proto, given)
    first = walk.first_reader(names)
    assert proto.graph.node[first].op_type == "MatMul"  # what computes with constants alone does not count
    walk.until(first)
    assert walk.position == first
    part, known = walk.rest(changed)
    assert ("a" in {node.output[0] for node in part.graph.node}) == ("w1" in names)
    session = open_session(part)
    found = [session.run(feed | changed)[0] for feed in known]
    for name in names:
        stored[name].CopyFrom(numpy_helper.from_array(changed[name], name))
    for got, feed in zip(found, given, strict=True):
        np.testing.assert_allclose(got, whole(proto, ("y",), feed)["y"], rtol=1e-5, atol=1e-5)


def test_constants_that_nothing_reads_leave_nothing_to_run():
    walk = PartialExecution(RESIDUAL(), feeds())
    first = walk.first_reader(["other"])
    walk.until(first)
    assert walk.position == first == 6
    part, known = walk.rest({})
    assert not part.graph.output
    assert known == [{}, {}, {}]


LAST_STATE = net(
    "float[4,N,6] x",
    "float[1,32,6] w, float[1,32,8] r, float[8,8] w2, float[8,3] w3",
    ", h = LSTM<hidden_size=8>(x, w, r) q = Squeeze(h) a = MatMul(q, w2) b = Relu(a) y = MatMul(b, w3)",
    "float[N,3] y",
)
"""Outputs of the LSTM are left out, and a batch of one sample loses its axis."""

BRANCHES = net(
    "float[N,4] x, bool c",
    "float[4,4] w1, float[4,4] w2",
    "a = MatMul(x, w1) "
    "i = If(c) <then_branch = t () => (float[N,4] d) { d = Neg(a) }, else_branch = e () => (float[N,4] d) "
    "{ d = Relu(a) }> "
    "d = MatMul(i, w2) y = Tanh(d)",
    "float[N,4] y",
)
"""Inside the branches stands a name that a later tensor has."""


def of(build, *sizes):
    rng = np.random.default_rng(2)
    if build is LAST_STATE:
        return [{"x": rng.standard_normal((4, size, 6)).astype(np.float32)} for size in sizes]
    return [{"x": rng.standard_normal((size, 4)).astype(np.float32), "c": np.array(size > 1)} for size in sizes]


@pytest.mark.parametrize(
    ("build", "weight"), [(LAST_STATE, "w2"), (LAST_STATE, "w3"), (BRANCHES, "w2"), (BRANCHES, "w1")]
)
@pytest.mark.parametrize("sizes", [(3, 3), (3, 1)])
def test_what_lies_ahead_is_cut_off_wherever_it_begins(build, weight, sizes):
    proto, given = build(), of(build, *sizes)
    stored = next(tensor for tensor in proto.graph.initializer if tensor.name == weight)
    changed = {weight: -numpy_helper.to_array(stored)}
    walk = PartialExecution(proto, given)
    walk.until(walk.first_reader(changed))
    assert walk.position == walk.first_reader(changed)
    part, known = walk.rest(changed)
    session = open_session(part)
    stored.CopyFrom(numpy_helper.from_array(changed[weight], weight))
    for feed, entering in zip(given, known, strict=True):
        np.testing.assert_allclose(
            session.run(entering | changed)[0], whole(proto, ("y",), feed)["y"], rtol=1e-5, atol=1e-6
        )
