"""Stand-ins for operators that ONNX cannot infer shapes for: standard nodes of the same shapes, for inference alone."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import TypeAlias

from onnx import NodeProto, helper

StandIn: TypeAlias = Callable[[NodeProto, Sequence[str], Sequence[str]], Iterator[NodeProto]]


def _attribute(node: NodeProto, name: str, default: int = 0) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _like(*slots: int) -> StandIn:
    """The first output, and those at `slots`, have the shape of the first input."""

    def made(_: NodeProto, x: Sequence[str], y: Sequence[str]) -> Iterator[NodeProto]:
        for slot in (0, *slots):
            if slot < len(y) and y[slot]:
                yield helper.make_node("Identity", [x[0]], [y[slot]])

    return made


def _added(_: NodeProto, x: Sequence[str], y: Sequence[str]) -> Iterator[NodeProto]:
    yield helper.make_node("Add" if len(x) > 1 else "Identity", list(x), [y[0]])


def _without(name: str) -> StandIn:
    """The standard operator of this name, without the attributes that the fused one has beside."""

    def made(node: NodeProto, x: Sequence[str], y: Sequence[str]) -> Iterator[NodeProto]:
        found = helper.make_node(name, list(x[:3]), [y[0]])
        found.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
        yield found

    return made


def _matmul(node: NodeProto, x: Sequence[str], y: Sequence[str]) -> Iterator[NodeProto]:
    """The last two axes of either side may be swapped. As written for equal ranks; `stand_ins` mends it for a plain matrix."""
    left, right = ("ji" if _attribute(node, "transA") else "ij"), ("kj" if _attribute(node, "transB") else "jk")
    if not _attribute(node, "transBatchA") and not _attribute(node, "transBatchB"):
        yield helper.make_node("Einsum", list(x), [y[0]], equation=f"...{left},...{right}->...ik")


def _grouped(heads: str, past: int) -> StandIn:
    """The result is like the queries; the first cache is keys and values with an axis for their heads."""

    def made(node: NodeProto, x: Sequence[str], y: Sequence[str]) -> Iterator[NodeProto]:
        yield helper.make_node("Identity", [x[0]], [y[0]])
        if any(x[past : past + 2]) or not all(x[1:3]):
            return
        for given, cache in zip(x[1:3], y[1:3], strict=False):
            yield helper.make_node("Constant", [], [f"{cache}__shape"], value_ints=[0, 0, _attribute(node, heads), -1])
            yield helper.make_node("Reshape", [given, f"{cache}__shape"], [f"{cache}__heads"])
            yield helper.make_node("Transpose", [f"{cache}__heads"], [cache], perm=[0, 2, 1, 3])

    return made


def _attention(_: NodeProto, x: Sequence[str], y: Sequence[str]) -> Iterator[NodeProto]:
    """A third of what the weight makes; unequal thirds are not inferred."""
    parts = [f"{y[0]}__{part}" for part in "qkv"]
    yield helper.make_node("MatMul", list(x[:2]), [f"{y[0]}__all"])
    yield helper.make_node("Constant", [], [f"{y[0]}__shape"], value_ints=[0, 0, 3, -1])
    yield helper.make_node("Reshape", [f"{y[0]}__all", f"{y[0]}__shape"], parts[:1])
    yield helper.make_node("ReduceMax", parts[:1], [y[0]], keepdims=0, axes=[2])


def _embedding(_: NodeProto, x: Sequence[str], y: Sequence[str]) -> Iterator[NodeProto]:
    yield helper.make_node("Gather", [x[2], x[0]], [y[0]])


STAND_INS: Mapping[tuple[str, str], StandIn] = {
    ("", "GroupNormalization"): _like(),
    ("", "SimplifiedLayerNormalization"): _like(),
    ("com.microsoft", "Attention"): _attention,
    ("com.microsoft", "BiasGelu"): _added,
    ("com.microsoft", "EmbedLayerNormalization"): _embedding,
    ("com.microsoft", "FastGelu"): _added,
    ("com.microsoft", "FusedConv"): _without("Conv"),
    ("com.microsoft", "FusedGemm"): _without("Gemm"),
    ("com.microsoft", "FusedMatMul"): _matmul,
    ("com.microsoft", "Gelu"): _like(),
    ("com.microsoft", "QuickGelu"): _like(),
    ("com.microsoft", "GroupQueryAttention"): _grouped("kv_num_heads", 3),
    ("com.microsoft", "MultiHeadAttention"): _grouped("num_heads", 6),
    ("com.microsoft", "RotaryEmbedding"): _like(),
    ("com.microsoft", "SkipLayerNormalization"): _like(3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _like(3),
}
"""(domain, operator) -> how to make its stand-in."""


def stand_ins(node: NodeProto, matrices: Container[str]) -> list[NodeProto]:
    """The nodes that inference sees in the place of this one: itself, unless it has a stand-in.

    matrices: constants with two axes, which an Einsum must not take for a stack of matrices.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    maker = STAND_INS.get((domain, node.op_type))
    if maker is None:
        return [node]
    made = list(maker(node, node.input, node.output))
    for part in made:
        if part.op_type == "Einsum" and part.input[1] in matrices:
            part.attribute[0].s = part.attribute[0].s.replace(b",...", b",")
    return made
