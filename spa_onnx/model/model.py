"""A read-only view of an ONNX model: nodes, shapes, constants. Rules and criteria see this and never a protobuf."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from spa_onnx.errors import RefusedError
from spa_onnx.model.folding import Value
from spa_onnx.model.node import Node
from spa_onnx.model.quantisation import Packed, Quantisation, Surroundings, quantised_constants, scales
from spa_onnx.model.shapes import (
    GUESSES,
    UNKNOWN,
    Inference,
    Shape,
    choose_dims,
    constant_tensor,
    infer,
    is_plausible,
    skeleton,
)
from spa_onnx.model.subgraphs import (
    Opened,
    bodies,
    crossings,
    graphs,
    nested,
    openable,
    operators,
    read_inside,
    visible,
)
from spa_onnx.model.traits import Array, operator_name

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}

SMALL_TYPES = {
    kind
    for name, kind in TensorProto.DataType.items()
    if name.startswith(("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "FLOAT8", "FLOAT4"))
}
"""Types of at most a byte: those of quantised weights."""

COUNTED = FLOATS | SMALL_TYPES
"""Types of constants that count as parameters."""


def graph_constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """The initializers and Constant outputs of one graph, nested ones left out."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        tensor = constant_tensor(node)
        if tensor is not None:
            found[node.output[0]] = tensor
    return found


def nested_constants(node: onnx.NodeProto) -> dict[str, TensorProto]:
    """The initializers and Constant outputs inside the branches or the body of a node."""
    return {
        name: tensor
        for inner in nested(node)
        for each in graphs(inner)
        for name, tensor in graph_constants(each).items()
    }


def sparse_tensors(graph: onnx.GraphProto) -> dict[str, onnx.SparseTensorProto]:
    """Constants of the graph that are stored sparse, as initializers or in Constant nodes: tensor name -> stored form."""
    found = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                found[node.output[0]] = attribute.sparse_tensor
    return found


@dataclass(frozen=True)
class Model:
    """An ONNX model and what is known about it; `Model.of(proto)` makes one.

    nodes: the operators in topological order, without Constant nodes; those of branches and bodies that are looked into among them.
    opened: the nodes whose branches and bodies these are.
    source: use name -> constant, for constants that have a name per use (see Node).
    constants: of the main graph and of all that are nested in it.
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
        """Read a model; `dims` gives sizes to symbolic dimensions. Raises RefusedError where its shapes make no sense."""
        from_inner = reversed(
            [*graphs(proto.graph)]
        )  # where names clash the main graph's constant is the one that is meant
        constants = {name: tensor for graph in from_inner for name, tensor in graph_constants(graph).items()}
        opened, sizes = openable(proto.graph), dims or {}
        while True:
            nodes, source = _nodes(proto.graph, constants, opened)
            try:
                found = cls(proto, nodes, opened, source, constants, _infer(proto, nodes, source, sizes, opened))
            except RefusedError:
                if not opened:
                    raise
                opened = {}
                continue
            narrower = _narrower(found)
            if narrower is None:
                return found
            opened, sizes = narrower, found.inference.dims if is_plausible(found.inference) else sizes

    @cached_property
    def opset(self) -> int:
        """Version of the default operator set."""
        return max((entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")), default=1)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Graph inputs that a caller feeds; initializers listed as inputs (IR < 4) are not among them."""
        return tuple(value.name for value in feeds(self.proto.graph))

    @cached_property
    def batch(self) -> int:
        """The size that stands for the batch in the shapes at hand: that of the first axis of the first input."""
        shape = self.shape(self.inputs[0]) if self.inputs else None
        return shape[0] if shape else 1

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Graph outputs."""
        return tuple(value.name for value in self.proto.graph.output)

    @cached_property
    def nested(self) -> Mapping[str, Node]:
        """Constant inside branches or a body that are not looked into -> the node that runs them."""
        protos = list(operators(self.proto.graph))
        return {name: node for node in self.nodes if not node.bodies for name in nested_constants(protos[node.index])}

    @cached_property
    def sparse(self) -> Mapping[str, onnx.SparseTensorProto]:
        """Constants that are stored sparse: tensor name -> stored form."""
        return sparse_tensors(self.proto.graph)

    @cached_property
    def functions(self) -> frozenset[str]:
        """The operators that the model itself defines, with their domain in front."""
        return frozenset(f"{function.domain}.{function.name}" for function in self.proto.functions)

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """Tensor name -> the node that computes it."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """Tensor name -> the nodes that read it, each once."""
        found: dict[str, dict[int, Node]] = defaultdict(dict)
        for node in self.nodes:
            for name in (*node.inputs, *node.captures, *(output for body in node.bodies for output in body.outputs)):
                if name:
                    found[name][node.index] = node
        return {name: tuple(nodes.values()) for name, nodes in found.items()}

    def shape(self, tensor: str) -> Shape | None:
        """Sizes of a tensor, UNKNOWN for a size that depends on data; None where not even the rank is known."""
        return self._shapes.get(tensor)

    @cached_property
    def _shapes(self) -> Mapping[str, Shape]:
        known = {**self.inference.shapes, **{name: tuple(tensor.dims) for name, tensor in self.constants.items()}}
        return known | {use: known[name] for use, name in self.source.items()}

    def is_constant(self, tensor: str) -> bool:
        """Whether it is an initializer or the output of a Constant node."""
        return self.source.get(tensor, tensor) in self.constants

    def is_float(self, tensor: str) -> bool:
        """Whether it is a constant of a floating-point type."""
        name = self.source.get(tensor, tensor)
        return name in self.constants and self.constants[name].data_type in FLOATS

    def is_weight(self, tensor: str) -> bool:
        """Whether it is a constant that the outputs depend on number by number: a float that is no scale, or a quantised one."""
        return tensor in self.quantised or (self.is_float(tensor) and tensor not in self._scales)

    def weight(self, tensor: str) -> Array | None:
        """The numbers that a constant stands for: its value, or where it is quantised, what that means; None for other tensors."""
        array = self.constant(tensor)
        return None if array is None else self.numbers(tensor, array)

    def numbers(self, tensor: str, array: Array) -> Array:
        """What an array in the form of a constant stands for: itself, or where the constant is quantised float32 of its shape."""
        found = self.quantised.get(tensor)
        return array if found is None else found.numbers(array).astype(np.float32)

    def stored(self, tensor: str, numbers: Array) -> Array:
        """The inverse of `numbers`, as near as the constant's type can come."""
        found = self.quantised.get(tensor)
        return numbers.astype(np.asarray(self.constant(tensor)).dtype) if found is None else found.nearest(numbers)

    @cached_property
    def quantised(self) -> Mapping[str, Quantisation | Packed]:
        """The quantised constants, by the name of their use."""
        return dict(quantised_constants(self.nodes, Surroundings(self.producer, self.consumers, self.constant)))

    @cached_property
    def _scales(self) -> frozenset[str]:
        return frozenset(node.input(slot) for node in self.nodes for slot in scales(node))

    def constant(self, tensor: str) -> Array | None:
        """The value of a constant, or of a tensor computed from constants alone by shape arithmetic; else None."""
        name = self.source.get(tensor, tensor)
        if name in self.constants:
            if name not in self._arrays:
                self._arrays[name] = numpy_helper.to_array(self.constants[name])
            return self._arrays[name]
        value = self.inference.values.get(name)
        return value.array if value is not None and value.is_literal else None

    def value(self, tensor: str) -> Value | None:
        """The value of a small tensor for the sizes at hand, with the axes that it was computed from; else None."""
        return self.inference.values.get(self.source.get(tensor, tensor))

    def is_folded(self, node: Node) -> bool:
        """Whether the node belongs to shape arithmetic: all it yields is known."""
        return all(name in self.inference.values for name in node.outputs if name)


def parameters(proto: onnx.ModelProto) -> int:
    """Number of weights, float and quantised, nested graphs included."""
    return sum(prod(t.dims) for g in graphs(proto.graph) for t in graph_constants(g).values() if t.data_type in COUNTED)


