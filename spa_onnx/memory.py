"""What looking at samples may hold: bytes of matrices and of tensors, and which tensors fit together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod

import numpy as np

from spa_onnx.consumers import Consumer
from spa_onnx.errors import RefusedError
from spa_onnx.model import Model
from spa_onnx.statistics import inputs_of

MEMORY = 25 * 10**8
"""Bytes that collecting may take if nothing is said."""

COPIES = 4
"""A matrix takes up to so many times its size while it is worked on."""

ARENA = 2
"""A batch takes up to so many times the size of the tensors that are looked at: the arena of onnxruntime grows in steps that double."""


def sample_bytes(model: Model, name: str) -> int:
    """Bytes that one sample of a tensor takes, as float32."""
    return 4 * abs(prod(model.shape(name) or ())) // max(dims_batch(model), 1)


def room(model: Model, found: Sequence[Consumer], memory: int) -> int:
    """Bytes that are left for tensors beside the matrices that are collected and those that are made of the largest of them.

    Raises RefusedError where the matrices alone take more than `memory`.
    """
    sizes = [8 * inputs_of(consumer, model) ** 2 for consumer in found]
    held = sum(size * consumer.blocks for size, consumer in zip(sizes, found, strict=True)) + COPIES * max(sizes, default=0)
    if held > memory:
        raise RefusedError(
            f"the statistics of {len(found)} products take {held / 1e9:.2f} GB, and --memory is {memory / 1e9:.2f} GB; allow more, "
            "--exclude the widest layers, or use a --criterion on weights"
        )
    return max(memory - held, memory // 8)


def passes(model: Model, sizes: Mapping[str, int], most: int) -> Iterator[tuple[str, ...]]:
    """Tensors that fit together, in the order of the graph. most: bytes per sample."""
    order = {name: number for number, name in enumerate((*model.inputs, *(o for node in model.nodes for o in node.outputs)))}
    names: list[str] = []
    for name in sorted(sizes, key=lambda tensor: order.get(tensor, -1)):
        if names and sum(sizes[other] for other in (*names, name)) > most:
            yield tuple(names)
            names = []
        names.append(name)
    if names:
        yield tuple(names)


def dims_batch(model: Model) -> int:
    """The size that stands for the batch in the shapes at hand."""
    return (model.shape(model.inputs[0]) or (1,))[0] if model.inputs and model.shape(model.inputs[0]) else 1


def widest_cut(model: Model, asked: Collection[str]) -> int:
    """Bytes of one sample in the tensors that are still to be read when one of those asked for is known, where these are the most."""
    place = {node.index: number for number, node in enumerate(model.nodes)}
    made = {name: number for number, node in enumerate(model.nodes) for name in node.outputs}
    change = np.zeros(len(place) + 1, np.int64)
    for name, readers in model.consumers.items():
        if not model.is_constant(name):
            size = sample_bytes(model, name)
            change[made.get(name, 0)] += size
            change[max(place[reader.index] for reader in readers)] -= size
    held = np.cumsum(change)
    return int(max((held[made[name]] for name in asked if name in made), default=0))
