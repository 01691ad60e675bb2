"""ONNX's own test models, and variants of them in which there is something to cut.

A node test has its weights as graph inputs, and graph inputs are pinned. So each is also taken with all inputs but the
first float one *frozen* as initializers; and *framed*: an axis of a float input is then made by a weight, and an axis
of an output read through one, so that nothing but the operator's own rule decides what may go. `driven` frames every
float input, `framed` the first.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

import spa_onnx
from spa_onnx.errors import RefusedError, SpaError
from spa_onnx.pipeline import inspect

FLOATS = {TensorProto.FLOAT: "f4", TensorProto.DOUBLE: "f8", TensorProto.FLOAT16: "f2", TensorProto.BFLOAT16: "bf16"}

NARROW = 2
"""Size of an axis outside the frame."""


@dataclass(frozen=True)
class Case:
    """A test model with the first of its inputs' values, where it comes with any."""

    name: str
    proto: onnx.ModelProto
    values: tuple[Any, ...] = ()


@cache
def node_cases() -> tuple[Case, ...]:
    """The tests of single operators, and of the functions that operators are defined as; made by the installed onnx."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases  # noqa: PLC0415 - makes all of them when it is imported

        found = collect_testcases(None)
    return tuple(Case(c.name, c.model, tuple(c.data_sets[0][0]) if c.data_sets else ()) for c in found if c.model)


@cache
def stored_cases() -> tuple[Case, ...]:
    """The models that onnx ships as files.

    Some are converted from PyTorch, some are simple, some are architectures with random weights.
    """
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    return tuple(Case(f"{p.parts[-3]}/{p.parent.name}{_part(p)}", onnx.load(p)) for p in sorted(folder.rglob("*.onnx")))


def _part(path: Path) -> str:
    return "" if path.stem == "model" else f"/{path.stem}"


def frozen(case: Case) -> onnx.ModelProto | None:
    """All tensors among the inputs but the first of floats are initializers; None where that changes nothing."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    first = next((value.name for value in proto.graph.input if _kind(value) in FLOATS), None)
    given = dict(zip((value.name for value in case.proto.graph.input), case.values, strict=False))
    stays = [
        v for v in proto.graph.input if v.name == first or not isinstance(given.get(v.name), np.ndarray) or not _kind(v)
    ]
    stored = [v for v in proto.graph.input if v not in stays]
    if not stored or not stays:
        return None
    for value in stored:
        tensor = numpy_helper.from_array(np.ascontiguousarray(given[value.name]), value.name)
        tensor.data_type = _kind(value)
        proto.graph.initializer.append(tensor)
    del proto.graph.input[:]
    proto.graph.input.extend(stays)
    return proto


def framed(case: Case) -> onnx.ModelProto | None:
    """Return the frozen model with weights around its first float input and its outputs.

    None if the model has no axis to put one on.
    """
    inner = frozen(case) or case.proto
    first = next((value.name for value in inner.graph.input if _kind(value) in FLOATS), None)
    return _frame(inner, {first}) if first else None


def driven(case: Case) -> onnx.ModelProto | None:
    """The model with weights around every float input and every output; None where that is what `framed` makes."""
    names = {value.name for value in case.proto.graph.input if _kind(value) in FLOATS}
    return _frame(case.proto, names) if len(names) > 1 else None


VARIANTS: Mapping[str, Callable[[Case], onnx.ModelProto | None]] = {
    "as it is": lambda case: case.proto,
    "frozen": frozen,
    "framed": framed,
    "driven": driven,
}


def _kind(value: ValueInfoProto) -> int:
    return int(value.type.tensor_type.elem_type)


def _sizes(value: ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _frame(inner: onnx.ModelProto, names: set[str]) -> onnx.ModelProto | None:
    """Each axis of these inputs, and of every output of numbers, meets a weight of its own."""
    proto = onnx.ModelProto()
    proto.CopyFrom(inner)
    graph, rng = proto.graph, np.random.default_rng(0)
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    for place, value in enumerate(list(graph.input)):
        if value.name in names and _can_frame(value):
            fed = _around(graph, rng, value, before, widens=True, listed=proto.ir_version < 4)
            graph.input[place].CopyFrom(fed)
    for place, value in enumerate(list(graph.output)):
        if _kind(value) not in (0, TensorProto.STRING) and _can_frame(value):
            graph.output[place].CopyFrom(_around(graph, rng, value, after, widens=False, listed=proto.ir_version < 4))
    if not before or not after:
        return None
    inside = list(graph.node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*before, *inside, *after])
    return proto


