"""A read-only view of an ONNX model: nodes, shapes and constants.

Coupling rules and criteria read this view and never the protobuf.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from spa_onnx.errors import RefusedError
from spa_onnx.model.constants import constant_tensor, graph_constants, nested_constants, sparse_tensors
from spa_onnx.model.facts import Axis
from spa_onnx.model.folding import Value
from spa_onnx.model.inference import Inference, infer, is_plausible, sizes_given_as_inputs
from spa_onnx.model.node import Node
from spa_onnx.model.quantisation import GraphLookup, Packed, Quantisation, quantised_constants, scales
from spa_onnx.model.read_nodes import read_nodes
from spa_onnx.model.shapes import GUESSES, UNKNOWN, Shape, choose_dims
from spa_onnx.model.skeleton import skeleton
from spa_onnx.model.subgraphs import Opened, crossings, graphs, openable, operators
from spa_onnx.model.traits import Array

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}

SMALL_TYPES = {
    dtype
    for name, dtype in TensorProto.DataType.items()
    if name.startswith(("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "FLOAT8", "FLOAT4"))
}
"""Element types of at most 8 bits, which hold quantised weights."""

COUNTED = FLOATS | SMALL_TYPES
"""Element types of the constants that count as parameters."""


@dataclass(frozen=True)
class Model:
    """An ONNX model with its shapes and constants; `Model.of(proto)` creates one.

    Args:
        proto: The model.
        nodes: The operators in topological order, without Constant nodes and with those in the subgraphs of opened
            nodes.
        opened: The opened nodes (see `spa_onnx.model.subgraphs`).
        source: Name of a use -> name of the constant, for constants that have a name for each use (see `Node`).
        constants: The dense constants of the graph and all its subgraphs, by name.
        inference: The inferred shapes and values.
    """

    proto: onnx.ModelProto
    nodes: tuple[Node, ...]
    opened: Opened
    source: Mapping[str, str]
    constants: Mapping[str, TensorProto]
    inference: Inference
    _arrays: dict[str, Array] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, proto: onnx.ModelProto, dims: Mapping[str, int] | None = None) -> Model:
        """Read a model.

        Args:
            proto: The model; it is not changed.
            dims: Sizes of symbolic dimensions, by name; an unnamed dimension is called `input:position`.

        Raises:
            RefusedError: The shapes contradict each other.
        """
        innermost_first = reversed([*graphs(proto.graph)])  # the outer constant wins if names clash
        constants = {name: tensor for graph in innermost_first for name, tensor in graph_constants(graph).items()}
        opened, sizes = openable(proto.graph), dims or {}
        while True:
            nodes, source = read_nodes(proto.graph, constants, opened)
            try:
                model = cls(proto, nodes, opened, source, constants, _infer(proto, nodes, source, sizes, opened))
            except RefusedError:
                if not opened:
                    raise
                opened = {}
                continue
            fewer_opened = _fewer_opened(model)
            if fewer_opened is None:
                return model
            opened, sizes = fewer_opened, model.inference.dims if is_plausible(model.inference) else sizes

    @cached_property
    def opset(self) -> int:
        """The version of the default operator set."""
        return max((entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")), default=1)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The names of the graph inputs, without the initializers that old models (IR < 4) list as inputs."""
        return tuple(value.name for value in feeds(self.proto.graph))

    @cached_property
    def batch(self) -> int:
        """The batch size in the inferred shapes: the size of the first axis of the first input."""
        shape = self.shape(self.inputs[0]) if self.inputs else None
        return shape[0] if shape else 1

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph outputs."""
        return tuple(value.name for value in self.proto.graph.output)

    @cached_property
    def nested(self) -> Mapping[str, Node]:
        """Constant in the subgraphs of a node that is not opened -> that node."""
        protos = list(operators(self.proto.graph))
        return {name: node for node in self.nodes if not node.bodies for name in nested_constants(protos[node.index])}

    @cached_property
    def sparse(self) -> Mapping[str, onnx.SparseTensorProto]:
        """The sparse constants of the main graph, by name."""
        return sparse_tensors(self.proto.graph)

    @cached_property
    def functions(self) -> frozenset[str]:
        """The operators that the model defines as functions, as `domain.name`."""
        return frozenset(f"{function.domain}.{function.name}" for function in self.proto.functions)

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """Tensor -> the node that computes it."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """Tensor -> the nodes that read it, without duplicates."""
        readers: dict[str, dict[int, Node]] = defaultdict(dict)
        for node in self.nodes:
            for name in (*node.inputs, *node.captures, *(output for body in node.bodies for output in body.outputs)):
                if name:
                    readers[name][node.index] = node
        return {name: tuple(nodes.values()) for name, nodes in readers.items()}

    def shape(self, tensor: str) -> Shape | None:
        """Return the sizes of a tensor; None if its rank is unknown.

        A size that depends on data has a stand-in (see `depends_on_data`), or is UNKNOWN if there is none that fits.
        """
        return self._shapes.get(tensor)

    def depends_on_data(self, axis: Axis) -> bool:
        """Return whether the size of an axis depends on data, so that `shape` has a stand-in for it."""
        return axis in self.inference.data_axes

    @cached_property
    def _shapes(self) -> Mapping[str, Shape]:
        shapes = {**self.inference.shapes, **{name: tuple(tensor.dims) for name, tensor in self.constants.items()}}
        return shapes | {use: shapes[name] for use, name in self.source.items()}

    def is_constant(self, tensor: str) -> bool:
        """Return whether a tensor is an initializer or the output of a Constant node."""
        return self.source.get(tensor, tensor) in self.constants

    def is_float(self, tensor: str) -> bool:
        """Return whether a tensor is a floating-point constant."""
        name = self.source.get(tensor, tensor)
        return name in self.constants and self.constants[name].data_type in FLOATS

    def is_weight(self, tensor: str) -> bool:
        """Return whether a tensor is a quantised constant, or a floating-point constant that is no scale."""
        return tensor in self.quantised or (self.is_float(tensor) and tensor not in self._scales)

    def weight(self, tensor: str) -> Array | None:
        """Return the value of a constant, dequantised to float32 if it is quantised; None for other tensors."""
        array = self.constant(tensor)
        return None if array is None else self.numbers(tensor, array)

    def numbers(self, tensor: str, array: Array) -> Array:
        """Dequantise an array.

        Args:
            tensor: Name of a constant.
            array: Values in the stored form of that constant.

        Returns:
            The values in float32 if the constant is quantised, else the array itself.
        """
        quantisation = self.quantised.get(tensor)
        return array if quantisation is None else quantisation.numbers(array).astype(np.float32)

    def stored(self, tensor: str, numbers: Array) -> Array:
        """Convert values to the stored form of a constant, rounded to its type: the inverse of `numbers`."""
        quantisation = self.quantised.get(tensor)
        if quantisation is None:
            return numbers.astype(np.asarray(self.constant(tensor)).dtype)
        return quantisation.nearest(numbers)

    @cached_property
    def quantised(self) -> Mapping[str, Quantisation | Packed]:
        """The quantised constants, by name; a constant with several uses has an entry for each (see `Node`)."""
        return dict(quantised_constants(self.nodes, GraphLookup(self.producer, self.consumers, self.constant)))

    @cached_property
    def _scales(self) -> frozenset[str]:
        return frozenset(node.input(slot) for node in self.nodes for slot in scales(node))

    def constant(self, tensor: str) -> Array | None:
        """Return the value of a constant or of a tensor computed from constants by shape arithmetic; else None."""
        name = self.source.get(tensor, tensor)
        if name in self.constants:
            if name not in self._arrays:
                self._arrays[name] = numpy_helper.to_array(self.constants[name])
            return self._arrays[name]
        value = self.inference.values.get(name)
        return value.array if value is not None and value.is_literal else None

    def value(self, tensor: str) -> Value | None:
        """Return the value of a tensor of shape arithmetic, with the axes whose sizes it depends on; else None."""
        return self.inference.values.get(self.source.get(tensor, tensor))

    def is_folded(self, node: Node) -> bool:
        """Return whether the node is part of shape arithmetic: the values of all its outputs are known."""
        return all(name in self.inference.values for name in node.outputs if name)


def parameters(proto: onnx.ModelProto) -> int:
    """Return the number of weights, float and quantised, including those of subgraphs."""
    return sum(prod(t.dims) for g in graphs(proto.graph) for t in graph_constants(g).values() if t.data_type in COUNTED)


def feeds(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the graph inputs that are not initializers."""
    initializers = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in initializers]


