"""From a plan to the smaller model. Shapes change; values and names do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from spa_onnx.analysis.groups import Analysis
from spa_onnx.analysis.shuffle import Chain, aligned_shapes
from spa_onnx.model.facts import Axis
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model, graph_constants
from spa_onnx.model.node import Node
from spa_onnx.model.shapes import refresh_value_info
from spa_onnx.model.subgraphs import graphs, opened_graphs, operators
from spa_onnx.model.unread import remove_unread, unread_nodes
from spa_onnx.operators import knowledge
from spa_onnx.operators.registry import is_pinned_throughout
from spa_onnx.operators.updates import Rescale, SetAttribute, SetInput, ShapeEdit, TakeInstead
from spa_onnx.plan.graph_edits import Blend, Operation, Scale, Take, operate
from spa_onnx.plan.plan import Plan, TensorCut
from spa_onnx.plan.removal import Removal, SliceKey, Slices, lookup, taken


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A pruned model.

    Args:
        proto: The model.
        tensors: The constants that were cut.
        inexact: The nodes whose statistics run over fewer indices than before.
        removal: What is kept of every axis.
    """

    proto: onnx.ModelProto
    tensors: tuple[TensorCut, ...]
    inexact: tuple[str, ...]
    removal: Removal


def rewrite(analysis: Analysis, plan: Plan, values: Mapping[str, Array] | None = None) -> Rewritten:
    """Carry out a plan. The original is not changed.

    Args:
        analysis: The groups of the model.
        plan: The plan.
        values: Repaired constants, in their original shapes.
    """
    removal = Removal(analysis, plan.removed)
    model = analysis.model
    edits = dict(_chain_edits(analysis.chains, removal, model))
    inside = {node.index for chain in analysis.chains for node in chain.nodes}
    for node in model.nodes:
        update = knowledge(node.op).update
        if update is None or node.index in inside or model.is_folded(node) or is_pinned_throughout(node, model):
            continue
        found = list(update(node, model, removal))
        if found:
            edits[node.index] = found
    draft = _Draft(model, values or {})
    tensors = tuple(draft.cut_constants(removal))
    for index, found in edits.items():
        draft.edit(index, found)
    inexact = sorted({node for axis, node in analysis.statistics.items() if axis in removal})
    proto = draft.finish()
    left = {name for graph in graphs(proto.graph) for name in graph_constants(graph)}
    sliced = tuple(
        cut for cut in tensors if cut.name in left
    )  # indices that a shape update renumbered are no longer slices of the original
    return Rewritten(proto, sliced, tuple(inexact), removal)


def _chain_edits(chains: tuple[Chain, ...], removal: Removal, model: Model) -> Iterator[tuple[int, list[ShapeEdit]]]:
    """Yield the edits of channel shuffles.

    Nodes are kept if the channels still form a grid; otherwise one Gather replaces them.
    """
    for chain in chains:
        shape = model.shape(chain.source) or ()
        lost = {
            dim: removal.kept(Axis(chain.source, dim))
            for dim in range(len(shape))
            if Axis(chain.source, dim) in removal
        }
        shapes = aligned_shapes(chain, shape, lost)
        if shapes is not None and _reproduces(chain, shapes, removal):
            removal.override(shapes)
            for node in chain.nodes:
                update = knowledge(node.op).update
                if update is not None:
                    yield node.index, list(update(node, model, removal))
            continue
        for output in chain.outputs if lost else ():
            dim = next(iter(chain.reordered(output, shape)), next(iter(lost)))
            wanted = chain.order(output, dim)[removal.kept(Axis(output, dim))]
            places = np.searchsorted(removal.kept(Axis(chain.source, dim)), wanted).astype(np.int64)
            yield model.producer[output].index, [TakeInstead(dim, places, chain.source)]


