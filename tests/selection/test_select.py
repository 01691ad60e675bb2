"""Selection: how many channels go, from where, and that no group is ever emptied."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets.build import net
from random_graphs import CI, build, recipes
from random_net import BATCH

from spa_onnx.analysis import analyse
from spa_onnx.model.model import Model
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.selection.budgets import PlanCost
from spa_onnx.selection.select import SCOPES, Constraints, select, step

if TYPE_CHECKING:
    from spa_onnx.analysis.groups import Analysis

SCOPED = settings(CI, max_examples=60)

stack = net(
    "float[1,3,8,8] x",
    "float[16,3,3,3] w1, float[32,16,3,3] w2, float[32,32,3,3] w3, float[64,32,1,1] w4, float[5,64] w5",
    """a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w2) d = Relu(c)
       e = Conv<pads=[1,1,1,1]>(d, w3)
       f = Relu(e) g = Conv(f, w4) h = Relu(g) i = GlobalAveragePool(h) j = Flatten(i) y = Gemm<transB=1>(j, w5)""",
)
twins = net(
    "float[1,3,8,8] x",
    "float[8,3,3,3] w1, float[12,8,1,1] w2, float[8,3,3,3] w3, float[12,8,1,1] w4, float[4,24] w5",
    """a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv(b, w2) d = Conv<pads=[1,1,1,1]>(x, w3) e = Relu(d)
       f = Conv(e, w4)
       g = Concat<axis=1>(c, f) i = GlobalAveragePool(g) j = Flatten(i) y = Gemm<transB=1>(j, w5)""",
)
grouped = net(
    "float[1,3,4,4] x",
    "float[12,3,1,1] w1, float[12,3,1,1] w2, float[4,12,1,1] w3",
    "a = Conv(x, w1) b = Relu(a) c = Conv<group=4>(b, w2) y = Conv(c, w3)",
)


def scores_of(analysis: Analysis, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {group.name: rng.gamma(1.0, rng.uniform(0.1, 10), group.size) for group in analysis.prunable()}


def chosen(analysis: Analysis, seed: int, ratio: float, scope: str, multiple: int = 1) -> dict[str, np.ndarray]:
    return select(analysis.prunable(), analysis.model, scores_of(analysis, seed), ratio, Constraints(scope, multiple))


def cost_of(analysis: Analysis, drop: dict[str, np.ndarray]) -> float:
    groups = analysis.prunable()
    return PlanCost(analysis.model, groups)(np.asarray([len(drop.get(group.name, ())) for group in groups]))


def dearest_channel(analysis: Analysis) -> float:
    """The most that one channel of any group can cost."""
    groups = analysis.prunable()
    cost, nothing = PlanCost(analysis.model, groups), np.zeros(len(groups), int)
    return max(cost(nothing) - cost(nothing + (np.arange(len(groups)) == n)) for n in range(len(groups)))


@pytest.fixture(scope="module", params=[stack, twins], ids=["stack", "twins"])
def analysis(request):
    return analyse(Model.of(request.param()))


@given(
    recipes(), st.integers(0, 9), st.floats(0.01, 0.99), st.sampled_from(list(SCOPES)), st.sampled_from([1, 2, 4, 8])
)
@SCOPED
def test_no_group_is_ever_emptied_and_channels_are_sorted_unique_and_in_range(recipe, seed, ratio, scope, multiple):
    found = analyse(Model.of(build(recipe), {"N": BATCH}))
    sizes = {group.name: group.size for group in found.prunable()}
    for name, gone in chosen(found, seed, ratio, scope, multiple).items():
        assert 0 < len(gone) < sizes[name]
        assert gone.min() >= 0
        assert gone.max() < sizes[name]
        assert (np.diff(gone) > 0).all()


@given(recipes(), st.integers(0, 9), st.floats(0.1, 0.9), st.sampled_from(["global", "isomorphic"]))
@SCOPED
def test_other_scopes_never_save_less_than_local(recipe, seed, ratio, scope):
    found = analyse(Model.of(build(recipe), {"N": BATCH}))
    if found.prunable():
        local, other = (cost_of(found, chosen(found, seed, ratio, s)) for s in ("local", scope))
        assert other <= local * (1 + 1e-9)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.77, 0.9])
def test_local_removes_the_rounded_ratio_of_every_group(analysis, ratio):
    drop = chosen(analysis, 0, ratio, "local")
    for group in analysis.prunable():
        assert len(drop.get(group.name, ())) == min(int(group.size * ratio + 0.5), group.size - 1)


@pytest.mark.parametrize("scope", list(SCOPES))
def test_the_lowest_scores_go_first(analysis, scope):
    scores = scores_of(analysis, 3)
    for name, gone in chosen(analysis, 3, 0.5, scope).items():
        assert scores[name][gone].max() <= np.delete(scores[name], gone).min()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("scope", ["global", "isomorphic"])
def test_other_scopes_save_what_local_saves_within_one_channel(analysis, scope, ratio, seed):
    local, other = (cost_of(analysis, chosen(analysis, seed, ratio, s)) for s in ("local", scope))
    ties = 2 if scope == "isomorphic" else 1  # one channel of every ranking goes at the same share
    assert local - ties * dearest_channel(analysis) <= other <= local


@pytest.mark.parametrize("scope", ["global", "isomorphic"])
def test_no_group_loses_more_than_half_of_what_local_would_leave_it(analysis, scope):
    groups = analysis.prunable()
    scores = {g.name: np.full(g.size, float(n)) + np.arange(g.size) / 1000 for n, g in enumerate(groups)}
    for ratio in (0.2, 0.5, 0.8):
        drop = select(groups, analysis.model, scores, ratio, Constraints(scope))
        for group in groups:
            assert len(drop.get(group.name, ())) <= np.ceil(group.size * (1 + ratio) / 2)


@pytest.mark.parametrize("leeway", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_with_little_leeway_no_group_loses_much_more_than_the_others(analysis, leeway, ratio):
    groups = analysis.prunable()
    scores = {g.name: np.full(g.size, float(n)) + np.arange(g.size) / 1000 for n, g in enumerate(groups)}
    drop = select(groups, analysis.model, scores, ratio, Constraints("global", leeway=leeway))
    assert all(len(drop.get(group.name, ())) <= np.ceil(group.size * leeway * ratio) for group in groups)
    saved = [cost_of(analysis, gone) for gone in (drop, select(groups, analysis.model, scores, ratio))]
    assert saved[0] <= saved[1] + leeway * dearest_channel(analysis)


def test_global_takes_from_the_group_with_the_lowest_scores_first():
    found = analyse(Model.of(stack()))
    scores = {g.name: np.linspace(0, 1, g.size) + (0 if g.name == "w2[0]" else 10) for g in found.prunable()}
    drop = select(found.prunable(), found.model, scores, 0.2, Constraints("global"))
    assert len(drop["w2[0]"]) > 0.2 * 32
    assert sum(map(len, drop.values())) == len(drop["w2[0]"])


def test_isomorphic_takes_the_same_share_from_each_kind_of_group():
    found = analyse(Model.of(twins()))
    low = {g.name: np.linspace(0, 1, g.size) + (0 if g.name in ("w1[0]", "w2[0]") else 10) for g in found.prunable()}
    drop = select(found.prunable(), found.model, low, 0.25, Constraints("isomorphic"))
    assert set(drop) == {"w1[0]", "w2[0]"}
    assert len(drop["w1[0]"]) / 16 == pytest.approx(len(drop["w2[0]"]) / 24, abs=1 / 16)


@pytest.mark.parametrize("scope", list(SCOPES))
def test_a_larger_ratio_never_costs_more(analysis, scope):
    costs = [cost_of(analysis, chosen(analysis, 1, ratio, scope)) for ratio in np.linspace(0.05, 0.95, 19)]
    assert all(after <= before for before, after in pairwise(costs))
    assert costs[-1] < 0.2 * costs[0]


def test_under_local_a_larger_ratio_removes_a_superset(analysis):
    drops = [chosen(analysis, 1, ratio, "local") for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)]
    for less, more in pairwise(drops):
        assert all(set(gone.tolist()) <= set(more[name].tolist()) for name, gone in less.items())


@pytest.mark.parametrize("scope", list(SCOPES))
def test_the_same_request_gives_the_same_plan(analysis, scope):
    first, second = chosen(analysis, 5, 0.4, scope), chosen(analysis, 5, 0.4, scope)
    assert {n: g.tolist() for n, g in first.items()} == {n: g.tolist() for n, g in second.items()}


def test_equal_scores_are_broken_by_position():
    found = analyse(Model.of(stack()))
    flat = {group.name: np.ones(group.size) for group in found.prunable()}
    drop = select(found.prunable(), found.model, flat, 0.25)
    assert all(gone.tolist() == list(range(len(gone))) for gone in drop.values())


@pytest.mark.parametrize("multiple", [2, 4, 8, 16])
@pytest.mark.parametrize("scope", list(SCOPES))
def test_every_axis_that_changes_keeps_a_multiple(scope, multiple):
    found = analyse(Model.of(stack()))
    rewritten = rewrite(found, Plan.removing(chosen(found, 2, 0.5, scope, multiple), ""))
    kept = [len(indices) for tensor in rewritten.tensors for indices in tensor.kept.values()]
    assert kept
    assert all(count % multiple == 0 for count in kept)


def test_the_step_of_a_group_counts_all_indices_that_a_channel_owns():
    group = next(group for group in analyse(Model.of(grouped())).prunable() if group.name == "w1[0]")
    assert group.size == 4
    assert {np.count_nonzero(owner == 0) for owner in group.owner.values()} == {3}
    assert [step(group, multiple) for multiple in (1, 2, 3, 6, 8)] == [1, 2, 1, 2, 8]


def test_groups_smaller_than_a_multiple_stay_whole():
    found = analyse(Model.of(stack()))
    drop = select(found.prunable(), found.model, scores_of(found, 0), 0.5, Constraints(multiple=32))
    assert set(drop) == {"w4[0]"}
    assert len(drop["w4[0]"]) == 32


def test_groups_without_scores_lose_nothing():
    found = analyse(Model.of(stack()))
    scores = {"w2[0]": np.arange(32.0)}
    for scope in SCOPES:
        assert set(select(found.prunable(), found.model, scores, 0.5, Constraints(scope))) == {"w2[0]"}
        assert select(found.prunable(), found.model, {}, 0.5, Constraints(scope)) == {}


@pytest.mark.parametrize("pattern", ["^w3$", "^e$"])
def test_excluded_tensors_and_nodes_are_untouched(pattern):
    model = Model.of(stack())
    found = analyse(model, [re.compile(pattern)])
    rewritten = rewrite(found, Plan.removing(chosen(found, 0, 0.5, "local"), ""))
    cut = {tensor.name: tensor.kept for tensor in rewritten.tensors}
    assert "w1" in cut
    assert "w3" not in cut if pattern == "^w3$" else 0 not in cut.get("w3", {})


def test_an_excluded_node_keeps_all_that_it_reads_and_writes():
    proto = stack()
    proto.graph.node[4].name = "middle"  # the convolution with w3
    found = analyse(Model.of(proto), [re.compile("mid")])
    rewritten = rewrite(found, Plan.removing(chosen(found, 0, 0.5, "local"), ""))
    assert {tensor.name for tensor in rewritten.tensors} == {"w1", "w2", "w4", "w5"}
    assert rewritten.removal.after("d") == (1, 32, 8, 8)
    assert rewritten.removal.after("e") == (1, 32, 8, 8)


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
@pytest.mark.parametrize("multiple", [2, 4, 8])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_ratio_saves_with_multiples_what_it_saves_without(scope, multiple, ratio):
    found = analyse(Model.of(stack()))
    plain = cost_of(found, chosen(found, 0, ratio, "local"))
    rounded = cost_of(found, chosen(found, 0, ratio, scope, multiple))
    assert abs(rounded - plain) <= 0.05 * cost_of(found, {})
