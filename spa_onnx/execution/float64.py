"""Models in float64, computed by onnx's reference implementation.

They tell a wrong result from the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_conv import Conv as SlowConv
from onnx.reference.ops.op_conv_transpose import ConvTranspose as SlowConvTranspose

from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import Feed, Session
from spa_onnx.model.subgraphs import graphs
from spa_onnx.model.traits import Array


@dataclass(frozen=True, slots=True)
class Float64:
    """An executor that computes in float64 with onnx's reference implementation.

    It is slow, and exact to the last bit of float32.
    """

    def open(
        self, proto: onnx.ModelProto, *, optimise: bool = False, timed: bool = False, what: str = "the model"
    ) -> Session:
        """Open a model; see `spa_onnx.execution.session.Executor`.

        `optimise` and `timed` have no effect.

        Raises:
            RefusedError: The reference implementation does not accept the model.
        """
        del optimise, timed
        names = tuple(value.name for value in proto.graph.output)
        try:
            evaluator = ReferenceEvaluator(to_float64(proto), new_ops=[Conv, ConvTranspose])
        except Exception as error:  # onnx documents no exception type
            raise RefusedError(f"onnx's reference implementation cannot compute {what}: {error}") from error
        return _Reference(evaluator, tuple(evaluator.input_names), names)


@dataclass(frozen=True, slots=True)
class _Reference:
    """A model in onnx's reference implementation."""

    evaluator: ReferenceEvaluator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feed: Feed, names: Sequence[str] | None = None, *, release: bool = False) -> list[Array]:
        """See `spa_onnx.execution.session.Session`. Float32 inputs become float64; other types do not change."""
        del release
        inputs = {n: array.astype(np.float64) if array.dtype == np.float32 else array for n, array in feed.items()}
        try:
            with np.errstate(all="ignore"):
                outputs = self.evaluator.run(list(names) if names else None, inputs)
        except Exception as error:  # each operator raises what numpy raises
            raise RefusedError(f"onnx's reference implementation cannot compute the model: {error}") from error
        return [np.asarray(output) for output in outputs]


def to_float64(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model with float64 instead of float32, in nested graphs as well."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for graph in graphs(copy.graph):
        del graph.value_info[:]
        attributes = [(node, attribute) for node in graph.node for attribute in node.attribute]
        for tensor in (*graph.initializer, *(attribute.t for _, attribute in attributes if attribute.HasField("t"))):
            if tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
        for node, attribute in attributes:
            if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", TensorProto.FLOAT):
                attribute.i = TensorProto.DOUBLE
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return copy


class Conv(SlowConv):
    """A convolution that sums one matrix product per kernel position.

    onnx's reference takes minutes for a large convolution.
    """

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> Any:  # type: ignore[override]
        group, spatial = attributes["group"] or 1, x.ndim - 2
        strides, dilations, pads = geometry(attributes, spatial)
        extents = [(size - 1) * dilation for size, dilation in zip(w.shape[2:], dilations, strict=True)]
        if attributes["auto_pad"] not in {None, "NOTSET"}:
            pads = auto_pads(attributes["auto_pad"], x.shape[2:], extents, strides)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])
        parts = padded.reshape(len(x), group, -1, *padded.shape[2:])
        sizes = [
            (size - extent - 1) // stride + 1
            for size, extent, stride in zip(padded.shape[2:], extents, strides, strict=True)
        ]
        y = np.zeros((len(x), group, len(w) // group, *sizes), x.dtype)
        for position in product(*map(range, w.shape[2:])):
            matrices = at(w, position).reshape(group, -1, w.shape[1])
            window = parts[windows(position, sizes, strides, dilations)]
            y += np.einsum("goi,ngi...->ngo...", matrices, window, optimize=True)
        y = y.reshape(len(x), len(w), *sizes)
        return (y if b is None else y + b.reshape(-1, *[1] * spatial),)


class ConvTranspose(SlowConvTranspose):
    """A transposed convolution that adds one matrix product per kernel position to the output."""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> Any:  # type: ignore[override]
        group, spatial = attributes["group"] or 1, x.ndim - 2
        if attributes["auto_pad"] not in {None, "NOTSET"} or attributes["output_shape"]:
            return super()._run(x, w, b, **attributes)  # type: ignore[no-untyped-call]
        strides, dilations, pads = geometry(attributes, spatial)
        output_padding = attributes["output_padding"] or [0] * spatial
        sizes, ones = x.shape[2:], [1] * spatial
        unpadded = [
            (size - 1) * stride + (kernel - 1) * dilation + 1 + extra
            for size, stride, kernel, dilation, extra in zip(
                sizes, strides, w.shape[2:], dilations, output_padding, strict=True
            )
        ]
        parts, weight = x.reshape(len(x), group, -1, *sizes), w.reshape(group, -1, *w.shape[1:])
        y = np.zeros((len(x), group, w.shape[1], *unpadded), x.dtype)
        for position in product(*map(range, w.shape[2:])):
            y[windows(position, sizes, strides, dilations)] += np.einsum(
                "gio,ngi...->ngo...", at(weight, position), parts, optimize=True
            )
        kept = [size - begin - end for size, begin, end in zip(unpadded, pads[:spatial], pads[spatial:], strict=True)]
        y = y.reshape(len(x), -1, *unpadded)[windows(pads[:spatial], kept, ones, ones)]
        return (y if b is None else y + b.reshape(-1, *[1] * spatial),)


def geometry(attributes: dict[str, Any], spatial: int) -> tuple[list[int], list[int], list[int]]:
    """Return the attributes of a convolution with their defaults filled in.

    Args:
        attributes: The attributes; None for those that the node does not have.
        spatial: The number of spatial axes.

    Returns:
        (strides, dilations, pads); pads holds the begins of all axes, then the ends.
    """
    ones = [1] * spatial
    return attributes["strides"] or ones, attributes["dilations"] or ones, attributes["pads"] or [0] * 2 * spatial


def auto_pads(mode: str, sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Return the pads that a value of `auto_pad` means.

    onnx's reference before 1.23 ignores the strides.

    Args:
        mode: The value of `auto_pad`: SAME_UPPER, SAME_LOWER or VALID.
        sizes: The size of each spatial axis of the input.
        extents: The extent of the kernel on each axis, minus 1.
        strides: The stride on each axis.

    Returns:
        The begins of all axes, then the ends.
    """
    if mode == "VALID":
        return [0] * 2 * len(sizes)
    needed = [
        (-(-size // stride) - 1) * stride + extent + 1 - size
        for size, extent, stride in zip(sizes, extents, strides, strict=True)
    ]
    totals = [max(total, 0) for total in needed]
    smaller, larger = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return larger + smaller if mode == "SAME_LOWER" else smaller + larger


def at(weight: Array, position: tuple[int, ...]) -> Array:
    """Return the matrices at one position of the kernel, whose axes are the last ones."""
    index: Any = (Ellipsis, *position)
    return np.asarray(weight[index])


def windows(position: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Any:
    """Return the index of the elements that one kernel position meets on the last axes of the larger tensor.

    The larger tensor is the padded input of a convolution, or the output of a transposed one before its pads are cut.

    Args:
        position: The index on each axis of the kernel.
        sizes: The size of each spatial axis of the smaller tensor: the number of elements met on the axis.
        strides: The stride on each axis.
        dilations: The dilation on each axis.
    """
    starts = [number * dilation for number, dilation in zip(position, dilations, strict=True)]
    slices = [
        slice(start, start + (size - 1) * step + 1, step)
        for start, size, step in zip(starts, sizes, strides, strict=True)
    ]
    return (Ellipsis, *slices)
