"""What a plan keeps of every axis."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spa_onnx.analysis.groups import Analysis
from spa_onnx.model.facts import Axis, Indices
from spa_onnx.model.folding import Array, Value, fold
from spa_onnx.model.model import Model
from spa_onnx.model.shapes import Shape

Slices: TypeAlias = tuple[dict[int, Indices], ...]
"""Axis -> kept indices, for axes that lose some. Either one mapping, or one for each part of axis 0, to be joined."""


SliceKey: TypeAlias = tuple[tuple[tuple[int, bytes], ...], ...]
"""Slices in a form that can be compared."""


class Removal:
    """The kept indices of every axis of a model. `drop`: group name -> channels that are removed."""

    def __init__(self, analysis: Analysis, drop: Mapping[str, Indices]) -> None:
        self._model: Model = analysis.model
        self._gone: dict[Axis, np.ndarray] = {}
        self._shapes: dict[str, Shape] = {}
        self._owners = [frozenset(group.owner) for group in analysis.groups if len(drop.get(group.name, ()))]
        for group in analysis.groups:
            if len(drop.get(group.name, ())):
                mark = np.zeros(group.size + 1, bool)
                mark[drop[group.name]] = True
                masks: dict[int, np.ndarray] = {}
                for axis, owner in group.owner.items():
                    if id(owner) not in masks:
                        masks[id(owner)] = mark[owner]
                    self._gone[axis] = self._gone[axis] | masks[id(owner)] if axis in self._gone else masks[id(owner)]

    def __contains__(self, axis: Axis) -> bool:
        """Return whether the axis loses indices."""
        return axis in self._gone and bool(self._gone[axis].any())

    def together_with(self, axes: AbstractSet[Axis]) -> set[Axis]:
        """Return all axes of the groups that lose channels and own one of these axes."""
        return {axis for owned in self._owners if not axes.isdisjoint(owned) for axis in owned}

    def kept(self, axis: Axis) -> Indices:
        """Return the kept indices of the axis, sorted, int64; not for axes that every part has for itself."""
        (kept,) = np.nonzero(self.stays(axis))
        return kept

    def stays(self, axis: Axis) -> NDArray[np.bool_]:
        """Return which indices of the axis are kept, bool (size of the axis,).

        The shape is (parts, size of the axis) if every part has the axis for itself; see `Group`.
        """
        if axis in self._gone:
            return ~self._gone[axis]
        return np.ones((self._model.shape(axis.tensor) or ())[axis.dim], bool)

    def slices(self, tensor: str, only: Container[Axis] | None = None) -> Slices:
        """Return what is kept of a tensor, for the axes that lose indices. only: the axes to consider, None for all."""
        axes = [Axis(tensor, dim) for dim in range(len(self._model.shape(tensor) or ()))]
        stays = {axis.dim: self.stays(axis) for axis in axes if axis in self and (only is None or axis in only)}
        parts = {dim: rows for dim, rows in stays.items() if rows.ndim > 1 and (rows != rows[0]).any()}
        alike = {
            dim: np.flatnonzero(rows.reshape(-1, rows.shape[-1])[0]) for dim, rows in stays.items() if dim not in parts
        }
        return tuple(_parts(alike, parts, (self._model.shape(tensor) or (0,))[0])) if parts else (alike,)

    def after(self, tensor: str) -> Shape:
        """Return the sizes of a tensor in the pruned model."""
        if tensor not in self._shapes:
            shape = self._model.shape(tensor) or ()
            lost = (self._gone.get(Axis(tensor, dim)) for dim in range(len(shape)))
            self._shapes[tensor] = tuple(
                s if g is None else s - int(g.sum()) * s // g.size for s, g in zip(shape, lost, strict=True)
            )
        return self._shapes[tensor]

    def override(self, shapes: Mapping[str, Shape]) -> None:
        """Set the sizes of tensors inside a channel shuffle, which no group covers."""
        self._shapes.update(shapes)

    def value(self, tensor: str) -> Array | None:
        """Return a small tensor as the pruned graph would compute it without any edit; None if it is unknown."""
        constant = self._model.constant(tensor)
        if constant is not None:
            return constant
        found = self._values.get(tensor)
        return None if found is None else found.array

    @cached_property
    def _values(self) -> Mapping[str, Value]:
        """The values of shape arithmetic with the sizes of the pruned model."""
        values = self._model.inference.values
        literals = {name: value.array for name, value in values.items() if value.is_literal}
        nodes = [node for node in self._model.nodes if self._model.is_folded(node)]
        sources = {node.inputs[0] for node in nodes if node.op in ("Shape", "Size")}
        shapes = {name: self.after(name) for name in sources if self._model.shape(name) is not None}
        return fold(nodes, shapes, literals, {name: values[name] for name in self._model.inputs if name in values})


def _parts(
    alike: Mapping[int, Indices], own: Mapping[int, NDArray[np.bool_]], size: int
) -> Iterator[dict[int, Indices]]:
    """Yield the slices of each part.

    alike: kept indices of the axes that all parts share. own: bool (parts, indices) of the others. size: the size of
    axis 0.
    """
    rows, parts = alike.get(0, np.arange(size)), len(next(iter(own.values())))
    for part in range(parts):
        kept = {
            **alike,
            0: rows[rows // (size // parts) == part],
            **{dim: np.flatnonzero(stays[part]) for dim, stays in own.items()},
        }
        yield dict(sorted(kept.items()))


def lookup(slices: Slices) -> SliceKey:
    """Return slices in a form that can be compared."""
    return tuple(tuple((dim, indices.tobytes()) for dim, indices in kept.items()) for kept in slices)


def taken(array: Array, slices: Sequence[Mapping[int, Indices]]) -> Array:
    """Return the slices of an array, joined along axis 0."""
    parts = []
    for kept in slices:
        part = array
        for dim, indices in kept.items():
            part = np.take(part, indices, axis=dim)
        parts.append(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def put(array: Array, slices: Sequence[Mapping[int, Indices]], values: Array) -> Array:
    """Return a copy of the array with new values for its slices, in the form that `taken` returns."""
    result = np.array(array)
    bounds = np.cumsum([len(kept.get(0, ())) for kept in slices[:-1]])
    for kept, part in zip(slices, np.split(values, bounds) if len(slices) > 1 else (values,), strict=True):
        result[_places(kept, array)] = part
    return result


def zeroed(model: Model, name: str, array: Array, slices: Sequence[Mapping[int, Indices]]) -> Array:
    """Return a constant, by the name of its use, that represents zero wherever none of the slices keeps it."""
    nothing = model.quantised[name].nothing(array.shape) if name in model.quantised else np.zeros_like(array)
    return put(nothing, slices, taken(array, slices))


def _places(kept: Mapping[int, Indices], array: Array) -> tuple[Indices, ...]:
    """Return an index for the kept elements of an array."""
    return np.ix_(*(kept.get(dim, np.arange(size)) for dim, size in enumerate(array.shape)))