def feeds(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The graph inputs that are not initializers."""
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def has_free_batch(model: Model) -> bool:
    """Whether the first dimension of every input is symbolic, so that samples can be taken out of a feed."""
    shapes = [value.type.tensor_type.shape.dim for value in feeds(model.proto.graph)]
    return all(dims and dims[0].dim_value < 1 for dims in shapes)


def _keep_their_shape(node: Node, inference: Inference) -> bool:
    """Whether what crosses into the bodies of a node and out of them has the shape that was taken for granted, in every run."""
    return all(
        inference.shapes.get(one) == inference.shapes.get(other)
        for one, other in crossings(node).same()
        if one and other
    )


def _narrower(model: Model) -> Opened | None:
    """What to look into instead, because something that crosses into a body or out of it does not keep its shape; None if all does.

    Only the first node at which that happens changes: those after it may have got wrong shapes from it.
    """
    first = next((node for node in model.nodes if node.bodies and not _keep_their_shape(node, model.inference)), None)
    if first is None:
        return None
    owner = first.outputs[0]
    if first.op == "If" and all(body.tied for body in first.bodies):
        return {**model.opened, owner: frozenset(filter(None, [_taken(first, model)]))}
    return {name: tied for name, tied in model.opened.items() if name != owner}


def _taken(node: Node, model: Model) -> str:
    """The branch that an If takes, where its condition is known beforehand, at least for the sizes at hand; else nothing."""
    value = model.value(node.inputs[0])
    condition = model.constant(node.inputs[0]) if value is None else value.array
    return "" if condition is None else "then_branch" if condition.item() else "else_branch"


def _infer(
    proto: onnx.ModelProto, nodes: tuple[Node, ...], source: Mapping[str, str], dims: Mapping[str, int], opened: Opened
) -> Inference:
    """Inference with the first guess of symbolic sizes that leaves no tensor empty, or else with the first."""
    inputs = feeds(proto.graph)
    tried: dict[tuple[tuple[str, int], ...], Inference] = {}
    problem: RefusedError | None = None
    for guess in GUESSES:
        chosen = choose_dims(inputs, dims, guess)
        key = tuple(chosen.items())
        if key in tried:
            continue
        try:
            tried[key] = infer(skeleton(proto, inputs, chosen, opened), nodes, source, chosen)
        except RefusedError as error:
            problem = error
            continue
        if is_plausible(tried[key]):
            return tried[key]
    if not tried:
        raise problem or RefusedError("the graph has no shapes")
    return next(iter(tried.values()))


def _nodes(
    graph: onnx.GraphProto, constants: Mapping[str, TensorProto], opened: Opened
) -> tuple[tuple[Node, ...], dict[str, str]]:
    """The operators, with a name per use for constant vectors that several of them read."""
    seen = list(visible(graph, opened))
    uses: dict[str, int] = defaultdict(int)
    for _, proto, _ in seen:
        for name in proto.input:
            uses[name] += 1
    shared = {name for name, t in constants.items() if uses[name] > 1 and sum(d > 1 for d in t.dims) <= 1}
    source: dict[str, str] = {}
    nodes = []
    for index, proto, inside in seen:
        if constant_tensor(proto) is not None or any(a.name == "sparse_value" for a in proto.attribute):
            continue
        name = proto.name or f"{proto.op_type}({proto.output[0]})"
        inputs = tuple(
            f"{tensor}@{name}:{slot}" if tensor in shared else tensor for slot, tensor in enumerate(proto.input)
        )
        source.update({use: tensor for use, tensor in zip(inputs, proto.input, strict=True) if use != tensor})
        operator = operator_name(proto.op_type, proto.domain)
        inner = bodies(proto, opened[proto.output[0]]) if proto.output[0] in opened else ()
        captures = () if inner else read_inside(proto)
        nodes.append(
            Node(index, name, operator, inputs, tuple(proto.output), _attributes(proto), captures, inner, inside)
        )
    return tuple(nodes), source


def _attributes(proto: onnx.NodeProto) -> dict[str, Any]:
    """Attributes as Python values; nested graphs are left out, small tensors become arrays."""
    found: dict[str, Any] = {}
    for attribute in proto.attribute:
        if attribute.type == AttributeProto.TENSOR:
            found[attribute.name] = numpy_helper.to_array(attribute.t)
        elif attribute.type == AttributeProto.STRING:
            found[attribute.name] = attribute.s.decode(errors="replace")
        elif attribute.type in (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.INTS, AttributeProto.FLOATS):
            value = onnx.helper.get_attribute_value(attribute)
            found[attribute.name] = tuple(value) if isinstance(value, list) else value
    return found


__all__ = ["UNKNOWN", "Model", "constant_tensor", "feeds", "graph_constants", "parameters"]
