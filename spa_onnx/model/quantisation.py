"""Quantised constants: what numbers they stand for, and which float operators the quantised ones are.

A quantised number q stands for (q - zero) * scale, so that the zero point, and not 0, is what a removed weight becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa_onnx.model.node import Node
from spa_onnx.model.traits import Array, Moves, Operand, Quantised, traits

CARRIERS = frozenset({Moves.IDENTITY, Moves.RESHAPE, Moves.TRANSPOSE, Moves.PICK})
"""Behind operators that move elements a quantised constant is still what it was, if one scale holds for all of it."""


def scales(node: Node) -> frozenset[int]:
    """Return the input positions of scales and zero points, which are no weights."""
    found = traits(node.op).quantised
    return frozenset() if found is None else found.all_scales()


def float_form(node: Node) -> tuple[str, Node] | None:
    """The float operator that a quantised node is, and the node with its operands alone; None where it has no such form.

    An operator that works on images with the channels last has none.
    """
    form = traits(node.op).quantised
    if form is None or not form.operator or node.attributes.get("channels_last"):
        return None
    inputs = tuple(node.inputs[slot] for slot in form.slots if slot < len(node.inputs))
    return form.operator, replace(node, inputs=inputs)


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Scale and zero point of a constant, float64 and of shapes that broadcast to the constant's. stored: its type."""

    scale: NDArray[np.float64]
    zero: NDArray[np.float64]
    stored: np.dtype[np.generic]

    def numbers(self, array: Array) -> NDArray[np.float64]:
        """The numbers that the constant stands for, in its shape."""
        return np.asarray((array.astype(np.float64) - self.zero) * self.scale)

    def nearest(self, numbers: Array) -> Array:
        """The constant that comes nearest to these numbers."""
        scaled = numbers.astype(np.float64) / self.scale + self.zero
        low, high = _limits(self.stored)
        rounded = scaled if low == -np.inf else np.clip(np.rint(scaled), low, high)
        return (
            np.asarray(rounded).astype(np.float32).astype(self.stored)
            if low == -np.inf
            else np.asarray(rounded).astype(self.stored)
        )

    def nothing(self, shape: tuple[int, ...]) -> Array:
        """A constant that stands for zeros."""
        return np.broadcast_to(self.zero, shape).astype(self.stored)


