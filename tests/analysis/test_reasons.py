"""Every axis of every weight is in a group, and a group that cannot lose channels has a reason that helps a user."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx
import pytest
from command import MODELS, SHARED, save, spa
from nets import NETS
from nets.build import net

from spa_onnx.analysis import analyse
from spa_onnx.model.facts import Axis
from spa_onnx.model.model import Model
from spa_onnx.pipeline import inspect
from spa_onnx.report.record import groups_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spa_onnx.analysis.groups import Analysis

VAGUE = ("no way to cut it on both sides of a node", "tied to channels that are pinned")
"""Said only where nothing better is known; never of these models."""


def weight_axes(analysis: Analysis) -> Iterator[Axis]:
    """Every axis with something to lose of every float constant, a name per use."""
    model = analysis.model
    names = {name for node in model.nodes for name in node.inputs if name and model.is_float(name)}
    unread = {name for name in model.constants if model.is_float(name) and name not in model.source.values()}
    for name in sorted(name for name in names | unread if model.is_weight(name)):
        yield from (Axis(name, dim) for dim, size in enumerate(model.shape(name) or ()) if size > 1)


def unexplained(analysis: Analysis) -> list[str]:
    """Axes of weights that `groups --json` does not list, or lists without a reason."""
    listed: set[str] = set()
    wrong = []
    for record in groups_record(analysis):
        listed.update(record["axes"])
        if not record["prunable"] and (not record["why"] or record["why"].startswith(VAGUE)):
            wrong.append(f"{record['name']}: {record['why'] or 'no reason'}")
    return [*wrong, *(f"{axis}: not listed" for axis in weight_axes(analysis) if str(axis) not in listed)]


@pytest.mark.parametrize("name", NETS)
def test_every_axis_of_every_net_has_a_group_or_a_reason(name):
    assert unexplained(analyse(Model.of(NETS[name]()))) == []


@pytest.mark.parametrize(
    "path", [*sorted(MODELS.glob("*.onnx")), *sorted(SHARED.glob("*.onnx"))], ids=lambda path: path.stem
)
def test_every_axis_of_real_models_has_a_group_or_a_reason(path: Path):
    if path.stem == "super_resolution_espcn":
        pytest.skip("names no operator set, so it is refused")
    assert unexplained(inspect(path)) == []


def reasons(nodes: str, weights: str, *outputs: str) -> dict[str, str]:
    analysis = analyse(Model.of(net("float[N,3,4,4] x", weights, nodes, *outputs)()))
    return {group.name: group.pinned for group in analysis.pinned()}


def test_a_choice_without_a_way_names_what_stands_behind_it():
    found = reasons("a = Conv(x, w1) y = Conv<group=6>(a, w2)", "float[6,3,1,1] w1, float[6,1,1,1] w2")
    assert found["w1[0]"] == found["w2[0]"] == "graph output: y"


def test_settings_and_idle_weights_are_said_to_be_that():
    found = reasons(
        "a = Conv(x, w1) b = Resize(a, , scales) y = Conv(b, w2)",
        "float[6,3,1,1] w1, float[4] scales = {1, 1, 2, 2}, float[5,6,1,1] w2, float[3,2] spare",
        "float[N,5,8,8] y",
    )
    assert found["scales[0]"].startswith("input 2 of Resize is a setting, not channels")
    assert found["spare[0]"] == found["spare[1]"] == "no operator reads it: spare"


def test_positions_are_counted_in_one_line_and_listed_as_data(tmp_path):
    path = save(
        net("float[N,3,4,4] x", "float[6,3,3,3] w1, float[4,6,1,1] w2", "a = Conv(x, w1) y = Conv(a, w2)")(),
        tmp_path / "m.onnx",
    )
    assert "2 axes of weights hold positions, as the height of a kernel, and not channels" in spa("groups", path).stdout
    listed = [record for record in json.loads(spa("groups", path, "--json").stdout) if "w1[2]" in record["axes"]]
    assert [(record["prunable"], record["why"]) for record in listed] == [(False, "positions, not channels")]
    assert onnx.load(path).graph.initializer[0].name == "w1"
