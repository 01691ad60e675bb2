"""Convolutions in groups: every group loses its own least important channels, as many as the others.

The result is exact.
"""

from __future__ import annotations

import json

import law
import numpy as np
import pytest
from nets.build import net
from nets.convolution import NETS as CONVOLUTIONS
from nets.quantised import NETS as QUANTISED

import spa_onnx
from spa_onnx.analysis import analyse
from spa_onnx.analysis.groups import Group
from spa_onnx.errors import RefusedError
from spa_onnx.layers import linear_layers
from spa_onnx.model.facts import Axis
from spa_onnx.model.model import Model
from spa_onnx.pipeline import apply_plan
from spa_onnx.plan.plan import Plan, read_plan
from spa_onnx.plan.removal import Removal, put, taken
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.repair.layerwise import kept_columns
from spa_onnx.selection.select import Constraints, select

_INPUT = "float[N,3,6,6] x"
NETS = {
    "resnext": net(
        _INPUT,
        "float[8,3,1,1] w0, float[24,8,1,1] w1, float[24] b1, float[24,8,3,3] w2, float[24] b2, float[8,24,1,1] w3, "
        "float[4,8,1,1] w4",
        "s = Conv(x, w0) a = Conv(s, w1, b1) p = Relu(a) b = Conv<group=3, pads=[1,1,1,1]>(p, w2, b2) q = Relu(b) "
        "c = Conv(q, w3) "
        "t = Add(s, c) y = Conv(t, w4)",
    ),
    "regnet": net(
        _INPUT,
        "float[24,3,1,1] w1, float[24] b1, float[24,8,3,3] w2, float[5,24,1,1] f1, float[24,5,1,1] f2, "
        "float[4,24,1,1] w4",
        "a = Conv(x, w1, b1) p = Relu(a) b = Conv<group=3, pads=[1,1,1,1]>(p, w2) g = GlobalAveragePool(b) "
        "h = Conv(g, f1) i = Relu(h) "
        "j = Conv(i, f2) k = Sigmoid(j) m = Mul(b, k) y = Conv(m, w4)",
    ),
    "twice": net(
        _INPUT,
        "float[24,3,1,1] w1, float[24,8,3,3] w2, float[24,8,3,3] w3, float[4,24,1,1] w4",
        "a = Conv(x, w1) b = Conv<group=3>(a, w2) c = Conv<group=3>(b, w3) y = Conv(c, w4)",
    ),
    "flattened": net(
        "float[N,3,4,4] x",
        "float[24,3,1,1] w1, float[24,8,3,3] w2, float[96,5] w3",
        "a = Conv(x, w1) p = Relu(a) b = Conv<group=3>(p, w2) f = Flatten(b) y = MatMul(f, w3)",
    ),
}
FREE = [
    "conv_grouped_same_channel",
    "conv_grouped_in_turn",
    "conv_grouped_shared_weight",
    "conv_grouped_weight_computed",
    "conv_grouped_gated",
    "conv_transpose_same_channel",
]
TIED = [
    "conv_grouped_shifted",
    "conv_grouped_in_other_numbers",
    "conv_grouped_weight_scaled_per_input",
    "conv_grouped_weight_transposed",
]


def parts_read_last(proto):
    """The parts of the groups that the last convolution in groups reads."""
    analysis = analyse(Model.of(proto))
    *_, axis = (Axis(node.inputs[0], 1) for node in analysis.model.nodes if node.attributes.get("group", 1) > 1)
    return {group.parts for group in analysis.prunable() if axis in group.owner}


