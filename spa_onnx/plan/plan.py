"""Plans: what is removed, as data that can be saved as JSON, read by people, and applied again."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from spa_onnx.analysis.groups import Analysis
from spa_onnx.errors import RefusedError
from spa_onnx.model.facts import Indices
from spa_onnx.plan.removal import Slices

FORMAT = 2
"""The format of plan files that are written."""

FORMATS = (1, 2)
"""The formats that can be read: format 1 lists groups only, format 2 is a list of edits."""


@dataclass(frozen=True, slots=True)
class ChannelRemoval:
    """An edit: a group loses channels.

    Args:
        group: The name of the group.
        removed: The channels that are removed, sorted, int64.
    """

    kind: ClassVar[str] = "channels"

    group: str
    removed: Indices

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the plan file."""
        return {"kind": self.kind, "group": self.group, "removed": self.removed.tolist()}

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> ChannelRemoval:
        """Return the edit of an entry.

        Raises:
            KeyError: A field is missing.
            TypeError: A field has the wrong type.
        """
        return cls(str(entry["group"]), _channels(entry["removed"]))


Edit: TypeAlias = ChannelRemoval
"""The edits of a plan; blocks, rotations and experts will be other kinds."""

EDITS: Mapping[str, Callable[[Mapping[str, Any]], Edit]] = {ChannelRemoval.kind: ChannelRemoval.of}
"""Kind of edit -> the function that reads its entry."""


@dataclass(frozen=True, slots=True)
class TensorCut:
    """A constant of the pruned model and where it comes from.

    Args:
        name: Its name in the pruned model.
        source: Its name in the original.
        shape: Its shape in the original.
        slices: What is kept of the source.
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
        """Return the entry of the plan file."""
        blocks = [{str(axis): indices.tolist() for axis, indices in kept.items()} for kept in self.slices]
        content = {"kept": blocks[0]} if len(blocks) == 1 else {"blocks": blocks}
        return {"name": self.name, "source": self.source, "shape": list(self.shape), **content}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is removed from a model.

    Args:
        edits: The edits, each of a known kind.
        sha256: The SHA-256 of the original file.
        settings: How the edits were chosen.
    """

    edits: tuple[Edit, ...]
    sha256: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def removing(
        cls, removed: Mapping[str, Indices], sha256: str = "", settings: Mapping[str, Any] | None = None
    ) -> Plan:
        """Return the plan that removes channels: group name -> channels."""
        edits = tuple(ChannelRemoval(group, channels) for group, channels in removed.items())
        return cls(edits, sha256, settings or {})

    @property
    def removed(self) -> dict[str, Indices]:
        """Group name -> channels that are removed."""
        return {edit.group: edit.removed for edit in self.edits}

    def to_json(
        self,
        analysis: Analysis,
        tensors: tuple[TensorCut, ...],
        inexact: tuple[str, ...],
        *,
        repaired: bool,
        computed: Container[str] = (),
    ) -> dict[str, Any]:
        """Return the content of a plan file (docs/plan.md describes it).

        Args:
            analysis: The groups of the original.
            tensors: The constants that were cut.
            inexact: The nodes whose statistics run over fewer indices than before.
            repaired: Whether kept weights were changed by a repair.
            computed: The constants that the file of the original does not hold.
        """
        removed = self.removed
        groups = [
            {
                "name": group.name,
                "channels": group.size,
                **({"parts": group.parts} if group.parts > 1 else {}),
                "removed": removed[group.name].tolist(),
                "axes": [str(axis) for axis in group.owner],
            }
            for group in analysis.groups
            if group.name in removed
        ]
        made = [tensor.to_json() for tensor in tensors if tensor.source in computed]
        return {
            "format": FORMAT,
            "repaired": repaired,
            "inexact": list(inexact),
            "model": {"sha256": self.sha256},
            "settings": dict(self.settings),
            "edits": [edit.to_json() for edit in self.edits],
            "tensors": [tensor.to_json() for tensor in tensors if tensor.source not in computed],
            **({"computed": made} if made else {}),
            "groups": groups,
        }


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        RefusedError: The file is no plan, or of a format or with an edit that this version does not know.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] not in FORMATS:
            raise RefusedError(
                f"{path} has plan format {content['format']}, this version reads {' and '.join(map(str, FORMATS))}"
            )
        edits = _edits(path, content)
        return Plan(edits, str(content["model"]["sha256"]), dict(content["settings"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            f"{path} is not a plan file: {error!r}; make one with spa-onnx prune MODEL --plan FILE.json"
        ) from error


def _edits(path: Path, content: Mapping[str, Any]) -> tuple[Edit, ...]:
    """Return the edits of a plan file. Format 1 only removes channels of groups."""
    if content["format"] == 1:
        return tuple(ChannelRemoval(str(entry["name"]), _channels(entry["removed"])) for entry in content["groups"])
    unknown = sorted({str(entry["kind"]) for entry in content["edits"]} - set(EDITS))
    if unknown:
        raise RefusedError(f"{path} has edits of kind {', '.join(unknown)}, this version knows {', '.join(EDITS)}")
    edits = tuple(EDITS[entry["kind"]](entry) for entry in content["edits"])
    listed = {str(entry["name"]): list(entry["removed"]) for entry in content.get("groups", ())}
    for edit in edits:
        if listed.get(edit.group, edit.removed.tolist()) != edit.removed.tolist():
            raise RefusedError(
                f"{path}: edits and groups disagree about {edit.group}; change its edit, and remove it from groups"
            )
    return edits


def _channels(numbers: Any) -> Indices:
    """Return a flat list of whole numbers as an array.

    Raises:
        TypeError: The list holds something else.
    """
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise TypeError(f"removed channels are whole numbers, not {numbers!r}")
    return np.asarray(numbers, dtype=np.int64)


def check_plan(plan: Plan, analysis: Analysis) -> None:
    """Check that a plan fits a model.

    Raises:
        RefusedError: The plan names groups or channels that the model does not have.
    """
    groups = {group.name: group for group in analysis.prunable()}
    for edit in plan.edits:
        name, removed = edit.group, edit.removed
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
                f"the plan removes {lost.tolist()} channels from the {group.parts} parts of group {name}: "
                f"each of {group.steps} channels must lose as many, and keep one"
            )
