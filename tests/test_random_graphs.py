"""The law that holds the project together, on random networks: removing channels == zeroing all that they own."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from random_blocks import FEATURE_BLOCKS, IMAGE_BLOCKS
from random_graphs import CI, Recipe, Step, build, recipes
from random_net import BATCH

from spa_onnx.analysis import analyse
from spa_onnx.config import Settings
from spa_onnx.errors import RefusedError, SpaError
from spa_onnx.execution.session import open_session
from spa_onnx.model.facts import Axis, Coupling, Free, whole
from spa_onnx.model.model import Model
from spa_onnx.operators import OPERATORS
from spa_onnx.plan.mask import mask
from spa_onnx.plan.plan import Plan, check_plan
from spa_onnx.plan.removal import taken
from spa_onnx.plan.rewrite import Rewritten, rewrite
from spa_onnx.selection.propose import choose
from spa_onnx.validation.masked import difference
from spa_onnx.validation.validate import _check_interface

if TYPE_CHECKING:
    from spa_onnx.analysis.groups import Analysis

DIMS = {"N": BATCH}
FEED = np.random.default_rng(0).standard_normal((BATCH, 3, 6, 6)).astype(np.float32)


@dataclass
class Tally:
    """What the examples had in them, so that a property that tests nothing cannot pass."""

    examples: int = 0
    pruned: int = 0
    changed: int = 0
    families: Counter[str] = field(default_factory=Counter)


def plans(analysis: Analysis, seed: int) -> dict[str, np.ndarray]:
    """Even seeds ask a criterion, odd ones drop anything that leaves every group a channel."""
    rng = np.random.default_rng(seed)
    groups = analysis.prunable()
    if not groups:
        return {}
    if seed % 2:
        counts = [rng.integers(0, group.steps) for group in groups]
        return {
            g.name: np.sort(g.ranked(rng.random(g.size))[:n].ravel()) for g, n in zip(groups, counts, strict=True) if n
        }
    scope = ("local", "global", "isomorphic")[seed // 2 % 3]
    criterion = ("random", "l1", "fpgm", "lamp")[seed // 6 % 4]
    with suppress(RefusedError):  # a ratio that rounds to no channel at all
        settings = Settings(ratio=0.1 + 0.8 * float(rng.random()), criterion=criterion, scope=scope, seed=seed)
        return choose(analysis, settings).removed
    return {}


def outputs(proto: onnx.ModelProto) -> list[np.ndarray]:
    return open_session(proto).run({"x": FEED})


def check_law(recipe: Recipe, seed: int, tally: Tally) -> None:
    proto = build(recipe)
    before = proto.SerializeToString()
    model = Model.of(proto, DIMS)
    analysis = analyse(model)
    drop = plans(analysis, seed)
    note(f"removed: { {name: gone.tolist() for name, gone in drop.items()} }")
    plan = Plan.removing(drop, "")
    check_plan(plan, analysis)
    rewritten = rewrite(analysis, plan)
    assert proto.SerializeToString() == before
    onnx.checker.check_model(rewritten.proto, full_check=True)
    _check_interface(proto, rewritten.proto)
    want = outputs(mask(model, rewritten.removal))
    gaps = [difference(a, b) for a, b in zip(want, outputs(rewritten.proto), strict=True)]
    if max(gaps) >= 1e-4:
        note(onnx.printer.to_text(proto))
    assert max(gaps) < 1e-4
    after = Model.of(rewritten.proto, DIMS)
    check_shapes(model, after, rewritten)
    check_tensors(model, after, rewritten)
    tally.examples += 1
    tally.pruned += bool(drop)
    tally.changed += max(difference(a, b) for a, b in zip(outputs(proto), want, strict=True)) > 1e-3
    tally.families.update(recipe.families())


def check_tensors(model: Model, after: Model, rewritten: Rewritten) -> None:
    """Each tensor that the plan lists is in the pruned model, as the slice of the original that the plan names."""
    for cut in rewritten.tensors:
        source = model.constant(cut.source)
        assert source.shape == cut.shape
        assert after.is_constant(cut.name), cut.name
        assert np.array_equal(after.constant(cut.name), taken(source, cut.slices)), cut.name


def check_shapes(model: Model, after: Model, rewritten: Rewritten) -> None:
    """What ONNX infers for the pruned model is what the plan announced."""
    for name in after.producer:
        if name in model.producer:
            unknown = (
                model.shape(name) is None
            )  # what leaves a Loop that does not keep its shape: nothing is announced, or known later
            assert after.shape(name) == (None if unknown else rewritten.removal.after(name)), name
    for node in model.nodes:
        twin = after.producer.get(node.outputs[0])
        if twin is not None and twin.op == node.op:
            for name, new in zip(node.inputs, twin.inputs, strict=False):
                if model.is_float(name):
                    assert after.shape(new) == rewritten.removal.after(name), name


def run_examples(count: int, *, phases: tuple[Phase, ...] = tuple(Phase), seed_shift: int = 0) -> Tally:
    tally = Tally()

    @settings(CI, max_examples=count, phases=phases)
    @given(recipes(), st.integers(0, 2**16))
    def check(recipe: Recipe, seed: int) -> None:
        check_law(recipe, seed + seed_shift, tally)

    check()
    return tally


def assert_substantial(tally: Tally, count: int) -> None:
    assert tally.examples >= count
    assert tally.pruned > 0.8 * tally.examples
    assert tally.changed > 0.7 * tally.examples
    assert set(tally.families) == {*IMAGE_BLOCKS, *FEATURE_BLOCKS}


def test_removing_equals_masking_on_200_random_networks():
    tally = run_examples(200)
    assert_substantial(tally, 200)


@pytest.mark.slow
def test_removing_equals_masking_on_2000_random_networks():
    assert_substantial(run_examples(2000, seed_shift=1), 2000)


def broken_concat(node, model):
    """Every input starts at channel 0 of the output."""
    for x in node.inputs:
        size = model.shape(x)[1]
        yield Coupling(whole(Axis(x, 1), size), whole(Axis(node.outputs[0], 1), size), "wrong")
        for dim in (0, 2, 3)[: len(model.shape(x)) - 1]:
            yield Free(Axis(x, dim))


def broken_gather(node, model):
    """Channel k of the result is taken for channel k of the input."""
    x, y = node.inputs[0], node.outputs[0]
    size = min(model.shape(x)[1], model.shape(y)[1])
    yield Coupling(whole(Axis(x, 1), size), whole(Axis(y, 1), size), "wrong")
    yield Coupling(whole(Axis(node.inputs[1], 0), model.shape(y)[1]), whole(Axis(y, 1), model.shape(y)[1]), "right")


def broken_broadcasting(node, model):
    """The second operand is free to lose what it likes."""
    yield from (
        fact for fact in BROADCASTING(node, model) if node.inputs[1] not in {axis.tensor for axis in fact.axes()}
    )
    for dim in range(len(model.shape(node.inputs[1]))):
        yield Free(Axis(node.inputs[1], dim))


CAUGHT = (AssertionError, SpaError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
"""What the law, the tool itself or ONNX's checker says of a wrong result."""

