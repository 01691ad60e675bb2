"""How far a pruned model has drifted from its original: output error, top-1 agreement, accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spa_onnx.execution import session as runtime
from spa_onnx.execution.session import Feed
from spa_onnx.model.folding import Array

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True, slots=True)
class Drift:
    """error: ||original - pruned|| / ||original|| over the first float output of all samples.

    agreement: share of rows with the same largest entry, None where no output is a row of scores. accuracy: of the original and the
    pruned model, None without labels. samples: how many were run.
    """

    error: float
    agreement: float | None
    accuracy: tuple[float, float] | None
    samples: int


def drift(
    original: ort.InferenceSession, pruned: ort.InferenceSession, fed: Iterable[Feed], labels: Array | None = None
) -> Drift:
    """Run both models on every feed and compare their outputs."""
    squares, energy, samples = 0.0, 0.0, 0
    choices: list[tuple[Array, Array]] = []
    for feed in fed:
        want, got = runtime.run(original, feed), runtime.run(pruned, feed)
        for a, b in zip(want, got, strict=True):
            if a.dtype.kind in "fiu" and a.shape == b.shape:
                squares += float(np.square(a.astype(np.float64) - b.astype(np.float64)).sum())
                energy += float(np.square(a.astype(np.float64)).sum())
        samples += len(next(iter(feed.values()))) if next(iter(feed.values())).ndim else 1
        if want and want[0].ndim >= 2 and want[0].shape[-1] > 1 and want[0].dtype.kind in "fiu":
            choices.append((want[0].argmax(axis=-1), got[0].argmax(axis=-1)))
    error = float(np.sqrt(squares / energy)) if energy else float(squares > 0)
    if not choices:
        return Drift(error, None, None, samples)
    rows = (
        len({pair[0].reshape(len(pair[0]), -1).shape[1] for pair in choices}) == 1
    )  # samples of several sizes are no rows of a table
    before, after = (
        np.concatenate([pair[i].reshape(*((len(pair[i]), -1) if rows else (-1, 1))) for pair in choices])
        for i in (0, 1)
    )
    return Drift(error, float((before == after).mean()), _accuracy(before, after, labels if rows else None), samples)


def _accuracy(before: Array, after: Array, labels: Array | None) -> tuple[float, float] | None:
    if labels is None:
        return None
    truth = labels[: len(before)].reshape(len(before), -1)
    if truth.shape != before.shape:
        return None
    return float((before == truth).mean()), float((after == truth).mean())
