"""What a plan leaves of every axis."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from spa_onnx.facts import Axis, Indices
from spa_onnx.fold import Array, Value, fold
from spa_onnx.groups import Analysis
from spa_onnx.model import Model
from spa_onnx.shapes import Shape


class Removal:
    """The indices that stay, for every axis of the model. `drop`: group name -> channels that go."""

    def __init__(self, analysis: Analysis, drop: Mapping[str, Indices]) -> None:
        self._model: Model = analysis.model
        self._gone: dict[Axis, np.ndarray] = {}
        self._shapes: dict[str, Shape] = {}
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
        """Whether the axis loses anything."""
        return axis in self._gone and bool(self._gone[axis].any())

    def kept(self, axis: Axis) -> Indices:
        """The indices of the axis that stay, sorted, int64."""
        if axis in self._gone:
            return np.flatnonzero(~self._gone[axis])
        return np.arange((self._model.shape(axis.tensor) or ())[axis.dim])

    def losses(self, tensor: str) -> dict[int, Indices]:
        """Axis -> the indices that stay, for the axes of a tensor that lose something."""
        axes = [Axis(tensor, dim) for dim in range(len(self._model.shape(tensor) or ()))]
        return {axis.dim: self.kept(axis) for axis in axes if axis in self}

    def after(self, tensor: str) -> Shape:
        """Sizes of a tensor in the pruned model."""
        if tensor not in self._shapes:
            shape = self._model.shape(tensor) or ()
            lost = (self._gone.get(Axis(tensor, dim)) for dim in range(len(shape)))
            self._shapes[tensor] = tuple(s if g is None else s - int(g.sum()) for s, g in zip(shape, lost, strict=True))
        return self._shapes[tensor]

    def override(self, shapes: Mapping[str, Shape]) -> None:
        """Sizes inside a channel shuffle, about whose tensors the groups say nothing."""
        self._shapes.update(shapes)

    def value(self, tensor: str) -> Array | None:
        """A small tensor as the pruned graph would compute it without any edit; None where it is not known."""
        constant = self._model.constant(tensor)
        if constant is not None:
            return constant
        found = self._values.get(tensor)
        return None if found is None else found.array

    @cached_property
    def _values(self) -> Mapping[str, Value]:
        values = self._model.inference.values
        literals = {name: value.array for name, value in values.items() if value.is_literal}
        nodes = [node for node in self._model.nodes if self._model.is_folded(node)]
        sources = {node.inputs[0] for node in nodes if node.op in ("Shape", "Size")}
        return fold(nodes, {name: self.after(name) for name in sources if self._model.shape(name) is not None}, literals)


def zeroed(model: Model, name: str, array: Array, kept: Mapping[int, Indices]) -> Array:
    """A constant, by the name of its use, that stands for zero wherever an axis loses something: axis -> the indices that stay."""
    result = model.quantised[name].nothing(array.shape) if name in model.quantised else np.zeros_like(array)
    where = np.ix_(*(kept.get(dim, np.arange(size)) for dim, size in enumerate(array.shape)))
    result[where] = array[where]
    return result
