"""The words of the analysis: axes, spans of channels on them, and what rules may say about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.errors import RuleError

Indices: TypeAlias = NDArray[np.int64]


class Axis(NamedTuple):
    """Dimension `dim` (0-based, never negative) of a tensor; prints as `conv1.weight[0]`.

    A tuple, because the analysis hashes axes more than anything else.
    """

    tensor: str
    dim: int

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]"


@dataclass(frozen=True, slots=True)
class Span:
    """`count` channels of an axis, and the indices that each of them owns.

    Channel k owns `start + o*period + p*inner + i` for `o < outer` and `i < inner`, where p is k, or `order[k]`
    where the channels do not lie in their natural order (a gather, a channel shuffle).
    """

    axis: Axis
    count: int
    start: int = 0
    inner: int = 1
    outer: int = 1
    period: int = 0
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.order is not None and len(self.order) != self.count:
            raise RuleError(f"{self.axis}: {self.count} channels but an order of {len(self.order)} positions")

    def indices(self) -> Indices:
        """The indices of each channel, int64 of shape (count, outer * inner)."""
        place = np.arange(self.count) if self.order is None else np.asarray(self.order, dtype=np.int64)
        owned = np.arange(self.outer)[:, None] * self.period + np.arange(self.inner)[None, :]
        return (self.start + place[:, None] * self.inner + owned.ravel()[None, :]).astype(np.int64)

    def is_whole(self, size: int) -> bool:
        """Whether channel k is simply index k of an axis with `size` indices."""
        plain = self.start == 0 and self.inner == 1 and self.outer == 1 and self.order is None
        return plain and self.count == size


@dataclass(frozen=True, slots=True)
class Coupling:
    """Channel k of `a` and channel k of `b` are removed together or not at all.

    parts: where more than 1, channel k owns one index in each of so many parts of `a`, and it need not be the same one: each part may
    lose its own, as long as all lose as many.
    """

    a: Span
    b: Span
    why: str
    parts: int = 1

    def __post_init__(self) -> None:
        if self.a.count != self.b.count:
            raise RuleError(
                f"{self.why}: {self.a.axis} has {self.a.count} channels but {self.b.axis} has {self.b.count}"
            )

    def axes(self) -> tuple[Axis, ...]:
        """The two axes that it ties together."""
        return (self.a.axis, self.b.axis)


@dataclass(frozen=True, slots=True)
class Pin:
    """Nothing may be removed from this axis.

    why: the reason, the same words for the same cause, so that reasons can be counted. where: the node or tensor that it holds for.
    """

    axis: Axis
    why: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.why}: {self.where}" if self.where else self.why

    def axes(self) -> tuple[Axis, ...]:
        """The pinned axis."""
        return (self.axis,)


@dataclass(frozen=True, slots=True)
class Free:
    """The node lets any index of this axis go and nothing else follows (a padded zero, a broadcast copy)."""

    axis: Axis

    def axes(self) -> tuple[Axis, ...]:
        """The axis that the node has accounted for."""
        return (self.axis,)


@dataclass(frozen=True, slots=True)
class Positions:
    """The axis counts positions (a kernel's height, an image's width) and holds no channels, so it stays and nobody need be told."""

    axis: Axis

    def axes(self) -> tuple[Axis, ...]:
        """The axis of positions."""
        return (self.axis,)


@dataclass(frozen=True, slots=True)
class Normalises:
    """`node` computes a statistic over the axis: removing from it is possible, but the result is not exact."""

    axis: Axis
    node: str
    why: str

    def axes(self) -> tuple[Axis, ...]:
        """The axis under the statistic."""
        return (self.axis,)


@dataclass(frozen=True, slots=True)
class Batches:
    """The axis is a batch axis of a product of two activations: the heads of attention."""

    axis: Axis

    def axes(self) -> tuple[Axis, ...]:
        """The batch axis."""
        return (self.axis,)


Plain: TypeAlias = Coupling | Pin | Free | Positions | Normalises | Batches


@dataclass(frozen=True, slots=True)
class Option:
    """One way to settle a choice: all its facts hold together. `name` is shown by `explain`."""

    name: str
    facts: tuple[Coupling | Pin, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Exactly one of the options holds; they are given in the order of preference."""

    node: str
    options: tuple[Option, ...]

    def axes(self) -> tuple[Axis, ...]:
        """Every axis that an option speaks about."""
        return tuple(axis for option in self.options for fact in option.facts for axis in fact.axes())


Fact: TypeAlias = Plain | Choice


def whole(axis: Axis, size: int) -> Span:
    """The span in which channel k is index k of an axis with `size` indices."""
    return Span(axis, size)


def same(a: Axis, b: Axis, size: int, why: str) -> Iterator[Coupling]:
    """Index k of one axis is index k of the other; axes of size 1 have nothing to lose and yield nothing."""
    if size > 1:
        yield Coupling(whole(a, size), whole(b, size), why)
