"""A forward pass in steps: tensors are computed when they are asked for, and forgotten when nothing ahead reads them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from spa_onnx.execution import session as runtime
from spa_onnx.execution.session import Feed
from spa_onnx.model.folding import Array
from spa_onnx.model.model import constant_tensor, graph_constants
from spa_onnx.model.subgraphs import read_inside


class PartialExecution:
    """A graph being run on some batches; constants of nodes that have not run yet can still be replaced.

    Each step runs the nodes that the tensor asked for still needs, in onnxruntime, and keeps what the nodes ahead read. So memory is
    bounded by the widest cut through the graph, and every node runs once, but for those that compute with constants alone: they stay
    ahead and run in each part that needs them, as some kernels and fusions take nothing but constants. Ask in topological order.
    """

    def __init__(self, proto: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
        self._proto = proto
        self._constants = {name: _named(tensor, name) for name, tensor in graph_constants(proto.graph).items()}
        self._sparse = {tensor.values.name: tensor for tensor in proto.graph.sparse_initializer}
        self._nodes = {index: node for index, node in enumerate(proto.graph.node) if constant_tensor(node) is None}
        self._producer = {name: index for index, node in self._nodes.items() for name in node.output if name}
        self._reads = {index: _reads(node) for index, node in self._nodes.items()}
        self._fixed = self._with_constants_alone()
        self._ahead = set(self._nodes)
        self._known: list[Feed] = [dict(feed) for feed in feeds]

    def replace(self, name: str, array: Array) -> None:
        """Give the nodes that have not run yet another constant."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)

    def tensor(self, name: str) -> list[Array]:
        """The tensor, one array per batch. Raises RefusedError where onnxruntime cannot run the nodes that it needs."""
        if name in self._producer and self._producer[name] in self._ahead:
            self._advance(self._needed([self._producer[name]]), name)
        return [known[name] for known in self._known]

    def until(self, index: int) -> None:
        """Run all that stands before the node with this number. Raises RefusedError where onnxruntime cannot."""
        before = [number for number in self._ahead - self._fixed if number < index]
        if before:
            self._advance(self._needed(before))

    def first_reader(self, names: Collection[str]) -> int:
        """The number of the first node that has to run again when these constants change; of none, how many nodes there are."""
        changed = set(names)
        for index, node in self._nodes.items():
            if changed.intersection(self._reads[index]):
                if index not in self._fixed:
                    return index
                changed.update(node.output)
        return len(self._proto.graph.node)

    @property
    def position(self) -> int:
        """The number of the first node that has not run."""
        return min(self._ahead - self._fixed, default=len(self._proto.graph.node))

    def rest(self, given: Mapping[str, Array]) -> tuple[onnx.ModelProto, list[Feed]]:
        """The nodes ahead as a model of the outputs that are still missing, and its inputs beside `given`, one feed per batch.

        given: constants that shall be inputs, each with a value that has their type and shape.
        """
        missing = [v.name for v in self._proto.graph.output if self._producer.get(v.name, -1) in self._ahead]
        part = self._part(self._needed([self._producer[name] for name in missing]), missing, given)
        read = {value.name for value in part.graph.input}
        return part, [{name: array for name, array in known.items() if name in read} for known in self._known]

    def _advance(self, step: Sequence[int], name: str = "") -> None:
        """Run these nodes, and keep what is still read and the tensor of this name, if there is one."""
        self._ahead -= set(step) - self._fixed
        wanted = self._wanted() | ({name} if name else set())
        made = [
            output
            for index in step
            for output in self._nodes[index].output
            if output in wanted and (output == name or index not in self._fixed)
        ]
        if not made:
            return
        what = f"the part of the model that computes {name or made[0]}"
        opened = runtime.session(self._part(step, made), optimise=True, what=what)
        given = {entry.name for entry in opened.get_inputs()}
        for known in self._known:
            known.update(zip(made, runtime.run(opened, {key: known[key] for key in given}), strict=True))
            for forgotten in [key for key in known if key not in wanted]:
                del known[forgotten]

    def _with_constants_alone(self) -> frozenset[int]:
        """Nodes that read nothing but constants, or what such nodes compute."""
        fixed: set[int] = set()
        for index, reads in self._reads.items():
            if reads and all(
                name in self._constants or name in self._sparse or self._producer.get(name, -1) in fixed
                for name in reads
            ):
                fixed.add(index)
        return frozenset(fixed)

    def _needed(self, wanted: Sequence[int]) -> list[int]:
        """The nodes to run for these, they among them, in the order of the graph."""
        found: set[int] = set()
        waiting = list(wanted)
        while waiting:
            index = waiting.pop()
            if index in self._ahead and index not in found:
                found.add(index)
                waiting += [self._producer[read] for read in self._reads[index] if read in self._producer]
        return sorted(found)

    def _wanted(self) -> set[str]:
        """What the nodes ahead read."""
        return {name for index in self._ahead for name in self._reads[index]}

    def _part(
        self, step: Sequence[int], made: Sequence[str], given: Mapping[str, Array] | None = None
    ) -> onnx.ModelProto:
        """These nodes as a model: what they read and do not compute are its inputs, or constants. given: constants that shall be inputs."""
        given = given or {}
        inside = {output for index in step for output in self._nodes[index].output}
        read = dict.fromkeys(name for index in step for name in self._reads[index] if name not in inside)
        stored = [self._constants[name] for name in read if name in self._constants and name not in given]
        sparse = [self._sparse[name] for name in read if name in self._sparse]
        entering = [name for name in read if name not in self._constants and name in self._known[0]]
        inputs = [_input(name, given[name].dtype, given[name].shape) for name in read if name in given]
        inputs += [_input(name, self._known[0][name].dtype, self._rank(name)) for name in entering]
        graph = onnx.GraphProto(
            name="part", node=[self._nodes[index] for index in step], initializer=stored, input=inputs
        )
        graph.sparse_initializer.extend(sparse)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        if self._proto.ir_version < 4:
            graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stored)
        return onnx.ModelProto(
            ir_version=self._proto.ir_version,
            opset_import=self._proto.opset_import,
            functions=self._proto.functions,
            graph=graph,
        )

    def _rank(self, name: str) -> list[None] | None:
        """A shape that says no more than the rank, which fusions want to know; nothing where a Squeeze has taken a batch of one away."""
        ranks = {known[name].ndim for known in self._known}
        return [None] * ranks.pop() if len(ranks) == 1 else None


def _input(name: str, dtype: np.dtype[np.generic], shape: Sequence[int | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def _reads(node: onnx.NodeProto) -> tuple[str, ...]:
    """Tensors that a node reads, those that its branches or bodies take from outside included."""
    return tuple(dict.fromkeys([*filter(None, node.input), *read_inside(node)]))


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """The constant under the name by which nodes read it: a Constant node's value often has none."""
    if tensor.name == name:
        return tensor
    renamed = onnx.TensorProto()
    renamed.CopyFrom(tensor)
    renamed.name = name
    return renamed
