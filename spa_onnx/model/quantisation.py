"""Quantised constants and the float equivalents of quantised operators.

A quantised number q represents (q - zero) * scale. The zero point therefore represents 0, and masked weights are set to
the zero point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa_onnx.model.node import Node
from spa_onnx.model.traits import Array, Moves, Operand, Quantised, traits

CARRIERS = frozenset({Moves.IDENTITY, Moves.RESHAPE, Moves.TRANSPOSE, Moves.PICK})
"""Operators that keep the values of a quantised constant, if it has a single scale and zero point."""


def scales(node: Node) -> frozenset[int]:
    """Return the input positions of scales and zero points, which do not count as weights."""
    quantised = traits(node.op).quantised
    return frozenset() if quantised is None else quantised.all_scales()


def float_form(node: Node) -> tuple[str, Node] | None:
    """Return the float equivalent of a quantised node.

    Args:
        node: Any node.

    Returns:
        (float operator, the node with only the inputs of that operator). None if the node is not quantised, has no
        float equivalent, or works on images with the channels last.
    """
    quantised = traits(node.op).quantised
    if quantised is None or not quantised.operator or node.attributes.get("channels_last"):
        return None
    inputs = tuple(node.inputs[slot] for slot in quantised.slots if slot < len(node.inputs))
    return quantised.operator, replace(node, inputs=inputs)


@dataclass(frozen=True, slots=True)
class Quantisation:
    """The scale and zero point of a constant.

    Args:
        scale: Scale, float64, broadcastable to the shape of the constant.
        zero: Zero point, float64, broadcastable to the shape of the constant.
        stored: The dtype of the constant.
    """

    scale: NDArray[np.float64]
    zero: NDArray[np.float64]
    stored: np.dtype[np.generic]

    def numbers(self, array: Array) -> NDArray[np.float64]:
        """Dequantise an array of the shape of the constant."""
        return np.asarray((array.astype(np.float64) - self.zero) * self.scale)

    def nearest(self, numbers: Array) -> Array:
        """Quantise numbers to the nearest values of the constant's dtype."""
        scaled = numbers.astype(np.float64) / self.scale + self.zero
        low, high = _limits(self.stored)
        rounded = scaled if low == -np.inf else np.clip(np.rint(scaled), low, high)
        return (
            np.asarray(rounded).astype(np.float32).astype(self.stored)
            if low == -np.inf
            else np.asarray(rounded).astype(self.stored)
        )

    def nothing(self, shape: tuple[int, ...]) -> Array:
        """Return a constant of this shape whose numbers are all zero."""
        return np.broadcast_to(self.zero, shape).astype(self.stored)


