"""Repair: what is left is refitted, so that outputs stay close; nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from calibrated import CONV, MLP, dead, half, outputs, samples
from command import MODELS
from nets.build import net
from onnx import numpy_helper

import spa_onnx
from spa_onnx.execution.session import open_session
from spa_onnx.plan.plan import Plan

RESNET = MODELS / "digits_resnet.onnx"
NETS = {"conv": (CONV, (3, 6, 6)), "mlp": (MLP, (6,))}


def constants(proto):
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def save_samples(folder, x, **more):
    path = folder / "data.npz"
    np.savez(path, x=x, **more)
    return path


def same_drop(proto, result, repair, **options):
    """The channels of `result` cut again, with another repair."""
    drop = {group["name"]: np.array(group["removed"]) for group in result.plan["groups"]}
    plan = Plan.removing(drop, result.plan["model"]["sha256"], {**result.plan["settings"], "repair": repair})
    return spa_onnx.apply_plan(proto, plan, **options)


@pytest.fixture(params=NETS)
def case(request, tmp_path):
    """(model, data file, held-out inputs)."""
    build, shape = NETS[request.param]
    return build(), save_samples(tmp_path, samples(shape, 200)), samples(shape, 100, seed=1)


def test_repair_lowers_the_error(case):
    proto, data, x = case
    errors, dense = {}, outputs(proto, x)
    full = spa_onnx.prune(proto, 0.4, data=data)
    for repair in ("obs", "mean", "none"):
        pruned = same_drop(proto, full, repair, data=data)
        assert pruned.plan["repaired"] == (repair != "none")
        errors[repair] = np.square(outputs(pruned.model, x) - dense).mean()
    assert errors["obs"] < 0.8 * errors["none"]
    assert errors["obs"] < errors["mean"] < errors["none"]
    plain = spa_onnx.prune(proto, 0.4, data=data, criterion="l1", scope="global")
    assert errors["obs"] < 0.8 * np.square(outputs(plain.model, x) - dense).mean()


def slices(proto, result):
    """(name, cut original, repaired) of every float constant."""
    first, left = constants(proto), constants(result.model)
    kept = {
        cut["name"]: {int(axis): indices for axis, indices in cut["kept"].items()} for cut in result.plan["tensors"]
    }
    for name, array in left.items():
        if name not in first:  # indices are renumbered
            continue
        original = first[name]
        for axis, indices in kept.get(name, {}).items():
            original = original.take(indices, axis)
        yield name, original, array


def fed(result):
    """Names of weights that lost inputs."""
    summed = (
        {"w1": {"1"}, "w2": {"1"}, "w3": {"1"}}
        if "Conv" in str(result.model.graph.node[0].op_type)
        else {"w2": {"1"}, "w3": {"0"}}
    )
    return {cut["name"] for cut in result.plan["tensors"] if set(cut["kept"]) & summed.get(cut["name"], set())}


@pytest.mark.parametrize("repair", ["obs", "mean", "none"])
def test_only_what_reads_cut_channels_changes(case, repair):
    proto, data, _ = case
    result = spa_onnx.prune(proto, 0.3, data=data, repair=repair)
    assert result.plan["repaired"] is (repair != "none")
    readers = fed(result)
    assert readers
    may = {"obs": readers | {f"b{w[1]}" for w in readers}, "mean": {f"b{w[1]}" for w in readers}, "none": set()}[repair]
    changed = {name for name, original, array in slices(proto, result) if not np.array_equal(original, array)}
    assert changed == may


def test_excluded_layers_stay_what_they_were(tmp_path):
    proto, data = CONV(), save_samples(tmp_path, samples((3, 6, 6), 50))
    result = spa_onnx.prune(proto, 0.3, data=data, exclude=("w3",))
    changed = {name for name, original, array in slices(proto, result) if not np.array_equal(original, array)}
    assert changed == {"w2", "b2"}


@pytest.mark.parametrize("build", [CONV, MLP])
def test_a_plan_repairs_alike(build):
    proto = build()
    result = spa_onnx.prune(proto, 0.4, samples=64)
    assert result.plan["repaired"] is True
    again = same_drop(proto, result, "obs")
    assert again.model.SerializeToString() == result.model.SerializeToString()


@pytest.fixture(scope="module")
def data_free():
    """A trained network with BatchNormalization, pruned without data."""
    return spa_onnx.prune(RESNET, 0.4, samples=64, check=False)


def test_a_plan_repairs_alike_with_stored_statistics(data_free):
    again = same_drop(RESNET, data_free, "obs", check=False)
    assert again.model.SerializeToString() == data_free.model.SerializeToString()


SHAPE = (3, 6, 6)
HARD = {
    "dead channels": (lambda: dead(CONV()), samples(SHAPE, 20)),
    "constant inputs": (CONV, np.full((20, *SHAPE), 7.0, np.float32)),
    "zeros": (CONV, np.zeros((20, *SHAPE), np.float32)),
    "single sample": (CONV, samples(SHAPE, 1)),
    "single row": (MLP, samples((6,), 1)),
    "constant rows": (MLP, np.full((20, 6), 1000.1, np.float32)),
    "float16": (lambda: half(CONV()), samples(SHAPE, 20).astype(np.float16)),
    "float16 rows": (lambda: half(MLP()), samples((6,), 20).astype(np.float16)),
}


@pytest.mark.parametrize(("make", "x"), HARD.values(), ids=HARD)
def test_no_input_makes_weights_infinite(make, x, tmp_path):
    proto = make()
    for data in (save_samples(tmp_path, x), None):
        result = spa_onnx.prune(proto, 0.5, data=data, samples=32, check=False)
        before = constants(proto)
        for name, array in constants(result.model).items():
            assert array.dtype == before[name].dtype
            assert np.isfinite(array).all(), name
            assert name.startswith("b") or np.abs(array).max() < 100
        assert np.isfinite(outputs(result.model, x)).all()


def test_constant_inputs_are_taken_up_whole(tmp_path):
    """Where every activation is constant, the biases make good all that is cut."""
    proto, x = MLP(), np.full((30, 6), 0.7, np.float32)
    for repair in ("obs", "mean"):
        result = spa_onnx.prune(proto, 0.5, data=save_samples(tmp_path, x), repair=repair, criterion="l1")
        np.testing.assert_allclose(outputs(result.model, x), outputs(proto, x), rtol=1e-4, atol=1e-4)


def test_a_batch_larger_than_the_samples_asked_for(tmp_path):
    fixed = net("float[8,6] x", "float[6,12] w1, float[12,3] w2", "a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2)")()
    assert spa_onnx.prune(fixed, 0.5, data=save_samples(tmp_path, samples((6,), 8)), samples=2).plan["repaired"]


def pruned(nodes, weights, x, folder, output="y"):
    """(original, pruned by half)."""
    proto = net("float[N,6] x", weights, nodes, output)()
    return proto, spa_onnx.prune(proto, 0.5, data=save_samples(folder, x), criterion="l1", repair="obs")


def test_a_bias_that_others_share_stays(tmp_path):
    x = samples((6,), 50)
    nodes = "a = MatMul(x, w1) b = Relu(a) y = Gemm(b, w2, s) z = Add(x, s)"
    proto, result = pruned(
        nodes, "float[6,12] w1, float[12,6] w2, float[6] s", x, tmp_path, "float[N,6] y, float[N,6] z"
    )
    np.testing.assert_array_equal(constants(result.model)["s"], constants(proto)["s"])
    assert not np.array_equal(constants(result.model)["w2"], constants(proto)["w2"])


def test_a_weight_that_others_read_is_not_refitted(tmp_path):
    nodes = "a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) t = ReduceSum<keepdims=0>(w2, ax) z = Mul(x, t)"
    weights = "float[6,12] w1, float[12,6] w2, int64[1] ax = {1}"
    nodes = nodes.replace(
        "t = ReduceSum<keepdims=0>(w2, ax) z = Mul(x, t)",
        "c = Relu(a) d = Mul(c, c) e = MatMul(d, w2) z = Gather(w2, i)",
    )
    weights = weights.replace("ax = {1}", "i = {1}")
    proto, result = pruned(nodes, weights, samples((6,), 50), tmp_path, "float[N,6] y, float[1,6] z")
    for name, original, array in slices(proto, result):
        np.testing.assert_array_equal(array, original, err_msg=name)


def test_a_vector_that_two_products_share_is_not_refitted(tmp_path):
    """Each of them may lose other inputs."""
    nodes = "a = MatMul(x, w1) b = Relu(a) y = MatMul(b, v) c = MatMul(x, w2) d = Relu(c) z = MatMul(d, v)"
    weights = "float[6,12] w1, float[6,12] w2, float[12,1] v"
    proto, result = pruned(nodes, weights, samples((6,), 50), tmp_path, "float[N,1] y, float[N,1] z")
    left, whole = constants(result.model), constants(proto)
    assert len(left["v"]) < 12
    for name in set(left) - {"w1", "w2"}:
        assert np.isin(left[name], whole["v"]).all()


def accuracy(result):
    stored = np.load(RESNET.with_suffix(".npz"))
    logits = open_session(result.model).run({"image": stored["x"]})[0]
    return (logits.argmax(axis=1) == stored["y"]).mean()


def test_losses_keep_more_than_magnitude_with_and_without_data(data_free):
    plain = accuracy(spa_onnx.prune(RESNET, 0.4, criterion="l1", check=False))
    calibrated = accuracy(spa_onnx.prune(RESNET, 0.4, data=RESNET.with_suffix(".npz"), samples=64, check=False))
    assert accuracy(data_free) > plain + 0.5
    assert calibrated > plain + 0.5
