"""Samples of a model: divided into runs, shortened, and split into samples to fit on and samples held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from spa_onnx.execution.session import Feed
from spa_onnx.model.facts import Indices
from spa_onnx.model.folding import Array

HELD_OUT_SHARE = 0.2
"""The share of the samples that is held out, at least HELD_OUT_SAMPLES of them and at most half."""

HELD_OUT_SAMPLES = 64

SPLIT_SEED = 0
"""The seed of the split, which is the same in every run: `apply` then fits on what `prune` fitted on."""


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one input for all samples of a part.

    Args:
        count: The number of samples; None for an input that all samples share.
        take: Returns the values for a slice or for indices of the samples.
    """

    count: int | None
    take: Callable[[slice | Indices], Array]


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of a model.

    Args:
        parts: Input name -> its values, for each part. The samples of a part have the same sizes.
        labels: Integers (samples, ...), or None.
        batch: Samples per run.
        fixed: Whether the model takes exactly `batch` samples per run.
        whole: Whether each part is one run, because the inputs share no axis for samples.
        limit: The number of samples to use, None for all.
        chosen: The indices of the samples of each part that are used, ascending; None for all.
    """

    parts: tuple[Mapping[str, Column], ...]
    labels: Array | None
    batch: int
    fixed: bool = False
    whole: bool = False
    limit: int | None = None
    chosen: tuple[Indices, ...] | None = None

    def __len__(self) -> int:
        """Return the number of samples that are run."""
        return sum(1 if self.whole else run.stop - run.start for _, run in self.runs())

    def head(self, count: int, batch: int) -> Samples:
        """Return the first samples.

        Args:
            count: The number of samples. At least one batch is used if its size is fixed.
            batch: Samples per run. It is ignored if the model fixes the batch size.
        """
        return (
            replace(self, limit=max(count, self.batch), batch=self.batch)
            if self.fixed
            else replace(self, limit=count, batch=batch)
        )

    def split(self, fitted: int) -> tuple[Samples, Samples | None]:
        """Split the samples at random into samples to fit on and samples held out.

        Args:
            fitted: The most samples that are of use to fit on; all others are held out.

        Returns:
            (the samples to fit on, the samples held out). One sample, or one batch of a fixed size, cannot be split:
            then nothing is held out.
        """
        size = self.batch if self.fixed else 1
        units = [
            (number, np.arange(start, start + size))
            for number, part in enumerate(self.parts)
            for start in range(0, 1 if self.whole else self._count(number, part) // size * size, size)
        ]
        least = min(len(units) // 2, max(-(-HELD_OUT_SAMPLES // size), round(HELD_OUT_SHARE * len(units))))
        if not least:
            return self, None
        order = np.random.default_rng(SPLIT_SEED).permutation(len(units))
        count = min(-(-fitted // size), len(units) - least)
        first, second = (self._only([units[number] for number in np.sort(part)]) for part in np.split(order, [count]))
        return first, second

    def _only(self, units: Sequence[tuple[int, Indices]]) -> Samples:
        """Return the samples of these units: (number of the part, indices of its samples)."""
        if self.whole:
            numbers = [number for number, _ in units]
            labels = None if self.labels is None else self.labels[numbers]
            return replace(self, parts=tuple(self.parts[number] for number in numbers), labels=labels)
        none = np.zeros(0, np.int64)
        chosen = tuple(
            np.concatenate([none, *(indices for part, indices in units if part == number)])
            for number in range(len(self.parts))
        )
        starts = np.cumsum([0, *(self._count(number, part) for number, part in enumerate(self.parts))])
        places = np.concatenate([start + indices for start, indices in zip(starts, chosen, strict=False)])
        return replace(self, chosen=chosen, labels=None if self.labels is None else self.labels[places])

    def _count(self, number: int, part: Mapping[str, Column]) -> int:
        """Return how many samples of a part are used."""
        return sample_count(part) if self.chosen is None else len(self.chosen[number])

    def runs(self) -> Iterator[tuple[int, slice]]:
        """Yield the part and the samples of every run. Samples that do not fill a fixed batch are left out.

        Yields:
            (number of the part, slice of its samples, or of those chosen).
        """
        remaining = self.limit
        for number, part in enumerate(self.parts):
            if self.whole:
                count, runs = 1, [slice(None)]
            else:
                most = self._count(number, part)
                count = most if remaining is None else min(most, remaining)
                count = count // self.batch * self.batch if self.fixed else count
                runs = [slice(start, min(start + self.batch, count)) for start in range(0, count, self.batch)]
            if remaining is not None:
                remaining -= count
                if remaining < 0:
                    return
            yield from ((number, run) for run in runs)

    def feeds(self) -> Feeds:
        """Return the samples in batches, each read on demand."""
        return Feeds(
            self.parts,
            tuple(
                (number, run if self.chosen is None or self.whole else self.chosen[number][run])
                for number, run in self.runs()
            ),
        )


class Feeds(Sequence[Feed]):
    """Runs of samples, read, decoded and preprocessed on demand, so that memory holds one run at a time."""

    def __init__(self, parts: Sequence[Mapping[str, Column]], runs: Sequence[tuple[int, slice | Indices]]) -> None:
        self._parts, self._runs = parts, runs

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, place: int) -> Feed: ...
    @overload
    def __getitem__(self, place: slice) -> Feeds: ...
    def __getitem__(self, place: int | slice) -> Feed | Feeds:
        if isinstance(place, slice):
            return Feeds(self._parts, self._runs[place])
        part, run = self._runs[place]
        return {name: column.take(run) for name, column in self._parts[part].items()}


def sample_count(part: Mapping[str, Column]) -> int:
    """Return the number of samples of a part."""
    return next(column.count for column in part.values() if column.count is not None)