def has_data_size(model: Model, tensor: str) -> bool:
    """Return whether a size of a tensor depends on data, so that it is unknown before the model runs."""
    shape = model.shape(tensor)
    if shape is None or UNKNOWN in shape:
        return True
    return any(model.depends_on_data(Axis(tensor, dim)) for dim in range(len(shape)))


def is_batched(model: Model) -> bool:
    """Return whether the first axis of the inputs counts samples.

    It does if it is symbolic in an input. If it has a fixed size, all inputs and outputs have to share that size: a
    model that reads 3072 values or 100 frames takes one sample.
    """
    inputs = [dims for value in feeds(model.proto.graph) if (dims := value.type.tensor_type.shape.dim)]
    if any(dims[0].dim_value < 1 for dims in inputs):
        return True
    sizes = {dims[0].dim_value for dims in inputs}
    sizes |= {(model.shape(output) or (0,))[0] for output in model.outputs if model.shape(output) != ()}
    return len(sizes) == 1


def has_free_batch(model: Model) -> bool:
    """Return whether the first dimension of every input is symbolic, so that the batch size is free."""
    shapes = [value.type.tensor_type.shape.dim for value in feeds(model.proto.graph)]
    return all(dims and dims[0].dim_value < 1 for dims in shapes)


def _shapes_agree(node: Node, inference: Inference) -> bool:
    """Return whether all pairs of tensors that cross into or out of the node's subgraphs have equal shapes."""
    shapes = inference.shapes
    return all(shapes.get(a) == shapes.get(b) for a, b in crossings(node).same() if a and b)


