"""What looking at samples may hold: bytes of matrices and of tensors, and which tensors fit together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from spa_onnx.layers import LayerKey, LinearLayer
from spa_onnx.model.model import Model
from spa_onnx.statistics.collect import columns_of
from spa_onnx.statistics.moments import FEW, are_few

MEMORY = 25 * 10**8
"""Bytes that collecting may take if nothing is prompt."""

COPIES = 4
"""A matrix takes up to so many times its size while it is worked on."""

COPIES_IN_ORDER = 8
"""The same while a product is repaired in the order of the graph: matrices of two halves, of the whole, and what is solved with them."""

ARENA = 2
"""A batch takes up to so many times the size of the tensors that are held: the arena of onnxruntime grows in steps that double."""


def sample_bytes(model: Model, name: str) -> int:
    """Bytes that one sample of a tensor takes, as float32."""
    return 4 * abs(prod(model.shape(name) or ())) // max(model.batch, 1)


def most_columns(found: Iterable[LinearLayer], memory: int, copies: int) -> dict[LayerKey, int]:
    """Columns at most, of products whose matrix of all inputs there is no room for: key -> how many.

    copies: of the matrix, or of the columns, that have to fit.
    """
    most = {}
    for layer in found:
        inputs = layer.inputs
        if copies * 8 * inputs**2 > memory:
            most[layer.key] = max(min(inputs // FEW, memory // (copies * 8 * inputs)), 1)
    return most


@dataclass(frozen=True, slots=True)
class Room:
    """What there is room for, in bytes.

    tensors: those of a batch. collected: tensor -> the matrices that are collected of it; matrices: of all those of one pass. stored:
    whether they are put into files after it, since not all fit. most: as `most_columns`. in_order: tensors of all samples while the graph
    is repaired in its order.
    """

    tensors: int
    collected: Mapping[str, int]
    matrices: int
    stored: bool
    most: Mapping[LayerKey, int]
    in_order: int


def room(model: Model, found: Sequence[LinearLayer], memory: int, samples: int) -> Room:
    """What so many samples may take."""
    most = most_columns(found, memory, COPIES)
    sizes = [matrix_bytes(layer, model, samples, most.get(layer.key)) for layer in found]
    largest = max((size // layer.blocks for size, layer in zip(sizes, found, strict=True)), default=0)
    left = max(memory - COPIES * largest, 0)
    stored = sum(sizes) > left
    held = 0 if stored else sum(sizes)
    collected = dict.fromkeys((layer.data for layer in found), 0)
    for size, layer in zip(sizes, found, strict=True):
        collected[layer.data] += size
    return Room(
        max(left // 2 if stored else left - held, memory // 8),
        collected,
        left // 2 if stored else held,
        stored,
        most,
        max(memory - held - min(COPIES_IN_ORDER * largest, memory // 2), memory // 8),
    )


def matrix_bytes(layer: LinearLayer, model: Model, samples: int, most: int | None = None) -> int:
    """Bytes that are kept of a layer's inputs in so many samples, all products side by side together. most: columns at most."""
    inputs, columns = layer.inputs, columns_of(layer, model, samples)
    columns = columns if most is None else min(columns, most)
    return layer.blocks * 8 * inputs * (columns if are_few(columns, inputs) else inputs)


def passes(model: Model, sizes: Mapping[str, int], samples: int, space: Room) -> Iterator[tuple[str, ...]]:
    """Tensors that fit together, and so do their matrices, in the order of the graph. sizes: bytes per sample. samples: of a batch."""
    order = {
        name: number for number, name in enumerate((*model.inputs, *(o for node in model.nodes for o in node.outputs)))
    }
    names: list[str] = []
    for name in sorted(sizes, key=lambda tensor: order.get(tensor, -1)):
        more = (*names, name)
        held = sum(space.collected.get(other, 0) for other in more)
        if names and (samples * sum(sizes[other] for other in more) > space.tensors or held > space.matrices):
            yield tuple(names)
            names = []
        names.append(name)
    if names:
        yield tuple(names)


def widest_cut(model: Model, asked: Collection[str]) -> int:
    """Bytes of one sample in the tensors that are still to be read when one of those asked for is known, where these are the most."""
    made, held = _held(model, (), 0)
    return int(max((held[made[name]] for name in asked if name in made), default=0))


def running(model: Model, kept: Collection[str]) -> int:
    """Bytes of one sample that a forward pass holds at its fullest. kept: tensors that are held to the end."""
    return int(_held(model, kept, 1)[1].max(initial=0))


def _held(model: Model, kept: Collection[str], longer: int) -> tuple[dict[str, int], NDArray[np.int64]]:
    """(place of the node that makes each tensor, bytes of one sample that are held at each place).

    longer: 1 where what a node reads for the last time still counts at its place, else 0.
    """
    place = {node.index: number for number, node in enumerate(model.nodes)}
    made = {name: number for number, node in enumerate(model.nodes) for name in node.outputs}
    change = np.zeros(len(place) + 1 + longer, np.int64)
    for name, readers in model.consumers.items():
        if not model.is_constant(name):
            size = sample_bytes(model, name)
            change[made.get(name, 0)] += size
            if name not in kept:
                change[max(place[reader.index] for reader in readers) + longer] -= size
    return made, np.cumsum(change)
