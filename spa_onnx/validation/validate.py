"""Checks of a pruned model: it is valid, it runs, its interface is unchanged, and pruned == masked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import onnx

from spa_onnx.errors import RefusedError, ValidationError
from spa_onnx.execution.session import Feed, Session, open_session
from spa_onnx.model.model import Model, feeds
from spa_onnx.model.shapes import GUESSES, choose_dims, symbolic_dims
from spa_onnx.model.traits import Array
from spa_onnx.plan.rewrite import Rewritten
from spa_onnx.synthetic.feeds import random_feed
from spa_onnx.synthetic.working import WorkingInputs
from spa_onnx.validation.compared import compared_outputs, with_outputs
from spa_onnx.validation.masked import Run, compare_branch, compare_with_masked, is_undecided, twins_of
from spa_onnx.validation.noise import noted, without_noise

SEEDS = 2
"""The number of random inputs on which the pruned and the masked model are compared."""

TRIES = 10
"""Further seeds if the original does not run on some, for example because integers must be lengths."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the checks.

    Args:
        gap: Largest |pruned - masked| over largest |masked|; None if the comparison does not apply.
        seeds: The number of inputs.
        notes: What was not checked, one sentence each.
        inputs: What they are: `random inputs` or `given samples`.
    """

    gap: float | None
    seeds: int
    notes: tuple[str, ...] = ()
    inputs: str = "random inputs"


def validate(
    model: Model,
    rewritten: Rewritten,
    inputs: WorkingInputs,
    *,
    repaired: bool = False,
    original: Session | None = None,
) -> Verdict:
    """Run all checks of a pruned model.

    Args:
        model: The original.
        rewritten: The pruned model.
        inputs: Inputs at which the original runs.
        repaired: Whether weights were repaired, so that outputs are not those of the masked model.
        original: The original, where it is open already.

    Raises:
        ValidationError: A check fails; the message is about the first one.
    """
    notes = _check(model.proto, rewritten.proto)
    _check_interface(model.proto, rewritten.proto)
    tensors = [each.tensor for each in compared_outputs(model, rewritten.proto)]
    rewritten = replace(rewritten, proto=with_outputs(without_noise(rewritten.proto), tensors))
    try:
        pruned = open_session(rewritten.proto, what="the pruned model")
    except RefusedError as error:
        raise ValidationError(str(error)) from error
    runs = list(islice(_runs(model, pruned, inputs.feeds(model, SEEDS + TRIES)), SEEDS))
    if not runs:
        raise ValidationError(
            f"the original runs on none of {SEEDS + TRIES} {inputs.kind}, so nothing could be checked; "
            "use --no-validate"
        )
    seeds = len(runs)
    runs += _runs(model, pruned, _at_other_sizes(model, inputs, original))
    if repaired or rewritten.inexact:
        why = "weights were repaired" if repaired else f"{len(rewritten.inexact)} nodes normalise over a removed axis"
        return Verdict(None, seeds, (*notes, f"{why}, so outputs were not compared with the masked model's"))
    twins = twins_of(model, rewritten, runs)
    gap, more = compare_with_masked(model, rewritten, twins, runs)
    if any(map(is_undecided, model.nodes)):
        gaps = {name: compare_branch(model, twins, runs[0][0], name) for name in ("then", "else")}
        gap = max(gap or 0.0, *(branch for branch in gaps.values() if branch is not None), 0.0)
        unchecked = (name for name, branch in gaps.items() if branch is None)
        more = (*more, *(f"where every If takes its {name} branch the original does not run" for name in unchecked))
    return Verdict(gap, seeds, (*notes, *noted(model.nodes), *more), inputs.kind)


def _runs(model: Model, pruned: Session, drawn: Iterable[Feed]) -> Iterator[Run]:
    """Yield the feeds on which the original runs.

    Raises:
        ValidationError: The pruned model does not run on one of them.
    """
    for feed in drawn:
        outputs = _outputs_of(model, pruned, feed)
        if outputs is not None:
            yield feed, outputs


def _outputs_of(model: Model, pruned: Session, feed: Feed) -> list[Array] | None:
    """Return the outputs of the pruned model; None if the original does not run on the feed either."""
    try:
        return pruned.run(feed)
    except RefusedError as error:
        try:
            open_session(model.proto).run(feed)
        except RefusedError:
            return None
        raise ValidationError(f"the pruned model does not run: {error}") from error


def _at_other_sizes(model: Model, working: WorkingInputs, original: Session | None) -> list[Feed]:
    """Return a feed whose symbolic dimensions are one larger, if the original runs on it.

    It shows a size that became a constant.
    """
    dims = working.dims
    free = {name: size + 1 for name, size in dims.items() if name.isidentifier() or ":" in name}
    if not free:
        return []
    inputs = feeds(model.proto.graph)
    batch = {name for name, counts, _ in symbolic_dims(inputs) if counts}
    original = original or open_session(model.proto)
    for chosen in (free, {name: size if name in batch else dims[name] for name, size in free.items()}):
        with contextlib.suppress(RefusedError):
            feed = random_feed(model, choose_dims(inputs, chosen, GUESSES[0]), SEEDS, working.style)
            original.run(feed)
            return [feed]
    return []


def _check(original: onnx.ModelProto, pruned: onnx.ModelProto) -> tuple[str, ...]:
    """Run onnx.checker's full check; what it rejects in the original already is only noted."""
    try:
        onnx.checker.check_model(pruned, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        try:
            onnx.checker.check_model(original, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError):
            return (f"onnx.checker rejects the original too: {line}",)
        raise ValidationError(f"onnx.checker rejects the pruned model: {line}") from error
    return ()


def _check_interface(original: onnx.ModelProto, pruned: onnx.ModelProto) -> None:
    """Check that inputs and outputs are those of the original."""
    for what in ("input", "output"):
        stored = {t.name for t in original.graph.initializer}, {t.name for t in pruned.graph.initializer}
        old = [(v.name, v.type.SerializeToString()) for v in getattr(original.graph, what) if v.name not in stored[0]]
        new = [(v.name, v.type.SerializeToString()) for v in getattr(pruned.graph, what) if v.name not in stored[1]]
        if old != new:
            raise ValidationError(f"graph {what}s changed from {[n for n, _ in old]} to {[n for n, _ in new]}")