@dataclass(frozen=True, slots=True)
class Packed:
    """A constant (rows, blocks, bytes) of several numbers to the byte, the low bits first, as in MatMulNBits.

    scale, zero: float64 (rows, blocks, 1).
    """

    scale: NDArray[np.float64]
    zero: NDArray[np.float64]
    bits: int

    def numbers(self, array: Array) -> NDArray[np.float64]:
        """The numbers that the constant stands for, (rows, blocks, numbers)."""
        return np.asarray((unpacked(array, self.bits) - self.zero) * self.scale)

    def nearest(self, numbers: Array) -> Array:
        """The constant that comes nearest to these numbers."""
        return packed(
            np.clip(np.rint(numbers / self.scale + self.zero), 0, 2**self.bits - 1).astype(np.uint8), self.bits
        )

    def nothing(self, shape: tuple[int, ...]) -> Array:
        """A constant that stands for zeros."""
        each = np.broadcast_to(np.rint(self.zero), (*shape[:-1], shape[-1] * 8 // self.bits)).astype(np.uint8)
        return packed(each, self.bits)


def unpacked(array: Array, bits: int) -> Array:
    """Bytes along the last axis -> the numbers in them, the low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray((array[..., None] >> shifts & (2**bits - 1)).reshape(*array.shape[:-1], -1))


def packed(array: Array, bits: int) -> Array:
    """The inverse of `unpacked`; a last byte that is not full is filled with zeros."""
    each = 8 // bits
    padded = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % each)])
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray((padded.reshape(*array.shape[:-1], -1, each) << shifts).sum(axis=-1, dtype=np.uint8))


def _limits(kind: np.dtype[np.generic]) -> tuple[float, float]:
    """Smallest and largest number of an integer type of any width; infinite for the small floats."""
    name = kind.name
    bits = "".join(c for c in name if c.isdigit())
    if name.startswith("uint"):
        return 0.0, 2.0 ** int(bits) - 1
    if name.startswith("int"):
        return -(2.0 ** (int(bits) - 1)), 2.0 ** (int(bits) - 1) - 1
    return -np.inf, np.inf


def _shaped(values: Array, shape: tuple[int, ...], axis: int, block: int) -> NDArray[np.float64]:
    """A scale or zero point so that it broadcasts to a constant of this shape."""
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
    if node.op == "com.microsoft.QGemm":
        return 0 if node.attributes.get("transB") else rank - 1
    return int(node.attributes.get("axis", 1)) if operand.axis is None else operand.axis


def _packed(node: Node, constant: Callable[[str], Array | None]) -> Packed | None:
    """MatMulNBits: scales (rows, blocks), zero points of the same shape or packed, half of the range where there are none."""
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
class Surroundings:
    """What is known around a node. constant: the value of a constant by its name, else None."""

    producer: Mapping[str, Node]
    consumers: Mapping[str, tuple[Node, ...]]
    constant: Callable[[str], Array | None]

    def scale_behind(self, node: Node) -> Array:
        """What an integer product is multiplied by once it is a float: the constant factor, 1 where none is found."""
        name = node.outputs[0]
        for _ in range(2):
            behind = self.consumers.get(name, ())
            if len(behind) == 1 and behind[0].op == "Mul":
                return self._factor(next((other for other in behind[0].inputs if other != name), ""), further=True)
            name = behind[0].outputs[0] if len(behind) == 1 and behind[0].op == "Cast" else ""
        return np.ones(())

    def _factor(self, name: str, *, further: bool) -> Array:
        value = self.constant(name)
        if value is not None:
            return value
        node = self.producer.get(name)
        if node is None or node.op != "Mul" or not further:
            return np.ones(())
        return next(
            (self._factor(given, further=False) for given in node.inputs if self.constant(given) is not None),
            np.ones(()),
        )

    def behind_carriers(self, name: str) -> str:
        """The constant that a tensor is a rearrangement of, or the tensor itself."""
        while name in self.producer and traits(self.producer[name].op).moves in CARRIERS:
            name = self.producer[name].inputs[0]
        return name


def quantised_constants(nodes: tuple[Node, ...], around: Surroundings) -> Iterator[tuple[str, Quantisation | Packed]]:
    """(name, how it is to be read) of every quantised constant."""
    for node in nodes:
        if node.op == "com.microsoft.MatMulNBits":
            packed_weight = _packed(node, around.constant)
            if packed_weight is not None:
                yield node.inputs[1], packed_weight
        found = traits(node.op).quantised or Quantised()
        if found.bias is not None:
            yield from _bias(node, found.bias, around)
        for operand in found.operands:
            name = node.input(operand.data)
            array = around.constant(name) if name else None
            if array is None and name:
                name = around.behind_carriers(name)
                array = around.constant(name)
                if array is None or not _is_uniform(node, operand, around):
                    continue
            if array is not None:
                meaning = _made(node, operand, array, around)
                if meaning is not None:
                    yield name, meaning


def _bias(node: Node, slots: tuple[int, int, int], around: Surroundings) -> Iterator[tuple[str, Quantisation]]:
    """A bias in steps of what the product of input and weight is in."""
    name, *factor_names = (node.input(slot) for slot in slots)
    factors = [around.constant(factor) for factor in factor_names]
    array = around.constant(name) if name else None
    if array is not None and factors[0] is not None and factors[1] is not None and array.ndim == 1:
        product = factors[0].astype(np.float64) * factors[1]
        yield name, Quantisation(_shaped(product, array.shape, 0, 0), np.zeros(()), array.dtype)


def _is_uniform(node: Node, operand: Operand, around: Surroundings) -> bool:
    """Whether one scale and one zero point hold for all of an operand."""
    found = [around.constant(node.input(slot)) for slot in operand[1:3] if slot >= 0 and node.input(slot)]
    return all(values is not None and values.size == 1 for values in found)


def _made(node: Node, operand: Operand, array: Array, around: Surroundings) -> Quantisation | None:
    """How a constant at a quantised position is to be read; None where its scale or zero point is not constant."""
    axis, block = _axis(node, operand, array.ndim), int(node.attributes.get("block_size", 0))
    scale = around.scale_behind(node) if operand.scale < 0 else around.constant(node.input(operand.scale))
    zero = around.constant(node.input(operand.zero)) if node.input(operand.zero) else np.zeros(())
    if scale is None or zero is None:
        return None
    if operand.scale < 0:
        fits = scale.size == 1 or scale.size == array.shape[axis]
        scale = scale.ravel() if fits else np.ones(())
    if node.op == "com.microsoft.DynamicQuantizeLSTM":  # one for each direction, or for each of its rows
        scale, zero = (
            values.reshape(array.shape[0], 1, -1) if values.size > 1 else values.reshape(()) for values in (scale, zero)
        )
        return Quantisation(scale.astype(np.float64), zero.astype(np.float64), array.dtype)
    return Quantisation(_shaped(scale, array.shape, axis, block), _shaped(zero, array.shape, axis, block), array.dtype)
