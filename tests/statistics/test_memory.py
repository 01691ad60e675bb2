"""Memory: passes, batches and what is kept of wide layers follow the budget, and the statistics do not."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from nets.build import net
from observed import BIG

import spa_onnx
from spa_onnx.config import parse_bytes
from spa_onnx.data.samples import read_samples
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.model.model import Model
from spa_onnx.statistics import calibration, moments
from spa_onnx.statistics.calibration import SEQUENTIAL_SHARE, Sampling, calibrate
from spa_onnx.statistics.memory import (
    ARENA_FACTOR,
    MATRIX_COPIES,
    memory_budget,
    peak_bytes,
    peak_live_bytes,
    sample_bytes,
)
from spa_onnx.statistics.moments import MomentColumns, MomentSums
from spa_onnx.statistics.subsampling import Subsampling
from spa_onnx.synthetic.working import WorkingInputs
from spa_onnx.validation.quality import Evaluation, quality


@pytest.mark.parametrize("memory", [3 * 10**5, 2 * 10**6, 10**9])
def test_a_budget_decides_about_passes_and_batches_and_not_about_statistics(memory):
    model = Model.of(BIG())
    x = np.random.default_rng(0).standard_normal((40, 3, 24, 24)).astype(np.float32)
    samples = read_samples({"x": x}, model.proto)
    plenty = calibrate(model, WorkingInputs({"N": 2}), samples, Sampling(40, 0))
    known = calibrate(model, WorkingInputs({"N": 2}), samples, Sampling(40, 0, memory=memory))
    assert (len(plenty.feeds), len(plenty.passes)) == (1, 1)
    assert (len(known.feeds) > 1) == (memory < 10**8)
    assert (len(known.passes) > 1) == (memory < 10**6)
    for key, sums in plenty.statistics.items():
        np.testing.assert_allclose(sums.gram, known.statistics[key].gram, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("asked", "channels"),
    [("a", [3, 8]), ("b", [3, 8]), ("c", [3, 8, 6]), ("d", [3, 14]), ("f", [3, 3]), ("x", []), ("acdf", [3, 8, 6])],
)
def test_the_widest_cut_holds_what_is_still_to_be_read(asked, channels):
    body = (
        "a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) d = Concat<axis=1>(b, c) e = Conv(d, w3) f = Tanh(e) y = Add(f, x)"
    )
    weights = "float[8,3,1,1] w1, float[6,8,1,1] w2, float[3,14,1,1] w3"
    model = Model.of(net("float[N,3,24,24] x", weights, body, "float[N,3,24,24] y")())
    assert peak_live_bytes(model, set(asked)) == 4 * 24 * 24 * sum(channels)


@pytest.mark.parametrize(
    ("kept", "channels"), [("", [3, 8, 6, 14]), ("a", [3, 8, 8, 6, 14]), ("xabcd", [3, 8, 8, 6, 14, 3, 3])]
)
def test_a_forward_pass_holds_what_is_kept_and_what_is_still_to_be_read(kept, channels):
    body = (
        "a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) d = Concat<axis=1>(b, c) e = Conv(d, w3) f = Tanh(e) y = Add(f, x)"
    )
    weights = "float[8,3,1,1] w1, float[6,8,1,1] w2, float[3,14,1,1] w3"
    model = Model.of(net("float[N,3,24,24] x", weights, body, "float[N,3,24,24] y")())
    assert peak_bytes(model, set(kept)) == 4 * 24 * 24 * sum(channels)


@pytest.mark.parametrize(("room_for", "fit"), [(100, 40), (40, 40), (36, 36), (20, 0)])
def test_as_many_samples_are_repaired_in_the_order_of_the_graph_as_memory_holds(room_for, fit, monkeypatch):
    model = Model.of(BIG())
    live = 2 * peak_live_bytes(model, {"x", "b", "d", "f"}) * (room_for + ARENA_FACTOR * 40)  # and a batch of 40 runs
    held = -int(-live // SEQUENTIAL_SHARE)
    monkeypatch.setattr(
        calibration, "memory_budget", lambda *given: replace(memory_budget(*given), sequential_tensors=held)
    )
    x = np.random.default_rng(0).standard_normal((40, 3, 24, 24)).astype(np.float32)
    known = calibrate(model, WorkingInputs({"N": 2}), read_samples({"x": x}, model.proto), Sampling(40, 0))
    assert (known.samples, known.sequential_samples) == (40, fit)
    assert sum(len(feed["x"]) for feed in known.first(known.sequential_samples)) == fit
    assert known.describe() == "40 given samples" + (", 36 of them in the order of the graph" if fit == 36 else "")


def wide(inputs, places=40):
    """Four products with so many inputs, each at so many places of a sample."""
    weights = ", ".join(f"float[{inputs},{inputs}] w{number}" for number in range(3))
    nodes = " ".join(f"a{number} = MatMul({source}, w{number})" for number, source in enumerate(("x", "a0", "a1")))
    return Model.of(
        net(
            f"float[N,{places},{inputs}] x",
            f"{weights}, float[{inputs},3] w3",
            f"{nodes} y = MatMul(a2, w3)",
            f"float[N,{places},3] y",
        )()
    )


def calibrated_model(model, count, memory=10**9):
    x = np.random.default_rng(0).standard_normal((count, *model.shape("x")[1:])).astype(np.float32)
    return calibrate(
        model, WorkingInputs({"N": 2}), read_samples({"x": x}, model.proto), Sampling(count, 0, memory=memory)
    )


def test_matrices_that_do_not_all_fit_are_put_into_files(monkeypatch):
    model = wide(80)
    stored = []
    monkeypatch.setattr(
        moments, "on_disk", lambda array, keep=moments.on_disk: stored.append(array.nbytes) or keep(array)
    )
    plenty, tight = calibrated_model(model, 20), calibrated_model(model, 20, memory=6 * 8 * 80**2)
    assert len(plenty.passes) == 1
    assert stored == [8 * 80**2] * 4
    assert len(tight.passes) == 4
    for key, found in plenty.statistics.items():
        np.testing.assert_allclose(tight.statistics[key].gram, found.gram, rtol=1e-5, atol=1e-3)
        with pytest.raises(ValueError, match="read-only"):
            tight.statistics[key].gram[0, 0, 0] = 1.0


def test_a_folder_for_temporary_files_that_is_full_is_named(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(moments, "TemporaryFile", full)
    with pytest.raises(
        RefusedError, match=r"a matrix of 0\.00 GB does not fit .*No space left on device.*--memory.*TMPDIR"
    ):
        calibrated_model(wide(80), 20, memory=6 * 8 * 80**2)


@pytest.mark.parametrize("samples", [20, 200])
def test_of_what_is_too_wide_for_a_matrix_as_many_columns_are_looked_at_as_fit(samples):
    """One in some samples where even one position of each is too much."""
    model, memory = wide(400), MATRIX_COPIES * 8 * 400 * 90
    known = calibrated_model(model, samples, memory)
    for layer in known.layers:
        found = known.statistics[layer.key]
        assert isinstance(found, MomentColumns)
        assert 10 <= found.count <= 130
    assert all(isinstance(found, MomentSums) for found in calibrated_model(model, samples).statistics.values())


def test_either_half_has_samples_where_not_all_are_looked_at():
    keys = np.random.default_rng(0).integers(0, 2**32, 1000, np.uint32)
    taken = keys[Subsampling(1, 4).takes(keys)]
    assert 200 < len(taken) < 300
    assert 0.4 < (taken % 2).mean() < 0.6


@pytest.mark.parametrize("memory", [1, 10**5, 10**7])
def test_a_network_is_pruned_whatever_the_memory(memory):
    result = spa_onnx.prune(wide(60).proto, 0.4, samples=40, memory=memory, check=False)
    assert result.report.params[1] < 0.7 * result.report.params[0]


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("512mb", 512 * 10**6), ("7", 7), (7, 7), ("3k", 3000)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2 TB", "1e9", "0", 0, -3, "nan"])
def test_sizes_that_are_none_are_wrong_usage(text):
    with pytest.raises(UsageError, match="is not a size like 2GB"):
        parse_bytes(text)


STRIPS = {"row": "1,1,1,40000", "spectrogram": "N,1,64,600", "table": "1,20000,100,1"}


@pytest.mark.parametrize("shape", STRIPS.values(), ids=STRIPS)
@pytest.mark.parametrize("memory", [10**8, 2 * 10**8])
def test_what_synthetic_samples_take_counts_towards_the_memory(shape, memory):
    nodes = "a = Conv<strides=[1,4]>(x, w1) b = Relu(a) c = Conv<strides=[1,4]>(b, w2) y = GlobalAveragePool(c)"
    into = shape.split(",")[1]
    model = Model.of(net(f"float[{shape}] x", f"float[4,{into},1,1] w1, float[3,4,1,1] w2", nodes)())
    tracemalloc.start()
    known = calibrate(model, WorkingInputs({"N": 1}), None, Sampling(2000, 0, memory=memory))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(array.nbytes for feed in known.feeds for array in feed.values()) < 0.7 * memory
    assert peak < memory
    assert known.samples > 1


def test_batches_are_smaller_than_usual_if_one_layer_alone_does_not_fit():
    model = Model.of(BIG())
    memory = 12 * sample_bytes(model, "b")  # two of these live at once, and a third of the memory is set aside
    known = calibrate(model, WorkingInputs({"N": 2}), None, Sampling(16, 0, memory=memory))
    assert max(len(feed["x"]) for feed in known.feeds) in range(1, 6)


@pytest.mark.parametrize(("memory", "measured"), [(10**9, 64), (8 * 10 * 3 * 24 * 24 * 4, 10), (1, 1)])
def test_samples_to_measure_on_take_an_eighth_of_the_memory(memory, measured):
    model = Model.of(BIG())
    found = quality(model, model.proto, WorkingInputs({"N": 2}), Evaluation(memory=memory))
    assert found.samples == measured
    assert found.error < 1e-6
