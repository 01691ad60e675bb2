"""Axes, spans of channels on them, and the facts that coupling rules state about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.errors import RuleError

Indices: TypeAlias = NDArray[np.int64]


class Axis(NamedTuple):
    """A dimension of a tensor; prints as `conv1.weight[0]`.

    It is a tuple because hashing axes dominates the time of the analysis.

    Args:
        tensor: Name of the tensor.
        dim: The dimension, 0-based and never negative.
    """

    tensor: str
    dim: int

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]"


@dataclass(frozen=True, slots=True)
class Span:
    """The channels of an axis and the indices that each of them owns.

    Channel k owns the indices `start + o*period + p*inner + i` for `o < outer` and `i < inner`, where p is `order[k]`,
    or k if there is no order.

    Args:
        axis: The axis.
        count: Number of channels.
        start: First index of the first channel.
        inner: Number of neighbouring indices that a channel owns.
        outer: Number of repetitions of the whole span along the axis.
        period: Distance between repetitions, in indices.
        order: Position of each channel, if the channels are not in their natural order (Gather, channel shuffle).

    Raises:
        RuleError: The order does not have `count` positions.
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
        """Return the indices of each channel, int64 of shape (count, outer * inner)."""
        place = np.arange(self.count) if self.order is None else np.asarray(self.order, dtype=np.int64)
        owned = np.arange(self.outer)[:, None] * self.period + np.arange(self.inner)[None, :]
        return (self.start + place[:, None] * self.inner + owned.ravel()[None, :]).astype(np.int64)

    def is_whole(self, size: int) -> bool:
        """Return whether channel k is index k, and the channels cover all `size` indices of the axis."""
        plain = self.start == 0 and self.inner == 1 and self.outer == 1 and self.order is None
        return plain and self.count == size


@dataclass(frozen=True, slots=True)
class Coupling:
    """Channel k of `a` and channel k of `b` are removed together or not at all.

    Args:
        a: The channels of one axis.
        b: The channels of the other axis.
        why: The reason, shown to the user.
        parts: Number of parts of `a`. If more than 1, channel k owns one index in each part, and each part may lose
            different channels, as long as all parts lose the same number.

    Raises:
        RuleError: The two spans differ in their number of channels.
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
        """Return the two coupled axes."""
        return (self.a.axis, self.b.axis)


@dataclass(frozen=True, slots=True)
class Pin:
    """Nothing may be removed from this axis.

    Args:
        axis: The axis.
        why: The reason, shown to the user. The same cause has the same text, so that reasons can be counted.
        where: The node or tensor that causes the pin.
    """

    axis: Axis
    why: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.why}: {self.where}" if self.where else self.why

    def axes(self) -> tuple[Axis, ...]:
        """Return the pinned axis."""
        return (self.axis,)


@dataclass(frozen=True, slots=True)
class Free:
    """Any index of this axis can be removed without consequences, as in padded zeros and broadcast copies."""

    axis: Axis

    def axes(self) -> tuple[Axis, ...]:
        """Return the axis."""
        return (self.axis,)


@dataclass(frozen=True, slots=True)
class Positions:
    """The axis counts positions, like the height of a kernel or the width of an image.

    It holds no channels, so it is never pruned, and no reason is reported.
    """

    axis: Axis

    def axes(self) -> tuple[Axis, ...]:
        """Return the axis of positions."""
        return (self.axis,)


@dataclass(frozen=True, slots=True)
class Normalises:
    """A node computes a statistic over the axis: channels can be removed, but the result is not exact.

    Args:
        axis: The axis.
        node: Name of the node that computes the statistic.
        why: The reason, shown to the user.
        unless_zero: Whether the result is exact if the removed channels are zero in the masked model, as for a sum.
    """

    axis: Axis
    node: str
    why: str
    unless_zero: bool = False

    def axes(self) -> tuple[Axis, ...]:
        """Return the axis of the statistic."""
        return (self.axis,)


@dataclass(frozen=True, slots=True)
class Batches:
    """The axis is a batch axis of a MatMul of two activations, such as the heads of attention."""

    axis: Axis

    def axes(self) -> tuple[Axis, ...]:
        """Return the batch axis."""
        return (self.axis,)


Plain: TypeAlias = Coupling | Pin | Free | Positions | Normalises | Batches
"""A fact that always holds, unlike the options of a `Choice`."""


@dataclass(frozen=True, slots=True)
class Option:
    """One of the options of a choice.

    Args:
        name: The name, shown by `explain`.
        facts: The facts that hold if this option is taken.
    """

    name: str
    facts: tuple[Coupling | Pin, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Exactly one of several options holds.

    Args:
        node: Name of the node that offers the choice.
        options: The options, in order of preference.
    """

    node: str
    options: tuple[Option, ...]

    def axes(self) -> tuple[Axis, ...]:
        """Return the axes of all options."""
        return tuple(axis for option in self.options for fact in option.facts for axis in fact.axes())


Fact: TypeAlias = Plain | Choice


def whole(axis: Axis, size: int) -> Span:
    """Return the span in which channel k is index k of an axis with `size` indices."""
    return Span(axis, size)


def same(a: Axis, b: Axis, size: int, why: str) -> Iterator[Coupling]:
    """Yield the coupling of index k of one axis with index k of another; none for axes of size 1.

    Args:
        a: One axis.
        b: The other axis.
        size: The size of both axes.
        why: The reason, shown to the user.
    """
    if size > 1:
        yield Coupling(whole(a, size), whole(b, size), why)
