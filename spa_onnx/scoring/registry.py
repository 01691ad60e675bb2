"""The registry of importance criteria: what each one needs and what its scores mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Group
from spa_onnx.scoring.context import Scores, ScoringContext

Need: TypeAlias = Literal["weights", "statistics", "trials", "gradients"]
"""What a criterion uses.

"weights"; "statistics": moments of the inputs of linear layers; "trials": errors of the outputs with channels masked;
"gradients".
"""

ScoreFunction: TypeAlias = Callable[[Group, ScoringContext], Scores | NDArray[np.float64]]
"""(group, context) -> scores of indices, which are aggregated, or of channels, float64 (channels,), which are not.

Empty if the criterion cannot score the group.
"""


@dataclass(frozen=True, slots=True)
class Criterion:
    """An importance criterion. Channels with the lowest scores are removed first.

    Args:
        score: The function.
        needs: What has to be collected before it is called.
        loss: Whether scores are relative losses. They compare across groups once they are divided by the cost that a
            channel saves.
        repair: The repair that its scores assume.
    """

    score: ScoreFunction
    needs: frozenset[Need]
    loss: bool
    repair: str

    def __call__(self, group: Group, context: ScoringContext) -> Scores | NDArray[np.float64]:
        """Score one group; see `ScoreFunction`."""
        return self.score(group, context)

    @property
    def needs_statistics(self) -> bool:
        """Return whether samples have to run through the model first."""
        return self.needs != {"weights"}


CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str, *, needs: Iterable[Need] = ("weights",), loss: bool = False, repair: str = "none"
) -> Callable[[ScoreFunction], ScoreFunction]:
    """Register a function under a name; the arguments are those of `Criterion`.

    Raises:
        ValueError: The name is taken.
    """

    def register(function: ScoreFunction) -> ScoreFunction:
        """Register a function under the name."""
        if name in CRITERIA:
            raise ValueError(f"two criteria are called {name}")
        CRITERIA[name] = Criterion(function, frozenset(needs), loss, repair)
        return function

    return register
