"""Normalisation per channel, where removal is exact, or over channels, where removal changes the statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnx import NodeProto, helper

from spa_onnx.model.contrib_shapes import first_of_axis, like_first
from spa_onnx.model.facts import Axis, Coupling, Fact, Normalises, Span, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.elementwise import broadcast
from spa_onnx.operators.registry import UNBOUNDED, Bound, register
from spa_onnx.operators.updates import Cut, SetAttribute, ShapeEdit
from spa_onnx.operators.zeros import first, scaled_by


def _per_channel(node: Node, model: Model) -> Iterator[Coupling]:
    """Couple each vector input with the channels (axis 1) of the output."""
    channels = (model.shape(node.inputs[0]) or ())[1]
    for vector in node.inputs[1:]:
        if vector:
            yield from same(Axis(node.outputs[0], 1), Axis(vector, 0), channels, f"{node} has one entry per channel")


def batch_normalization(node: Node, model: Model) -> Iterator[Fact]:
    """y[:, c] = (x[:, c] - mean[c]) / sqrt(var[c] + eps) * scale[c] + bias[c].

    Mean and variance are stored. In training mode they are computed from x.
    """
    x, y = node.inputs[0], node.outputs[0]
    yield from _per_channel(node, model)
    yield from broadcast(node, model, [x], y)
    if node.attributes.get("training_mode"):
        shape = model.shape(x) or ()
        for dim in (dim for dim in range(len(shape)) if dim != 1):
            yield Normalises(Axis(x, dim), node.name, f"{node.op} normalises over it")
        for statistic in filter(None, node.outputs[1:]):
            yield from same(Axis(x, 1), Axis(statistic, 0), shape[1], f"{node} has one entry per channel")


def instance_normalization(node: Node, model: Model) -> Iterator[Fact]:
    """y[n, c] = (x[n, c] - mean(x[n, c])) / sqrt(var(x[n, c]) + eps) * scale[c] + bias[c]."""
    yield from _per_channel(node, model)
    yield from broadcast(node, model, [node.inputs[0]], node.outputs[0])
    for dim in range(2, len(model.shape(node.inputs[0]) or ())):
        yield Normalises(Axis(node.inputs[0], dim), node.name, f"{node.op} normalises over it")


def group_normalization(node: Node, model: Model) -> Iterator[Fact]:
    """Y = (x - mean) / sqrt(var + eps) * scale + bias, with statistics over a group of channels and all positions.

    Only whole groups can be removed. With a single group any channel can be removed, but that changes the statistics.
    scale and bias have one entry per channel; before opset 21, one per group.
    """
    x, y, groups = node.inputs[0], node.outputs[0], int(node.attributes["num_groups"])
    shape = model.shape(x) or ()
    for dim, size in enumerate(shape):
        if dim != 1:
            yield from same(Axis(x, dim), Axis(y, dim), size, f"{node} works on each group of channels")
        if dim > 1 or dim == groups == 1:
            yield Normalises(Axis(x, dim), node.name, f"{node.op} normalises over it")
    count = shape[1] if groups == 1 else groups
    for axis in (Axis(y, 1), *(Axis(vector, 0) for vector in node.inputs[1:3])):
        size = (model.shape(axis.tensor) or ())[axis.dim]
        if size > 1:
            inner = max(size // count, 1)
            yield Coupling(
                Span(Axis(x, 1), count, inner=shape[1] // count),
                Span(axis, count, inner=inner),
                f"{node} keeps its groups whole",
            )


def update_group_normalization(node: Node, model: Model, cut: Cut) -> Iterator[ShapeEdit]:
    """Set `num_groups` to the number of kept groups."""
    x, groups = node.inputs[0], int(node.attributes["num_groups"])
    before, after = (model.shape(x) or ())[1], cut.after(x)[1]
    if groups > 1 and before != after:
        yield SetAttribute("num_groups", after * groups // before)


def local_response(node: Node, model: Model) -> Iterator[Fact]:
    """y[:, c] = x[:, c] / (bias + alpha / size * sum over neighbours of x^2) ^ beta.

    Removing a channel changes the neighbours of other channels.
    """
    yield from broadcast(node, model, [node.inputs[0]], node.outputs[0])
    yield Normalises(Axis(node.inputs[0], 1), node.name, f"{node.op} sums over neighbouring channels")


def layer_normalization(node: Node, model: Model) -> Iterator[Fact]:
    """Y = (x - mean) / sqrt(var + eps) * scale + bias, with statistics over the axes from `axis` on.

    scale and bias have the shape of those axes. RMS variants omit the mean. Skip* operators add a second tensor to x
    first.
    """
    x = node.inputs[0]
    rank = len(model.shape(x) or ())
    yield from broadcast(node, model, [name for name in node.inputs if name], node.outputs[0])
    for extra in node.outputs[1:]:
        if model.shape(extra) is not None:
            yield from broadcast(node, model, [x], extra)
    for dim in range(int(node.attributes.get("axis", -1)) % rank, rank):
        yield Normalises(Axis(x, dim), node.name, f"{node.op} normalises over it")


def embed_layer_normalization(node: Node, model: Model) -> Iterator[Fact]:
    """LayerNormalization of word[id] + position[place] + segment[id]: column k of every table is feature k."""
    y = Axis(node.outputs[0], 2)
    size = (model.shape(y.tensor) or ())[2]
    for table in node.inputs[2:7]:
        if table:
            yield from same(Axis(table, len(model.shape(table) or ()) - 1), y, size, f"{node} looks feature k up in it")
    for extra in node.outputs[2:]:
        if model.shape(extra) is not None:
            yield from broadcast(node, model, [node.outputs[0]], extra)
    yield Normalises(y, node.name, f"{node.op} normalises over it")


def lp_normalization(node: Node, model: Model) -> Iterator[Fact]:
    """Y = x / ||x||_p along one axis. The norm is a sum, to which zeros add nothing."""
    x = node.inputs[0]
    yield from broadcast(node, model, [x], node.outputs[0])
    yield Normalises(
        Axis(x, int(node.attributes.get("axis", -1)) % len(model.shape(x) or ())),
        node.name,
        f"{node.op} normalises over it",
        unless_zero=True,
    )


def embedding_shapes(
    _: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]
) -> Iterator[NodeProto]:
    """Yield nodes with the output shapes: normalised embeddings, sequence lengths, embeddings before normalisation."""
    yield helper.make_node("Gather", [x[2], x[0]], [y[0]])
    if len(y) > 1 and y[1]:
        yield from first_of_axis(x[0], y[1], 1)
    if len(y) > 2 and y[2]:
        yield helper.make_node("Identity", [y[0]], [y[2]])


def rows_of(table: int) -> Bound:
    """Return the bound of ids that index the rows of the table at an input position."""
    return lambda node, model: (model.shape(node.input(table)) or (UNBOUNDED,))[0] if node.input(table) else UNBOUNDED


register("BatchNormalization", coupling=batch_normalization, zero=scaled_by(1, 2), unmasked=(4,))
register("InstanceNormalization", coupling=instance_normalization, zero=scaled_by(1, 2))
register(
    "GroupNormalization",
    coupling=group_normalization,
    update=update_group_normalization,
    zero=scaled_by(1, 2),
    shape=like_first(),
)
register("LRN", coupling=local_response, zero=first)
register("LayerNormalization", coupling=layer_normalization, zero=scaled_by(1, 2))
register("RMSNormalization", coupling=layer_normalization, zero=scaled_by(1))
register("SimplifiedLayerNormalization", coupling=layer_normalization, zero=scaled_by(1), shape=like_first())
register(
    "com.microsoft.SkipLayerNormalization",
    coupling=layer_normalization,
    zero=scaled_by(2, 3),
    shape=like_first(3),
)
register(
    "com.microsoft.SkipSimplifiedLayerNormalization",
    coupling=layer_normalization,
    zero=scaled_by(2),
    shape=like_first(3),
)
register(
    "com.microsoft.EmbedLayerNormalization",
    coupling=embed_layer_normalization,
    parameters=(0, 1, 7, 8),
    zero=scaled_by(5, 6),
    shape=embedding_shapes,
    bounds={0: rows_of(2), 1: rows_of(4), 8: rows_of(3)},
)
register("LpNormalization", coupling=lp_normalization, zero=first, sums=True)