BROADCASTING = OPERATORS["Mul"].coupling
BROKEN_RULES = {"Concat": broken_concat, "Gather": broken_gather, "Mul": broken_broadcasting}


@pytest.mark.parametrize("operator", BROKEN_RULES)
def test_a_wrong_rule_is_caught_by_the_same_networks(operator, monkeypatch):
    monkeypatch.setitem(OPERATORS, operator, replace(OPERATORS[operator], coupling=BROKEN_RULES[operator]))
    with pytest.raises(CAUGHT):
        run_examples(200, phases=(Phase.generate,))


@pytest.mark.parametrize("operator", ["Slice", "Split", "Gather", "Reshape", "Conv", "Pad"])
def test_a_missing_follower_is_caught_by_the_same_networks(operator, monkeypatch):
    monkeypatch.setitem(OPERATORS, operator, replace(OPERATORS[operator], update=None))
    with pytest.raises(CAUGHT):
        run_examples(200, phases=(Phase.generate,))


def test_a_recipe_prints_as_what_builds_the_same_model_again():
    recipe = Recipe((Step("shuffle", 0, 1, 2), Step("pad", 1, 2, 3)), (Step("heads", 0, 0, 0),), 5, 18, symbolic=True)
    again = eval(repr(recipe), {"Recipe": Recipe, "Step": Step})  # noqa: S307 - this is what a person would paste
    assert build(again).SerializeToString() == build(recipe).SerializeToString()
