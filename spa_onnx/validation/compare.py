"""Compare two models, and check the comparison against limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from spa_onnx.data.preprocess import parse
from spa_onnx.data.samples import read_samples
from spa_onnx.errors import GateError, RefusedError
from spa_onnx.execution.session import Feed, Session, latency, open_session
from spa_onnx.model.model import Model, feeds, has_data_size, parameters
from spa_onnx.model.source import open_source
from spa_onnx.operators.macs import macs
from spa_onnx.synthetic.working import working_inputs
from spa_onnx.validation.drift import REAL, Drift
from spa_onnx.validation.quality import Evaluation, quality


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models compared; pairs are (original, pruned), latency is the median in milliseconds."""

    params: tuple[int, int]
    macs: tuple[int, int]
    bytes: tuple[int, int]
    latency: tuple[float, float]
    drift: Drift


def compare(
    original: Path,
    pruned: Path,
    *,
    data: object = None,
    preprocess: str | None = None,
    dims: Mapping[str, int] | None = None,
) -> Comparison:
    """Measure two models on the same inputs.

    Args:
        original: The file of the original.
        pruned: The file of the pruned model.
        data: Samples, as in `spa_onnx.prune`; random inputs where there are none.
        preprocess: How images become values, as in `spa_onnx.prune`.
        dims: The size of each symbolic dimension, by name.

    Raises:
        RefusedError: The interfaces differ, or one of the models does not run.
    """
    old_source, new_source = open_source(original), open_source(pruned)
    before, after = old_source.proto, new_source.proto
    for what, old, new in (
        ("take the inputs", feeds(before.graph), feeds(after.graph)),
        ("give the outputs", before.graph.output, after.graph.output),
    ):
        if _interface(old) != _interface(new):
            raise RefusedError(
                f"{pruned} does not {what} of {original}: {_described(new)} instead of {_described(old)}"
            )
    first = open_session(before, optimise=True, timed=True, what=str(original))
    second = open_session(after, optimise=True, timed=True, what=str(pruned))
    samples = None if data is None else read_samples(data, before, parse(preprocess) if preprocess else None)
    trial = () if samples is None else samples.head(1, 1).feeds()[:1]
    inputs = working_inputs(Model.of(before, dims), first, dims or {}, trial)
    model = Model.of(before, inputs.dims)
    (feed,) = inputs.feeds(model, 1)
    _check_shapes(model, first, second, feed)
    evaluation = Evaluation(samples, "given") if samples else Evaluation()
    measured = quality(model, after, inputs, evaluation)
    if samples and samples.labels is not None and measured.accuracy is None:
        raise RefusedError(
            f"{data}: labels y of shape {list(samples.labels.shape)} do not fit the first output, "
            "so there is no accuracy"
        )
    smaller = Model.of(after, inputs.dims)
    slow, fast = latency([first, second], feed)
    return Comparison(
        (parameters(before), parameters(after)),
        (macs(model), macs(smaller)),
        (old_source.bytes, new_source.bytes),
        (slow, fast),
        measured,
    )


def _interface(values: Sequence[onnx.ValueInfoProto]) -> list[tuple[str, int, int]]:
    """Return the names, types and ranks of inputs or outputs."""
    return [(v.name, v.type.tensor_type.elem_type, len(v.type.tensor_type.shape.dim)) for v in values]


def _described(values: Sequence[onnx.ValueInfoProto]) -> str:
    """Return inputs or outputs for messages."""
    kinds = onnx.TensorProto.DataType
    return (
        ", ".join(f"{name} ({kinds.Name(kind).lower()}, {rank} axes)" for name, kind, rank in _interface(values))
        or "none"
    )


def _check_shapes(model: Model, first: Session, second: Session, feed: Feed) -> None:
    """Check that both models return outputs of the same shapes, where sizes do not depend on data."""
    for name, a, b in zip(first.outputs, first.run(feed), second.run(feed), strict=True):
        if a.shape != b.shape and not has_data_size(model, name):
            raise RefusedError(
                f"the models cannot be compared: output {name} has shape {list(a.shape)} in one, "
                f"{list(b.shape)} in the other"
            )


def _kept(pair: tuple[float, float]) -> float:
    """Return the share that is kept."""
    return pair[1] / pair[0] if pair[0] else 1.0


def _lost_points(drift_: Drift) -> float | None:
    """Return the lost accuracy in percentage points."""
    return None if drift_.accuracy is None else 100 * (drift_.accuracy[0] - drift_.accuracy[1])


GATES: Mapping[str, tuple[str, Callable[[Comparison], float | None]]] = {
    "max_error": ("output error", lambda c: c.drift.error),
    "min_agreement": ("top-1 agreement", lambda c: c.drift.agreement),
    "max_accuracy_drop": ("accuracy drop in points", lambda c: _lost_points(c.drift)),
    "max_params": ("parameters kept", lambda c: _kept(c.params)),
    "max_macs": ("MACs kept", lambda c: _kept(c.macs)),
    "max_bytes": ("bytes kept", lambda c: _kept(c.bytes)),
    "max_latency": ("latency kept", lambda c: _kept(c.latency)),
}
"""Gate -> its name in messages, and its figure; None if the comparison has no such figure."""


def check_gates(comparison: Comparison, limits: Mapping[str, float | None]) -> None:
    """Check a comparison against limits. A gate without a figure does not hold.

    Raises:
        GateError: Some gates do not hold; the message names each of them with its figure.
    """
    failed = []
    for gate, limit in limits.items():
        if limit is None:
            continue
        what, figure = GATES[gate]
        value = figure(comparison)
        if gate == "min_agreement" and comparison.drift.measured_on not in REAL:
            failed.append(f"{what} is unknown without --data")
        elif gate == "max_accuracy_drop" and comparison.drift.original_near_chance:
            failed.append(f"{what} says nothing: the accuracy of the original itself is near chance")
        elif value is None:
            failed.append(f"{what} cannot be measured without labels or rows of scores")
        elif gate.startswith("max") and not value <= limit:
            failed.append(f"{what} is {value:.4g}, allowed at most {limit:g}")
        elif gate.startswith("min") and not value >= limit:
            failed.append(f"{what} is {value:.4g}, wanted at least {limit:g}")
    if failed:
        raise GateError("; ".join(failed))
