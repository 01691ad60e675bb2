from functools import cache

import law
import numpy as np
import onnx
import pytest
from nets import FAMILIES, NETS
from runtimes import NEEDED, needs_runtime

from spa_onnx.analysis import analyse
from spa_onnx.analysis.groups import Group
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model, parameters
from spa_onnx.model.traits import TRAITS
from spa_onnx.operators import OPERATORS
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import rewrite
from spa_onnx.synthetic.feeds import random_feed
from spa_onnx.validation.validate import _check as check

PLANS = ((0, 0.2), (1, 0.4), (2, 0.7))
"""Seeds and ratios of the random plans."""


@cache
def made(name):
    return NETS[name]()


@cache
def analysed(name):
    return analyse(Model.of(made(name)))


def rewritten_at_random(name, seed, ratio=0.4):
    drop = law.random_drop(analysed(name).prunable(), seed, ratio)
    return rewrite(analysed(name), Plan.removing(drop, ""))


@pytest.mark.parametrize(("seed", "ratio"), PLANS)
@pytest.mark.parametrize("name", NETS)
def test_removing_channels_equals_zeroing_all_that_they_own(name, seed, ratio):
    needs_runtime(name)
    model, rewritten = analysed(name).model, rewritten_at_random(name, seed, ratio)
    assert law.wrong_shapes(model, rewritten) == []
    assert law.measured(model, rewritten, seed) < law.EXACT


@pytest.mark.parametrize("name", NETS)
def test_the_pruned_model_is_valid_and_keeps_its_interface(name):
    proto, model, rewritten = made(name), analysed(name).model, rewritten_at_random(name, seed=0)
    check(proto, rewritten.proto)  # what onnx.checker holds against the original already does not count
    assert list(rewritten.proto.graph.output) == list(proto.graph.output)
    assert rewritten.proto.ByteSize() < proto.ByteSize() or parameters(rewritten.proto) < parameters(proto)
    assert [v.name for v in rewritten.proto.graph.input if v.name in model.inputs] == list(model.inputs)


def test_every_operator_with_a_rule_has_a_net():
    used = {node.op for name in NETS for node in analysed(name).model.nodes}
    needs_another_domain = {"ai.onnx.ml.Binarizer", "SimplifiedLayerNormalization"}
    random = {name for name, trait in TRAITS.items() if trait.random}  # see tests/validation/test_noise.py
    assert set(OPERATORS) - used - needs_another_domain - random == set()


def test_what_needs_a_newer_onnxruntime_is_a_net():
    assert NEEDED.keys() <= NETS.keys()


def test_no_two_families_use_the_same_name():
    assert sum(map(len, FAMILIES.values())) == len(NETS)


@pytest.mark.parametrize("size", [2, 3, 10])
@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.99])
def test_a_random_drop_takes_some_channels_and_never_all(size, ratio):
    drop = law.random_drop([Group("g", size, {})], seed=0, ratio=ratio)
    assert 0 < len(drop["g"]) < size
    assert len(np.unique(drop["g"])) == len(drop["g"])


def test_the_law_is_vacuous_for_a_plan_that_changes_nothing():
    with pytest.raises(law.VacuousError):
        law.gap(made("conv"), {}, seed=0)


def test_the_gap_is_that_of_a_plan_carried_out():
    drop = law.random_drop(analysed("conv").prunable(), seed=3)
    assert law.gap(made("conv"), drop, seed=3) < law.EXACT


@pytest.mark.parametrize("slot", ["w1", "b1", "w9"])
def test_the_gap_sees_a_changed_weight(slot):
    rewritten = rewritten_at_random("residual", seed=0)
    (tensor,) = (t for t in rewritten.proto.graph.initializer if t.name == slot)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), slot))
    assert law.measured(analysed("residual").model, rewritten, seed=0) > law.EXACT


def test_every_net_runs_on_finite_inputs_only():
    for name in ("unary_Acosh", "unary_Log", "unary_Reciprocal"):
        model = Model.of(made(name))
        outputs = open_session(model.proto).run(random_feed(model, model.inference.dims, 0))
        assert all(np.isfinite(output).all() for output in outputs)


def test_the_analysis_of_a_net_is_the_same_every_time():
    for name in ("conv_grouped_twice", "shuffle_v2_stage", "attention_heads"):
        first, second = (analyse(Model.of(NETS[name]())) for _ in range(2))
        assert [(g.name, g.size, g.pinned) for g in first.groups] == [(g.name, g.size, g.pinned) for g in second.groups]
