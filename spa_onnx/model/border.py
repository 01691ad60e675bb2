"""Standard nodes that let ONNX shape inference pass sizes into and out of the subgraphs of opened nodes."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from spa_onnx.model.subgraphs import Strip, stored_crossings


@dataclass(frozen=True, slots=True)
class Border:
    """The nodes that take the place of an opened node in shape inference.

    They pass on shapes but no values, because values differ between iterations.

    Args:
        inputs: Additional graph inputs: scalars that no node computes.
        before: Nodes before the operators of the subgraphs.
        after: Nodes after the operators of the subgraphs.
    """

    inputs: tuple[onnx.ValueInfoProto, ...]
    before: tuple[onnx.NodeProto, ...]
    after: tuple[onnx.NodeProto, ...]


def border(node: onnx.NodeProto, tied: Container[str]) -> Border:
    """Return the nodes that take the place of an opened node in shape inference.

    Args:
        node: The opened node.
        tied: The names of its tied subgraphs (see `spa_onnx.model.subgraphs.Opened`).
    """
    crossings = stored_crossings(node, tied)
    flag = f"{node.output[0]}__flag"
    sources: dict[str, list[str]] = {outside: [] for _, outside in crossings.leaving if outside}
    for inside, outside in crossings.leaving:
        sources.get(outside, []).append(inside)
    scalars = tuple(
        helper.make_tensor_value_info(name, dtype, []) for name, dtype in ((flag, TensorProto.BOOL), *crossings.numbers)
    )
    before = [_either(flag, inside, [outside]) for outside, inside in crossings.entering]
    before += [proto for strip in crossings.sliced for proto in _slice(strip)]
    after = [_either(flag, outside, insides) for outside, insides in sources.items()]
    after += [proto for strip in crossings.stacked if strip.outside for proto in _stack(strip)]
    return Border(scalars, tuple(before), tuple(after))


def _either(flag: str, target: str, sources: Sequence[str]) -> onnx.NodeProto:
    """Return a Where: its output has the shape of its sources, and inference cannot know its value."""
    return helper.make_node("Where", [flag, sources[0], sources[-1]], [target])


def _slice(strip: Strip) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that take the first slice of the tensor outside."""
    first = f"{strip.inside}__first"
    yield helper.make_node("Constant", [], [first], value=helper.make_tensor(first, TensorProto.INT64, [], [0]))
    yield helper.make_node("Gather", [strip.outside, first], [strip.inside], axis=strip.axis)


def _stack(strip: Strip) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that stack slices along an axis of unknown size, then set that size if it is known."""
    out = strip.outside
    stacked = f"{out}__runs"
    yield helper.make_node("SequenceConstruct", [strip.inside], [f"{out}__strips"])
    yield helper.make_node(
        "ConcatFromSequence", [f"{out}__strips"], [stacked if strip.runs else out], axis=strip.axis, new_axis=1
    )
    if strip.runs:
        like, axis = strip.runs
        position, size, indices = f"{out}__axis", f"{out}__size", f"{out}__each"
        yield helper.make_node(
            "Constant", [], [position], value=helper.make_tensor(position, TensorProto.INT64, [1], [axis])
        )
        yield helper.make_node("Shape", [like], [f"{size}s"])
        yield helper.make_node("Gather", [f"{size}s", position], [size])
        yield helper.make_node(
            "ConstantOfShape", [size], [indices], value=helper.make_tensor(indices, TensorProto.INT64, [1], [0])
        )
        yield helper.make_node("Gather", [stacked, indices], [out], axis=strip.axis)
