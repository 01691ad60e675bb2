"""Drift: the distance of a pruned model's outputs from the original's: output error, top-1 agreement, accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import Feed, Session, feed_size
from spa_onnx.model.traits import Array
from spa_onnx.validation.compared import Compared, Kind

SATURATED = 0.1
"""The share of an output's elements at its smallest or largest value from which on it counts as saturated."""

FEW = 30
"""Figures on fewer samples than this are rough."""

NEAR_CHANCE = 0.1
"""A model with less than this share of the distance from chance to certainty is near chance: Cohen's kappa."""

AT_CHANCE = 0.03
"""The same on synthetic samples. They lie between the classes, so that a usable model agrees on few of them."""

REAL = ("held-out", "given")
"""What real samples are called in `Drift.measured_on`."""

COLLAPSE_SAMPLES = 8
"""The fewest samples on which a collapse is noticed."""

ALIKE = 0.9
"""The chance agreement from which on the original's answers are too alike to compare answers."""


@dataclass(frozen=True, slots=True)
class Drift:
    """The distance of two models on some samples.

    Args:
        error: ||original - pruned|| / ||original|| over the outputs of all samples. The tensor before counts in place
            of an output that is saturated; it is NaN where no output can be compared.
        agreement: The share of rows with the same largest score, or of equal classes; None if no output holds scores or
            classes.
        accuracy: The accuracy of the original and of the pruned model; None without labels.
        samples: The number of samples.
        chance: The agreement that two models with these frequencies of answers have by chance; None without agreement.
        measured_on: What the samples are: `held-out`, `given`, `synthetic` or `random`.
        original_near_chance: Whether the original itself has an accuracy near chance, so that nothing can be lost.
        collapsed: Why the pruned model is of no use; empty if nothing says so.
        notes: What limits these figures, one sentence each.
    """

    error: float
    agreement: float | None
    accuracy: tuple[float, float] | None
    samples: int
    chance: float | None = None
    measured_on: str = "given"
    original_near_chance: bool = False
    collapsed: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Samples to measure on.

    Args:
        feeds: The samples, in batches. Synthetic ones on which a model does not run are passed over.
        labels: The class of each row of the first output that holds scores or classes, integers (samples, ...). Without
            such an output the largest entry of a row of the first output is its class.
        measured_on: What the samples are, see `Drift`.
        batched: Whether feeds hold several samples along their first axis.
    """

    feeds: Iterable[Feed]
    labels: Array | None = None
    measured_on: str = "given"
    batched: bool = True


def drift(
    original: Session,
    pruned: Session,
    compared: Sequence[Compared],
    samples: Evaluated,
) -> Drift:
    """Run both models on every feed and compare their outputs.

    Args:
        original: The original, with all compared tensors as outputs.
        pruned: The pruned model, with all compared tensors as outputs.
        compared: What is compared.
        samples: What both models are run on.
    """
    labels = samples.labels
    names = tuple(dict.fromkeys(name for each in compared for name in (each.output, each.tensor)))
    answering = next((each for each in compared if each.kind is not Kind.NUMBERS), None)
    if answering is None and labels is not None and compared:
        answering = replace(compared[0], kind=Kind.SCORES)
    distances = {each: (_Distance(), _Distance()) for each in compared}
    answers, count = _Answers(), 0
    for feed in samples.feeds:
        try:
            runs = original.run(feed, names, release=True), pruned.run(feed, names, release=True)
        except RefusedError:
            if samples.measured_on in REAL:
                raise
            continue
        want, got = (dict(zip(names, arrays, strict=True)) for arrays in runs)
        for each, (at_output, before) in distances.items():
            if each.kind is not Kind.CLASSES:
                at_output.add(want[each.output], got[each.output])
            if each.tensor != each.output:
                before.add(want[each.tensor], got[each.tensor])
        if answering is not None:
            answers.add(*(_classes(answering, values) for values in (want, got)))
        count += feed_size(feed, batched=samples.batched)
    used = [before if at_output.is_blind and before.elements else at_output for at_output, before in distances.values()]
    result = Drift(_error(used), *answers.figures(labels), count, answers.chance, samples.measured_on)
    result = replace(result, original_near_chance=answers.original_is_near_chance(labels))
    alike = answers.notes() if result.measured_on in REAL else ()
    notes = (*_notes(result, labels), *_incomparable(compared, used), *alike)
    return replace(result, collapsed=_collapsed(result, used), notes=notes)


def is_near_chance(share: float, chance: float, limit: float = NEAR_CHANCE) -> bool:
    """Return whether an agreement or an accuracy is hardly better than chance."""
    return share - chance < limit * (1 - chance)


@dataclass(slots=True)
class _Distance:
    """Sums over the elements of a tensor in all samples."""

    squares: float = 0.0
    energy: float = 0.0
    elements: int = 0
    at_ends: int = 0
    lost: int = 0
    other_shapes: bool = False
    rows: int = 0
    _first: tuple[Array, Array] | None = None
    _varies: bool = False
    _pruned_varies: bool = False

    def add(self, want: Array, got: Array) -> None:
        """Add the arrays of one run."""
        if want.dtype.kind not in "fiu" or want.shape != got.shape:
            self.other_shapes |= want.shape != got.shape
            return
        a, b = want.astype(np.float64), got.astype(np.float64)
        finite = np.isfinite(a)
        self.lost += int((finite & ~np.isfinite(b)).sum())
        a, b = (np.where(finite & np.isfinite(b), values, 0.0) for values in (a, b))
        self.squares += float(np.square(a - b).sum())
        self.energy += float(np.square(a).sum())
        self.elements += int(finite.sum())
        if want.dtype.kind == "f" and a.size:
            self.at_ends += int((a == a.min()).sum() + (a == a.max()).sum() - 2) if a.min() < a.max() else 0
        self._note_variation(a, b)

    def _note_variation(self, a: Array, b: Array) -> None:
        """Note whether rows differ from the first one: in the original, and in the pruned model."""
        if not a.ndim or not len(a):
            return
        self._first = self._first or (a[0], b[0])
        if a.shape[1:] == self._first[0].shape:
            self._varies |= bool((a != self._first[0]).any())
            self._pruned_varies |= bool((b != self._first[1]).any())
            self.rows += len(a)

    @property
    def is_blind(self) -> bool:
        """Return whether the tensor does not show what changed: it is saturated, has no numbers or other shapes."""
        return not self.elements or self.other_shapes or self.at_ends > SATURATED * self.elements

    @property
    def is_constant_now(self) -> bool:
        """Return whether only the pruned model has the same values for all samples."""
        return self.rows >= COLLAPSE_SAMPLES and self._varies and not self._pruned_varies


@dataclass(slots=True)
class _Answers:
    """The classes that both models answer, per feed."""

    before: list[Array] = field(default_factory=list)
    after: list[Array] = field(default_factory=list)

    def add(self, before: Array | None, after: Array | None) -> None:
        """Add the answers of one feed; those of other shapes cannot be compared."""
        if before is not None and after is not None and before.shape == after.shape and before.size:
            self.before.append(before)
            self.after.append(after)

    def figures(self, labels: Array | None) -> tuple[float | None, tuple[float, float] | None]:
        """Return (agreement, accuracy of both models)."""
        if not self.before:
            return None, None
        before, after = self._flat
        return float((before == after).mean()), self._accuracy(labels)

    @property
    def chance(self) -> float | None:
        """Return the agreement by chance; None without answers."""
        if not self.before:
            return None
        before, after = self._flat
        counts = [dict(zip(*np.unique(values, return_counts=True), strict=True)) for values in (before, after)]
        return float(sum(count * counts[1].get(answer, 0) for answer, count in counts[0].items())) / len(before) ** 2

    def notes(self) -> list[str]:
        """Return a note on answers that are too alike."""
        if not self.before:
            return []
        _, counts = np.unique(self._flat[0], return_counts=True)
        alike = counts.sum() > 1 and counts.max() > ALIKE * counts.sum()
        return ["the original answers nearly all samples alike, so that agreement says little"] if alike else []

    def original_is_near_chance(self, labels: Array | None) -> bool:
        """Return whether the accuracy of the original is hardly better than always answering the same."""
        accuracy = self._accuracy(labels)
        if accuracy is None or labels is None or len(labels) < COLLAPSE_SAMPLES:
            return False
        chance = label_chance(labels)
        return chance < ALIKE and is_near_chance(accuracy[0], chance)

    def _accuracy(self, labels: Array | None) -> tuple[float, float] | None:
        """Return the accuracy of both models; None if the labels do not fit the answers."""
        if labels is None or not self.before or len({part.shape[1:] for part in self.before}) != 1:
            return None
        before, after = (np.concatenate(parts).reshape(sum(map(len, parts)), -1) for parts in (self.before, self.after))
        truth = labels[: len(before)].reshape(len(labels[: len(before)]), -1)
        if truth.shape != before.shape:
            return None
        return float((before == truth).mean()), float((after == truth).mean())

    @property
    def _flat(self) -> tuple[Array, Array]:
        """Return all answers of the original, and of the pruned model."""
        before, after = (np.concatenate([part.ravel() for part in parts]) for parts in (self.before, self.after))
        return before, after


def label_chance(labels: Array) -> float:
    """Return the accuracy of always answering the most frequent label."""
    _, counts = np.unique(labels, return_counts=True)
    return float(counts.max() / counts.sum())


def _classes(answering: Compared, values: dict[str, Array]) -> Array | None:
    """Return the classes that a model answers, without the axis of the scores; None if there are no scores."""
    if answering.kind is Kind.CLASSES:
        return np.atleast_1d(values[answering.output])
    scores = values[answering.tensor]
    if scores.ndim != values[answering.output].ndim:
        scores = values[answering.output]
    if scores.ndim < -answering.axis or scores.dtype.kind not in "fiu" or scores.shape[answering.axis] < 2:
        return None
    return np.atleast_1d(scores.argmax(axis=answering.axis))


def _error(used: Sequence[_Distance]) -> float:
    """Return the relative error over all tensors that can be compared; NaN if there is none."""
    if not any(each.elements for each in used):
        return float("nan")
    squares, energy = sum(each.squares for each in used), sum(each.energy for each in used)
    return float(np.sqrt(squares / energy)) if energy else float(squares > 0)


def _notes(result: Drift, labels: Array | None) -> list[str]:
    """Return notes on few samples, and on an original that is near chance."""
    notes = []
    if result.samples < FEW and result.measured_on in REAL:
        samples = "1 sample is" if result.samples == 1 else f"{result.samples} samples are"
        notes.append(f"{samples} few: these figures are rough")
    if result.original_near_chance and result.accuracy is not None and labels is not None:
        notes.append(
            f"the accuracy of the original itself, {100 * result.accuracy[0]:.1f} %, is near chance "
            f"({100 * label_chance(labels):.1f} %): check the labels and --preprocess"
        )
    return notes


def _incomparable(compared: Sequence[Compared], used: Sequence[_Distance]) -> list[str]:
    """Return notes on outputs with other numbers of rows, which were not compared."""
    return [
        f"{each.output} has other sizes in the pruned model (they depend on data), so it was not compared"
        for each, distance in zip(compared, used, strict=True)
        if distance.other_shapes
    ]


def _collapsed(result: Drift, used: Sequence[_Distance]) -> str:
    """Return why the pruned model is of no use; empty if nothing says so."""
    if any(each.lost for each in used):
        return "outputs of the pruned model are not finite where those of the original are"
    if any(each.is_constant_now for each in used):
        return "the pruned model gives all samples the same output"
    if result.samples < COLLAPSE_SAMPLES or result.agreement is None or result.chance is None:
        worthless = result.agreement is None and result.samples >= COLLAPSE_SAMPLES and result.error >= 1
        return "the outputs are as far from the original's as zeros are" if worthless else ""
    limit = NEAR_CHANCE if result.measured_on in REAL else AT_CHANCE
    if result.chance < ALIKE and is_near_chance(result.agreement, result.chance, limit):
        return (
            f"the pruned model agrees with the original on {100 * result.agreement:.1f} % of the answers, "
            f"and chance is {100 * result.chance:.1f} %"
        )
    return ""
