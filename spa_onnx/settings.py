"""How to prune: every option, checked before any work is done."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spa_onnx.analysis import ATTENTION
from spa_onnx.cost import UNITS
from spa_onnx.criteria import CRITERIA, LOSSES, OWN_REPAIR, WITH_STATISTICS
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.repair.reconstruct import REPAIRS
from spa_onnx.selection.importance import AGGREGATIONS, NORMALISATIONS
from spa_onnx.selection.select import SCOPES, Target


@dataclass(frozen=True, slots=True)
class Settings:
    """How to prune; `prune` documents each field."""

    ratio: float | None
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
    target: str = ""
    rounds: int = 1

    def __post_init__(self) -> None:
        """Fill in what follows from the criterion: losses compare across groups, and some scores come with their repair."""
        object.__setattr__(self, "scope", self.scope or ("global" if self.criterion in LOSSES else "local"))
        object.__setattr__(self, "repair", self.repair or OWN_REPAIR.get(self.criterion, "none"))

    @property
    def needs_statistics(self) -> bool:
        """Whether the inputs of products have to be looked at."""
        return self.criterion in WITH_STATISTICS or self.repair != "none"

    def check(self) -> None:
        """Raises UsageError for a value that makes no sense."""
        if (self.ratio is None) == (not self.target):
            raise UsageError("give either a ratio (--ratio 0.4) or a target (--target macs=0.5)")
        self.goal()
        if self.rounds < 1:
            raise UsageError(f"rounds {self.rounds} is not a positive number")
        if self.ratio is not None and not (isinstance(self.ratio, int | float) and math.isfinite(self.ratio) and 0 < self.ratio < 1):
            raise UsageError(f"ratio {self.ratio} is not between 0 and 1 (both excluded); 0.4 removes 40 % of the channels")
        if self.multiple < 1:
            raise UsageError(f"multiple {self.multiple} is not a positive number")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"samples {self.samples} is not a positive number")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative; use 0 or more")
        if isinstance(self.exclude, str) or not all(isinstance(pattern, str) for pattern in self.exclude):
            raise UsageError(f"exclude {self.exclude!r} is not a sequence of regular expressions")
        for what, value, table in (
            ("criterion", self.criterion, CRITERIA),
            ("scope", self.scope, SCOPES),
            ("aggregate", self.aggregate, AGGREGATIONS),
            ("normalise", self.normalise, NORMALISATIONS),
            ("attention", self.attention, ATTENTION),
            ("repair", self.repair, REPAIRS),
        ):
            if value not in table:
                raise UsageError(f"unknown {what} {value!r}; choose from {', '.join(table)}")
        self.patterns()

    def goal(self) -> float | Target:
        """The ratio, or the target. Raises UsageError for a target that is none."""
        if self.ratio is not None:
            return self.ratio
        unit, _, share = self.target.partition("=")
        number = float(share) if re.fullmatch(r"[0-9.]+([eE]-?[0-9]+)?", share) and share.count(".") < 2 else math.nan
        if unit not in UNITS or not 0 < number < 1:
            raise UsageError(f"target {self.target!r} is not {' or '.join(UNITS)}=SHARE with a share to keep between 0 and 1, as macs=0.5")
        return Target(unit, number)

    def unit(self) -> str:
        """What is to be saved."""
        goal = self.goal()
        return goal.unit if isinstance(goal, Target) else "macs"

    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """The compiled exclusions. Raises UsageError for one that does not parse."""
        return tuple(_compiled(pattern) for pattern in self.exclude)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Settings:
        """Settings as a plan stores them. Raises RefusedError where they are not."""
        try:
            settings = cls(**{**stored, "exclude": tuple(stored.get("exclude", ()))})
            settings.check()
        except (TypeError, UsageError) as error:
            raise RefusedError(f"the plan's settings are not those of this version: {error}") from error
        return settings

    def to_json(self) -> dict[str, Any]:
        """As stored in a plan."""
        return {name: getattr(self, name) for name in self.__slots__} | {"exclude": list(self.exclude)}


UNITS_OF_BYTES: Mapping[str, int] = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_bytes(text: str | int) -> int:
    """`2GB`, `512 MiB` or a number as bytes. Raises UsageError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", str(text).upper())
    size = int(float(found[1]) * UNITS_OF_BYTES[found[2] or ""]) if found else 0
    if size < 1:
        raise UsageError(f"memory {text!r} is not a size like 2GB or 512MiB")
    return size


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--exclude {pattern!r} is not a regular expression: {error}") from error
