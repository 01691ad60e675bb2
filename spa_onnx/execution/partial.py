"""Partial execution: tensors are computed when they are requested, and freed when no pending node reads them."""

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
        outputs: The tensors that the nodes compute and that are kept.
        live: The tensors that are read after this stage; all others are freed.
    """

    part: onnx.ModelProto
    outputs: tuple[str, ...]
    live: frozenset[str]


class PartialExecution:
    """Runs a graph on batches in stages. Constants of nodes that have not run can be replaced between stages.

    A stage runs the pending nodes that the requested tensor needs, and keeps the tensors that the other pending nodes
    read. Memory is bounded by the widest cut through the graph, and every node runs once. Nodes that read only
    constants are an exception: they run in each stage that needs them, because some kernels and fusions accept only
    constants. Request tensors in topological order.

    Args:
        proto: The model.
        feeds: The inputs, one feed per batch.

    Attributes:
        batches: The tensors that are held, one feed per batch.
    """

    def __init__(self, proto: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
        self._proto = proto
        self._constants = {name: _renamed(tensor, name) for name, tensor in graph_constants(proto.graph).items()}
        self._sparse = {tensor.values.name: tensor for tensor in proto.graph.sparse_initializer}
        self._nodes = {index: node for index, node in enumerate(proto.graph.node) if constant_tensor(node) is None}
        self._producer = {name: index for index, node in self._nodes.items() for name in node.output if name}
        self._reads = {index: _reads(node) for index, node in self._nodes.items()}
        self._constant_nodes = self._nodes_on_constants()
        self._pending = set(self._nodes)
        self.batches: list[Feed] = [dict(feed) for feed in feeds]

    def replace(self, name: str, array: Array) -> None:
        """Replace a constant for the nodes that have not run."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)

    def tensor(self, name: str) -> list[Array]:
        """Return a tensor, one array per batch.

        Raises:
            RefusedError: The executor cannot run the nodes that the tensor needs.
        """
        return run_together([self], name)[0]

    def until(self, index: int) -> None:
        """Run all nodes before the one with this index.

        Raises:
            RefusedError: The executor cannot run them.
        """
        before = [number for number in self._pending - self._constant_nodes if number < index]
        if before:
            _advance([self], [self._stage(self._needed(before))])

    def first_reader(self, names: Collection[str]) -> int:
        """Return the index of the first node that has to run again when these constants change.

        Returns:
            An index; the number of nodes if no node has to run again. Nodes that read only constants do not count.
        """
        changed = set(names)
        for index, node in self._nodes.items():
            if changed.intersection(self._reads[index]):
                if index not in self._constant_nodes:
                    return index
                changed.update(node.output)
        return len(self._proto.graph.node)

    @property
    def position(self) -> int:
        """The index of the first node that has not run; the number of nodes after the last."""
        return min(self._pending - self._constant_nodes, default=len(self._proto.graph.node))

    def rest(self, new_inputs: Mapping[str, Array]) -> tuple[onnx.ModelProto, list[Feed]]:
        """Return the pending nodes as a model that computes the outputs that are missing.

        Args:
            new_inputs: Constants that become inputs, each with a value of its type and shape.

        Returns:
            The model, and its inputs without `new_inputs`, one feed per batch.
        """
        missing = [v.name for v in self._proto.graph.output if self._producer.get(v.name, -1) in self._pending]
        part = self._part(self._needed([self._producer[name] for name in missing]), missing, new_inputs)
        read = {value.name for value in part.graph.input}
        return part, [{name: array for name, array in held.items() if name in read} for held in self.batches]

    def is_pending(self, name: str) -> bool:
        """Return whether a node that has not run computes this tensor."""
        return name in self._producer and self._producer[name] in self._pending

    def _stage(self, nodes: Sequence[int], name: str = "") -> Stage:
        """Return a stage of pending nodes, and count them as run. It keeps the named tensor and all live tensors."""
        self._pending -= set(nodes) - self._constant_nodes
        live = self._live() | ({name} if name else set())
        outputs = [
            output
            for index in nodes
            for output in self._nodes[index].output
            if output in live and (output == name or index not in self._constant_nodes)
        ]
        return Stage(self._part(nodes, outputs), tuple(outputs), frozenset(live))

    def stage_to(self, name: str) -> Stage:
        """Return the stage that computes a pending tensor, and count its nodes as run."""
        return self._stage(self._needed([self._producer[name]]), name)

    def take(self, batch: int, stage: Stage, arrays: Sequence[Array]) -> None:
        """Store the outputs of a stage for one batch, and free the tensors that are no longer read.

        Args:
            batch: The index of the batch.
            stage: The stage that has run.
            arrays: Its outputs, in the order of `stage.outputs`.
        """
        held = self.batches[batch]
        held.update(zip(stage.outputs, arrays, strict=True))
        for name in [name for name in held if name not in stage.live]:
            del held[name]

    def _nodes_on_constants(self) -> frozenset[int]:
        """Return the nodes that read only constants or outputs of such nodes."""
        nodes: set[int] = set()
        for index, reads in self._reads.items():
            if reads and all(
                name in self._constants or name in self._sparse or self._producer.get(name, -1) in nodes
                for name in reads
            ):
                nodes.add(index)
        return frozenset(nodes)

    def _needed(self, targets: Sequence[int]) -> list[int]:
        """Return the pending nodes that these nodes depend on, including themselves, in the order of the graph."""
        needed: set[int] = set()
        stack = list(targets)
        while stack:
            index = stack.pop()
            if index in self._pending and index not in needed:
                needed.add(index)
                stack += [self._producer[read] for read in self._reads[index] if read in self._producer]
        return sorted(needed)

    def _live(self) -> set[str]:
        """Return the tensors that pending nodes read."""
        return {name for index in self._pending for name in self._reads[index]}

    def _part(
        self, nodes: Sequence[int], outputs: Sequence[str], new_inputs: Mapping[str, Array] | None = None
    ) -> onnx.ModelProto:
        """Return nodes as a model; its inputs are the held tensors that they read, and `new_inputs`."""
        new_inputs = new_inputs or {}
        computed = {output for index in nodes for output in self._nodes[index].output}
        read = dict.fromkeys(name for index in nodes for name in self._reads[index] if name not in computed)
        stored = [self._constants[name] for name in read if name in self._constants and name not in new_inputs]
        sparse = [self._sparse[name] for name in read if name in self._sparse]
        held = [name for name in read if name not in self._constants and name in self.batches[0]]
        inputs = [_input(name, new_inputs[name].dtype, new_inputs[name].shape) for name in read if name in new_inputs]
        inputs += [_input(name, self.batches[0][name].dtype, self._unknown_sizes(name)) for name in held]
        graph = onnx.GraphProto(
            name="part", node=[self._nodes[index] for index in nodes], initializer=stored, input=inputs
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

    def _unknown_sizes(self, name: str) -> list[None] | None:
        """Return a shape of unknown sizes, because fusions need the rank; None if the rank differs between batches.

        It differs if a Squeeze has removed the axis of a batch of 1.
        """
        ranks = {held[name].ndim for held in self.batches}
        return [None] * ranks.pop() if len(ranks) == 1 else None


def run_together(executions: Sequence[PartialExecution], name: str) -> list[list[Array]]:
    """Return a tensor of several partial executions of the same batches.

    The nodes that they need run as one model, so that one session serves all of them.

    Returns:
        For each execution, one array per batch.

    Raises:
        RefusedError: The executor cannot run the nodes that the tensor needs.
    """
    pending = [execution for execution in executions if execution.is_pending(name)]
    _advance(pending, [execution.stage_to(name) for execution in pending])
    return [[held[name] for held in execution.batches] for execution in executions]


def _advance(executions: Sequence[PartialExecution], stages: Sequence[Stage]) -> None:
    """Run one stage of each execution on all batches."""
    names = [output for stage in stages for output in stage.outputs]
    if not names:
        return
    what = f"the part of the model that computes {names[-1]}"
    session = open_session(_joined([stage.part for stage in stages]), optimise=True, what=what)
    read = set(session.inputs)
    prefixes = _prefixes(len(stages))
    for batch in range(len(executions[0].batches)):
        feed = {
            f"{prefix}{name}": array
            for prefix, execution in zip(prefixes, executions, strict=True)
            for name, array in execution.batches[batch].items()
            if f"{prefix}{name}" in read
        }
        arrays = session.run(feed)
        for execution, stage in zip(executions, stages, strict=True):
            execution.take(batch, stage, arrays[: len(stage.outputs)])
            arrays = arrays[len(stage.outputs) :]


def _prefixes(count: int) -> list[str]:
    """Return a prefix for the names of each part of a joined model; no prefix if there is only one part."""
    return [""] if count == 1 else [f"{number}/" for number in range(count)]


def _joined(parts: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Join models into one, with prefixed names."""
    if len(parts) == 1:
        return parts[0]
    joined = onnx.ModelProto()
    joined.CopyFrom(parts[0])
    joined.graph.Clear()
    joined.graph.name = parts[0].graph.name
    for prefix, part in zip(_prefixes(len(parts)), parts, strict=True):
        stored = [*part.graph.initializer, *(tensor.values for tensor in part.graph.sparse_initializer)]
        names = {
            tensor.name: f"{prefix}{tensor.name}" for tensor in stored
        }  # without it onnx does not rename them in subgraphs
        graph = compose.add_prefix_graph(part.graph, prefix, name_map=names)
        for field in ("node", "initializer", "sparse_initializer", "input", "output"):
            getattr(joined.graph, field).extend(getattr(graph, field))
    return joined


def _input(name: str, dtype: np.dtype[np.generic], shape: Sequence[int | None] | None) -> onnx.ValueInfoProto:
    """Return the declaration of an input."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def _reads(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the tensors that a node reads, including those that its subgraphs capture."""
    return tuple(dict.fromkeys([*filter(None, node.input), *captured_names(node)]))


def _renamed(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """Return a constant under the name by which nodes read it. The value of a Constant node often has no name."""
    if tensor.name == name:
        return tensor
    renamed = onnx.TensorProto()
    renamed.CopyFrom(tensor)
    renamed.name = name
    return renamed
