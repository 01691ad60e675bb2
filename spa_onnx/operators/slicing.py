"""Operators that join, split or select parts of an axis: Concat, Split, Slice, Gather."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from spa_onnx.model import numpy_ops
from spa_onnx.model.facts import Axis, Coupling, Fact, Free, Pin, Span, same, whole
from spa_onnx.model.folding import NOTHING, slices
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.shapes import Shape
from spa_onnx.model.traits import Fold, Moves
from spa_onnx.operators.registry import UNBOUNDED, register
from spa_onnx.operators.reshaping import reshape_choice
from spa_onnx.operators.updates import Cut, SetAttribute, SetInput, ShapeEdit, TakeInstead
from spa_onnx.operators.zeros import every_input, first


def _unaffected(node: Node, model: Model, x: str, y: str, *axes: int) -> Iterator[Coupling]:
    """Couple every axis of x that is not in `axes` with the same axis of y."""
    for dim, size in enumerate(model.shape(x) or ()):
        if dim not in axes:
            yield from same(Axis(x, dim), Axis(y, dim), size, f"{node} works along another axis")


def _axis(node: Node, model: Model, default: int = 0) -> int:
    return int(node.attributes.get("axis", default)) % len(model.shape(node.inputs[0]) or ())


def concat(node: Node, model: Model) -> Iterator[Fact]:
    """Y = [x0, x1, ...] along `axis`: channel i of xk is channel offset_k + i of y."""
    y, axis, offset = node.outputs[0], _axis(node, model), 0
    for x in node.inputs:
        size = (model.shape(x) or ())[axis]
        yield Coupling(
            whole(Axis(x, axis), size), Span(Axis(y, axis), size, start=offset), f"{node} puts it at {offset}"
        )
        yield from _unaffected(node, model, x, y, axis)
        offset += size


def split(node: Node, model: Model) -> Iterator[Fact]:
    """y0, y1, ... = consecutive parts of x along `axis`."""
    x, axis, offset = node.inputs[0], _axis(node, model), 0
    for y in node.outputs:
        size = (model.shape(y) or ())[axis]
        yield Coupling(
            Span(Axis(x, axis), size, start=offset), whole(Axis(y, axis), size), f"{node} takes it from {offset}"
        )
        yield from _unaffected(node, model, x, y, axis)
        offset += size


def update_split(node: Node, model: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Set the kept sizes of the parts. Parts of equal size before may differ after pruning."""
    axis = _axis(node, model)
    before = cut.value(node.inputs[1]) if node.input(1) else [(model.shape(y) or ())[axis] for y in node.outputs]
    after = [cut.after(y)[axis] for y in node.outputs]
    if before is None or list(before) == after:
        return
    if "num_outputs" in node.attributes:
        yield SetAttribute("num_outputs", None)
    yield SetInput(1, np.asarray(after, np.int64)) if model.opset >= 13 else SetAttribute("split", after)


def _slice_ranges(node: Node, model: Model) -> dict[int, range] | None:
    """Return axis -> the indices that a Slice takes; None if bounds are not constant or depend on another axis."""
    x, shape = node.inputs[0], model.shape(node.inputs[0]) or ()
    values = [model.value(name) if name else NOTHING for name in node.inputs[1:]]
    parameters = [value for value in values if value is not None]
    if len(parameters) < len(values) or not all(value.is_literal for value in parameters[2:]):
        return None
    sliced = slices(node, [value.array for value in parameters])
    for value in parameters[:2]:  # the bounds of torch.chunk are computed from the size of the axis that it cuts
        if any(not origin <= {Axis(x, a % len(shape))} for origin, (a, *_) in zip(value.origin, sliced, strict=True)):
            return None
    return {
        a % len(shape): range(*slice(s, None if t < 0 and e < -shape[a] else e, t).indices(shape[a]))
        for a, s, e, t in sliced
    }