@dataclass(frozen=True, slots=True)
class Packed:
    """The scale and zero point of a constant that packs several numbers into a byte, lowest bits first (MatMulNBits).

    The constant has the shape (rows, blocks, bytes).

    Args:
        scale: float64 (rows, blocks, 1).
        zero: float64 (rows, blocks, 1).
        bits: Bits of each number: 2, 4 or 8.
    """

    scale: NDArray[np.float64]
    zero: NDArray[np.float64]
    bits: int

    def numbers(self, array: Array) -> NDArray[np.float64]:
        """Unpack and dequantise an array (rows, blocks, bytes) to numbers (rows, blocks, numbers)."""
        return np.asarray((unpacked(array, self.bits) - self.zero) * self.scale)

    def nearest(self, numbers: Array) -> Array:
        """Quantise numbers (rows, blocks, numbers) to the nearest values and pack them."""
        return packed(
            np.clip(np.rint(numbers / self.scale + self.zero), 0, 2**self.bits - 1).astype(np.uint8), self.bits
        )

    def nothing(self, shape: tuple[int, ...]) -> Array:
        """Return a constant of this shape (rows, blocks, bytes) whose numbers are all zero."""
        zeros = np.broadcast_to(np.rint(self.zero), (*shape[:-1], shape[-1] * 8 // self.bits)).astype(np.uint8)
        return packed(zeros, self.bits)


def unpacked(array: Array, bits: int) -> Array:
    """Unpack the bytes along the last axis into numbers of 2, 4 or 8 bits, lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray((array[..., None] >> shifts & (2**bits - 1)).reshape(*array.shape[:-1], -1))


def packed(array: Array, bits: int) -> Array:
    """Pack numbers along the last axis into bytes, the inverse of `unpacked`; the last byte is padded with zeros."""
    numbers_per_byte = 8 // bits
    padded = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % numbers_per_byte)])
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray((padded.reshape(*array.shape[:-1], -1, numbers_per_byte) << shifts).sum(axis=-1, dtype=np.uint8))


def _limits(dtype: np.dtype[np.generic]) -> tuple[float, float]:
    """Return the smallest and largest number of an integer type of any width; infinite for 8-bit floats."""
    name = dtype.name
    bits = "".join(c for c in name if c.isdigit())
    if name.startswith("uint"):
        return 0.0, 2.0 ** int(bits) - 1
    if name.startswith("int"):
        return -(2.0 ** (int(bits) - 1)), 2.0 ** (int(bits) - 1) - 1
    return -np.inf, np.inf


def _shaped(values: Array, shape: tuple[int, ...], axis: int, block: int) -> NDArray[np.float64]:
    """Return a scale or zero point in a shape that broadcasts to a constant of this shape."""
    numbers = values.astype(np.float64)
    if numbers.size == 1:
        return numbers.reshape(())
    if numbers.ndim == 1:
        return np.asarray(numbers.reshape([-1 if dim == axis % len(shape) else 1 for dim in range(len(shape))]))
    if block:
        repeated = np.repeat(numbers, block, axis=axis)
        return np.asarray(np.take(repeated, np.arange(shape[axis]), axis=axis))
    return np.asarray(numbers)


def _axis(node: Node, operand: Operand, rank: int) -> int:
    """Return the axis along which the scales of an operand vary."""
    if node.op == "com.microsoft.QGemm":
        return 0 if node.attributes.get("transB") else rank - 1
    return int(node.attributes.get("axis", 1)) if operand.axis is None else operand.axis


def _packed(node: Node, constant: Callable[[str], Array | None]) -> Packed | None:
    """Return the quantisation of the weight of a MatMulNBits; None if a constant is missing or its form is unknown.

    Zero points are of the shape (rows, blocks), packed if they are uint8; the default is half of the range.
    """
    weight, scale = constant(node.inputs[1]), constant(node.inputs[2])
    bits = int(node.attributes.get("bits", 4))
    if weight is None or scale is None or weight.ndim != 3 or bits not in (2, 4, 8):
        return None
    rows, blocks = weight.shape[:2]
    zero: Array | None = np.full((rows, blocks), 2.0 ** (bits - 1))
    if node.input(3):
        zero = constant(node.inputs[3])
        if zero is None:
            return None
        if zero.dtype == np.uint8:
            zero = unpacked(zero.reshape(rows, -1), bits)[:, :blocks]
    if zero is None:
        return None
    return Packed(
        scale.astype(np.float64).reshape(rows, blocks, 1), zero.astype(np.float64).reshape(rows, blocks, 1), bits
    )


@dataclass(frozen=True, slots=True)
class GraphLookup:
    """Access to the nodes and constants around a quantised node.

    Args:
        producer: Tensor -> the node that computes it.
        consumers: Tensor -> the nodes that read it.
        constant: Function that returns the value of a constant by name, and None for other tensors.
    """

    producer: Mapping[str, Node]
    consumers: Mapping[str, tuple[Node, ...]]
    constant: Callable[[str], Array | None]

    def scale_behind(self, node: Node) -> Array:
        """Return the constant factor of the integer result of a node, before or after a Cast; 1 if there is none."""
        name = node.outputs[0]
        for _ in range(2):
            readers = self.consumers.get(name, ())
            if len(readers) == 1 and readers[0].op == "Mul":
                return self._factor(next((other for other in readers[0].inputs if other != name), ""), nested=True)
            name = readers[0].outputs[0] if len(readers) == 1 and readers[0].op == "Cast" else ""
        return np.ones(())

    def _factor(self, name: str, *, nested: bool) -> Array:
        """Return the value of a constant, or of the constant factor of a product if `nested`; else 1."""
        value = self.constant(name)
        if value is not None:
            return value
        node = self.producer.get(name)
        if node is None or node.op != "Mul" or not nested:
            return np.ones(())
        return next(
            (self._factor(operand, nested=False) for operand in node.inputs if self.constant(operand) is not None),
            np.ones(()),
        )

    def behind_carriers(self, name: str) -> str:
        """Return the tensor from which operators that only move elements compute this one."""
        while name in self.producer and traits(self.producer[name].op).moves in CARRIERS:
            name = self.producer[name].inputs[0]
        return name


def quantised_constants(nodes: tuple[Node, ...], graph: GraphLookup) -> Iterator[tuple[str, Quantisation | Packed]]:
    """Yield (name, quantisation) of every quantised constant."""
    for node in nodes:
        if node.op == "com.microsoft.MatMulNBits":
            packed_weight = _packed(node, graph.constant)
            if packed_weight is not None:
                yield node.inputs[1], packed_weight
        quantised = traits(node.op).quantised or Quantised()
        if quantised.bias is not None:
            yield from _bias(node, quantised.bias, graph)
        for operand in quantised.operands:
            name = node.input(operand.data)
            array = graph.constant(name) if name else None
            if array is None and name:
                name = graph.behind_carriers(name)
                array = graph.constant(name)
                if array is None or not _is_uniform(node, operand, graph):
                    continue
            if array is not None:
                quantisation = _quantisation(node, operand, array, graph)
                if quantisation is not None:
                    yield name, quantisation


def _bias(node: Node, slots: tuple[int, int, int], graph: GraphLookup) -> Iterator[tuple[str, Quantisation]]:
    """Yield the integer bias of a node; its scale is the product of the scales of input and weight."""
    name, *factor_names = (node.input(slot) for slot in slots)
    factors = [graph.constant(factor) for factor in factor_names]
    array = graph.constant(name) if name else None
    if array is not None and factors[0] is not None and factors[1] is not None and array.ndim == 1:
        product = factors[0].astype(np.float64) * factors[1]
        yield name, Quantisation(_shaped(product, array.shape, 0, 0), np.zeros(()), array.dtype)


def _is_uniform(node: Node, operand: Operand, graph: GraphLookup) -> bool:
    """Return whether an operand has a single scale and zero point."""
    constants = [graph.constant(node.input(slot)) for slot in operand[1:3] if slot >= 0 and node.input(slot)]
    return all(values is not None and values.size == 1 for values in constants)


def _quantisation(node: Node, operand: Operand, array: Array, graph: GraphLookup) -> Quantisation | None:
    """Return the quantisation of a constant operand; None if its scale or zero point is not constant."""
    axis, block = _axis(node, operand, array.ndim), int(node.attributes.get("block_size", 0))
    scale = graph.scale_behind(node) if operand.scale < 0 else graph.constant(node.input(operand.scale))
    zero = graph.constant(node.input(operand.zero)) if node.input(operand.zero) else np.zeros(())
    if scale is None or zero is None:
        return None
    if operand.scale < 0:
        fits = scale.size == 1 or scale.size == array.shape[axis]
        scale = scale.ravel() if fits else np.ones(())
    if node.op == "com.microsoft.DynamicQuantizeLSTM":  # per direction, or per row of each direction
        scale, zero = (
            values.reshape(array.shape[0], 1, -1) if values.size > 1 else values.reshape(()) for values in (scale, zero)
        )
        return Quantisation(scale.astype(np.float64), zero.astype(np.float64), array.dtype)
    return Quantisation(_shaped(scale, array.shape, axis, block), _shaped(zero, array.shape, axis, block), array.dtype)