def _reproduces(chain: Chain, shapes: Mapping[str, tuple[int, ...]], removal: Removal) -> bool:
    """Return whether the shuffle of the smaller grid yields the size of each output.

    It does not if a picked digit has lost its neighbours.
    """
    return all(shapes[output] == removal.after(output) for output in chain.outputs) and not any(
        n.op == "Gather" for n in chain.nodes
    )


class _Draft:
    """A copy of the model during rewriting."""

    def __init__(self, model: Model, values: Mapping[str, Array]) -> None:
        self._model = model
        self._values = values
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(model.proto)
        self._nodes = list(operators(self.proto.graph))
        self._names = {name for node in self._nodes for name in (*node.input, *node.output)}
        self._names |= {tensor.name for graph in graphs(self.proto.graph) for tensor in graph.initializer}
        seen = list(opened_graphs(self.proto.graph, model.opened))
        self._stored = {tensor.name: tensor for graph in seen for tensor in graph.initializer}
        self._constants = {node.output[0]: node for graph in seen for node in graph.node if node.op_type == "Constant"}
        self._listed = {value.name: value for value in self.proto.graph.input}
        self._made: dict[tuple[str, bytes], str] = {}
        self._operations: list[Operation] = []
        self._unused: set[str] = set()

    # --- constants ----------------------------------------------------------------------------------------------------

    def cut_constants(self, removal: Removal) -> Iterator[TensorCut]:
        """Cut every constant that loses indices. One that loses different indices in different places is duplicated."""
        uses: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for node in self._model.nodes:
            for slot, name in enumerate(node.inputs):
                if name and self._model.is_constant(name):
                    uses[self._model.source.get(name, name)].append((node.index, slot, name))
        for source, places in uses.items():
            slices = [removal.slices(name) for _, _, name in places]
            if any(map(any, slices)) or source in self._values:
                yield from self._store_variants(source, places, slices)

    def _store_variants(
        self, source: str, places: list[tuple[int, int, str]], slices: list[Slices]
    ) -> Iterator[TensorCut]:
        """Store the variants of a constant. The first one keeps the name.

        An uncut variant comes first, so that it is unchanged. slices: those of each place.
        """
        names: dict[SliceKey, str] = {}
        array = np.asarray(self._values.get(source, self._model.constant(source)))
        for each in sorted(slices, key=lambda each: len(each[0])):
            if lookup(each) in names:
                continue
            name = names[lookup(each)] = source if not names else self._new_name(source)
            if any(each) or name != source or source in self._values:
                self._store(name, source, taken(array, each))
            if any(each):
                yield TensorCut(name, source, self._model.shape(source) or (), each)
        for (index, slot, _), each in zip(places, slices, strict=True):
            self._nodes[index].input[slot] = names[lookup(each)]

    def _store(self, name: str, source: str, array: Array) -> None:
        """Store the new value of a constant in its place, or beside it under a new name."""
        if name != source:
            self._add(name, array)
            return
        if name in self._stored:
            _overwrite(self._stored[name], array)
        if name in self._constants:
            _overwrite_constant(self._constants[name], array)
        if name in self._listed:
            _declare(self._listed[name], array)

    def _add(self, name: str, array: Array) -> None:
        """Add an initializer; before IR 4 it must be listed as a graph input too."""
        self.proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        if self.proto.ir_version < 4:
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            self.proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))

    def _new_name(self, base: str) -> str:
        """Return a name that is not used yet."""
        number = 2
        while f"{base}__{number}" in self._names:
            number += 1
        self._names.add(f"{base}__{number}")
        return f"{base}__{number}"

    # --- nodes --------------------------------------------------------------------------------------------------------

    def edit(self, index: int, edits: list[ShapeEdit]) -> None:
        """Carry out the shape edits of a node."""
        node = self._nodes[index]
        for change in edits:
            if isinstance(change, SetAttribute):
                _set_attribute(node, change)
            elif isinstance(change, SetInput):
                self._set_input(index, node, change)
            elif isinstance(change, Rescale):
                self._resize(index, node, change)
            else:
                self._operations.append(
                    Take(node.output[0], change.source or node.input[0], change.axis, change.indices)
                )

    def _current(self, index: int, slot: int) -> Array | None:
        """Return the value of a parameter input if it is a constant."""
        name = find_node(self._model, index).input(slot)
        return self._model.constant(name) if name else None

    def _resize(self, index: int, node: onnx.NodeProto, change: Rescale) -> None:
        """Carry out a Rescale."""
        wrong = change.found != change.wanted
        if self._current(index, change.slot) is not None or (change.found[wrong] <= 0).any():
            self._set_input(index, node, SetInput(change.slot, change.wanted, wrong))
            return
        common = np.where(wrong, np.gcd(change.found, change.wanted), 1)
        times, over = np.where(wrong, change.wanted, 1) // common, np.where(wrong, change.found, 1) // common
        self._operations.append(Scale(node.output[0], change.slot, times.astype(np.int64), over.astype(np.int64)))

    def _set_input(self, index: int, node: onnx.NodeProto, change: SetInput) -> None:
        """Carry out a SetInput."""
        current = self._current(index, change.slot)
        where = np.ones(change.values.shape, bool) if change.where is None else change.where
        if current is None and not where.all():
            self._operations.append(Blend(node.output[0], change.slot, change.values, where))
            return
        values = (
            change.values
            if current is None or where.all()
            else np.where(where, change.values, current).astype(current.dtype)
        )
        while len(node.input) <= change.slot:
            node.input.append("")
        old = node.input[change.slot]
        node.input[change.slot] = self._parameter(values, old or f"{node.name or node.output[0]}_{change.slot}")
        self._unused.add(old)

    def _parameter(self, values: Array, base: str) -> str:
        """Return the name of a constant with these values; equal parameters share one."""
        key = (str(values.dtype) + str(values.shape), values.tobytes())
        if key not in self._made:
            self._made[key] = self._new_name(base)
            self._add(self._made[key], values)
        return self._made[key]

    def finish(self) -> onnx.ModelProto:
        """Return the pruned model without nodes and constants that are no longer read."""
        dead_before = unread_nodes(self._model.proto.graph)
        proto = operate(self.proto, self._operations) if self._operations else self.proto
        remove_unread(list(opened_graphs(proto.graph, self._model.opened)), dead_before, self._unused)
        refresh_value_info(proto, self._model.opened)
        return proto


