"""Stand-ins for operators that ONNX cannot infer shapes for: standard nodes of the same shapes, for inference alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from onnx import NodeProto, helper

from spa_onnx.model.quantisation import FLOAT_FORMS

StandIn: TypeAlias = Callable[[NodeProto, Sequence[str], Sequence[str], Mapping[str, int]], Iterator[NodeProto]]
"""Node, inputs, outputs, and the rank of each constant and graph input -> nodes of the same shapes."""


def _attribute(node: NodeProto, name: str, default: int = 0) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _like(*slots: int) -> StandIn:
    """The first output, and those at `slots`, have the shape of the first input."""

    def made(_: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
        for slot in (0, *slots):
            if slot < len(y) and y[slot]:
                yield helper.make_node("Identity", [x[0]], [y[slot]])

    return made


def _added(_: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    yield helper.make_node("Add" if len(x) > 1 else "Identity", list(x), [y[0]])


def _without(name: str) -> StandIn:
    """The standard operator of this name, without the attributes that the fused one has beside."""

    def made(node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
        found = helper.make_node(name, list(x[:3]), [y[0]])
        found.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
        yield found

    return made


def _operand(node: NodeProto, side: str, rank: int, letters: str) -> str:
    """Its axes in an Einsum: `letters` for the last two as multiplied, dots for the batch, which may stand between them."""
    swap = _attribute(node, f"trans{side}")
    first, second = (letters[1], letters[0]) if swap else (letters[0], letters[1])
    if rank == 2:
        return first + second
    return f"{first}...{second}" if _attribute(node, f"transBatch{side}") else f"...{first}{second}"


def _matmul(node: NodeProto, x: Sequence[str], y: Sequence[str], ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    left, right = (
        _operand(node, side, ranks.get(name, 3), letters)
        for side, name, letters in zip("AB", x, ("ij", "jk"), strict=True)
    )
    yield helper.make_node("Einsum", list(x), [y[0]], equation=f"{left},{right}->...ik")


def _reshaped(x: str, y: str, target: Sequence[int]) -> Iterator[NodeProto]:
    yield helper.make_node("Constant", [], [f"{y}__shape"], value_ints=list(target))
    yield helper.make_node("Reshape", [x, f"{y}__shape"], [y])


def _sliced(x: str, y: str, axis: int, start: int, end: int) -> Iterator[NodeProto]:
    bounds = {f"{y}__{name}": value for name, value in (("start", start), ("end", end), ("axis", axis))}
    for name, value in bounds.items():
        yield helper.make_node("Constant", [], [name], value_ints=[value])
    yield helper.make_node("Slice", [x, *bounds], [y])


def _first(x: str, y: str, axis: int) -> Iterator[NodeProto]:
    yield helper.make_node("Constant", [], [f"{y}__index"], value_int=0)
    yield helper.make_node("Gather", [x, f"{y}__index"], [y], axis=axis)


def _caches(given: Sequence[str], caches: Sequence[str], heads: int) -> Iterator[NodeProto]:
    """Keys and values (batch, positions, heads * width) with an axis for their heads."""
    for tensor, cache in zip(given, caches, strict=False):
        if cache:
            yield from _reshaped(tensor, f"{cache}__heads", [0, 0, heads, -1])
            yield helper.make_node("Transpose", [f"{cache}__heads"], [cache], perm=[0, 2, 1, 3])


def _multi_head(node: NodeProto, x: Sequence[str], y: Sequence[str], ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """Positions of the queries, width of the values; all three may be packed: (batch, positions, heads, 3, width)."""
    if len(x) < 2 or not x[1]:
        yield from _first(x[0], f"{y[0]}__queries", 3)
        yield from _reshaped(f"{y[0]}__queries", y[0], [0, 0, -1])
    elif len(x) < 3 or not x[2] or ranks.get(x[2]) == 4:
        yield helper.make_node("Identity", [x[0]], [y[0]])
    else:
        yield helper.make_node("Einsum", [x[0], x[2]], [y[0]], equation="bsq,btv->bsv")
        if not any(x[6:8]):
            yield from _caches(x[1:3], y[1:3], _attribute(node, "num_heads"))


def _decoder(_: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """Like the queries, or a third of what holds all three."""
    if len(x) > 1 and x[1]:
        yield helper.make_node("Identity", [x[0]], [y[0]])
        return
    yield from _reshaped(x[0], f"{y[0]}__parts", [0, 0, 3, -1])
    yield from _first(f"{y[0]}__parts", y[0], 2)


def _grouped(node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """Like the queries, which may stand before keys and values on one axis; the first cache is keys and values."""
    queries, count = _attribute(node, "num_heads"), _attribute(node, "kv_num_heads")
    given = list(x[1:3])
    if given and given[0]:
        yield helper.make_node("Identity", [x[0]], [y[0]])
    else:
        ends = [0, queries, queries + count, queries + 2 * count]
        given = [f"{y[0]}__keys", f"{y[0]}__values"]
        yield from _reshaped(x[0], f"{y[0]}__all", [0, 0, ends[-1], -1])
        for name, start, end in zip((f"{y[0]}__queries", *given), ends, ends[1:], strict=False):
            yield from _sliced(f"{y[0]}__all", f"{name}__heads", 2, start, end)
            yield from _reshaped(f"{name}__heads", y[0] if name.endswith("queries") else name, [0, 0, -1])
    if not any(x[3:5]):
        yield from _caches(given, y[1:3], count)


def _attention(node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """A third of what the weight makes, or the share that belongs to the values; with a cache, keys and values behind the old ones."""
    sizes = next((list(a.ints) for a in node.attribute if a.name == "qkv_hidden_sizes"), [])
    yield helper.make_node("MatMul", list(x[:2]), [f"{y[0]}__all"])
    if sizes:
        yield from _sliced(f"{y[0]}__all", y[0], 2, sum(sizes[:2]), sum(sizes))
    else:
        yield from _reshaped(f"{y[0]}__all", f"{y[0]}__parts", [0, 0, 3, -1])
        yield from _first(f"{y[0]}__parts", y[0], 2)
    if len(y) > 1 and y[1] and len(set(sizes)) < 2:
        yield from _cached(node, [*x, "", "", ""][4], y)


def _cached(node: NodeProto, past: str, y: Sequence[str]) -> Iterator[NodeProto]:
    """The cache of keys and values together, (2, batch, heads, positions, width)."""
    if past and _attribute(node, "past_present_share_buffer"):
        yield helper.make_node("Identity", [past], [y[1]])
        return
    new = f"{y[1]}__new" if past else y[1]
    yield from _reshaped(f"{y[0]}__all", f"{y[1]}__heads", [0, 0, 3, _attribute(node, "num_heads"), -1])
    yield helper.make_node("Transpose", [f"{y[1]}__heads"], [f"{y[1]}__moved"], perm=[2, 0, 3, 1, 4])
    yield from _sliced(f"{y[1]}__moved", new, 0, 1, 3)
    if past:
        yield helper.make_node("Concat", [past, new], [y[1]], axis=3)


def _embedding(_: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """A row for every token; the lengths of the sequences; the rows before they are normalised."""
    yield helper.make_node("Gather", [x[2], x[0]], [y[0]])
    if len(y) > 1 and y[1]:
        yield from _first(x[0], y[1], 1)
    if len(y) > 2 and y[2]:
        yield helper.make_node("Identity", [y[0]], [y[2]])


def _float(node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """The float operator that a quantised one is, on its operands."""
    form = FLOAT_FORMS[f"{node.domain}.{node.op_type}"]
    if not _attribute(node, "channels_last"):
        found = helper.make_node(form.operator, [x[slot] for slot in form.slots if slot < len(x)], [y[0]])
        found.attribute.extend(a for a in node.attribute if a.name not in ("channels_last", "opset"))
        yield found


def _of_bits(node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """A product with a matrix of the sizes that the attributes name."""
    sizes = [_attribute(node, "K"), _attribute(node, "N")]
    yield helper.make_node("Constant", [], [f"{y[0]}__sizes"], value_ints=sizes)
    yield helper.make_node("ConstantOfShape", [f"{y[0]}__sizes"], [f"{y[0]}__matrix"])
    yield helper.make_node("MatMul", [x[0], f"{y[0]}__matrix"], [y[0]])


def _recurrent(node: NodeProto, x: Sequence[str], y: Sequence[str], _ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    found = helper.make_node("LSTM", list(x[:3]), list(y))
    found.attribute.extend(a for a in node.attribute if a.name in ("hidden_size", "direction"))
    yield found


STAND_INS: Mapping[tuple[str, str], StandIn] = {
    ("", "GroupNormalization"): _like(),
    ("", "SimplifiedLayerNormalization"): _like(),
    ("com.microsoft", "Attention"): _attention,
    ("com.microsoft", "BiasGelu"): _added,
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"): _decoder,
    ("com.microsoft", "EmbedLayerNormalization"): _embedding,
    ("com.microsoft", "FastGelu"): _added,
    ("com.microsoft", "FusedConv"): _without("Conv"),
    ("com.microsoft", "FusedGemm"): _without("Gemm"),
    ("com.microsoft", "FusedMatMul"): _matmul,
    ("com.microsoft", "Gelu"): _like(),
    ("com.microsoft", "QuickGelu"): _like(),
    ("com.microsoft", "GroupQueryAttention"): _grouped,
    ("com.microsoft", "MRotaryEmbedding"): _like(),
    ("com.microsoft", "MoE"): _like(),
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "RotaryEmbedding"): _like(),
    ("com.microsoft", "SkipLayerNormalization"): _like(3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _like(3),
    ("com.microsoft", "TransposeMatMul"): _matmul,
    ("com.microsoft", "DequantizeLinear"): _like(),
    ("com.microsoft", "DynamicQuantizeLSTM"): _recurrent,
    ("com.microsoft", "MatMulNBits"): _of_bits,
    ("com.microsoft", "QuantizeLinear"): _like(),
    **{tuple(name.rsplit(".", 1)): _float for name in FLOAT_FORMS if "." in name},  # type: ignore[misc]
}
"""(domain, operator) -> how to make its stand-in."""


def stand_ins(node: NodeProto, ranks: Mapping[str, int]) -> list[NodeProto]:
    """The nodes that inference sees in the place of this one: itself, unless it has a stand-in.

    ranks: how many axes each constant and graph input has.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    maker = STAND_INS.get((domain, node.op_type))
    return [node] if maker is None else list(maker(node, node.input, node.output, ranks))
