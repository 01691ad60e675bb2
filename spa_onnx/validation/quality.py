"""The quality of a pruned model: its drift on samples that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from spa_onnx.data.batches import Samples
from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import Feed, Session, open_session
from spa_onnx.model.model import Model, is_batched
from spa_onnx.operators.macs import macs
from spa_onnx.synthetic.generate import generate_samples, input_bytes
from spa_onnx.synthetic.working import WorkingInputs
from spa_onnx.validation.compared import compared_outputs, with_outputs
from spa_onnx.validation.drift import Drift, Evaluated, drift
from spa_onnx.validation.noise import without_noise

SYNTHETIC_SAMPLES = 64
"""Synthetic samples to measure on, if there is no data."""

SYNTHETIC_MACS = 10**11
"""Multiply-accumulates that these samples may cost in one model; large models run fewer, at least one."""

SYNTHETIC_BATCH = 16

OTHER_SEED = 1_000_003
"""What is added to the seed, so that these samples are none of those that were fitted to."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the quality is measured on.

    Args:
        samples: The samples; None for synthetic ones.
        measured_on: What the samples are, see `Drift`.
        unknown: Why there is nothing to measure on; empty if there is.
        memory: Bytes of which synthetic samples may take a quarter; None for no limit.
    """

    samples: Samples | None = None
    measured_on: str = "synthetic"
    unknown: str = ""
    memory: int | None = None


def quality(
    model: Model, pruned: onnx.ModelProto, inputs: WorkingInputs, evaluation: Evaluation, seed: int = 0
) -> Drift:
    """Measure the drift of a pruned model.

    Args:
        model: The original.
        pruned: The pruned model.
        inputs: Inputs at which the original runs, for synthetic samples.
        evaluation: What to measure on.
        seed: The seed of synthetic samples.

    Raises:
        RefusedError: One of the models does not run.
    """
    compared = compared_outputs(model, pruned)
    tensors = [each.tensor for each in compared]
    original, smaller = (
        open_session(with_outputs(without_noise(proto), tensors), optimise=True, what=what)
        for proto, what in ((model.proto, "the original model"), (pruned, "the pruned model"))
    )
    samples = evaluation.samples
    if samples is not None:
        batched = is_batched(model) and not samples.whole
        evaluated = Evaluated(samples.feeds(), samples.labels, evaluation.measured_on, batched)
    else:
        feeds, measured_on = _synthetic_feeds(model, original, inputs, seed, evaluation.memory)
        evaluated = Evaluated(feeds, None, measured_on, is_batched(model))
    return drift(original, smaller, compared, evaluated)


def _synthetic_feeds(
    model: Model, original: Session, inputs: WorkingInputs, seed: int, memory: int | None
) -> tuple[Sequence[Feed], str]:
    """Return synthetic samples on which the original runs, or random ones, and which of the two they are."""
    room = SYNTHETIC_SAMPLES if memory is None else memory // 4 // input_bytes(model)
    count = max(min(SYNTHETIC_SAMPLES, SYNTHETIC_MACS // max(macs(model), 1), room), 1)
    for batch in (min(count, SYNTHETIC_BATCH), 0):
        try:
            feeds = generate_samples(model, inputs, count, batch, seed + OTHER_SEED).feeds
            original.run(feeds[0])
        except RefusedError:
            continue
        return feeds, "synthetic"
    return list(inputs.feeds(model, 1)), "random"