def _overwrite(tensor: TensorProto, array: Array) -> None:
    """Replace the content of a stored tensor; its name, documentation and metadata are kept."""
    fresh = numpy_helper.from_array(np.asarray(array, order="C"), tensor.name)
    fresh.doc_string = tensor.doc_string
    fresh.metadata_props.extend(tensor.metadata_props)
    tensor.CopyFrom(fresh)


def _overwrite_constant(node: onnx.NodeProto, array: Array) -> None:
    """Replace the value of a Constant node."""
    if node.attribute[0].name == "value":
        _overwrite(node.attribute[0].t, array)
        return
    del node.attribute[:]
    node.attribute.append(
        onnx.helper.make_attribute("value", numpy_helper.from_array(np.asarray(array, order="C"), node.output[0]))
    )


def _declare(value: onnx.ValueInfoProto, array: Array) -> None:
    """Set the declared shape of a value."""
    for dim, size in zip(value.type.tensor_type.shape.dim, array.shape, strict=True):
        dim.dim_value = size


def _set_attribute(node: onnx.NodeProto, change: SetAttribute) -> None:
    """Set or remove an attribute of a node."""
    present: dict[str, AttributeProto] = {attribute.name: attribute for attribute in node.attribute}
    if change.name in present:
        node.attribute.remove(present[change.name])
    if change.value is not None:
        node.attribute.append(onnx.helper.make_attribute(change.name, change.value))


def find_node(model: Model, index: int) -> Node:
    """Return the node at a position of the original graph."""
    return next(node for node in model.nodes if node.index == index)
