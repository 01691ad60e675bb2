"""Functions of a model: their nodes are put in the place of the calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import inliner

from spa_onnx.errors import RefusedError
from spa_onnx.model.skeleton import SMALL
from spa_onnx.model.subgraphs import nested, operators
from spa_onnx.model.traits import operator_name

Name: TypeAlias = tuple[str, str, str]
"""(domain, name, overload) of a function."""

MOST_NODES = 200_000
"""The most nodes that functions may have once they are put in place."""

MOST_BYTES = 2**28
"""The most bytes that these nodes may take."""

DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a function or a graph adds: nodes, and their bytes, with those of all functions that it calls."""

    nodes: int
    bytes: int


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the nodes of its functions in the place of the calls; the model itself if it has none.

    Functions that need another version of an operator set stay.

    Args:
        proto: The model; it is not changed.

    Raises:
        RefusedError: A function calls itself, or the functions have too many nodes.
    """
    if not proto.functions:
        return proto
    _check_size(proto)
    bare = _without_values(proto)
    _import_domains(bare)
    _agree_on_versions(bare)
    try:
        result = inliner.inline_local_functions(bare)
    except (RuntimeError, ValueError, onnx.checker.ValidationError):
        return proto
    for field in ("initializer", "value_info"):
        entries = getattr(result.graph, field)
        del entries[:]
        entries.extend(getattr(proto.graph, field))
    _forget_domains(proto, result)
    return result


def _name(call: onnx.NodeProto) -> Name:
    """Return the name of the function that a node calls, if it calls one."""
    return call.domain, call.op_type, call.overload


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their subgraphs."""
    for node in nodes:
        for inner in nested(node):
            yield from operators(inner)
        yield node


def _check_size(proto: onnx.ModelProto) -> None:
    """Check that functions do not call themselves, and that their nodes fit into the model.

    Raises:
        RefusedError: They do not.
    """
    left = {(f.domain, f.name, f.overload): f for f in proto.functions}
    costs: dict[Name, _Cost] = {}
    while left:
        known = [name for name, f in left.items() if not any(_name(node) in left for node in _all_nodes(f.node))]
        if not known:
            domain, name, _ = min(left)
            raise RefusedError(f"the function {operator_name(name, domain)} calls itself, so the model cannot be run")
        costs |= {name: _cost(left[name].node, costs) for name in known}
        for name in known:
            del left[name]
    whole = _cost(proto.graph.node, costs)
    own = sum(1 for _ in operators(proto.graph))
    if whole.nodes - own > MOST_NODES or whole.bytes - sum(node.ByteSize() for node in proto.graph.node) > MOST_BYTES:
        raise RefusedError(
            f"the functions of the model expand to {whole.nodes} nodes and {whole.bytes} bytes, more than "
            f"{MOST_NODES} and {MOST_BYTES}; export the model with fewer of them"
        )


def _cost(nodes: Iterable[onnx.NodeProto], functions: Mapping[Name, _Cost]) -> _Cost:
    """Return what nodes cost once the functions that they call are put in place."""
    count = size = 0
    for node in _all_nodes(nodes):
        called = functions.get(_name(node), _Cost(1, node.ByteSize()))
        count, size = count + called.nodes, size + called.bytes
    return _Cost(count, size)


def _without_values(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which large initializers have no values, since the inliner copies the model several times."""
    bare = onnx.ModelProto()
    _copy_fields(proto, bare, without="graph")
    _copy_fields(proto.graph, bare.graph, without="initializer")
    for tensor in proto.graph.initializer:
        if prod(tensor.dims) <= SMALL:
            bare.graph.initializer.add().CopyFrom(tensor)
        else:
            bare.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return bare


def _copy_fields(source: Message, target: Message, *, without: str) -> None:
    """Copy all fields of a message but one."""
    for field, value in source.ListFields():
        if field.name == without:
            continue
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)


def _import_domains(proto: onnx.ModelProto) -> None:
    """Import the operator sets that only functions import."""
    imported = {entry.domain for entry in proto.opset_import}
    for entry in (entry for function in proto.functions for entry in function.opset_import):
        if entry.domain not in imported:
            imported.add(entry.domain)
            proto.opset_import.add(domain=entry.domain, version=entry.version)


def _agree_on_versions(proto: onnx.ModelProto) -> None:
    """Let functions import the versions of the model where their operators are the same in both."""
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for function in proto.functions:
        for entry in function.opset_import:
            used = {node.op_type for node in _all_nodes(function.node) if node.domain == entry.domain}
            if all(
                _since(op, entry.domain, entry.version) == _since(op, entry.domain, versions[entry.domain])
                for op in used
            ):
                entry.version = versions[entry.domain]


def _since(op_type: str, domain: str, version: int) -> int:
    """Return the version of an operator in a version of its operator set; 0 for operators without a schema in onnx."""
    try:
        return int(onnx.defs.get_schema(op_type, version, "" if domain in DEFAULT_DOMAINS else domain).since_version)
    except onnx.defs.SchemaError:
        return 0


def _forget_domains(original: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """Remove the imports of domains in which there were only functions, all of them now in place."""
    used = {node.domain for node in operators(result.graph)}
    used |= {
        domain for function in result.functions for domain in (function.domain, *(n.domain for n in function.node))
    }
    gone = {function.domain for function in original.functions} - used - set(DEFAULT_DOMAINS)
    for entry in [entry for entry in result.opset_import if entry.domain in gone]:
        result.opset_import.remove(entry)
