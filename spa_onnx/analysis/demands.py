"""All facts about a model: from the rules of its nodes, from its interface, and from the settings of the user."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from spa_onnx.analysis.groups import UNREAD_CAUSE
from spa_onnx.analysis.shuffle import Chain, chain_facts
from spa_onnx.model.facts import Axis, Fact, Pin
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators import DATA_SIZE, facts, knowledge
from spa_onnx.operators.zeros import Zeros, needs_zeros


def all_facts(model: Model, reorderings: Sequence[Chain], exclude: Sequence[re.Pattern[str]] = ()) -> Iterator[Fact]:
    """Yield all facts about a model.

    Args:
        model: The model.
        reorderings: The channel shuffles, which replace the facts of their nodes.
        exclude: Nodes and tensors whose name matches a pattern keep all their channels.
    """
    yield from _kept(model)
    yield from _demanded(model, reorderings)
    for pattern in exclude:
        for name, where in excluded(model, pattern):
            yield from _pin_tensor(model, name, f"excluded by {pattern.pattern!r}", where)


def _demanded(model: Model, reorderings: Sequence[Chain]) -> Iterator[Fact]:
    """Yield the facts of every node; a channel shuffle yields one set of facts for all its nodes."""
    zeros = Zeros(model) if needs_zeros(model) else None
    first = {chain.nodes[0].index: chain for chain in reorderings}
    inside = {node.index for chain in reorderings for node in chain.nodes}
    for node in model.nodes:
        if node.index in first:
            chain = first[node.index]
            found: list[Fact] = list(chain_facts(chain, model))
            yield from found
            if zeros is not None:
                zeros.add_shuffle(chain.outputs, found)
        elif model.is_folded(node):
            yield from _weights_among_sizes(node, model)
        elif node.index not in inside:
            found = list(facts(node, model) if zeros is None else zeros.exact(facts(node, model)))
            yield from found
            yield from _computed_inputs(node, model)
            if zeros is not None:
                zeros.add_node(node, found)
                yield from zeros.pins(node, found)


def _kept(model: Model) -> Iterator[Pin]:
    """Yield pins for the interface, sizes that depend on data, and weights that no operator outside reads directly."""
    for what, names in (("input", model.inputs), ("output", model.outputs)):
        for name in names:
            yield from _pin_tensor(model, name, f"graph {what}", name)
    for name, node in model.nested.items():
        yield from _pin_tensor(model, name, "a weight in a branch or body", str(node))
    for name in model.sparse:
        yield from _pin_tensor(model, name, "stored as a sparse tensor; store it dense to have it cut", name)
    for axis in sorted(model.inference.data_axes):
        yield Pin(axis, DATA_SIZE, str(model.producer.get(axis.tensor, axis.tensor)))
    read = {*model.consumers, *model.source.values(), *model.outputs}
    for name in model.constants:
        if model.is_float(name) and name not in read:
            yield from _pin_tensor(model, name, UNREAD_CAUSE, name)


def _weights_among_sizes(node: Node, model: Model) -> Iterator[Pin]:
    """Yield pins for weights in shape arithmetic, which has no rules (a weight scaled by the root of a size, say)."""
    for name in node.inputs if node.op not in ("Shape", "Size") else ():
        if name and (model.value(name) is None or model.is_float(name)):
            yield from _pin_tensor(model, name, "computed with sizes", str(node))


def _computed_inputs(node: Node, model: Model) -> Iterator[Pin]:
    """Yield pins for sizes that enter arithmetic as numbers, and for sizes that a parameter is computed from."""
    entry = knowledge(node.op)
    for slot, name in enumerate(node.inputs):
        value = model.value(name) if name else None
        if value is None or model.is_constant(name) or (slot in entry.parameters and slot in entry.corrects):
            continue
        for axis in sorted(frozenset().union(*value.origin)):
            yield Pin(axis, f"{node.op} computes with its size", str(node))
        if slot not in entry.parameters:
            yield from _pin_tensor(model, name, "computed from shapes", name)


def excluded(model: Model, pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Yield (tensor, the name that matched).

    These are the tensors whose name the pattern matches, and all tensors of nodes whose name it matches.
    """
    for node in model.nodes:
        whole = pattern.search(node.name)
        for name in (*node.inputs, *node.outputs):
            if whole:
                yield name, node.name
            elif name and pattern.search(model.source.get(name, name)):
                yield name, name


def _pin_tensor(model: Model, name: str, why: str, where: str) -> Iterator[Pin]:
    """Yield a pin for every axis of a tensor."""
    for dim in range(len(model.shape(name) or ()) if name else 0):
        yield Pin(Axis(name, dim), why, where)
