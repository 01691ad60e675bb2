"""Models in float64, computed by onnx's reference implementation: where rounding decides, it tells a fault from a last bit."""

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
    """An executor that computes in float64 with onnx's reference implementation. Slow, and exact to the last bit of float32."""

    def open(
        self, proto: onnx.ModelProto, *, optimise: bool = False, timed: bool = False, what: str = "the model"
    ) -> Session:
        """See `spa_onnx.execution.session.Executor`; nothing is fused and nothing is timed."""
        del optimise, timed
        names = tuple(value.name for value in proto.graph.output)
        try:
            evaluator = ReferenceEvaluator(doubled(proto), new_ops=[Conv, ConvTranspose])
        except Exception as error:  # the reference implementation raises whatever it meets
            raise RefusedError(f"onnx's reference implementation cannot compute {what}: {error}") from error
        return _Reference(evaluator, tuple(evaluator.input_names), names)


@dataclass(frozen=True, slots=True)
class _Reference:
    """A model in onnx's reference implementation."""

    evaluator: ReferenceEvaluator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feed: Feed, names: Sequence[str] | None = None, *, release: bool = False) -> list[Array]:
        """See `spa_onnx.execution.session.Session`. What is float32 in the feed becomes float64; integers stay what they are."""
        del release
        wide = {n: array.astype(np.float64) if array.dtype == np.float32 else array for n, array in feed.items()}
        try:
            with np.errstate(all="ignore"):
                outputs = self.evaluator.run(list(names) if names else None, wide)
        except Exception as error:  # it is many small functions on arrays, each of which raises what numpy raises
            raise RefusedError(f"onnx's reference implementation cannot compute the model: {error}") from error
        return [np.asarray(output) for output in outputs]


def doubled(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model, and the graphs within it, with all that is float32 in float64."""
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
    """onnx's reference takes minutes for a large convolution; this one adds up a product of matrices for each position of the kernel."""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> Any:  # type: ignore[override]
        group, spatial = attributes["group"] or 1, x.ndim - 2
        strides, dilations, pads = geometry(attributes, spatial)
        reach = [(size - 1) * dilation for size, dilation in zip(w.shape[2:], dilations, strict=True)]
        if attributes["auto_pad"] not in {None, "NOTSET"}:
            pads = automatic(attributes["auto_pad"], x.shape[2:], reach, strides)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])
        parts = padded.reshape(len(x), group, -1, *padded.shape[2:])
        sizes = [
            (have - far - 1) // stride + 1 for have, far, stride in zip(padded.shape[2:], reach, strides, strict=True)
        ]
        y = np.zeros((len(x), group, len(w) // group, *sizes), x.dtype)
        for place in product(*map(range, w.shape[2:])):
            window = parts[windows(place, sizes, strides, dilations)]
            y += np.einsum("goi,ngi...->ngo...", at(w, place).reshape(group, -1, w.shape[1]), window, optimize=True)
        y = y.reshape(len(x), len(w), *sizes)
        return (y if b is None else y + b.reshape(-1, *[1] * spatial),)


class ConvTranspose(SlowConvTranspose):
    """The same the other way round: each position of the kernel adds to the output."""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> Any:  # type: ignore[override]
        group, spatial = attributes["group"] or 1, x.ndim - 2
        if attributes["auto_pad"] not in {None, "NOTSET"} or attributes["output_shape"]:
            return super()._run(x, w, b, **attributes)  # type: ignore[no-untyped-call]
        strides, dilations, pads = geometry(attributes, spatial)
        more = attributes["output_padding"] or [0] * spatial
        inner, ones = x.shape[2:], [1] * spatial
        full = [
            (have - 1) * stride + (size - 1) * dilation + 1 + extra
            for have, stride, size, dilation, extra in zip(inner, strides, w.shape[2:], dilations, more, strict=True)
        ]
        parts, weight = x.reshape(len(x), group, -1, *inner), w.reshape(group, -1, *w.shape[1:])
        y = np.zeros((len(x), group, w.shape[1], *full), x.dtype)
        for place in product(*map(range, w.shape[2:])):
            y[windows(place, inner, strides, dilations)] += np.einsum(
                "gio,ngi...->ngo...", at(weight, place), parts, optimize=True
            )
        kept = [size - low - high for size, low, high in zip(full, pads[:spatial], pads[spatial:], strict=True)]
        y = y.reshape(len(x), -1, *full)[windows(pads[:spatial], kept, ones, ones)]
        return (y if b is None else y + b.reshape(-1, *[1] * spatial),)


def geometry(attributes: dict[str, Any], spatial: int) -> tuple[list[int], list[int], list[int]]:
    """(strides, dilations, pads) of a convolution."""
    ones = [1] * spatial
    return attributes["strides"] or ones, attributes["dilations"] or ones, attributes["pads"] or [0] * 2 * spatial


def automatic(how: str, sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The pads of a convolution that `auto_pad` stands for; onnx before 1.23 forgets that the stride has a say."""
    if how == "VALID":
        return [0] * 2 * len(sizes)
    needed = [
        (-(-have // stride) - 1) * stride + far + 1 - have
        for have, far, stride in zip(sizes, reach, strides, strict=True)
    ]
    total = [max(number, 0) for number in needed]
    less, more = [number // 2 for number in total], [number - number // 2 for number in total]
    return more + less if how == "SAME_LOWER" else less + more


def at(weight: Array, place: tuple[int, ...]) -> Array:
    """The matrices at one position of the kernel, whose axes are the last."""
    index: Any = (Ellipsis, *place)
    return np.asarray(weight[index])


def windows(place: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Any:
    """Where one position of the kernel meets the larger side, for each of `sizes` positions of the smaller one; for the last axes."""
    starts = [number * dilation for number, dilation in zip(place, dilations, strict=True)]
    slices = [
        slice(start, start + (size - 1) * step + 1, step)
        for start, size, step in zip(starts, sizes, strides, strict=True)
    ]
    return (Ellipsis, *slices)
