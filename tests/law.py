"""The law that every coupling rule must keep: the pruned model computes what the masked model computes.

Pruned: the channels are removed. Masked: every slice that they own is zero.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from spa_onnx.analysis import analyse
from spa_onnx.analysis.groups import Group
from spa_onnx.execution.session import open_session
from spa_onnx.model.facts import Indices
from spa_onnx.model.model import Model
from spa_onnx.plan.mask import mask
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import Rewritten, rewrite
from spa_onnx.synthetic.feeds import random_feed

EXACT = 1e-5
"""Relative difference that rounding explains in float32."""


class VacuousError(AssertionError):
    """The plan changed nothing, so that the law held for no reason."""


def random_drop(groups: Iterable[Group], seed: int, ratio: float = 0.4) -> dict[str, Indices]:
    """Draw about `ratio` of the channels of every group, at least one and never all.

    Parts that lose their own channels lose as many each.
    """
    rng = np.random.default_rng(seed)
    drop = {}
    for group in groups:
        count = min(max(round(group.steps * ratio), 1), group.steps - 1)
        chosen = [part * group.steps + rng.choice(group.steps, count, replace=False) for part in range(group.parts)]
        drop[group.name] = np.sort(np.concatenate(chosen))
    return drop


def gap(proto: onnx.ModelProto, drop: Mapping[str, Indices], seed: int) -> float:
    """Return the largest |pruned - masked| over the largest |masked| on random feeds.

    Raises VacuousError if masking changes no output.
    """
    analysis = analyse(Model.of(proto))
    return measured(analysis.model, rewrite(analysis, Plan.removing(drop, "")), seed)


def measured(model: Model, rewritten: Rewritten, seed: int) -> float:
    """The gap of a rewritten model."""
    feed = random_feed(model, model.inference.dims, seed)
    dense, masked, pruned = (
        open_session(proto).run(feed) for proto in (model.proto, mask(model, rewritten.removal), rewritten.proto)
    )
    if max(_difference(a, b) for a, b in zip(dense, masked, strict=True)) < 1e-3:
        raise VacuousError("the masked model computes what the original does")
    return max(_difference(a, b) for a, b in zip(masked, pruned, strict=True))


def _difference(want: np.ndarray, got: np.ndarray) -> float:
    if want.shape != got.shape or not np.isfinite(want).all() or not np.isfinite(got).all():
        return float("inf")
    a, b = want.astype(np.float64), got.astype(np.float64)
    return float(np.abs(a - b).max(initial=0.0) / max(np.abs(a).max(initial=0.0), 1e-12))


def wrong_shapes(model: Model, rewritten: Rewritten) -> list[str]:
    """Tensors whose inferred sizes in the pruned model are not those that the plan leaves of them."""
    pruned = Model.of(rewritten.proto, model.inference.dims)
    made = {name for node in pruned.nodes if not pruned.is_folded(node) for name in node.outputs if name}
    return [
        f"{name}: {pruned.shape(name)}, planned {rewritten.removal.after(name)}"
        for node in model.nodes
        for name in node.outputs
        if name in made and model.shape(name) is not None and pruned.shape(name) != rewritten.removal.after(name)
    ]


def violation(proto: onnx.ModelProto, seed: int, ratio: float = 0.4) -> str:
    """Return what is wrong with a random plan for this model; empty if nothing is.

    A refusal, sizes that do not agree, or the gap.
    """
    try:
        analysis = analyse(Model.of(proto))
        rewritten = rewrite(analysis, Plan.removing(random_drop(analysis.prunable(), seed, ratio), ""))
        shapes = wrong_shapes(analysis.model, rewritten)
        if shapes:
            return "; ".join(shapes)
        found = measured(analysis.model, rewritten, seed)
    except VacuousError:
        raise
    except Exception as error:  # noqa: BLE001 - however a wrong rule is caught
        return f"{type(error).__name__}: {error}"
    return "" if found < EXACT else f"pruned differs from masked by {found:.3g}"
