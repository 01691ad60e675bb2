"""The Python interface, as other programs use it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import MODELS, save, spa_process, tiny
from nets.build import net

import spa_onnx
from spa_onnx.errors import GateError, RefusedError, RuleError, UsageError, ValidationError
from spa_onnx.pipeline import inspect
from spa_onnx.plan.removal import taken

RESNET = MODELS / "digits_resnet.onnx"
FAST = {"ratio": 0.4, "criterion": "l1", "check": False}


@pytest.fixture(scope="module")
def result() -> spa_onnx.Result:
    return spa_onnx.prune(RESNET, ratio=0.4, criterion="l1", data=MODELS / "digits_resnet.npz")


def imported(line: str) -> set[str]:
    """The packages in memory after a line of Python in a fresh process."""
    code = f"{line}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_imports_nothing_heavy():
    assert not imported("import spa_onnx") & {"numpy", "onnx", "onnxruntime", "rich", "click", "networkx", "scipy"}


def test_pruning_without_a_check_leaves_onnxruntime_alone():
    assert "onnxruntime" not in imported(
        f"import spa_onnx; spa_onnx.prune({str(RESNET)!r}, ratio=0.4, criterion='l1', check=False)"
    )


def test_the_public_names_are_there():
    for name in spa_onnx.__all__:
        assert getattr(spa_onnx, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = spa_onnx.nothing


def test_the_package_declares_its_types():
    assert resources.files("spa_onnx").joinpath("py.typed").is_file()


def test_the_module_is_the_command():
    for args in (("--version",), ("groups", RESNET)):
        assert spa_process(*args).returncode == 0
    assert spa_onnx.__version__ in spa_process("--version").stdout


def test_a_result_holds_model_plan_and_report(result):
    assert isinstance(result, spa_onnx.Result)
    assert isinstance(result.model, onnx.ModelProto)
    assert isinstance(result.report, spa_onnx.Report)
    for before, after in (result.report.params, result.report.macs, result.report.bytes):
        assert isinstance(before, int)
        assert 0 < after < before
    assert result.report.validation.gap < 1e-4
    assert result.report.drift.samples == 400
    assert result.report.drift.accuracy[0] == pytest.approx(0.995)
    assert list(result.report.reasons()) == [("graph output", 1)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.report.params = (1, 1)


def test_the_figures_are_those_of_the_models(result):
    floats = sum(
        int(np.prod(tensor.dims))
        for tensor in result.model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    assert result.report.params[1] == floats
    assert result.report.bytes == (RESNET.stat().st_size, len(result.model.SerializeToString()))


def test_a_plan_is_json_that_tells_every_cut(result):
    plan = json.loads(json.dumps(result.plan))
    assert plan["format"] == 2
    assert plan["repaired"] is False
    assert plan["settings"]["ratio"] == 0.4
    source = {tensor.name: tensor for tensor in onnx.load(RESNET).graph.initializer}
    pruned = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    assert plan["tensors"]
    for entry in plan["tensors"]:
        array = onnx.numpy_helper.to_array(source[entry["source"]])
        assert list(array.shape) == entry["shape"]
        slices = [
            {int(axis): np.asarray(kept) for axis, kept in part.items()}
            for part in entry.get("blocks") or [entry["kept"]]
        ]
        np.testing.assert_array_equal(taken(array, slices), pruned[entry["name"]])


def test_the_given_model_is_not_changed():
    proto = onnx.load(RESNET)
    before = proto.SerializeToString()
    spa_onnx.prune(proto, **FAST)
    assert proto.SerializeToString() == before


def test_a_path_a_string_and_a_model_in_memory_give_the_same():
    proto = onnx.load(RESNET)
    assert proto.SerializeToString() == RESNET.read_bytes()
    results = [spa_onnx.prune(model, **FAST) for model in (RESNET, str(RESNET), proto)]
    assert len({one.model.SerializeToString() for one in results}) == 1
    assert results[0].plan == results[1].plan == results[2].plan


def test_a_saved_plan_can_be_applied(tmp_path):
    first = spa_onnx.prune(RESNET, **FAST)
    (tmp_path / "plan.json").write_text(json.dumps(first.plan))
    plan = spa_onnx.read_plan(tmp_path / "plan.json")
    assert isinstance(plan, spa_onnx.Plan)
    again = spa_onnx.apply_plan(RESNET, plan, check=False)
    assert again.model.SerializeToString() == first.model.SerializeToString()
    assert again.plan == first.plan


@pytest.mark.parametrize("ratio", [0, 1, -0.5, float("nan"), "0.5", None])
def test_a_ratio_that_makes_no_sense_is_a_usage_error(ratio):
    with pytest.raises(UsageError, match="ratio"):
        spa_onnx.prune(RESNET, ratio=ratio)


@pytest.mark.parametrize(
    "option", [{"criterion": "best"}, {"scope": "all"}, {"exclude": ["("]}, {"multiple": 0}, {"normalise": "x"}]
)
def test_an_option_that_makes_no_sense_is_a_usage_error(option):
    with pytest.raises(UsageError):
        spa_onnx.prune(RESNET, **{**FAST, **option})


def test_errors_have_one_base_and_the_documented_exit_codes(tmp_path):
    codes = {RefusedError: 1, RuleError: 1, UsageError: 2, ValidationError: 3, GateError: 4}
    for kind, code in codes.items():
        assert issubclass(kind, spa_onnx.SpaError)
        assert kind.exit_code == code
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(spa_onnx.SpaError, match="not an ONNX model"):
        spa_onnx.prune(tmp_path / "m.onnx", ratio=0.5)


def test_every_step_is_reported_once_and_in_order():
    steps: list[str] = []
    spa_onnx.prune(tiny(), ratio=0.5, criterion="l1", progress=steps.append)
    assert steps == ["load", "analyse", "score", "select", "rewrite", "validate", "measure"]
    steps.clear()
    spa_onnx.prune(tiny(), ratio=0.5, progress=steps.append)
    assert steps == [
        "load",
        "analyse",
        "collect",
        "score",
        "weigh",
        "select",
        "rewrite",
        "validate",
        "repair",
        "measure",
    ]


def test_weights_in_another_file_are_counted_and_come_along(tmp_path):
    proto = onnx.load(RESNET)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    result = spa_onnx.prune(path, **FAST)
    assert result.report.bytes[0] == pytest.approx(path.stat().st_size + (tmp_path / "m.data").stat().st_size, rel=0.01)
    target = save(result.model, tmp_path / "elsewhere.onnx")
    (tmp_path / "m.data").unlink()
    onnx.checker.check_model(onnx.load(target), full_check=True)


def outside(folder: Path) -> Path:
    """The residual network with its weights in m.data."""
    folder.mkdir()
    onnx.save(onnx.load(RESNET), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return folder / "m.onnx"


def test_a_cache_of_symbolic_links_can_be_read(tmp_path):
    blob = outside(tmp_path / "blobs")
    (tmp_path / "m.onnx").symlink_to(blob)
    lone = spa_onnx.prune(tmp_path / "m.onnx", **FAST)
    (tmp_path / "m.data").symlink_to(blob.with_name("m.data"))
    both = spa_onnx.prune(tmp_path / "m.onnx", **FAST)
    assert (
        lone.model.SerializeToString()
        == both.model.SerializeToString()
        == spa_onnx.prune(blob, **FAST).model.SerializeToString()
    )


@pytest.mark.parametrize("keep", [None, 0, 1000])
def test_external_data_that_is_missing_or_cut_off_is_refused(tmp_path, keep):
    path = outside(tmp_path / "model")
    data = path.with_name("m.data")
    content = data.read_bytes()
    data.unlink()
    if keep is not None:
        data.write_bytes(content[:keep])
    with pytest.raises(RefusedError, match=r"m\.data|does not fit its shape"):
        spa_onnx.prune(path, **FAST)


def test_a_model_whose_weights_onnx_save_has_taken_away_is_refused_by_name(tmp_path):
    proto = onnx.load(RESNET)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    first = proto.graph.initializer[0].name
    for call in (lambda: spa_onnx.prune(proto, **FAST), lambda: inspect(proto)):
        with pytest.raises(RefusedError, match=re.escape(f"no values for '{first}'")):
            call()
    onnx.load_external_data_for_model(proto, str(tmp_path))
    assert spa_onnx.prune(proto, **FAST).report.params[1] < spa_onnx.prune(proto, **FAST).report.params[0]


def test_a_damaged_model_in_memory_is_refused_by_name():
    proto = tiny()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    with pytest.raises(RefusedError, match="does not fit its shape"):
        spa_onnx.prune(proto, **FAST)


def test_external_data_elsewhere_is_not_read(tmp_path):
    path = outside(tmp_path / "model")
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = "../m.data" if entry.key == "location" else entry.value
    with pytest.raises(RefusedError, match="outside the model's folder"):
        spa_onnx.prune(save(proto, path), **FAST)


def test_the_default_prunes_a_model_that_takes_one_sample_at_a_time():
    """A state has room for one, though the number of samples is symbolic."""
    proto = net(
        "float[1,N,6] x, float[1,1,8] state",
        "float[6,8] w1, float[1,24,8] w, float[1,24,8] r, float[8,4] w2",
        "m = MatMul(x, w1) a = Relu(m) h, last = GRU<hidden_size=8>(a, w, r, , , state) y = MatMul(last, w2)",
    )()
    found = spa_onnx.prune(proto, 0.4)
    assert found.report.params[1] < found.report.params[0]
    assert found.report.repair == "obs: fitted on 512 synthetic samples"


def test_made_up_samples_on_which_the_model_does_not_run_are_left_out():
    """Numbers below 50 that index a table of 44, behind a product."""
    proto = net(
        "int64[N,3] ids",
        "float[44,8] w1, float[8,4] w2, float[4,4] w3, int64 one = {1}",
        "i = Mul(ids, one) e = Gather(w1, i) r = Relu(e) m = MatMul(r, w2) t = Tanh(m) y = MatMul(t, w3)",
    )()
    found = spa_onnx.prune(proto, 0.4)
    count = int(found.report.repair.split()[3])
    assert 10 < count < 256


def test_a_model_that_has_nothing_to_prune_and_does_not_run_on_random_inputs_is_told_the_former():
    fixed = net("float[3] x, int64[1] shape", "", "y = Reshape(x, shape)", "float[M] y")()
    with pytest.raises(RefusedError, match="nothing to prune"):
        spa_onnx.prune(fixed, 0.5)
    weighed = net(
        "float[N,8] x, int64[1] shape",
        "float[8,8] v, float[8,4] w",
        "a = MatMul(x, v) b = MatMul(a, w) y = Reshape(b, shape)",
        "float[M] y",
    )()
    with pytest.raises(RefusedError, match="onnxruntime cannot run"):
        spa_onnx.prune(weighed, 0.5)


def test_a_text_is_one_pattern_and_not_one_for_each_letter():
    names = [group.name for group in inspect(tiny()).prunable()]
    assert names == ["w1[0]"]
    assert inspect(tiny(), exclude="w1").prunable() == inspect(tiny(), exclude=("w1",)).prunable() == ()
    with pytest.raises(RefusedError, match="--exclude w1 leaves no group free"):
        spa_onnx.prune(tiny(), 0.5, criterion="l1", exclude="w1")


def test_what_the_user_can_do_is_said_where_nothing_can_be_pruned():
    proto = net(
        "float[N,6] x",
        "float[6,8] w1, float[8] s, float[8,4] w2",
        "a = MatMul(x, w1) b = LayerNormalization(a, s) y = MatMul(b, w2)",
    )()
    with pytest.raises(RefusedError, match=r"1 of 3 groups only need --width"):
        spa_onnx.prune(proto, 0.5, criterion="l1")
    assert spa_onnx.prune(proto, 0.5, criterion="l1", width=True).report.groups


def test_a_failed_run_names_the_inputs_with_types_and_shapes():
    proto = net("int64[N] i", "float[4,8] t, float[8,3] w", "k = Mul(i, i) a = Gather(t, k) y = MatMul(a, w)")()
    with pytest.raises(RefusedError, match=r"onnxruntime cannot run the model on i int64 \[2\]: "):
        spa_onnx.prune(proto, 0.5, criterion="l1", data={"i": np.full(5, 7)})
