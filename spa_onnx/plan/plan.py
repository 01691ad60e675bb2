"""The plan: which channels go. It is data, can be saved as JSON, read by a person and applied again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spa_onnx.analysis.groups import Analysis
from spa_onnx.errors import RefusedError
from spa_onnx.model.facts import Indices
from spa_onnx.plan.removal import Slices

FORMAT = 1


@dataclass(frozen=True, slots=True)
class TensorCut:
    """A constant of the pruned model and where it comes from.

    name: in the pruned model. source, shape: in the original. slices: what stayed of the source.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    slices: Slices

    @property
    def kept(self) -> Mapping[int, Indices]:
        """The only slice."""
        (kept,) = self.slices
        return kept

    def to_json(self) -> dict[str, Any]:
        """The entry of the plan file."""
        blocks = [{str(axis): indices.tolist() for axis, indices in kept.items()} for kept in self.slices]
        content = {"kept": blocks[0]} if len(blocks) == 1 else {"blocks": blocks}
        return {"name": self.name, "source": self.source, "shape": list(self.shape), **content}


@dataclass(frozen=True, slots=True)
class Plan:
    """drop: group name -> channels that go, sorted. settings: how they were chosen. sha256: of the original file's content."""

    drop: Mapping[str, Indices]
    sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(
        self, analysis: Analysis, tensors: tuple[TensorCut, ...], inexact: tuple[str, ...], *, repaired: bool
    ) -> dict[str, Any]:
        """The content of a plan file (docs/cli.md describes it)."""
        groups = [
            {
                "name": g.name,
                "channels": g.size,
                **({"parts": g.parts} if g.parts > 1 else {}),
                "removed": self.drop[g.name].tolist(),
                "axes": [str(axis) for axis in g.owner],
            }
            for g in analysis.groups
            if g.name in self.drop
        ]
        return {
            "format": FORMAT,
            "repaired": repaired,
            "inexact": list(inexact),
            "model": {"sha256": self.sha256},
            "settings": dict(self.settings),
            "tensors": [tensor.to_json() for tensor in tensors],
            "groups": groups,
        }


def read_plan(path: Path) -> Plan:
    """Read a plan file. Raises RefusedError where it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise RefusedError(f"{path} has plan format {content['format']}, this version reads {FORMAT}")
        drop = {str(group["name"]): _channels(group["removed"]) for group in content["groups"]}
        return Plan(drop, str(content["model"]["sha256"]), dict(content["settings"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            f"{path} is not a plan file: {error!r}; make one with spa-onnx prune MODEL --plan FILE.json"
        ) from error


def _channels(numbers: Any) -> Indices:
    """A flat list of whole numbers. Raises TypeError for anything else."""
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise TypeError(f"removed channels are whole numbers, not {numbers!r}")
    return np.asarray(numbers, dtype=np.int64)


def check_plan(plan: Plan, analysis: Analysis) -> None:
    """Raises RefusedError where the plan names groups or channels that the model does not have."""
    groups = {group.name: group for group in analysis.prunable()}
    for name, removed in plan.drop.items():
        group = groups.get(name)
        if group is None:
            raise RefusedError(
                f"the plan cuts group {name}, which this model does not have or cannot cut; see spa-onnx groups MODEL"
            )
        sound = len(removed) == len(np.unique(removed)) and 0 < len(removed) < group.size
        if not sound or removed.min() < 0 or removed.max() >= group.size:
            raise RefusedError(f"the plan removes channels {removed.tolist()} of group {name}, which has {group.size}")
        lost = np.bincount(removed // group.steps, minlength=group.parts)
        if lost.min() < lost.max() or lost[0] == group.steps:
            raise RefusedError(
                f"the plan removes {lost.tolist()} channels from the {group.parts} parts of group {name}: each of {group.steps} "
                "channels must lose as many, and keep one"
            )
