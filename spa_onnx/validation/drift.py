"""Drift: the distance of a pruned model's outputs from the original's: output error, top-1 agreement, accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from spa_onnx.execution.session import Feed, Session
from spa_onnx.model.traits import Array


@dataclass(frozen=True, slots=True)
class Drift:
    """The distance of two models on some samples.

    Args:
        error: ||original - pruned|| / ||original|| over the outputs of all samples.
        agreement: The share of rows with the same largest entry; None if the first output is no row of scores.
        accuracy: The accuracy of the original and of the pruned model; None without labels.
        samples: The number of samples.
    """

    error: float
    agreement: float | None
    accuracy: tuple[float, float] | None
    samples: int


def drift(original: Session, pruned: Session, feeds: Iterable[Feed], labels: Array | None = None) -> Drift:
    """Run both models on every feed and compare their outputs.

    Args:
        original: The original.
        pruned: The pruned model.
        feeds: The samples, in batches.
        labels: The class of each row of the first output, integers (samples, ...).
    """
    squares, energy, samples = 0.0, 0.0, 0
    choices: list[tuple[Array, Array]] = []
    for feed in feeds:
        want, got = original.run(feed), pruned.run(feed)
        for a, b in zip(want, got, strict=True):
            if a.dtype.kind in "fiu" and a.shape == b.shape:
                squares += float(np.square(a.astype(np.float64) - b.astype(np.float64)).sum())
                energy += float(np.square(a.astype(np.float64)).sum())
        samples += _samples(feed)
        if want and want[0].ndim >= 2 and want[0].shape[-1] > 1 and want[0].dtype.kind in "fiu":
            choices.append((want[0].argmax(axis=-1), got[0].argmax(axis=-1)))
    error = float(np.sqrt(squares / energy)) if energy else float(squares > 0)
    if not choices:
        return Drift(error, None, None, samples)
    is_table = len({pair[0].reshape(len(pair[0]), -1).shape[1] for pair in choices}) == 1  # else sizes differ by sample
    before, after = (
        np.concatenate([pair[i].reshape(*((len(pair[i]), -1) if is_table else (-1, 1))) for pair in choices])
        for i in (0, 1)
    )
    accuracy = _accuracy(before, after, labels if is_table else None)
    return Drift(error, float((before == after).mean()), accuracy, samples)


def _samples(feed: Feed) -> int:
    """Return the number of samples of a feed, by its first input."""
    first = next(iter(feed.values()))
    return len(first) if first.ndim else 1


def _accuracy(before: Array, after: Array, labels: Array | None) -> tuple[float, float] | None:
    """Return the accuracy of both models."""
    if labels is None:
        return None
    truth = labels[: len(before)].reshape(len(before), -1)
    if truth.shape != before.shape:
        return None
    return float((before == truth).mean()), float((after == truth).mean())
