"""Partial execution: tensors are computed when they are asked for, and freed when no node ahead reads them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper

from spa_onnx.execution.session import Feed, open_session
from spa_onnx.model.model import constant_tensor, graph_constants
from spa_onnx.model.subgraphs import captured_names
from spa_onnx.model.traits import Array


@dataclass(frozen=True, slots=True)
class Stage:
    """Nodes that are run together.

    Args:
        part: The nodes as a model.
        outputs: The tensors that are kept of what they compute.
        wanted: The tensors that are still read after it; all others are freed.
    """

    part: onnx.ModelProto
    outputs: tuple[str, ...]
    wanted: frozenset[str]


class PartialExecution:
    """A graph that is run on some batches step by step; constants of nodes that have not run yet can still be replaced.

    Each step runs the nodes that the requested tensor still needs, and keeps what the nodes ahead read. So memory is bounded by the
    widest cut through the graph, and every node runs once. Nodes that compute with constants alone are an exception: they run in each
    part that needs them, as some kernels and fusions take nothing but constants. Request tensors in topological order.

    batches: the tensors that are held, one feed per batch.
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
        self.batches: list[Feed] = [dict(feed) for feed in feeds]

    def replace(self, name: str, array: Array) -> None:
        """Give the nodes that have not run yet another constant."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)

    def tensor(self, name: str) -> list[Array]:
        """Return a tensor, one array per batch.

        Raises:
            RefusedError: The executor cannot run the nodes that the tensor needs.
        """
        return run_together([self], name)[0]

    def until(self, index: int) -> None:
        """Run all nodes before the node with this number.

        Raises:
            RefusedError: The executor cannot run them.
        """
        before = [number for number in self._ahead - self._fixed if number < index]
        if before:
            _advance([self], [self._step(self._needed(before))])

    def first_reader(self, names: Collection[str]) -> int:
        """Return the number of the first node that has to run again when these constants change; the number of nodes if none has."""
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
        """Return the nodes ahead as a model of the outputs that are missing, and its inputs beside `given`, one feed per batch.

        Args:
            given: Constants that become inputs, each with a value of their type and shape.
        """
        missing = [v.name for v in self._proto.graph.output if self._producer.get(v.name, -1) in self._ahead]
        part = self._part(self._needed([self._producer[name] for name in missing]), missing, given)
        read = {value.name for value in part.graph.input}
        return part, [{name: array for name, array in known.items() if name in read} for known in self.batches]

    def is_ahead(self, name: str) -> bool:
        """Return whether a tensor is still to be computed."""
        return name in self._producer and self._producer[name] in self._ahead

    def _step(self, nodes: Sequence[int], name: str = "") -> Stage:
        """Take nodes off those ahead. The tensor of this name, if there is one, is kept as well as what is still read."""
        self._ahead -= set(nodes) - self._fixed
        wanted = self._wanted() | ({name} if name else set())
        outputs = [
            output
            for index in nodes
            for output in self._nodes[index].output
            if output in wanted and (output == name or index not in self._fixed)
        ]
        return Stage(self._part(nodes, outputs), tuple(outputs), frozenset(wanted))

    def step_to(self, name: str) -> Stage:
        """Return the step that computes a tensor that is still ahead. Its nodes count as run from here on."""
        return self._step(self._needed([self._producer[name]]), name)

    def take(self, batch: int, step: Stage, arrays: Sequence[Array]) -> None:
        """Keep what a step has computed of a batch, and free what is not read any more."""
        known = self.batches[batch]
        known.update(zip(step.outputs, arrays, strict=True))
        for name in [name for name in known if name not in step.wanted]:
            del known[name]

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
        self, step: Sequence[int], outputs: Sequence[str], given: Mapping[str, Array] | None = None
    ) -> onnx.ModelProto:
        """These nodes as a model: what they read and do not compute are its inputs, or constants. given: constants that shall be inputs."""
        given = given or {}
        inside = {output for index in step for output in self._nodes[index].output}
        read = dict.fromkeys(name for index in step for name in self._reads[index] if name not in inside)
        stored = [self._constants[name] for name in read if name in self._constants and name not in given]
        sparse = [self._sparse[name] for name in read if name in self._sparse]
        entering = [name for name in read if name not in self._constants and name in self.batches[0]]
        inputs = [_input(name, given[name].dtype, given[name].shape) for name in read if name in given]
        inputs += [_input(name, self.batches[0][name].dtype, self._rank(name)) for name in entering]
        graph = onnx.GraphProto(
            name="part", node=[self._nodes[index] for index in step], initializer=stored, input=inputs
        )
        graph.sparse_initializer.extend(sparse)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
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
        ranks = {known[name].ndim for known in self.batches}
        return [None] * ranks.pop() if len(ranks) == 1 else None


def run_together(executions: Sequence[PartialExecution], name: str) -> list[list[Array]]:
    """Return a tensor of several partial executions of the same batches, one array per batch each.

    What they need is run as one model, so that a step opens one session for all of them.

    Raises:
        RefusedError: The executor cannot run the nodes that the tensor needs.
    """
    behind = [each for each in executions if each.is_ahead(name)]
    _advance(behind, [each.step_to(name) for each in behind])
    return [[known[name] for known in each.batches] for each in executions]


def _advance(executions: Sequence[PartialExecution], steps: Sequence[Stage]) -> None:
    """Run one step of each execution on all batches."""
    names = [output for step in steps for output in step.outputs]
    if not names:
        return
    what = f"the part of the model that computes {names[-1]}"
    session = open_session(_joined([step.part for step in steps]), optimise=True, what=what)
    read = set(session.inputs)
    prefixes = _prefixes(len(steps))
    for batch in range(len(executions[0].batches)):
        feed = {
            f"{prefix}{name}": array
            for prefix, each in zip(prefixes, executions, strict=True)
            for name, array in each.batches[batch].items()
            if f"{prefix}{name}" in read
        }
        arrays = session.run(feed)
        for each, step in zip(executions, steps, strict=True):
            each.take(batch, step, arrays[: len(step.outputs)])
            arrays = arrays[len(step.outputs) :]


def _prefixes(count: int) -> list[str]:
    """A prefix for the names of each model that is run together with others; none for one alone."""
    return [""] if count == 1 else [f"{number}/" for number in range(count)]


def _joined(parts: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Several models as one, whose names have prefixes."""
    if len(parts) == 1:
        return parts[0]
    joined = onnx.ModelProto()
    joined.CopyFrom(parts[0])
    joined.graph.Clear()
    joined.graph.name = parts[0].graph.name
    for prefix, part in zip(_prefixes(len(parts)), parts, strict=True):
        stored = [*part.graph.initializer, *(tensor.values for tensor in part.graph.sparse_initializer)]
        names = {tensor.name: f"{prefix}{tensor.name}" for tensor in stored}  # onnx looks into subgraphs without them
        graph = compose.add_prefix_graph(part.graph, prefix, name_map=names)
        for field in ("node", "initializer", "sparse_initializer", "input", "output"):
            getattr(joined.graph, field).extend(getattr(graph, field))
    return joined


def _input(name: str, dtype: np.dtype[np.generic], shape: Sequence[int | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def _reads(node: onnx.NodeProto) -> tuple[str, ...]:
    """Tensors that a node reads, those that its branches or bodies take from outside included."""
    return tuple(dict.fromkeys([*filter(None, node.input), *captured_names(node)]))


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """The constant under the name by which nodes read it: a Constant node's value often has none."""
    if tensor.name == name:
        return tensor
    renamed = onnx.TensorProto()
    renamed.CopyFrom(tensor)
    renamed.name = name
    return renamed