def _can_frame(value: ValueInfoProto) -> bool:
    sizes = _sizes(value)
    return bool(sizes) and min(sizes) > 0 and max(sizes) > 1


def _around(
    graph: onnx.GraphProto,
    rng: np.random.Generator,
    value: ValueInfoProto,
    made: list[onnx.NodeProto],
    *,
    widens: bool,
    listed: bool,
) -> ValueInfoProto:
    """Return nodes that make an input from a narrow one, or a narrow output from an output, and its declaration.

    Inputs are positive, as operators such as Log and Sqrt want them. listed: whether weights are graph inputs too.
    """
    sizes = _sizes(value)
    narrow = [min(size, NARROW) for size in sizes]
    outside, inside = f"{value.name}__outside", value.name
    now, last = (outside, inside) if widens else (inside, outside)
    if widens:
        made.append(helper.make_node("Abs", [now], [f"{inside}__positive"]))
        now = f"{inside}__positive"
    else:
        made.append(helper.make_node("Cast", [now], [f"{inside}__float"], to=TensorProto.FLOAT))
        now = f"{inside}__float"
    for dim, size in enumerate(sizes):
        if size > 1:
            weight = f"{inside}__weight_{dim}"
            shape = (narrow[dim], size) if widens else (size, narrow[dim])
            drawn = 0.1 + rng.random(shape) if widens else rng.standard_normal(shape)
            tensor = numpy_helper.from_array((drawn / shape[0]).astype("f4"), weight)
            graph.initializer.append(tensor)
            if listed:
                graph.input.append(helper.make_tensor_value_info(weight, tensor.data_type, tensor.dims))
            order = [*(d for d in range(len(sizes)) if d != dim), dim]
            names = [f"{inside}__{step}_{dim}" for step in ("last", "product", "back")]
            made.append(helper.make_node("Transpose", [now], [names[0]], perm=order))
            made.append(helper.make_node("MatMul", [names[0], weight], [names[1]]))
            made.append(helper.make_node("Transpose", [names[1]], [names[2]], perm=np.argsort(order).tolist()))
            now = names[2]
    made.append(helper.make_node("Cast", [now], [last], to=_kind(value) if widens else TensorProto.FLOAT))
    return helper.make_tensor_value_info(outside, TensorProto.FLOAT, narrow)


@dataclass(frozen=True)
class Outcome:
    """The result for one model.

    kind: `verified`, `inexact`, `refused`, `not runnable`, `wrong` or `traceback`. why: the message.
    """

    kind: str
    why: str = ""


def outcome(proto: onnx.ModelProto, ratio: float = 0.5) -> Outcome:
    """Put a model through `groups` and `prune`.

    A model that onnxruntime cannot run is rewritten without a check.
    """
    try:
        inspect(proto)
        return _pruned(proto, ratio)
    except RefusedError as error:
        return Outcome("refused", str(error))
    except SpaError as error:
        return Outcome("wrong", str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, a user must never meet it
        return Outcome("traceback", f"{type(error).__name__}: {error}")


def _pruned(proto: onnx.ModelProto, ratio: float) -> Outcome:
    try:
        found = spa_onnx.prune(proto, ratio, criterion="l1")
    except RefusedError as error:
        if "onnxruntime cannot run the original" not in str(error):
            raise
        with contextlib.suppress(RefusedError):
            spa_onnx.prune(proto, ratio, criterion="l1", check=False)
        return Outcome("not runnable", str(error))
    verdict = found.report.validation
    return Outcome("verified" if verdict is not None and verdict.gap is not None else "inexact")


def outcomes(cases: tuple[Case, ...], variant: str) -> Iterator[tuple[str, Outcome]]:
    """(name, outcome) of every case that has this variant."""
    for case in cases:
        proto = VARIANTS[variant](case)
        if proto is not None:
            yield case.name, outcome(proto)


def tally(found: list[tuple[str, Outcome]]) -> Counter[str]:
    return Counter(each.kind for _, each in found)
