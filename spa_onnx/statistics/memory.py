"""Memory of collecting statistics: bytes of matrices and tensors, and which tensors fit into memory together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from spa_onnx.layers import LayerKey, LinearLayer
from spa_onnx.model.model import Model
from spa_onnx.statistics.moments import MIN_INPUTS_PER_COLUMN, are_few
from spa_onnx.statistics.subsampling import column_count

DEFAULT_MEMORY = 25 * 10**8
"""The default for the bytes that collecting statistics may take."""

MATRIX_COPIES = 4
"""Working with a matrix takes up to this many times its size."""

SEQUENTIAL_MATRIX_COPIES = 8
"""The same for a layer in sequential repair: matrices of both halves of the samples and of all, and of the solver."""

ARENA_FACTOR = 2
"""A batch takes up to this many times the size of its live tensors: onnxruntime's arena grows by doubling."""


def sample_bytes(model: Model, name: str) -> int:
    """Return the bytes of one sample of a tensor, as float32."""
    return 4 * abs(prod(model.shape(name) or ())) // max(model.batch, 1)


def column_limits(layers: Iterable[LinearLayer], memory: int, copies: int) -> dict[LayerKey, int]:
    """Limit the columns of the layers for which a matrix over all inputs is too large.

    Args:
        layers: The layers.
        memory: Bytes that may be taken.
        copies: How many copies of the matrix, or of the columns, have to fit.

    Returns:
        Key of a layer -> the most columns; layers whose matrix fits are not in it.
    """
    limits = {}
    for layer in layers:
        inputs = layer.inputs
        if copies * 8 * inputs**2 > memory:
            limits[layer.key] = max(min(inputs // MIN_INPUTS_PER_COLUMN, memory // (copies * 8 * inputs)), 1)
    return limits


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """How the memory is divided, in bytes.

    Args:
        tensors: For the tensors of a batch.
        matrix_bytes: Tensor -> size of the matrices that are collected from it.
        pass_matrices: For all matrices of one pass.
        on_disk: Whether matrices are moved to temporary files after each pass, because they do not all fit.
        column_limits: See the function `column_limits`.
        sequential_tensors: For the tensors of all samples during sequential repair.
    """

    tensors: int
    matrix_bytes: Mapping[str, int]
    pass_matrices: int
    on_disk: bool
    column_limits: Mapping[LayerKey, int]
    sequential_tensors: int


def memory_budget(model: Model, layers: Sequence[LinearLayer], memory: int, samples: int) -> MemoryBudget:
    """Divide `memory` bytes for collecting statistics of the layers on this many samples."""
    limits = column_limits(layers, memory, MATRIX_COPIES)
    sizes = [statistics_bytes(layer, model, samples, limits.get(layer.key)) for layer in layers]
    largest = max((size // layer.blocks for size, layer in zip(sizes, layers, strict=True)), default=0)
    available = max(memory - MATRIX_COPIES * largest, 0)
    on_disk = sum(sizes) > available
    in_memory = 0 if on_disk else sum(sizes)
    matrix_bytes = dict.fromkeys((layer.data for layer in layers), 0)
    for size, layer in zip(sizes, layers, strict=True):
        matrix_bytes[layer.data] += size
    return MemoryBudget(
        max(available // 2 if on_disk else available - in_memory, memory // 8),
        matrix_bytes,
        available // 2 if on_disk else in_memory,
        on_disk,
        limits,
        max(memory - in_memory - min(SEQUENTIAL_MATRIX_COPIES * largest, memory // 2), memory // 8),
    )


def statistics_bytes(layer: LinearLayer, model: Model, samples: int, limit: int | None = None) -> int:
    """Return the bytes of the moments of a layer's inputs, of all blocks together.

    Args:
        layer: The layer.
        model: The model that it belongs to.
        samples: Number of samples.
        limit: The most columns, None for no limit.
    """
    inputs, columns = layer.inputs, column_count(layer, model, samples)
    columns = columns if limit is None else min(columns, limit)
    return layer.blocks * 8 * inputs * (columns if are_few(columns, inputs) else inputs)


def capture_passes(
    model: Model, sizes: Mapping[str, int], batch: int, budget: MemoryBudget
) -> Iterator[tuple[str, ...]]:
    """Yield the tensors to capture in each pass: in graph order, as many as fit with their matrices.

    Args:
        model: The model.
        sizes: Tensor -> bytes of one sample.
        batch: Samples of a batch.
        budget: The memory that there is.
    """
    tensors = (*model.inputs, *(output for node in model.nodes for output in node.outputs))
    order = {name: number for number, name in enumerate(tensors)}
    names: list[str] = []
    for name in sorted(sizes, key=lambda tensor: order.get(tensor, -1)):
        candidates = (*names, name)
        matrices = sum(budget.matrix_bytes.get(candidate, 0) for candidate in candidates)
        size = batch * sum(sizes[candidate] for candidate in candidates)
        if names and (size > budget.tensors or matrices > budget.pass_matrices):
            yield tuple(names)
            names = []
        names.append(name)
    if names:
        yield tuple(names)


def peak_live_bytes(model: Model, names: Collection[str]) -> int:
    """Return the most bytes of one sample that partial execution holds when it stops at each of the named tensors."""
    producer, live = _live_bytes(model, (), 0)
    return int(max((live[producer[name]] for name in names if name in producer), default=0))


def peak_bytes(model: Model, kept: Collection[str]) -> int:
    """Return the most bytes of one sample that are live during a forward pass; `kept` tensors stay live to its end."""
    return int(_live_bytes(model, kept, 1)[1].max(initial=0))


def _live_bytes(model: Model, kept: Collection[str], delay: int) -> tuple[dict[str, int], NDArray[np.int64]]:
    """Return (tensor -> number of its node, bytes of one sample that are live at each node).

    delay: 1 if the inputs of a node are still live at the node that reads them last, else 0.
    """
    position = {node.index: number for number, node in enumerate(model.nodes)}
    producer = {name: number for number, node in enumerate(model.nodes) for name in node.outputs}
    change = np.zeros(len(position) + 1 + delay, np.int64)
    for name, readers in model.consumers.items():
        if not model.is_constant(name):
            size = sample_bytes(model, name)
            change[producer.get(name, 0)] += size
            if name not in kept:
                change[max(position[reader.index] for reader in readers) + delay] -= size
    return producer, np.cumsum(change)
