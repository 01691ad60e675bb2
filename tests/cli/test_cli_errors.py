"""Whatever goes wrong, the user gets one line, the right exit code and no file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from command import MODELS, SHARED, SHORT, copy_model, save, spa, spa_process, tiny
from failing import INVALID, REFUSED, USAGE, fails
from nets.build import image

from spa_onnx import job, pipeline
from spa_onnx.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def damaged(change: Callable[[onnx.ModelProto], None]) -> bytes:
    proto = tiny()
    change(proto)
    return bytes(proto.SerializeToString())


def bad_reader(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]


def foreign_node(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].domain = "com.example"
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))


def unprunable(proto: onnx.ModelProto) -> None:
    del proto.graph.node[1:]
    proto.graph.node[0].output[0] = "y"
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8


def no_opset(proto: onnx.ModelProto) -> None:
    proto.ir_version = 1
    del proto.opset_import[:]


WRONG_MODELS = {
    "a_text": (b"this is no protobuf at all", "not an ONNX model"),
    "empty": (b"", "empty"),
    "half": (tiny().SerializeToString()[:200], "only part of one"),
    "a_third_of_a_real_one": ((MODELS / "digits_resnet.onnx").read_bytes()[:110_000], "only part of one"),
    "ir_1_without_opset": (damaged(no_opset), "no operator set"),
    "unknown_domain": (damaged(foreign_node), "com.example"),
    "too_few_bytes": (damaged(bad_reader), "does not fit its shape"),
    "without_nodes": (damaged(lambda proto: proto.graph.ClearField("node")), "no graph"),
    "nothing_to_prune": (damaged(unprunable), "graph output: y"),
}


@pytest.mark.parametrize("name", WRONG_MODELS)
def test_a_model_that_cannot_be_pruned_is_refused_with_the_reason(tmp_path, name):
    content, reason = WRONG_MODELS[name]
    (tmp_path / "m.onnx").write_bytes(content)
    assert reason in fails(tmp_path, REFUSED, "prune", tmp_path / "m.onnx", "--ratio", "0.5")


@pytest.mark.parametrize("name", sorted(WRONG_MODELS.keys() - {"unknown_domain", "nothing_to_prune"}))
@pytest.mark.parametrize("command", ["groups", "compare", "unchecked"])
def test_every_command_refuses_a_broken_model(tmp_path, net, name, command):
    model = tmp_path / "m.onnx"
    model.write_bytes(WRONG_MODELS[name][0])
    args = {"groups": ("groups", model), "compare": ("compare", net, model), "unchecked": ("prune", model, *SHORT)}
    assert WRONG_MODELS[name][1] in fails(tmp_path, REFUSED, *args[command])


def test_where_nothing_can_be_pruned_the_largest_group_and_its_reason_are_named(tmp_path):
    (tmp_path / "m.onnx").write_bytes(damaged(unprunable))
    message = fails(tmp_path, REFUSED, "prune", tmp_path / "m.onnx", "--ratio", "0.5")
    assert "w1[0] (8 channels): graph output: y" in message


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_model_cut_off_anywhere_is_one_line(tmp_path, cut):
    content = tiny().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content[: len(content) * cut // 40])
    fails(tmp_path, REFUSED, "prune", tmp_path / "m.onnx", *SHORT)


USAGE_ERRORS = {
    "ratio_0": (("--ratio", "0"), "ratio 0"),
    "ratio_1": (("--ratio", "1"), "ratio 1"),
    "ratio_negative": (("--ratio", "-1"), "ratio -1"),
    "ratio_nan": (("--ratio", "nan"), "ratio nan"),
    "ratio_infinite": (("--ratio", "inf"), "ratio inf"),
    "ratio_text": (("--ratio", "abc"), "'abc'"),
    "ratio_missing": ((), "--ratio"),
    "criterion": (("--ratio", "0.5", "--criterion", "best"), "l1, l2"),
    "scope": (("--ratio", "0.5", "--scope", "all"), "local, global, isomorphic"),
    "aggregate": (("--ratio", "0.5", "--aggregate", "all"), "sum, mean"),
    "normalise": (("--ratio", "0.5", "--normalise", "all"), "none, sum"),
    "exclude": (("--ratio", "0.5", "--exclude", "conv("), "'conv('"),
    "multiple_0": (("--ratio", "0.5", "--multiple", "0"), "--multiple"),
    "seed_negative": (("--ratio", "0.5", "--seed", "-1"), "--seed"),
    "dim": (("--ratio", "0.5", "--dim", "batch"), "NAME=SIZE"),
    "dim_of_no_input": (("--ratio", "0.5", "--dim", "batsch=2"), "'batsch': there is none"),
    "exclude_of_nothing": (
        ("--ratio", "0.5", "--exclude", "conv9"),
        "'conv9' matches the name of no node and of no tensor",
    ),
    "option": (("--ratio", "0.5", "--frobnicate"), "--frobnicate"),
    "output_to_a_pipe": (("--ratio", "0.5", "-o", "-"), "- is no file"),
    "plan_to_a_pipe": (("--ratio", "0.5", "--plan", "-"), "- is no file"),
    "test_data_missing": (("--ratio", "0.5", "--test-data", "no.npz"), "no.npz does not exist"),
    "data_missing": (("--ratio", "0.5", "--data", "no.npz"), "no.npz does not exist"),
}


@pytest.mark.parametrize("name", USAGE_ERRORS)
def test_a_wrong_request_is_a_usage_error_that_names_it(tmp_path, net, name):
    options, words = USAGE_ERRORS[name]
    assert words in fails(tmp_path, USAGE, "prune", net, *options)


def test_a_missing_model_is_named(tmp_path):
    for name in ("missing.onnx", "x" * 300, ""):
        for command in (
            ("prune", name, "--ratio", "0.5"),
            ("groups", name),
            ("explain", name, "w[0]"),
            ("compare", name, name),
        ):
            assert name in fails(tmp_path, USAGE, *command)


def test_a_folder_is_no_model(tmp_path):
    assert "is not a file" in fails(tmp_path, USAGE, "prune", tmp_path, "--ratio", "0.5")


def test_an_unknown_command_is_a_usage_error(tmp_path):
    assert "frobnicate" in fails(tmp_path, USAGE, "frobnicate")


def test_no_command_shows_the_help():
    result = spa()
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert "\n  prune " in result.stderr


@pytest.fixture
def crowded(tmp_path: Path, net: Path) -> Path:
    """A folder with everything that an output could run into."""
    (tmp_path / "link.onnx").symlink_to(net)
    (tmp_path / "hard.onnx").hardlink_to(net)
    (tmp_path / "old.onnx").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "d.npz").write_bytes(b"")
    return tmp_path


WRONG_OUTPUTS = {
    "the_input": ("{0}/tiny.onnx --force", "is an input"),
    "the_input_by_a_relative_path": ("{relative}/tiny.onnx --force", "is an input"),
    "the_input_by_a_detour": ("{0}/folder/../tiny.onnx --force", "is an input"),
    "the_input_by_a_symlink": ("{0}/link.onnx --force", "is an input"),
    "the_input_by_a_hard_link": ("{0}/hard.onnx --force", "is an input"),
    "the_data": ("{0}/d.npz --data {0}/d.npz --force", "is an input"),
    "no_folder": ("{0}/no/new.onnx", "does not exist"),
    "a_folder": ("{0}/folder", "is a folder"),
    "a_device": ("/dev/null --force", "not a regular file"),
    "existing": ("{0}/old.onnx", "--force"),
    "existing_plan": ("{0}/new.onnx --plan {0}/old.onnx", "--force"),
    "existing_report": ("{0}/new.onnx --report {0}/old.onnx", "--force"),
    "plan_is_the_input": ("{0}/new.onnx --plan {0}/tiny.onnx --force", "is an input"),
    "two_with_one_name": ("{0}/new.onnx --plan {0}/new.onnx", "same name"),
    "two_with_one_name_by_a_detour": ("{0}/new.onnx --plan {0}/folder/../new.onnx", "same name"),
    "two_outputs": ("{0}/new.onnx -o {0}/other.onnx", "give one"),
}


@pytest.mark.parametrize("name", WRONG_OUTPUTS)
def test_an_output_that_may_not_be_written_is_refused_before_any_work(crowded, net, monkeypatch, name):
    monkeypatch.setattr(pipeline, "prune", lambda *_, **__: pytest.fail("work was done"))
    line, words = WRONG_OUTPUTS[name]
    args = line.format(crowded, relative=os.path.relpath(crowded)).split()
    assert words in fails(crowded, USAGE, "prune", net, *args, "--ratio", "0.5")


def test_a_read_only_folder_is_refused_before_any_work(tmp_path, net, monkeypatch):
    monkeypatch.setattr(pipeline, "prune", lambda *_, **__: pytest.fail("work was done"))
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o555)
    try:
        assert "read-only" in fails(tmp_path, USAGE, "prune", net, tmp_path / "locked" / "new.onnx", "--ratio", "0.5")
    finally:
        (tmp_path / "locked").chmod(0o755)


def test_a_default_output_that_exists_is_kept(tmp_path, net):
    (tmp_path / "tiny.pruned.onnx").write_text("old")
    assert "--force" in fails(tmp_path, USAGE, "prune", net, "--ratio", "0.5")


def test_excluding_everything_is_refused(tmp_path, net):
    assert "--exclude ." in fails(tmp_path, REFUSED, "prune", net, "--ratio", "0.5", "--exclude", ".")


def test_a_ratio_that_removes_no_channel_is_refused_with_the_numbers(tmp_path, net):
    message = fails(tmp_path, REFUSED, "prune", net, "--ratio", "0.4", "--multiple", "16")
    assert "multiples of 16" in message
    assert "has 8" in message


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_failed_validation_writes_nothing(tmp_path, net, monkeypatch, force):
    def differs(*_, **__):
        raise ValidationError("pruned != masked: a differs first")

    monkeypatch.setattr(job, "validate", differs)
    target = tmp_path / "new.onnx"
    if force:
        target.write_text("old")
    message = fails(tmp_path, INVALID, "prune", net, target, "--plan", tmp_path / "p.json", "--ratio", "0.5", *force)
    assert "a differs first" in message


def test_a_wrong_cut_is_found_by_validation(tmp_path, net, monkeypatch):
    rewrite = job.rewrite

    def spoiled(*args):
        rewritten = rewrite(*args)
        weight = next(tensor for tensor in rewritten.proto.graph.initializer if tensor.name == "w9")
        weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), "w9"))
        return rewritten

    monkeypatch.setattr(job, "rewrite", spoiled)
    assert "y, made by Conv" in fails(tmp_path, INVALID, "prune", net, "--ratio", "0.5")


IMAGE = np.zeros((4, 1, 8, 8), np.float32)


WRONG_DATA = {
    "wrong_name": ({"pixels": IMAGE}, "image"),
    "wrong_shape": ({"x": np.zeros((4, 3, 8, 8), np.float32)}, "[4, 3, 8, 8]"),
    "wrong_rank": ({"x": np.zeros((4, 64), np.float32)}, "[4, 64]"),
    "no_samples": ({"x": IMAGE[:0]}, "[0, 1, 8, 8]"),
    "a_scalar": ({"x": np.float32(1)}, "[]"),
    "wrong_type": ({"x": IMAGE.astype(np.uint8)}, "uint8"),
    "not_finite": ({"x": np.full_like(IMAGE, np.nan)}, "not finite"),
    "objects": ({"x": np.array([None])}, "plain arrays"),
    "too_few_labels": ({"x": IMAGE, "y": np.zeros(3, np.int64)}, "[3]"),
    "one_label": ({"x": IMAGE, "y": np.int64(3)}, "each of 4 samples"),
    "one_hot_labels": ({"x": IMAGE, "y": np.eye(10, dtype=np.float32)[:4]}, "class numbers"),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_data_that_does_not_fit_is_refused_with_what_was_expected(tmp_path, name):
    model = copy_model(tmp_path)
    arrays, words = WRONG_DATA[name]
    np.savez(tmp_path / "d.npz", **arrays)
    assert words in fails(tmp_path, REFUSED, "prune", model, "--ratio", "0.5", "--data", tmp_path / "d.npz")


@pytest.mark.parametrize(
    "content", [b"", b"no archive", b"PK\x03\x04 no archive", (MODELS / "digits_resnet.npz").read_bytes()[:9000]]
)
def test_data_that_is_no_archive_is_refused(tmp_path, content):
    model = copy_model(tmp_path)
    (tmp_path / "d.npz").write_bytes(content)
    assert "not an .npz" in fails(tmp_path, REFUSED, "compare", model, model, "--data", tmp_path / "d.npz")


def test_comparing_models_with_other_interfaces_is_refused(tmp_path, net):
    assert "image (float, 4 axes)" in fails(tmp_path, REFUSED, "compare", net, copy_model(tmp_path))


def test_comparing_outputs_of_other_shapes_is_refused(tmp_path, net):
    other = tiny()
    last = next(tensor for tensor in other.graph.initializer if tensor.name == "w9")
    last.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(last)[:3], "w9"))
    bias = next(tensor for tensor in other.graph.initializer if tensor.name == "b9")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias)[:3], "b9"))
    other.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    assert "output y has shape" in fails(tmp_path, REFUSED, "compare", net, save(other, tmp_path / "other.onnx"))


@pytest.mark.parametrize("name", ["super_resolution_espcn", "qonnx_espcn_quant", "svc_wisdm_skl2onnx"])
def test_real_models_that_cannot_be_pruned_are_refused(tmp_path, name):
    if not SHARED.is_dir():
        pytest.skip("needs the real models beside the repository")
    message = fails(tmp_path, REFUSED, "prune", SHARED / f"{name}.onnx", tmp_path / "new.onnx", "--ratio", "0.5")
    words = {
        "super_resolution_espcn": "no operator set",
        "qonnx_espcn_quant": "onnx.brevitas",
        "svc_wisdm_skl2onnx": "nothing to prune",
    }
    assert words[name] in message


def test_onnxruntime_adds_nothing_to_the_one_line(tmp_path):
    (tmp_path / "m.onnx").write_bytes(WRONG_MODELS["unknown_domain"][0])
    result = spa_process("prune", tmp_path / "m.onnx", "--ratio", "0.5")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (REFUSED, "", 1)


def test_onnxruntime_warns_of_nothing(tmp_path):
    """Of `tf_half_pixel_for_nn` it does, by a logger that belongs to no session."""
    resize = 'Resize<coordinate_transformation_mode="tf_half_pixel_for_nn", mode="nearest">(a, , s)'
    build = image(f"u = {resize} z = Relu(u)", "float[4] s = {1, 1, 2, 2}", opset=13)
    result = spa_process("prune", save(build(), tmp_path / "m.onnx"), tmp_path / "new.onnx", "--ratio", "0.5")
    assert (result.returncode, result.stderr) == (0, "")