def removed(result):
    """Weight -> for each part of it, what goes of axis 1, as far as its parts lose different ones."""
    return {
        entry["source"]: [part["1"] for part in entry["blocks"]]
        for entry in result.plan["tensors"]
        if "blocks" in entry
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", NETS)
def test_whatever_each_part_loses_removing_equals_masking(name, seed):
    analysis = analyse(Model.of(NETS[name]()))
    rewritten = rewrite(analysis, Plan.removing(law.random_drop(analysis.prunable(), seed), ""))
    assert law.wrong_shapes(analysis.model, rewritten) == []
    assert law.measured(analysis.model, rewritten, seed) < law.EXACT
    assert any(len(cut.slices) == 3 for cut in rewritten.tensors)


@pytest.mark.parametrize("name", FREE)
def test_parts_lose_their_own_channels_where_nothing_else_ties_them(name):
    assert parts_read_last(CONVOLUTIONS[name]()) == {2}


@pytest.mark.parametrize("name", TIED)
def test_the_same_channel_of_every_part_goes_where_something_else_ties_them(name):
    assert parts_read_last(CONVOLUTIONS[name]()) == {1}


@pytest.mark.parametrize(("groups", "width", "parts"), [(4, 8, 4), (8, 8, 1), (16, 16, 16), (2, 2, 1)])
def test_whole_groups_go_where_they_are_many_and_small(groups, width, parts):
    wide = groups * width
    proto = net(
        _INPUT,
        f"float[{wide},3,1,1] w1, float[{wide},{width},1,1] w2, float[4,{wide},1,1] w3",
        f"a = Conv(x, w1) b = Conv<group={groups}>(a, w2) y = Conv(b, w3)",
    )()
    assert parts_read_last(proto) == {parts}


@pytest.mark.parametrize("name", ["qlinear_conv_groups", "dequantised_conv_groups"])
def test_quantised_weights_have_parts_too(name):
    proto = QUANTISED[name]()
    result = spa_onnx.prune(proto, 0.5, criterion="obspa", scope="local")
    assert result.report.validation is not None
    assert "w2" in removed(result)


@pytest.mark.parametrize(
    "options", [{}, {"scope": "global"}, {"multiple": 2}, {"rounds": 2}, {"target": "macs=0.5"}], ids=str
)
@pytest.mark.parametrize("criterion", ["l1", "obspa", "perturbation", "wanda", "lamp"])
@pytest.mark.parametrize("name", NETS)
def test_every_part_loses_its_own_channels_and_as_many_as_the_others(name, criterion, options):
    proto = NETS[name]()
    goal = {} if "target" in options else {"ratio": 0.5}
    result = spa_onnx.prune(proto, criterion=criterion, samples=32, **goal, **options)
    assert result.report.validation.gap < 1e-5
    analysis, pruned = analyse(Model.of(proto)), Model.of(result.model)
    for group in result.plan["groups"]:
        sizes = {len(part) for part in np.split(np.array(group["removed"]), group.get("parts", 1))}
        lost = np.bincount(
            np.array(group["removed"]) // (group["channels"] // group.get("parts", 1)), minlength=group.get("parts", 1)
        )
        assert len(sizes) == len(set(lost.tolist())) == 1
    if "scope" not in options:
        assert removed(result)
    if options.get("multiple"):
        assert all(size % 2 == 0 for name in removed(result) for size in pruned.shape(name)[:2])
    for entry in result.plan["tensors"] if not result.plan["repaired"] else ():
        slices = [
            {int(dim): np.asarray(kept) for dim, kept in part.items()}
            for part in entry.get("blocks") or [entry["kept"]]
        ]
        np.testing.assert_array_equal(
            pruned.constant(entry["name"]), taken(analysis.model.constant(entry["source"]), slices)
        )


def test_what_goes_from_each_part_has_its_lowest_scores():
    proto = NETS["twice"]()
    result = spa_onnx.prune(proto, 0.5, criterion="l1", aggregate="sum", normalise="none")
    model = Model.of(proto)
    inputs = model.constant("w2").reshape(3, 8, 8, 3, 3)
    score = np.abs(model.constant("w1")).sum(axis=(1, 2, 3)) + np.abs(inputs).sum(axis=(1, 3, 4)).ravel()
    (entry,) = (entry for entry in result.plan["tensors"] if entry["source"] == "w1")
    want = [8 * part + place for part in range(3) for place in np.sort(np.argsort(score.reshape(3, 8)[part])[4:])]
    assert entry["kept"]["0"] == want


def test_channels_of_the_same_rank_compete_as_one_with_those_of_other_groups():
    model = Model.of(NETS["resnext"]())
    groups = analyse(model).prunable()
    scores = {group.name: np.arange(1.0, group.size + 1) for group in groups}
    free = next(group for group in groups if group.parts > 1)
    scores[free.name] = np.concatenate([np.roll(np.arange(8.0) / 100, shift) for shift in range(3)])
    drop = select(groups, model, scores, 0.3, Constraints("global"))
    assert len(drop[free.name]) % 3 == 0
    assert {0, 9, 18} <= set(drop[free.name].tolist())


def test_a_repaired_part_keeps_its_own_columns():
    analysis = analyse(Model.of(NETS["resnext"]()))
    group = next(group for group in analysis.prunable() if Axis("w2", 1) in group.owner)
    drop = np.array([0, 1, 10, 11, 20, 21])
    layer = next(found for found in linear_layers(analysis.model) if found.weight == "w2")
    removal = Removal(analysis, {group.name: drop})
    for part, gone in enumerate(((0, 1), (2, 3), (4, 5))):
        assert kept_columns(layer, removal, part).tolist() == [
            9 * k + i for k in range(8) if k not in gone for i in range(9)
        ]
    assert removal.after("w2") == (24, 6, 3, 3)


def test_slices_are_put_back_where_they_were_taken():
    array = np.arange(24.0).reshape(4, 6)
    slices = ({0: np.array([0]), 1: np.array([1, 2])}, {0: np.array([2, 3]), 1: np.array([4, 5])})
    part = taken(array, slices)
    np.testing.assert_array_equal(part, [[1, 2], [16, 17], [22, 23]])
    np.testing.assert_array_equal(put(array, slices, part), array)
    masked = put(np.zeros_like(array), slices, part)
    assert masked.sum() == part.sum()
    assert np.count_nonzero(masked) == part.size


def test_ranks_take_the_lowest_of_every_part():
    group = Group("g", 6, {Axis("w", 0): np.arange(6)}, parts=2)
    assert group.ranked(np.array([2.0, 1.0, 3.0, 0.0, 9.0, 5.0])).tolist() == [[1, 3], [0, 5], [2, 4]]
    assert group.steps == 3


def test_a_plan_says_how_many_parts_a_group_has():
    proto = CONVOLUTIONS["conv_grouped_in_turn"]()
    result = spa_onnx.prune(proto, 0.5, criterion="l1", check=False)
    free = {group.name: group.parts for group in analyse(Model.of(proto)).prunable()}
    assert {group["name"]: group.get("parts", 1) for group in result.plan["groups"]} == free
    assert 2 in free.values()


@pytest.mark.parametrize("criterion", ["l1", "obspa"])
@pytest.mark.parametrize("name", NETS)
def test_a_plan_with_parts_is_read_and_applied_again(name, criterion, tmp_path):
    proto = NETS[name]()
    result = spa_onnx.prune(proto, 0.5, criterion=criterion, samples=32)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(result.plan), encoding="utf-8")
    assert apply_plan(proto, read_plan(path)).model == result.model


@pytest.mark.parametrize("removed", [[0, 1, 2], [0], [*range(24)][1:], [*range(8), *range(9, 24)]], ids=len)
def test_a_plan_whose_parts_lose_different_numbers_is_refused(removed, tmp_path):
    proto = NETS["twice"]()
    plan = json.loads(json.dumps(spa_onnx.prune(proto, 0.5, criterion="l1").plan))
    plan["edits"][0]["removed"] = removed
    del plan["groups"]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(RefusedError, match="3 parts of group"):
        apply_plan(proto, read_plan(path))


def test_a_part_never_loses_all(tmp_path):
    proto = NETS["twice"]()
    plan = spa_onnx.prune(proto, 0.5, criterion="l1").plan
    plan["edits"][0]["removed"] = [*range(24)]
    del plan["groups"]
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(RefusedError, match="removes channels"):
        apply_plan(proto, read_plan(tmp_path / "plan.json"))
