"""Random networks under construction, and graphs nested in them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = (4, 6, 8, 12)
WIDEST, LARGEST, BATCH = 16, 10, 2


class Net:
    """A graph under construction. shapes: of every tensor made so far, with BATCH for a symbolic batch."""

    def __init__(self, seed: int, opset: int, *, symbolic: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset, self.symbolic = opset, symbolic
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.read: set[str] = set()
        self.images: list[str] = []
        self.features: list[str] = []

    def channels(self, x: str) -> int:
        return self.shapes[x][1]

    def op(self, kind: str, inputs: Sequence[str], shape: Sequence[int], **attributes: object) -> str:
        """Add a node with one output."""
        return self.ops(kind, inputs, [shape], **attributes)[0]

    def ops(self, kind: str, inputs: Sequence[str], shapes: Sequence[Sequence[int]], **attributes: object) -> list[str]:
        name = f"{kind.lower()}{len(self.nodes)}"
        outputs = [f"{name}_out{place}" for place in range(len(shapes))]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        self.shapes.update((output, tuple(shape)) for output, shape in zip(outputs, shapes, strict=True))
        self.read.update(inputs)
        return outputs

    def weight(self, *shape: int, low: float = 0.3) -> str:
        """Values that are never zero or equal, as an initializer, a Constant node, or behind an Identity."""
        values = self.rng.uniform(low, 1.5, shape) * (self.rng.choice([-1, 1], shape) if low < 0.5 else 1)
        fan_in = prod(shape[1:]) if len(shape) > 2 else 1
        return self.constant((values / np.sqrt(fan_in)).astype(np.float32), int(self.rng.integers(8)))

    def numbers(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64), 1 + int(self.rng.integers(2)))

    def constant(self, array: np.ndarray, way: int = 2) -> str:
        name = f"const{len(self.stored)}_{len(self.nodes)}"
        tensor = numpy_helper.from_array(array, name)
        if way == 1:
            return self.op("Constant", [], array.shape, value=tensor)
        self.stored.append(tensor)
        return name if way else self.op("Identity", [name], array.shape)

    def target(self, x: str, shape: Sequence[int], kind: int) -> str:
        """A Reshape target: the batch as 0, as -1, as a number, or read from Shape(x)."""
        rest = list(shape[1:])
        way = kind % 4
        if way == 0:
            return self.numbers(0, *rest)
        if way == 1:
            return self.numbers(-1, *rest)
        if way == 2 and not self.symbolic:
            return self.numbers(*shape)
        batch = self.op("Gather", [self.op("Shape", [x], (len(self.shapes[x]),)), self.numbers(0)], (1,), axis=0)
        rest[-1] = -1 if kind % 3 else rest[-1]
        return self.op("Concat", [batch, self.numbers(*rest)], (len(shape),), axis=0)

    def reshape(self, x: str, shape: Sequence[int], kind: int) -> str:
        return self.op("Reshape", [x, self.target(x, shape, kind)], shape)


def convolve(
    net: Net, x: str, filters: int, kernel: int = 3, groups: int = 1, *, bias: bool = True, dilation: int = 1
) -> str:
    batch, channels, height, width = net.shapes[x]
    inputs = [x, net.weight(filters, channels // groups, kernel, kernel), *([net.weight(filters)] if bias else [])]
    pad = [dilation * (kernel // 2)] * 4
    return net.op("Conv", inputs, (batch, filters, height, width), group=groups, pads=pad, dilations=[dilation] * 2)


class Body(Net):
    """A nested graph under construction.

    It may read tensors of the net around it by name; its own names differ from theirs.
    """

    def __init__(self, outer: Net, mark: str) -> None:
        super().__init__(int(outer.rng.integers(2**16)), outer.opset, symbolic=outer.symbolic)
        self.outer, self.mark = outer, f"{mark}{len(outer.nodes)}_"
        self.shapes = dict(outer.shapes)

    def ops(self, kind: str, inputs: Sequence[str], shapes: Sequence[Sequence[int]], **attributes: object) -> list[str]:
        outputs = super().ops(kind, inputs, shapes, **attributes)
        renamed = [self.mark + output for output in outputs]
        self.nodes[-1].output[:] = renamed
        self.shapes.update((new, self.shapes.pop(old)) for new, old in zip(renamed, outputs, strict=True))
        self.outer.read.update(name for name in inputs if name in self.outer.shapes)
        return renamed

    def constant(self, array: np.ndarray, way: int = 2) -> str:  # noqa: ARG002 - the same call as outside
        """An initializer of the nested graph."""
        name = self.mark + super().constant(array, 2)
        self.stored[-1].name = name
        return name

    def graph(
        self, inputs: Sequence[onnx.ValueInfoProto], output: str, *before: onnx.ValueInfoProto
    ) -> onnx.GraphProto:
        """Its nodes, with one output of the batch's shape after those that come before."""
        return helper.make_graph(
            self.nodes, self.mark, list(inputs), [*before, self.value(output, self.shapes[output])], self.stored
        )

    def value(self, name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
        """A float tensor whose batch is the net's."""
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N" if self.symbolic else shape[0], *shape[1:]])
