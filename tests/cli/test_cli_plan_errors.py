"""Plans that cannot be applied: each ends in one line that says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import SHORT, copy_model, spa
from failing import REFUSED, USAGE, fails


def edited(change: Callable[[dict], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        plan = json.loads(text)
        change(plan)
        return json.dumps(plan)

    return edit


def cut(**change: object) -> Callable[[str], str]:
    """Change the first edit; the groups, which repeat it for readers, are left out."""

    def edit(plan: dict) -> None:
        plan["edits"][0].update(change)
        del plan["groups"]

    return edited(edit)


def make_plan(net: Path) -> Path:
    path = net.parent / "plan.json"
    assert spa("prune", net, net.parent / "new.onnx", "--plan", path, *SHORT).exit_code == 0
    (net.parent / "new.onnx").unlink()
    return path


WRONG_PLANS = {
    "no_json": (lambda _: "channels: all", "not a plan file"),
    "no_text": (lambda text: text[: len(text) // 2], "not a plan file"),
    "a_list": (lambda _: "[]", "not a plan file"),
    "nothing": (lambda _: "", "not a plan file"),
    "without_edits": (edited(lambda plan: plan.pop("edits")), "not a plan file"),
    "unknown_edit": (cut(kind="rotation"), "kind rotation, this version knows channels"),
    "at_odds": (edited(lambda plan: plan["groups"][0].update(removed=[0])), "edits and groups disagree"),
    "other_format": (edited(lambda plan: plan.update(format=3)), "format 3"),
    "other_model": (edited(lambda plan: plan["model"].update(sha256="0" * 64)), "another model"),
    "unknown_group": (cut(group="nobody[0]"), "nobody[0]"),
    "out_of_range": (cut(removed=[0, 8]), "[0, 8]"),
    "negative": (cut(removed=[-1]), "[-1]"),
    "twice": (cut(removed=[1, 1]), "[1, 1]"),
    "whole_group": (cut(removed=list(range(8))), "which has 8"),
    "none": (cut(removed=[]), "which has 8"),
}


@pytest.mark.parametrize("name", WRONG_PLANS)
def test_a_plan_that_does_not_fit_is_refused(tmp_path, net, name):
    change, words = WRONG_PLANS[name]
    path = make_plan(net)
    path.write_text(change(path.read_text()))
    assert words in fails(tmp_path, REFUSED, "apply", net, path, "-o", tmp_path / "new.onnx", "--no-validate")


def test_a_plan_for_another_model_is_refused(tmp_path, net):
    assert "another model" in fails(tmp_path, REFUSED, "apply", copy_model(tmp_path), make_plan(net))


def test_apply_does_not_overwrite_its_plan(tmp_path, net):
    plan = make_plan(net)
    assert "is an input" in fails(tmp_path, USAGE, "apply", net, plan, "-o", plan, "--force")


def test_a_missing_plan_is_a_usage_error(tmp_path, net):
    assert "none.json does not exist" in fails(tmp_path, USAGE, "apply", net, "none.json")


def test_a_pattern_that_a_plan_excludes_as_a_text_is_one_pattern(tmp_path, net):
    path = make_plan(net)
    path.write_text(edited(lambda plan: plan["settings"].update(exclude="no_such_name"))(path.read_text()))
    words = fails(tmp_path, USAGE, "apply", net, path, "-o", tmp_path / "new.onnx", "--no-validate")
    assert "'no_such_name' matches the name of no node" in words


LOOSE_PLANS = {
    "fractions": cut(removed=[0.5]),
    "nested": cut(removed=[[1]]),
    "unknown_setting": edited(lambda plan: plan["settings"].update(colour="red")),
    "settings_of_another_kind": edited(lambda plan: plan.update(settings=[])),
    "exclude_of_another_kind": edited(lambda plan: plan["settings"].update(exclude=3)),
}


@pytest.mark.parametrize("name", LOOSE_PLANS)
def test_a_plan_with_values_of_another_kind_is_refused(tmp_path, net, name):
    path = make_plan(net)
    path.write_text(LOOSE_PLANS[name](path.read_text()))
    fails(tmp_path, REFUSED, "apply", net, path, "-o", tmp_path / "new.onnx", "--no-validate")