def slice_(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x[start:end:step] along some axes: index j of y is index start + j * step of x. Other indices are free."""
    x, y, ranges = node.inputs[0], node.outputs[0], _slice_ranges(node, model)
    if ranges is None:
        yield from _unsliced(node, model)
        return
    yield from _unaffected(node, model, x, y, *ranges)
    for dim, taken in ranges.items():
        if taken.step == 1 or len(_shortened(ranges, model.shape(x) or ())) == 1:
            yield from _takes(node, Axis(x, dim), Axis(y, dim), taken)
        else:
            yield from (
                Pin(Axis(t, dim), f"{node.op} goes through it in steps and cuts other axes too", str(node))
                for t in (x, y)
            )


def _shortened(ranges: Mapping[int, range], shape: Shape) -> list[int]:
    """Return the axes that a Slice shortens or reverses."""
    return [dim for dim, taken in ranges.items() if taken != range(shape[dim])]


def _takes(node: Node, x: Axis, y: Axis, taken: range) -> Iterator[Fact]:
    """Couple the taken indices of x with all indices of y."""
    if len(taken) == 0:
        return
    if taken.step == 1:
        yield Coupling(
            Span(x, len(taken), start=taken.start), whole(y, len(taken)), f"{node} takes it from {taken.start}"
        )
    else:
        yield Coupling(
            Span(x, len(taken), order=tuple(taken)), whole(y, len(taken)), f"{node} takes every {taken.step}th"
        )


def _unsliced(node: Node, model: Model) -> Iterator[Fact]:
    """Handle bounds known only at run time: pin the axes they depend on, couple the axes that are not sliced."""
    for value in (model.value(name) for name in node.inputs[1:3]):
        for axis in sorted(frozenset().union(*value.origin) if value else ()):
            yield Pin(axis, "Slice computes with its size", str(node))
    axes = model.constant(node.input(3)) if node.input(3) else np.arange(_bound_count(node, model))
    if axes is not None:
        rank = len(model.shape(node.inputs[0]) or ())
        yield from _unaffected(node, model, node.inputs[0], node.outputs[0], *(int(a) % rank for a in axes.ravel()))


def _bound_count(node: Node, model: Model) -> int:
    """Return the number of sliced axes."""
    return int(np.prod(model.shape(node.inputs[1]) or (1,)))


def update_slice(node: Node, model: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Move each bound to the number of kept indices before it; replace a Slice with steps by a Gather."""
    x, y, ranges = node.inputs[0], node.outputs[0], _slice_ranges(node, model)
    shape = model.shape(x) or ()
    changed = [d for d in ranges or {} if cut.after(x)[d] != shape[d]]
    if not changed or ranges is None:
        return
    stepped = [dim for dim in changed if ranges[dim].step != 1]
    if stepped:
        dim = stepped[0]  # the only shortened axis, since the rule pins axes with steps beside others
        yield TakeInstead(dim, _renumbered(cut, Axis(x, dim), np.asarray(ranges[dim])[cut.kept(Axis(y, dim))]))
        return
    values = [model.value(name) for name in node.inputs[1:]]
    sliced = slices(node, [None if value is None else value.array for value in values])
    bounds = {d: np.searchsorted(cut.kept(Axis(x, d)), (ranges[d].start, ranges[d].stop)) for d in changed}
    starts = [int(bounds[a % len(shape)][0]) if a % len(shape) in bounds else s for a, s, _, _ in sliced]
    ends = [int(bounds[a % len(shape)][1]) if a % len(shape) in bounds else e for a, _, e, _ in sliced]
    if "starts" in node.attributes:
        yield SetAttribute("starts", starts)
        yield SetAttribute("ends", ends)
    else:
        yield from _bound(node, cut, 1, starts)
        yield from _bound(node, cut, 2, ends)


def _bound(node: Node, cut: Cut, slot: int, bounds: list[int]) -> Iterator[SetInput]:
    """Set an input to these bounds, unless the pruned graph computes them already."""
    computed = cut.value(node.inputs[slot])
    wanted = np.asarray(bounds, np.int64 if computed is None else computed.dtype)
    if computed is None or (computed.ravel() != wanted).any():
        yield SetInput(slot, wanted, None if computed is None else computed.ravel() != wanted)


def _renumbered(cut: Cut, axis: Axis, wanted: np.ndarray) -> np.ndarray:
    """Return indices of the original axis as indices of the pruned axis."""
    return np.searchsorted(cut.kept(axis), wanted).astype(np.int64)


def gather(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x[indices] along `axis`. Constant indices select channels; other indices (token ids) keep the whole axis."""
    x, indices, y = node.inputs[0], node.inputs[1], node.outputs[0]
    axis, shape, picked = _axis(node, model), model.shape(x) or (), model.constant(indices)
    rank = len(model.shape(indices) or ())
    for dim, size in enumerate(shape):
        if dim != axis:
            yield from same(
                Axis(x, dim), Axis(y, dim if dim < axis else dim + rank - 1), size, f"{node} takes whole slices"
            )
    if picked is not None and rank == 1:
        order = tuple(int(i) % shape[axis] for i in picked)
        selected = Span(Axis(x, axis), len(order), order=order)
        yield Coupling(selected, whole(Axis(y, axis), len(order)), f"{node} takes index order[k] as its k-th")
        yield from same(Axis(indices, 0), Axis(y, axis), len(order), f"{node} has one index per element")
    elif picked is not None and _enumerates(picked, shape[axis]):
        sizes = {axis + dim: size for dim, size in enumerate(picked.shape) if size > 1}
        yield from reshape_choice(
            node, [(Axis(x, axis), shape[axis])], [(Axis(y, dim), size) for dim, size in sizes.items()]
        )
        for dim, size in sizes.items():
            yield from same(Axis(indices, dim - axis), Axis(y, dim), size, f"{node} has one index per element")
    elif picked is not None and rank == 0 and _only_shape_is_read(y, model):
        yield Free(Axis(x, axis))
    elif picked is None:
        for dim, size in enumerate(model.shape(indices) or ()):
            yield from same(Axis(indices, dim), Axis(y, axis + dim), size, f"{node} has one index per element")


def _enumerates(picked: np.ndarray, size: int) -> bool:
    """Return whether indices of several axes list every position in order, as exporters do to write a strided view."""
    return picked.ndim > 1 and picked.size == size and bool((picked.ravel() == np.arange(size)).all())


def _only_shape_is_read(tensor: str, model: Model) -> bool:
    """Return whether all readers of a tensor use its shape only."""
    return tensor not in model.outputs and all(
        reader.op in ("Shape", "Size") for reader in model.consumers.get(tensor, ())
    )


def update_gather(node: Node, model: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Renumber constant indices to the kept indices of the axis."""
    x, y, picked = node.inputs[0], node.outputs[0], model.constant(node.inputs[1])
    axis, shape = _axis(node, model), model.shape(x) or ()
    if picked is None or (picked.ndim > 1 and not _enumerates(picked, shape[axis])):
        return
    if picked.ndim > 1:
        if cut.after(x)[axis] != shape[axis]:
            index_shape = cut.after(y)[axis : axis + picked.ndim]
            yield SetInput(1, np.arange(cut.after(x)[axis], dtype=picked.dtype).reshape(index_shape))
        return
    if picked.ndim == 0:
        if not -cut.after(x)[axis] <= picked < cut.after(x)[axis]:
            yield SetInput(1, np.zeros_like(picked))
        return
    if cut.after(x)[axis] != shape[axis] or cut.after(y)[axis] != picked.size:
        wanted = (picked % shape[axis])[cut.kept(Axis(y, axis))]
        yield SetInput(1, _renumbered(cut, Axis(x, axis), wanted).astype(picked.dtype))


def rows_of_table(node: Node, model: Model) -> int:
    """Return the size of the axis that a Gather selects from, the upper bound of its indices."""
    return (model.shape(node.inputs[0]) or (UNBOUNDED,))[int(node.attributes.get("axis", 0))]


register("Concat", coupling=concat, zero=every_input, fold=Fold(numpy_ops.concat, moved=slice(0, None)))
register(
    "Split",
    coupling=split,
    parameters=(1,),
    update=update_split,
    corrects=(1,),
    zero=first,
    fold=Fold(numpy_ops.split, moved=slice(0, 1), sized_by=slice(1, 2)),
)
register(
    "Slice",
    coupling=slice_,
    parameters=(1, 2, 3, 4),
    default_reason="takes a part of it that is known only while running",
    update=update_slice,
    corrects=(1, 2),
    zero=first,
    moves=Moves.PICK,
    fold=Fold(numpy_ops.slice_, moved=slice(0, 1), sized_by=slice(1, 5)),
)
register(
    "Gather",
    coupling=gather,
    default_reason="picks from it by index, so every index keeps its place",
    update=update_gather,
    zero=first,
    moves=Moves.PICK,
    fold=Fold(numpy_ops.gather, moved=slice(0, 1)),
    bounds={1: rows_of_table},
    unmasked=(1,),
)
