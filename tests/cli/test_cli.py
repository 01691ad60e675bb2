"""What each command promises when all goes well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from command import MODELS, SHORT, copy_model, listing, save, spa, spa_process, tiny
from nets import NETS

from spa_onnx import pipeline

if TYPE_CHECKING:
    from pathlib import Path

DATA = MODELS / "digits_resnet.npz"


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    return copy_model(tmp_path)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The residual network without 60 % of its channels."""
    path = tmp_path_factory.mktemp("pruned") / "pruned.onnx"
    assert spa("prune", MODELS / "digits_resnet.onnx", path, "--ratio", "0.6", "--no-validate").exit_code == 0
    return path


def done(*args: object) -> str:
    result = spa(*args)
    assert (result.exit_code, result.stderr) == (0, ""), (result.output, result.exception)
    return result.stdout


def shapes(path: Path) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    "args", [["new.onnx"], ["-o", "new.onnx"], ["--output", "new.onnx"], ["new.onnx", "-o", "new.onnx"]]
)
def test_the_output_is_an_argument_or_an_option(tmp_path, resnet, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    done("prune", resnet, *args, *SHORT)
    assert set(listing(tmp_path)) == {"digits_resnet.onnx", "new.onnx"}


def test_the_default_output_lies_beside_the_model(tmp_path, resnet):
    before = listing(tmp_path)
    done("prune", resnet, *SHORT)
    after = listing(tmp_path)
    assert after.keys() - before.keys() == {"digits_resnet.pruned.onnx"}
    assert after["digits_resnet.onnx"] == before["digits_resnet.onnx"]


def test_apply_repeats_a_plan_to_the_byte(tmp_path, resnet):
    plan, first, again = (tmp_path / name for name in ("plan.json", "first.onnx", "again.onnx"))
    done("prune", resnet, first, "--plan", plan, "--criterion", "random", "--seed", "3", *SHORT)
    done("apply", resnet, plan, "-o", again, "--no-validate")
    assert first.read_bytes() == again.read_bytes()


def test_prune_json_is_one_object_with_the_promised_keys(tmp_path, resnet):
    record = json.loads(done("prune", resnet, "--ratio", "0.4", "--json"))
    assert record.keys() >= {"params", "macs", "bytes", "groups", "pinned", "seconds", "validation"}
    for key in ("params", "macs", "bytes", "latency_ms"):
        before, after = record[key]
        assert before > 0
        assert after > 0
    assert record["bytes"] == [resnet.stat().st_size, (tmp_path / "digits_resnet.pruned.onnx").stat().st_size]
    assert record["macs"][1] < record["macs"][0]
    assert record["validation"]["gap"] < 1e-4
    assert [pin["why"] for pin in record["pinned"]] == ["graph output: logits"]
    assert set(record["seconds"]) == set(pipeline.STEPS)


def test_json_stays_json_where_graphsurgeon_has_its_say(tmp_path):
    model = save(NETS["shuffle"](), tmp_path / "shuffle.onnx")
    result = spa_process("prune", model, "--ratio", "0.4", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["params"]
    assert "Gather" in [node.op_type for node in onnx.load(tmp_path / "shuffle.pruned.onnx").graph.node], (
        "graphsurgeon was not used"
    )


def test_figures_that_are_not_finite_are_null_in_json(tmp_path):
    proto = tiny()
    last = next(tensor for tensor in proto.graph.initializer if tensor.name == "b9")
    last.CopyFrom(onnx.numpy_helper.from_array(np.full(4, np.inf, np.float32), "b9"))
    result = spa_process("prune", save(proto, tmp_path / "m.onnx"), "--ratio", "0.4", "--json")
    record = json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert record["drift"]["error"] is None


def test_without_validation_the_result_says_so_and_onnxruntime_is_not_imported(tmp_path, resnet):
    result = spa_process("prune", resnet, *SHORT, options=("-X", "importtime"))
    assert result.returncode == 0
    assert "skipped (--no-validate)" in result.stdout
    assert "onnx.helper" in result.stderr
    assert "onnxruntime" not in result.stderr
    assert json.loads(done("prune", resnet, tmp_path / "b.onnx", "--json", *SHORT))["validation"] == "skipped"


def test_the_help_imports_neither_numpy_nor_onnx():
    result = spa_process("--help", options=("-X", "importtime"))
    imported = {line.split("|")[-1].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"numpy", "onnx", "onnxruntime", "rich", "scipy", "networkx"}


@pytest.mark.parametrize("command", ["prune", "groups", "explain", "apply", "compare"])
def test_every_command_has_help_that_fits_a_terminal(command):
    text = done(command, "--help")
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith(f"Usage: spa-onnx {command}")


def test_what_is_excluded_stays_whole_and_the_rest_is_pruned(tmp_path, resnet):
    args = ("--exclude", r"block2\.branch\.first", "--exclude", "/block4/branch/reduce/conv/Conv")
    done("prune", resnet, tmp_path / "new.onnx", *args, *SHORT)
    before, after = shapes(resnet), shapes(tmp_path / "new.onnx")
    changed = {name for name in after if after[name] != before[name]}
    excluded = {name for name in before if "block2.branch.first" in name or "block4.branch.reduce.conv" in name}
    assert len(excluded) > 5
    assert not changed & excluded
    assert "block1.branch.first.conv.weight" in changed


def test_channel_counts_are_multiples_where_asked(tmp_path, resnet):
    done("prune", resnet, tmp_path / "new.onnx", "--multiple", "8", *SHORT)
    before, after = shapes(resnet), shapes(tmp_path / "new.onnx")
    sizes = {
        (name, axis) for name, dims in after.items() for axis, size in enumerate(dims) if size != before[name][axis]
    }
    assert sizes
    assert all(after[name][axis] % 8 == 0 for name, axis in sizes)


def test_a_seed_repeats_random_choices(tmp_path, resnet):
    outputs = []
    for number, seed in enumerate((1, 1, 2)):
        done("prune", resnet, tmp_path / f"{number}.onnx", "--seed", seed, *SHORT, "--criterion", "random")
        outputs.append((tmp_path / f"{number}.onnx").read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_the_result_does_not_depend_on_the_hash_seed(tmp_path, scope):
    contents = []
    for seed in ("0", "4711"):
        target, plan = tmp_path / f"{seed}.onnx", tmp_path / f"{seed}.json"
        args = (target, "--plan", plan, "--scope", scope, *SHORT)
        assert spa_process("prune", MODELS / "digits_vit.onnx", *args, PYTHONHASHSEED=seed).returncode == 0
        contents.append((target.read_bytes(), plan.read_bytes()))
    assert contents[0] == contents[1]


@pytest.mark.parametrize("args", [("--json",), ()])
def test_a_reader_that_closes_the_pipe_is_no_failure(tmp_path, resnet, args):
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-m", "spa_onnx", "prune", str(resnet), *SHORT, *args]
    result = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "digits_resnet.pruned.onnx").is_file()


def test_names_that_the_terminal_cannot_show_are_no_failure(tmp_path):
    model = save(tiny(), tmp_path / "größe [bold].onnx")
    result = spa_process("prune", model, *SHORT, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert "gr\\xf6\\xdfe [bold].pruned.onnx" in result.stdout


def test_force_replaces_what_is_there(tmp_path, resnet):
    target = tmp_path / ("x" * 250 + ".onnx")
    target.write_text("old")
    done("prune", resnet, target, "--force", *SHORT)
    onnx.checker.check_model(onnx.load(target), full_check=True)


def test_groups_lists_what_can_lose_channels_and_why_the_rest_cannot(resnet):
    text = done("groups", resnet)
    assert "stem.conv.weight[0]" in text
    assert "graph output: logits" in text
    record = json.loads(done("groups", resnet, "--json"))
    kept = [group for group in record if not group["prunable"]]
    assert [group["name"] for group in kept if group["why"] != "positions, not channels"] == ["classifier.weight[0]"]
    assert all(group["why"] or group["prunable"] for group in record)


def test_explain_follows_the_couplings(resnet):
    text = done("explain", resnet, "block1.branch.first.conv.weight[0]")
    assert "32 of its indices are 32 channels that can be cut" in text
    assert "block1.branch.second.conv.weight[1]" in text
    (record,) = json.loads(done("explain", resnet, "block1.branch.first.conv.weight[0]", "--json"))
    assert record["pinned"] == ""
    assert "block1.branch.second.conv.weight[1]" in [step["to"] for step in record["steps"]]


def test_explaining_a_pinned_axis_ends_in_the_reason(resnet):
    text = done("explain", resnet, "classifier.weight[-2]")
    assert text.rstrip().endswith("graph output: logits")
    (record,) = json.loads(done("explain", resnet, "classifier.weight[0]", "--json"))
    assert record["pinned"] == "graph output: logits"
    assert record["steps"][-1]["to"] == "logits[1]"


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("stem.conv.weigth[0]", "stem.conv.weight"),
        ("stem.conv.weight[4]", "has 4 axes"),
        ("stem.conv.weight", "TENSOR[AXIS]"),
    ],
)
def test_explain_helps_with_an_axis_that_is_not_there(resnet, axis, words):
    result = spa("explain", resnet, axis)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_compare_with_labels_gives_both_accuracies(resnet, pruned):
    record = json.loads(done("compare", resnet, pruned, "--data", DATA, "--json"))
    before, after = record["drift"]["accuracy"]
    assert before == pytest.approx(0.995)
    assert after < before
    assert record["drift"]["samples"] == 400
    assert "accuracy 99.50 % ->" in " ".join(done("compare", resnet, pruned, "--data", DATA).split())


def test_a_model_does_not_differ_from_itself(resnet):
    record = json.loads(done("compare", resnet, resnet, "--data", DATA, "--json"))
    assert record["drift"]["error"] == 0
    assert record["drift"]["agreement"] == 1


GATES = {
    "--max-error": ("100", "0.0001", "output error is"),
    "--min-agreement": ("0.01", "1", "top-1 agreement is"),
    "--max-accuracy-drop": ("99", "0.1", "accuracy drop in points is"),
    "--max-params": ("0.9", "0.1", "parameters kept is"),
    "--max-macs": ("0.9", "0.1", "MACs kept is"),
    "--max-bytes": ("0.9", "0.1", "bytes kept is"),
    "--max-latency": ("1000", "0.0001", "latency kept is"),
}


def test_gates_that_hold_let_the_comparison_pass(resnet, pruned):
    done(
        "compare",
        resnet,
        pruned,
        "--data",
        DATA,
        *(word for gate, (wide, *_) in GATES.items() for word in (gate, wide)),
    )


def test_every_gate_that_fails_is_named_with_its_figure(resnet, pruned):
    args = [word for gate, (_, narrow, _) in GATES.items() for word in (gate, narrow)]
    result = spa("compare", resnet, pruned, "--data", DATA, "--json", *args)
    assert result.exit_code == 4
    assert json.loads(result.stdout)["drift"]
    assert result.stderr.count("\n") == 1
    for what, (_, limit, words) in GATES.items():
        assert words in result.stderr, what
        assert f"at most {limit}" in result.stderr or f"at least {limit}" in result.stderr


def test_a_gate_without_a_figure_fails(resnet, pruned):
    result = spa("compare", resnet, pruned, "--max-accuracy-drop", "50")
    assert result.exit_code == 4
    assert "labels" in result.stderr
