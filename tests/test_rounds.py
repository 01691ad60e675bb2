"""Targets, and pruning in rounds."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from command import MODELS, SHARED, spa
from nets.build import net
from onnx import numpy_helper

import spa_onnx
from spa_onnx.analysis import analyse
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model, parameters
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.removal import Removal
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.rounds import joined, narrowed, shares, widened
from spa_onnx.selection.budgets import UNITS, PlanCost

RESNET, VIT = MODELS / "digits_resnet.onnx", MODELS / "digits_vit.onnx"
VERIFY = SHARED.parent / "tools" / "verify_pruned.py"
STACK = net(
    "float[N,3,8,8] x",
    "float[40,3,3,3] w1, float[40] b1, float[24,40,1,1] w2, float[24] b2, float[48,24,3,3] w3, float[4,48,1,1] w4, "
    "float[4] b4",
    "a = Conv<pads=[1,1,1,1]>(x, w1, b1) c = Relu(a) d = Conv(c, w2, b2) e = Relu(d) f = Conv<pads=[1,1,1,1]>(e, w3) "
    "g = Relu(f) "
    "y = Conv(g, w4, b4)",
    "float[N,4,8,8] y",
)


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
@pytest.mark.parametrize("target", ["macs=0.5", "macs=0.3", "params=0.6", "params=0.25"])
@pytest.mark.parametrize("model", [RESNET, VIT], ids=["resnet", "vit"])
def test_a_target_is_met_from_below_within_one_percent(model, target, scope):
    result = spa_onnx.prune(model, target=target, criterion="l1", scope=scope, check=False)
    unit, share = target.split("=")
    before, after = getattr(result.report, unit)
    met = 0.99 * float(share) <= after / before <= float(share)
    noted = any(f"{after / before:.4f} is the nearest" in note for note in result.report.notes)
    assert after / before <= float(share)
    assert met or noted
    if model == RESNET or scope != "local":  # a few heads of the small transformer weigh more than one percent
        assert met


def test_what_multiples_make_impossible_is_said_with_the_nearest():
    result = spa_onnx.prune(RESNET, target="macs=0.5", criterion="l1", multiple=16, check=False)
    kept = result.report.macs[1] / result.report.macs[0]
    assert kept < 0.495
    assert result.report.notes == (
        f"target macs=0.5: {kept:.4f} is the nearest that whole channels and multiples allow",
    )


def test_what_structure_makes_impossible_is_refused_with_the_nearest():
    with pytest.raises(
        RefusedError, match=r"target macs=0.0001 is out of reach: .* 0\.\d+ would be kept, which is the nearest"
    ):
        spa_onnx.prune(RESNET, target="macs=0.0001", criterion="l1", check=False)


@pytest.mark.parametrize(
    "target", ["macs", "macs=", "macs=0", "macs=1", "macs=1.5", "macs=x", "macs=nan", "bytes=0.5", "0.5", "macs=.5.5"]
)
def test_a_target_that_is_none_is_wrong_usage(target):
    with pytest.raises(UsageError, match=r"target .* is not .*SHARE.*, as macs=0\.5"):
        spa_onnx.prune(RESNET, target=target)


def test_ratio_or_target_but_not_both():
    for given in ({}, {"ratio": 0.4, "target": "macs=0.5"}):
        with pytest.raises(UsageError, match=r"either a ratio .* or a target"):
            spa_onnx.prune(RESNET, **given)
    result = spa("prune", RESNET, "--ratio", "0.4", "--target", "macs=0.5")
    assert (result.exit_code, "either a ratio" in result.stderr) == (2, True)


@pytest.mark.parametrize("model", [RESNET, VIT])
@pytest.mark.parametrize("seed", range(3))
def test_the_cost_of_a_plan_is_that_of_the_model_it_leaves(model, seed):
    rng = np.random.default_rng(seed)
    proto = spa_onnx.pipeline.open_source(model).proto
    analysis = analyse(Model.of(proto))
    groups = analysis.prunable()
    gone = [group.ranked(rng.random(group.size))[: rng.integers(0, group.steps)] for group in groups]
    drop = {group.name: np.sort(ranks, axis=None) for group, ranks in zip(groups, gone, strict=True)}
    removed = np.array([ranks.size for ranks in gone])
    left = rewrite(analysis, Plan.removing(drop, "")).proto
    assert PlanCost(analysis.model, groups, "params")(removed) == parameters(left)
    assert PlanCost(analysis.model, groups)(removed) == pytest.approx(UNITS["macs"].whole(Model.of(left)), abs=1)


def test_shares_fall_by_the_same_factor():
    assert shares(0.25, 1) == [0.25]
    assert shares(0.25, 2) == pytest.approx([0.5, 0.25])
    assert np.diff(np.log(shares(0.3, 5))) == pytest.approx(np.log(0.3) / 5)


@pytest.mark.parametrize("seed", range(5))
def test_plans_of_two_rounds_compose(seed):
    """Cutting twice, with the second plan found in the smaller model, is cutting once with the joined plan."""
    rng = np.random.default_rng(seed)
    analysis = analyse(Model.of(STACK()))
    first = {g.name: np.sort(rng.choice(g.size, 5, replace=False)) for g in analysis.prunable()}
    removal = Removal(analysis, first)
    smaller = Model.of(rewrite(analysis, Plan.removing(first, "")).proto)
    here, fresh = narrowed(analysis, first, removal, smaller), analyse(smaller)
    assert [(g.name, g.size) for g in here.prunable()] == [(g.name, g.size) for g in fresh.prunable()]
    second = {g.name: np.sort(rng.choice(g.size, 4, replace=False)) for g in here.prunable()}
    both = joined(analysis, first, second)
    once = rewrite(analysis, Plan.removing(both, "")).proto
    twice = rewrite(fresh, Plan.removing(second, "")).proto
    for one, other in zip(once.graph.initializer, twice.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))
    values = {"w3": 2 * np.array(smaller.constant("w3")), "new": np.ones(3)}
    wide = widened(analysis.model, values, removal, {})
    assert set(wide) == {"w3"}
    where = np.ix_(*(removal.kept(spa_onnx.model.facts.Axis("w3", dim)) for dim in range(4)))
    np.testing.assert_array_equal(wide["w3"][where], values["w3"])
    wide["w3"][where] = 0
    old = analysis.model.constant("w3").copy()
    old[where] = 0
    np.testing.assert_array_equal(wide["w3"], old)


@pytest.mark.parametrize(
    "options", [{"ratio": 0.4}, {"target": "macs=0.4"}, {"target": "params=0.5", "scope": "local"}], ids=str
)
@pytest.mark.parametrize("repair", ["none", "obs", "mean"])
def test_rounds_end_where_one_would(options, repair):
    one = spa_onnx.prune(STACK(), samples=32, repair=repair, check=False, **options)
    three = spa_onnx.prune(STACK(), samples=32, repair=repair, rounds=3, **options)
    before = one.report.macs[0]
    assert three.report.macs[1] == pytest.approx(one.report.macs[1], abs=0.03 * before)
    assert three.plan["repaired"] == (repair != "none")
    assert ("3 rounds" in three.report.repair) == (repair != "none")
    assert three.report.validation.gap is not None


def test_statistics_are_collected_again():
    """Later rounds see the repaired model.

    With a criterion that looks at inputs they choose otherwise, and lose no more.
    """
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300, 3, 1, 1)) + rng.standard_normal((300, 3, 8, 8))).astype(np.float32)
    dense = open_session(STACK()).run({"x": x})[0]

    def error(rounds):
        result = spa_onnx.prune(STACK(), target="macs=0.35", rounds=rounds, data={"x": x}, samples=200, check=False)
        return np.square(open_session(result.model).run({"x": x})[0] - dense).mean() / np.square(dense).mean()

    assert error(4) < 1.1 * error(1)


def test_rounds_through_the_command_line(tmp_path):
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    done = spa(
        "prune",
        RESNET,
        "-o",
        out,
        "--target",
        "macs=0.6",
        "--rounds",
        "2",
        "--samples",
        "32",
        "--plan",
        plan,
        "--json",
        "--no-repair",
    )
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["settings"]["rounds"] == 2
    assert 0.594 <= record["macs"][1] / record["macs"][0] <= 0.6
    again = spa("apply", RESNET, plan, "-o", tmp_path / "again.onnx")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()


@pytest.mark.skipif(not VERIFY.exists(), reason="needs the outside checker beside the repository")
@pytest.mark.parametrize("model", [RESNET, VIT], ids=["resnet", "vit"])
@pytest.mark.parametrize("repair", ["none", "obs"])
def test_the_outside_checker_accepts_rounds(tmp_path, model, repair):
    result = spa_onnx.prune(model, 0.4, rounds=3, repair=repair, samples=32)
    (tmp_path / "out.onnx").write_bytes(result.model.SerializeToString())
    (tmp_path / "plan.json").write_text(json.dumps(result.plan))
    line = [sys.executable, VERIFY, model, tmp_path / "out.onnx", tmp_path / "plan.json"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