def _fewer_opened(model: Model) -> Opened | None:
    """Return the nodes to open instead, because shapes inside and outside of a subgraph differ; None if all agree.

    Only the first such node changes, because it may be the cause of wrong shapes after it.
    """
    first = next((node for node in model.nodes if node.bodies and not _shapes_agree(node, model.inference)), None)
    if first is None:
        return None
    owner = first.outputs[0]
    if first.op == "If" and all(body.tied for body in first.bodies):
        return {**model.opened, owner: frozenset(filter(None, [_taken_branch(first, model)]))}
    return {name: tied for name, tied in model.opened.items() if name != owner}


def _taken_branch(node: Node, model: Model) -> str:
    """Return the branch that an If takes if its condition is constant or computed from shapes; else an empty string."""
    value = model.value(node.inputs[0])
    condition = model.constant(node.inputs[0]) if value is None else value.array
    return "" if condition is None else "then_branch" if condition.item() else "else_branch"


def _infer(
    proto: onnx.ModelProto, nodes: tuple[Node, ...], source: Mapping[str, str], dims: Mapping[str, int], opened: Opened
) -> Inference:
    """Return the inference for the first guess of symbolic sizes with no empty tensor, or else for the first guess."""
    inputs = feeds(proto.graph)
    tried: dict[tuple[tuple[str, int], ...], Inference] = {}
    refusal: RefusedError | None = None
    for guess in GUESSES:
        chosen = choose_dims(inputs, dims, guess)
        key = tuple(chosen.items())
        if key in tried:
            continue
        try:
            sizes = sizes_given_as_inputs(inputs, chosen)
            tried[key] = infer(skeleton(proto, inputs, chosen, opened), nodes, source, chosen, sizes)
        except RefusedError as error:
            refusal = error
            continue
        if is_plausible(tried[key]):
            return tried[key]
    if not tried:
        raise refusal or RefusedError("the graph has no shapes")
    return next(iter(tried.values()))


__all__ = ["UNKNOWN", "Model", "constant_tensor", "feeds", "graph_constants", "parameters"]
