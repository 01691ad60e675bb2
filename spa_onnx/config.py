"""The settings of one run.

This module imports no tables of names: `spa_onnx.pipeline.resolved` checks names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from spa_onnx.errors import RefusedError, UsageError

BYTES_PER_UNIT: Mapping[str, int] = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
"""Unit of a size, in upper case -> bytes."""

OVERRIDABLE = frozenset({"multiple", "exclude"})
"""The settings that an override can set for the groups that it matches."""


@dataclass(frozen=True, slots=True)
class Target:
    """The share of a cost that is kept.

    Args:
        unit: The unit of the cost, a name of `spa_onnx.selection.budgets.UNITS`.
        share: The share that is kept, between 0 and 1, both excluded.
    """

    unit: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to prune. `spa_onnx.prune` documents each field.

    An empty `scope` or `repair` means the default of the criterion, which `spa_onnx.pipeline.resolved` fills in. If
    several `overrides` match a group, later ones take precedence.
    """

    ratio: float | None = None
    target: str = ""
    rounds: int = 1
    criterion: str = "obspa"
    scope: str = ""
    aggregate: str = "sum"
    normalise: str = "mean"
    exclude: tuple[str, ...] = ()
    multiple: int = 1
    seed: int = 0
    width: bool = False
    attention: str = "heads"
    repair: str = ""
    samples: int | None = None
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def check(self) -> None:
        """Check each value without the tables of names.

        Raises:
            UsageError: A value is out of range or has the wrong type.
        """
        if (self.ratio is None) == (not self.target):
            raise UsageError("give either a ratio (--ratio 0.4) or a target (--target macs=0.5)")
        self.goal()
        if self.ratio is not None and not (_is_finite(self.ratio) and 0 < self.ratio < 1):
            raise UsageError(
                f"ratio {self.ratio} is not between 0 and 1 (both excluded); 0.4 removes 40 % of the channels"
            )
        for name, value in (("rounds", self.rounds), ("multiple", self.multiple), ("samples", self.samples)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value} is not a positive number")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative; use 0 or more")
        if isinstance(self.exclude, str) or not all(isinstance(pattern, str) for pattern in self.exclude):
            raise UsageError(f"exclude {self.exclude!r} is not a sequence of regular expressions")
        self.patterns()
        for pattern, values in self.overrides.items():
            _check_override(pattern, values)

    def goal(self) -> float | tuple[Target, ...]:
        """Return the ratio, or the targets.

        Raises:
            UsageError: The target is neither UNIT=SHARE nor several of these separated by commas.
        """
        return self.ratio if self.ratio is not None else tuple(map(_target, self.target.split(",")))

    def unit(self) -> str:
        """Return the unit of the cost that is saved: that of the first target, or `macs` for a ratio."""
        goal = self.goal()
        return "macs" if isinstance(goal, float | int) else goal[0].unit

    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """Return the compiled patterns of `exclude`, and of overrides that exclude groups.

        Raises:
            UsageError: A pattern is not a regular expression.
        """
        excluding = (pattern for pattern, values in self.overrides.items() if values.get("exclude"))
        return tuple(_compiled(pattern, "--exclude") for pattern in (*self.exclude, *excluding))

    def of_group(self, name: str) -> Settings:
        """Return the settings for one group, with the overrides that match its name applied."""
        changes: dict[str, Any] = {}
        for pattern, values in self.overrides.items():
            if re.search(pattern, name):
                changes |= {key: value for key, value in values.items() if key != "exclude"}
        return replace(self, **changes) if changes else self

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Settings:
        """Return the settings that a plan stores.

        Raises:
            RefusedError: They are not valid settings of this version.
        """
        try:
            exclude = stored.get("exclude", ())
            settings = cls(**{**stored, "exclude": (exclude,) if isinstance(exclude, str) else tuple(exclude)})
            settings.check()
        except (TypeError, UsageError) as error:
            raise RefusedError(f"the plan's settings are not those of this version: {error}") from error
        return settings

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a plan stores them."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)} | {
            "exclude": list(self.exclude),
            "overrides": {pattern: dict(values) for pattern, values in self.overrides.items()},
        }


def parse_bytes(text: str | int) -> int:
    """Return the number of bytes that a size means.

    Args:
        text: `2GB`, `512 MiB` or a number of bytes.

    Raises:
        UsageError: The text is not a size, or less than 1 byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", str(text).upper())
    size = int(float(match[1]) * BYTES_PER_UNIT[match[2] or ""]) if match else 0
    if size < 1:
        raise UsageError(f"memory {text!r} is not a size like 2GB or 512MiB")
    return size


def _target(text: str) -> Target:
    """Parse UNIT=SHARE."""
    unit, _, share = text.strip().partition("=")
    is_number = re.fullmatch(r"[0-9.]+([eE]-?[0-9]+)?", share) and share.count(".") < 2
    number = float(share) if is_number else math.nan
    if not unit or not 0 < number < 1:
        raise UsageError(f"target {text!r} is not UNIT=SHARE with a share to keep between 0 and 1, as macs=0.5")
    return Target(unit, number)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _compiled(pattern: str, option: str) -> re.Pattern[str]:
    """Compile a pattern; an error names the option."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{option} {pattern!r} is not a regular expression: {error}") from error


def _check_override(pattern: str, values: Mapping[str, Any]) -> None:
    """Check the pattern and the settings of one override."""
    _compiled(pattern, "override")
    unknown = sorted(set(values) - OVERRIDABLE)
    if unknown:
        raise UsageError(
            f"override {pattern!r} sets {', '.join(unknown)}; "
            f"groups can have their own {', '.join(sorted(OVERRIDABLE))}"
        )
    multiple = values.get("multiple", 1)
    if not isinstance(multiple, int) or multiple < 1:
        raise UsageError(f"override {pattern!r}: multiple {multiple!r} is not a positive number")
