"""A forward pass in steps: tensors are computed when they are asked for, and forgotten when nothing ahead reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from spa_onnx import runtime
from spa_onnx.graph.bodies import graphs, nested
from spa_onnx.graph.fold import Array
from spa_onnx.graph.model import constant_tensor, graph_constants
from spa_onnx.runtime import Feed


class Walk:
    """A graph being run on some batches; constants of nodes that have not run yet can still be replaced.

    Each step runs the nodes that the tensor asked for still needs, in onnxruntime, and keeps what the nodes ahead read. So every node
    runs once, and memory is bounded by the widest cut through the graph. Ask in topological order.
    """

    def __init__(self, proto: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
        self._proto = proto
        self._constants = {name: _named(tensor, name) for name, tensor in graph_constants(proto.graph).items()}
        self._nodes = {index: node for index, node in enumerate(proto.graph.node) if constant_tensor(node) is None}
        self._producer = {name: index for index, node in self._nodes.items() for name in node.output if name}
        self._reads = {index: _reads(node) for index, node in self._nodes.items()}
        self._ahead = set(self._nodes)
        self._known: list[Feed] = [dict(feed) for feed in feeds]

    def replace(self, name: str, array: Array) -> None:
        """Give the nodes that have not run yet another constant."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)

    def tensor(self, name: str) -> list[Array]:
        """The tensor, one array per batch. Raises RefusedError where onnxruntime cannot run the nodes that it needs."""
        if name in self._producer and self._producer[name] in self._ahead:
            self._advance(name)
        return [known[name] for known in self._known]

    def _advance(self, name: str) -> None:
        step = self._needed(name)
        self._ahead -= set(step)
        wanted = self._wanted()
        made = [output for index in step for output in self._nodes[index].output if output == name or output in wanted]
        opened = runtime.session(self._part(step, made), optimise=True, what=f"the part of the model that computes {name}")
        given = {entry.name for entry in opened.get_inputs()}
        for known in self._known:
            known.update(zip(made, runtime.run(opened, {key: known[key] for key in given}), strict=True))
            for forgotten in [key for key in known if key not in wanted and key != name]:
                del known[forgotten]

    def _needed(self, name: str) -> list[int]:
        """The nodes to run for a tensor, in the order of the graph."""
        found: set[int] = set()
        waiting = [self._producer[name]]
        while waiting:
            index = waiting.pop()
            if index in self._ahead and index not in found:
                found.add(index)
                waiting += [self._producer[read] for read in self._reads[index] if read in self._producer]
        return sorted(found)

    def _wanted(self) -> set[str]:
        """What the nodes ahead read."""
        return {name for index in self._ahead for name in self._reads[index]}

    def _part(self, step: Sequence[int], made: Sequence[str]) -> onnx.ModelProto:
        """These nodes as a model: what they read and do not compute are its inputs, or constants."""
        inside = {output for index in step for output in self._nodes[index].output}
        read = dict.fromkeys(name for index in step for name in self._reads[index] if name not in inside)
        stored = [self._constants[name] for name in read if name in self._constants]
        sample = self._known[0]
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(sample[name].dtype), None)
            for name in read
            if name not in self._constants and name in sample
        ]
        graph = onnx.GraphProto(name="part", node=[self._nodes[index] for index in step], initializer=stored, input=inputs)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        if self._proto.ir_version < 4:
            graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stored)
        return onnx.ModelProto(
            ir_version=self._proto.ir_version, opset_import=self._proto.opset_import, functions=self._proto.functions, graph=graph
        )


def _reads(node: onnx.NodeProto) -> tuple[str, ...]:
    """Tensors that a node reads, those that its branches or bodies take from outside included."""
    names = dict.fromkeys(name for name in node.input if name)
    for graph in (graph for inner in nested(node) for graph in graphs(inner)):
        names.update(dict.fromkeys(name for reader in graph.node for name in reader.input if name))
        names.update(dict.fromkeys(output.name for output in graph.output))
    return tuple(names)


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """The constant under the name by which nodes read it: a Constant node's value often has none."""
    if tensor.name == name:
        return tensor
    renamed = onnx.TensorProto()
    renamed.CopyFrom(tensor)
    renamed.name = name
    return renamed
