"""The fused attention operators of onnxruntime.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnx import NodeProto, helper

from spa_onnx.model.contrib_shapes import first_of_axis, integer, part_of_axis
from spa_onnx.model.facts import Axis, Fact, same
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.operators.attention import (
    HeadSpan,
    added_to_scores,
    attention_macs,
    consecutive,
    head_counts,
    head_spans,
    heads,
    rows,
    update_heads,
)
from spa_onnx.operators.macs import axes_of
from spa_onnx.operators.registry import register
from spa_onnx.operators.reshaping import reshape_node
from spa_onnx.operators.zeros import affine, values


def multi_head(node: Node, model: Model) -> Iterator[Fact]:
    """Y = softmax(Q K' * scale + mask) V for each head.

    Keys and values can be packed with the queries. One vector holds the biases of queries, keys and values in sequence.
    """
    queries, _ = head_counts(node, model)
    yield from rows(node, model, node.inputs[0], node.outputs[0], 0, 1)
    parts = head_spans(model, (*node.inputs[:3], *node.inputs[6:8], *node.outputs))
    yield from heads(
        node, queries, queries, [*parts, *_biases(node, model, 3), *added_to_scores(model, node.input(5), queries)]
    )


def decoder(node: Node, model: Model) -> Iterator[Fact]:
    """Y = softmax(Q K' * scale + mask) V for each head and one new position.

    If the keys are omitted, the first input holds queries, keys and values in sequence.
    """
    queries, _ = head_counts(node, model)
    x, y = node.inputs[0], node.outputs[0]
    yield from rows(node, model, x, y, 0, 1)
    packed = [] if node.input(1) else consecutive(model, Axis(x, 2), (1, 1, 1), (False,) * 3)
    separate = node.inputs[:3] if node.input(1) else ()
    parts = head_spans(model, (*separate, *node.inputs[5:7], *node.outputs))
    yield from heads(
        node,
        queries,
        queries,
        [*packed, *parts, *_biases(node, model, 10), *added_to_scores(model, node.input(4), queries)],
    )


def _biases(node: Node, model: Model, slot: int) -> list[HeadSpan]:
    """Return the spans of heads of the bias vector at input `slot`; its keys are as wide as its queries."""
    if not node.input(slot):
        return []
    (total,), shape = model.shape(node.inputs[slot]) or (0,), model.shape(node.inputs[0]) or ()
    queries = shape[2] * shape[4] if len(shape) == 5 else shape[2] if node.input(1) else total // 3
    return consecutive(model, Axis(node.inputs[slot], 0), (queries, queries, total - 2 * queries), (False,) * 3)


def grouped(node: Node, model: Model) -> Iterator[Fact]:
    """Y = softmax(Q K' * scale + mask) V for each head, with a rotary embedding and a cache.

    If the keys are omitted, the first input holds queries, keys and values in sequence.
    """
    queries, count = head_counts(node, model)
    x, y = node.inputs[0], node.outputs[0]
    yield from rows(node, model, x, y, 0, 1)
    keys_values = node.inputs[1:3] if node.input(1) else ()
    query = head_spans(model, (x, y, *node.outputs[3:])) if keys_values else head_spans(model, (y, *node.outputs[3:]))
    packed = [] if keys_values else consecutive(model, Axis(x, 2), (queries, count, count), (False, True, True))
    shared = head_spans(model, (*keys_values, *node.inputs[3:5], *node.outputs[1:3]), shared=True)
    sinks = [HeadSpan(Axis(node.input(11), 0), 0, queries, shared=False)] if node.input(11) else []
    yield from heads(
        node, queries, count, [*query, *packed, *shared, *sinks, *added_to_scores(model, node.input(10), queries)]
    )


def fused(node: Node, model: Model) -> Iterator[Fact]:
    """Q, K, V = x W + b, Y = softmax(Q K' * scale + mask) V for each head.

    W holds the columns of queries, keys and values in sequence.
    """
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    shares = tuple(int(size) for size in node.attributes.get("qkv_hidden_sizes", (1, 1, 1)))
    yield from rows(node, model, x, y, 0, 1)
    yield from same(Axis(x, 2), Axis(w, 0), (model.shape(x) or ())[2], f"{node} sums over it")
    columns = [Axis(w, 1), *([Axis(node.input(2), 0)] if node.input(2) else [])]
    weights = [part for axis in columns for part in consecutive(model, axis, shares, (False,) * 3)]
    queries = int(node.attributes["num_heads"])
    parts = head_spans(model, (node.input(4), *node.outputs))
    yield from heads(node, queries, queries, [*weights, *parts, *added_to_scores(model, node.input(5), queries)])


def fused_macs(node: Node, model: Model) -> list[list[Axis]]:
    """Return the axes of three products: input times weight, queries times keys, attention weights times values."""
    scores = [*axes_of(model, node.outputs[0]), Axis(node.inputs[0], 1)]
    return [[*axes_of(model, node.inputs[0]), Axis(node.inputs[1], 1)], scores, scores]


def _caches(keys_values: Sequence[str], caches: Sequence[str], heads: int) -> Iterator[NodeProto]:
    """Yield nodes that reshape keys and values to caches (batch, heads, positions, width)."""
    for tensor, cache in zip(keys_values, caches, strict=False):
        if cache:
            yield from reshape_node(tensor, f"{cache}__heads", [0, 0, heads, -1])
            yield helper.make_node("Transpose", [f"{cache}__heads"], [cache], perm=[0, 2, 1, 3])


def multi_head_shapes(
    node: NodeProto, x: Sequence[str], y: Sequence[str], ranks: Mapping[str, int]
) -> Iterator[NodeProto]:
    """Yield nodes whose output has the positions of the queries and the width of the values.

    Queries, keys and values can be packed in the first input: (batch, positions, heads, 3, width).
    """
    if len(x) < 2 or not x[1]:
        yield from first_of_axis(x[0], f"{y[0]}__queries", 3)
        yield from reshape_node(f"{y[0]}__queries", y[0], [0, 0, -1])
    elif len(x) < 3 or not x[2] or ranks.get(x[2]) == 4:
        yield helper.make_node("Identity", [x[0]], [y[0]])
    else:
        yield helper.make_node("Einsum", [x[0], x[2]], [y[0]], equation="bsq,btv->bsv")
        if not any(x[6:8]):
            yield from _caches(x[1:3], y[1:3], integer(node, "num_heads"))


def decoder_shapes(_: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """Yield nodes whose output has the shape of the queries, which are the first third of a packed input."""
    if len(x) > 1 and x[1]:
        yield helper.make_node("Identity", [x[0]], [y[0]])
        return
    yield from reshape_node(x[0], f"{y[0]}__parts", [0, 0, 3, -1])
    yield from first_of_axis(f"{y[0]}__parts", y[0], 2)


def grouped_shapes(
    node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]
) -> Iterator[NodeProto]:
    """Yield nodes whose output has the shape of the queries.

    Queries, keys and values can be packed in sequence on the last axis of the first input. If no cache is an input, the
    caches at the output have the shapes of the keys and values.
    """
    queries, count = integer(node, "num_heads"), integer(node, "kv_num_heads")
    keys_values = list(x[1:3])
    if keys_values and keys_values[0]:
        yield helper.make_node("Identity", [x[0]], [y[0]])
    else:
        ends = [0, queries, queries + count, queries + 2 * count]
        keys_values = [f"{y[0]}__keys", f"{y[0]}__values"]
        yield from reshape_node(x[0], f"{y[0]}__all", [0, 0, ends[-1], -1])
        for name, start, end in zip((f"{y[0]}__queries", *keys_values), ends, ends[1:], strict=False):
            yield from part_of_axis(f"{y[0]}__all", f"{name}__heads", 2, start, end)
            yield from reshape_node(f"{name}__heads", y[0] if name.endswith("queries") else name, [0, 0, -1])
    if not any(x[3:5]):
        yield from _caches(keys_values, y[1:3], count)


def fused_shapes(node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """Yield nodes whose output has the width of the values: their share of the columns of the weight, or a third.

    The optional second output is the cache: the cached keys and values, followed by the new ones.
    """
    sizes = next((list(a.ints) for a in node.attribute if a.name == "qkv_hidden_sizes"), [])
    yield helper.make_node("MatMul", list(x[:2]), [f"{y[0]}__all"])
    if sizes:
        yield from part_of_axis(f"{y[0]}__all", y[0], 2, sum(sizes[:2]), sum(sizes))
    else:
        yield from reshape_node(f"{y[0]}__all", f"{y[0]}__parts", [0, 0, 3, -1])
        yield from first_of_axis(f"{y[0]}__parts", y[0], 2)
    if len(y) > 1 and y[1] and len(set(sizes)) < 2:
        yield from _cached(node, [*x, "", "", ""][4], y)


def _cached(node: NodeProto, past: str, y: Sequence[str]) -> Iterator[NodeProto]:
    """Yield nodes for the cache of keys and values, one tensor (2, batch, heads, positions, width)."""
    if past and integer(node, "past_present_share_buffer"):
        yield helper.make_node("Identity", [past], [y[1]])
        return
    new = f"{y[1]}__new" if past else y[1]
    yield from reshape_node(f"{y[0]}__all", f"{y[1]}__heads", [0, 0, 3, integer(node, "num_heads"), -1])
    yield helper.make_node("Transpose", [f"{y[1]}__heads"], [f"{y[1]}__moved"], perm=[2, 0, 3, 1, 4])
    yield from part_of_axis(f"{y[1]}__moved", new, 0, 1, 3)
    if past:
        yield helper.make_node("Concat", [past, new], [y[1]], axis=3)


for _name, _coupling, _shapes in (
    ("com.microsoft.MultiHeadAttention", multi_head, multi_head_shapes),
    ("com.microsoft.DecoderMaskedMultiHeadAttention", decoder, decoder_shapes),
    ("com.microsoft.GroupQueryAttention", grouped, grouped_shapes),
):
    register(
        _name,
        coupling=_coupling,
        update=update_heads,
        zero=values,
        macs=attention_macs,
        not_refitted="it has no weights",
        shape=_shapes,
    )
register(
    "com.microsoft.Attention",
    coupling=fused,
    update=update_heads,
    zero=affine,
    macs=fused_macs,
    not_refitted="its queries, keys and values are made inside the operator",
    shape=fused_shapes,
)
