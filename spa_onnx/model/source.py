"""A model to prune, as it was read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from spa_onnx.model.computed_weights import computed_weights, store_weights
from spa_onnx.model.constants import graph_constants
from spa_onnx.model.files import check_model, read_model, sha256
from spa_onnx.model.functions import inlined
from spa_onnx.model.node_order import sort_nodes, unsorted_graphs
from spa_onnx.model.sequences import unroll_sequences, uses_sequences


@dataclass(frozen=True, slots=True)
class Source:
    """A model that was read.

    Args:
        proto: The model, all its external data loaded, its functions inlined, its nodes in the order of execution and
            its weights stored as constants.
        sha256: The hexadecimal digest of its file, by which a plan recognises it.
        bytes: Its size, external data included.
        computed: The constants that the file does not hold: weights that its graph computes, and those of functions.
    """

    proto: onnx.ModelProto
    sha256: str
    bytes: int
    computed: frozenset[str] = frozenset()


def open_source(model: str | Path | onnx.ModelProto) -> Source:
    """Read a model from a path, or take one from memory.

    Raises:
        UsageError: There is no such file.
        RefusedError: It is no ONNX model, or a damaged one.
    """
    if isinstance(model, onnx.ModelProto):
        check_model(model)
        data = model.SerializeToString()
        proto, digest, size = model, sha256(data), len(data)
    else:
        proto, digest, size = read_model(Path(model))
    ready = _prepared(proto)
    stored = set() if ready is proto else set(graph_constants(ready.graph)) - set(graph_constants(proto.graph))
    return Source(ready, digest, size, frozenset(stored))


def _prepared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in the form that the analysis reads; the model itself if it has that form.

    Functions are inlined, nodes are sorted, sequences of fixed content are unrolled, and weights that the graph
    computes from constants alone become constants.

    Args:
        proto: The model; it is not changed.
    """
    ready = inlined(proto)
    if unsorted_graphs(ready):
        ready = _copied(ready, proto)
        for graph in unsorted_graphs(ready):
            sort_nodes(graph)
    if uses_sequences(ready.graph):
        ready = _copied(ready, proto)
        unroll_sequences(ready)
    weights = computed_weights(ready)
    if weights:
        ready = _copied(ready, proto)
        store_weights(ready, weights)
    return ready


def _copied(proto: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the original; a model that is one already is returned itself."""
    if proto is not original:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy
