"""Checks on a pruned model: it is valid, it runs, its interface is unchanged, and pruned == masked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property
from itertools import islice, permutations
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx

from spa_onnx.errors import RefusedError, ValidationError
from spa_onnx.execution import session as runtime
from spa_onnx.execution.session import Feed
from spa_onnx.model.facts import Axis, Coupling
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model, feeds
from spa_onnx.model.node import Node
from spa_onnx.model.shapes import GUESSES, choose_dims, symbolic_dims
from spa_onnx.model.subgraphs import Opened, operators
from spa_onnx.operators import facts
from spa_onnx.plan.mask import mask
from spa_onnx.plan.removal import taken
from spa_onnx.plan.rewrite import Rewritten

if TYPE_CHECKING:
    import onnxruntime as ort

SEEDS = 2
"""Random inputs on which pruned and masked are compared."""

TOLERANCE: Mapping[str, float] = {"float64": 1e-4, "float32": 1e-3, "float16": 2e-2}
"""Largest difference over largest output, by type."""

FLIPS = 0.01
"""Share of the elements of an integer output that rounding may change: the largest of two equal scores is a matter of the last bit."""

TRIES = 10
"""Seeds more that are tried where the original does not run on some: numbers that have to be lengths of something, say."""

NOISE = 10.0
"""Outputs may also differ by this many times what the last bits of the input do to the masked model itself."""

CHOICE = "validation__choice"
"""Graph input that stands for the conditions of all Ifs while their branches are compared."""

IN_DOUBLE = 1e-7
"""Largest difference over largest output in float64, where models that part in float32 are compared again."""


_Run: TypeAlias = tuple[Feed, list[Array]]
"""Inputs, and what the pruned model makes of them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """gap: largest |pruned - masked| over largest |masked|, None where the comparison does not apply. notes: what was not checked."""

    gap: float | None
    seeds: int
    notes: tuple[str, ...] = ()


def validate(
    model: Model,
    rewritten: Rewritten,
    dims: Mapping[str, int],
    *,
    repaired: bool = False,
    original: ort.InferenceSession | None = None,
) -> Verdict:
    """All checks of a pruned model. Raises ValidationError with the first that fails.

    dims: sizes of symbolic dimensions with which the original runs. original: where it has been opened already.
    """
    notes = _check(model.proto, rewritten.proto)
    try:
        pruned = runtime.session(rewritten.proto, what="the pruned model")
    except RefusedError as error:
        raise ValidationError(str(error)) from error
    _same_interface(model.proto, rewritten.proto)
    drawn = (runtime.random_feed(model, dims, seed) for seed in range(SEEDS + TRIES))
    tried = list(islice(_runs(model, pruned, drawn), SEEDS))
    if not tried:
        raise ValidationError(
            f"the original runs on none of {SEEDS + TRIES} random inputs, so nothing could be checked; use --no-validate"
        )
    seeds = len(tried)
    tried += _runs(model, pruned, _at_other_sizes(model, dims, original))
    if repaired or rewritten.inexact:
        why = "weights were repaired" if repaired else f"{len(rewritten.inexact)} nodes normalise over a removed axis"
        return Verdict(None, seeds, (*notes, f"{why}, so outputs were not compared with the masked model's"))
    twins = _twins(model, rewritten, tried)
    gap, told = _compare(model, rewritten, twins, tried)
    if any(map(_is_open, model.nodes)):
        there = {name: _compare_branch(model, twins, tried[0][0], name) for name in ("then", "else")}
        gap = max(gap or 0.0, *(found for found in there.values() if found is not None), 0.0)
        told = (
            *told,
            *(
                f"where every If takes its {name} branch the original does not run"
                for name, g in there.items()
                if g is None
            ),
        )
    return Verdict(gap, seeds, (*notes, *told))


def _runs(model: Model, pruned: ort.InferenceSession, fed: Iterable[Feed]) -> Iterator[_Run]:
    """Those feeds on which the original runs. Raises ValidationError where the pruned model does not run on one of them."""
    for feed in fed:
        found = _outputs_of(model, pruned, feed)
        if found is not None:
            yield feed, found


def _outputs_of(model: Model, pruned: ort.InferenceSession, feed: Feed) -> list[Array] | None:
    """What the pruned model makes of a feed; None where the original does not run on it either. Raises ValidationError where it does."""
    try:
        return runtime.run(pruned, feed)
    except RefusedError as error:
        try:
            runtime.run(runtime.session(model.proto), feed)
        except RefusedError:
            return None
        raise ValidationError(f"the pruned model does not run: {error}") from error


def _is_open(node: Node) -> bool:
    """Whether it is an If that may take either of the branches that are looked into."""
    return node.op == "If" and bool(node.bodies) and all(body.tied for body in node.bodies)


def _compare_branch(model: Model, plain: _Twins, feed: Feed, name: str) -> float | None:
    """The largest difference where every If takes its then or its else branch, whatever its condition.

    None where the original does not run so. Raises ValidationError where the models differ.
    """
    decided = feed | {CHOICE: np.asarray(name == "then")}
    try:
        runtime.run(runtime.session(_undecided(model.proto, model.opened)), decided)
    except RefusedError:
        return None
    twins = replace(plain, masked=_undecided(plain.masked, model.opened), pruned=_undecided(plain.pruned, model.opened))
    try:
        gap, alike = twins.gap(decided, runtime.run(runtime.session(twins.pruned), decided))
    except RefusedError as error:
        raise ValidationError(
            f"the pruned model does not run where every If takes its {name} branch: {error}"
        ) from error
    if alike is _Alike.NO:
        raise ValidationError(
            f"pruned != masked where every If takes its {name} branch (relative {gap:.3g}); please report it"
        )
    return gap


def _undecided(proto: onnx.ModelProto, opened: Opened) -> onnx.ModelProto:
    """A copy in which the condition of every If that may take either branch is a graph input.

    It must not be a constant: onnxruntime 1.31 ends with a segmentation fault where it puts nested branches in their place.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.input.append(onnx.helper.make_tensor_value_info(CHOICE, onnx.TensorProto.BOOL, []))
    for node in operators(copy.graph):
        if node.op_type == "If" and len(opened.get(node.output[0], ())) > 1:
            node.input[0] = CHOICE
    return copy


def _at_other_sizes(model: Model, dims: Mapping[str, int], original: ort.InferenceSession | None) -> list[Feed]:
    """A feed whose symbolic dimensions are one larger, if the original runs on it: a size that got written into the graph shows."""
    free = {name: size + 1 for name, size in dims.items() if name.isidentifier() or ":" in name}
    if not free:
        return []
    inputs = feeds(model.proto.graph)
    first = {name for name, counts, _ in symbolic_dims(inputs) if counts}
    original = original or runtime.session(model.proto)
    for chosen in (free, {name: size if name in first else dims[name] for name, size in free.items()}):
        feed = runtime.random_feed(model, choose_dims(inputs, chosen, GUESSES[0]), SEEDS)
        with contextlib.suppress(RefusedError):
            runtime.run(original, feed)
            return [feed]
    return []


def _check(original: onnx.ModelProto, pruned: onnx.ModelProto) -> tuple[str, ...]:
    """onnx.checker's full check; what it holds against the original already is only noted."""
    try:
        onnx.checker.check_model(pruned, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        try:
            onnx.checker.check_model(original, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError):
            return (f"onnx.checker rejects the original too: {line}",)
        raise ValidationError(f"onnx.checker rejects the pruned model: {line}") from error
    return ()


def _same_interface(original: onnx.ModelProto, pruned: onnx.ModelProto) -> None:
    for what in ("input", "output"):
        stored = {t.name for t in original.graph.initializer}, {t.name for t in pruned.graph.initializer}
        old = [(v.name, v.type.SerializeToString()) for v in getattr(original.graph, what) if v.name not in stored[0]]
        new = [(v.name, v.type.SerializeToString()) for v in getattr(pruned.graph, what) if v.name not in stored[1]]
        if old != new:
            raise ValidationError(f"graph {what}s changed from {[n for n, _ in old]} to {[n for n, _ in new]}")


def difference(want: Array, got: Array) -> float:
    """Largest absolute difference over the largest absolute value wanted; infinite where they differ in NaN or infinities."""
    if want.shape != got.shape:
        return float("inf")
    if want.size == 0 or want.dtype.kind not in "fiub":
        return 0.0
    a, b = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    scale = float(np.abs(a[finite]).max(initial=0.0))
    return (
        float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / scale
        if scale
        else float(np.abs(b[finite]).max(initial=0.0))
    )


def _worst(want: list[Array], got: list[Array]) -> tuple[float, float]:
    """(largest difference of a float output, largest excess over its tolerance as a ratio).

    Quantized outputs may differ by two steps, other integers (classes, positions) in FLIPS of their elements.
    """
    worst, excess = 0.0, 0.0
    for a, b in zip(want, got, strict=True):
        if a.dtype.kind == "f" or a.shape != b.shape:
            gap = difference(a, b)
            worst, excess = max(worst, gap), max(excess, gap / TOLERANCE.get(str(a.dtype), 1e-3))
        elif a.dtype.itemsize == 1 and a.dtype.kind in "iu":
            steps = int(np.abs(a.astype(int) - b.astype(int)).max(initial=0))
            excess = max(excess, steps / 2)
        elif a.dtype.kind in "iub" and a.size:
            excess = max(excess, float((a != b).mean()) / FLIPS)
    return worst, excess


def _twins(model: Model, rewritten: Rewritten, tried: Sequence[_Run]) -> _Twins:
    """The masked and the pruned model; where zeros are outside the domain of what follows (Log, Div), one in which only readers are masked.

    Products that sum over removed channels then meet finite numbers with weights of zero. Raises ValidationError where neither runs.
    """
    twins = _Twins(mask(model, rewritten.removal), rewritten.proto, bool(model.quantised))
    try:
        opened = twins.reference
        if all(_finite(got) for _, got in tried) and not all(_finite(runtime.run(opened, feed)) for feed, _ in tried):
            twins = replace(twins, masked=mask(model, rewritten.removal, set(_readers(model))))
            _ = twins.reference
    except RefusedError as error:
        raise ValidationError(f"pruned could not be compared with masked: {error}; please report it") from error
    return twins


def _readers(model: Model) -> Iterator[Axis]:
    """The axes of constants that products sum over: tied to another input of their node, and to none of its outputs."""
    for node in model.nodes:
        pairs = [
            (a, b) for fact in facts(node, model) if isinstance(fact, Coupling) for a, b in permutations(fact.axes())
        ]
        written = {a for a, b in pairs if b.tensor in node.outputs}
        yield from (a for a, b in pairs if model.is_constant(a.tensor) and b.tensor in node.inputs and a not in written)


def _finite(outputs: Sequence[Array]) -> bool:
    return all(np.isfinite(array).all() for array in outputs if array.dtype.kind == "f")


class _Alike(Enum):
    """How far the masked and the pruned model agree: within the tolerance or the noise, in float64 alone, or not."""

    YES = auto()
    IN_DOUBLE = auto()
    NO = auto()


@dataclass(frozen=True)
class _Twins:
    """The masked and the pruned model, which have to compute the same. quantised: whether fused operators may add up integers in them."""

    masked: onnx.ModelProto
    pruned: onnx.ModelProto
    quantised: bool

    @cached_property
    def reference(self) -> ort.InferenceSession:
        """The masked model in onnxruntime."""
        return runtime.session(self.masked, what="the masked model")

    def gap(self, feed: Feed, got: list[Array]) -> tuple[float, _Alike]:
        """(largest difference, what it means) of what the pruned model makes of a feed."""
        want = runtime.run(self.reference, feed)
        gap, excess = _worst(want, got)
        if excess > 1 and self.quantised:
            gap, excess = min((gap, excess), self._in_integers(feed), key=lambda found: found[1])
        if not excess > 1 or excess <= NOISE * _noise(self.reference, feed, want):
            return gap, _Alike.YES
        return gap, _Alike.IN_DOUBLE if self._same_in_double(feed) else _Alike.NO

    def _in_integers(self, feed: Feed) -> tuple[float, float]:
        """The comparison of `_worst` with quantised operators fused, so that they add up integers, exact in any order.

        Where they are run in float, the last bit of a sum may round an activation up or down, which is a step of a hundredth and more.
        Infinite where onnxruntime cannot fuse them.
        """
        try:
            want, got = (
                runtime.run(runtime.session(proto, optimise=True, what="a quantised model"), feed)
                for proto in (self.masked, self.pruned)
            )
        except RefusedError:
            return float("inf"), float("inf")
        return _worst(want, got)

    def _same_in_double(self, feed: Feed) -> bool:
        """Whether they agree where float64 rounds: they then part in float32 because it decides between values that are all but equal."""
        from spa_onnx.execution import float64 as double  # noqa: PLC0415 - hardly ever needed, and onnx's reference implementation is slow to import

        try:
            want, got = (double.run(proto, feed) for proto in (self.masked, self.pruned))
        except RefusedError:
            return False
        return _finite(want) and all(difference(a, b) <= IN_DOUBLE for a, b in zip(want, got, strict=True))


def _compare(
    model: Model, rewritten: Rewritten, twins: _Twins, tried: Sequence[_Run]
) -> tuple[float | None, tuple[str, ...]]:
    """(largest difference, what there is to note). Raises ValidationError where the models differ."""
    worst = 0.0
    told: set[str] = set()
    notes: list[str] = []
    for feed, got in tried:
        gap, alike = twins.gap(feed, got)
        if alike is _Alike.NO:
            raise ValidationError(_first_difference(model, rewritten, feed))
        if alike is _Alike.IN_DOUBLE:
            notes = ["rounding decides what the model returns: pruned and masked agree in float64"]
        worst = max(worst, gap)
        told.update(name for name, array in zip(model.outputs, got, strict=True) if _tells(array))
    blind = [name for name in model.outputs if name not in told]
    notes += [f"{name} could not be compared: it holds no finite number on any random input" for name in blind]
    return worst if told else None, tuple(notes)


def _noise(masked: ort.InferenceSession, feed: Feed, want: list[Array]) -> float:
    """By how much the masked model itself exceeds the tolerance when the last bits of its input change."""
    nudged = {n: (a * np.asarray(1 + 1e-6, a.dtype) if a.dtype.kind == "f" else a) for n, a in feed.items()}
    return _worst(want, runtime.run(masked, nudged))[1]


def _tells(array: Array) -> bool:
    """Whether there is anything to compare: models that agree in being empty, or NaN all over, agree in nothing."""
    return bool(array.size) and (array.dtype.kind != "f" or bool(np.isfinite(array).any()))


def _first_difference(model: Model, rewritten: Rewritten, feed: Feed) -> str:
    """Name the first tensor, in the order of the graph, at which the pruned and the masked model part."""
    names = [
        name for node in model.nodes if not model.is_folded(node) for name in node.outputs if name
    ]  # sizes do differ
    present = {name for node in rewritten.proto.graph.node for name in node.output}
    names = [name for name in names if name in present]
    wanted = _outputs(mask(model, rewritten.removal), names, feed)
    found = _outputs(rewritten.proto, names, feed)
    for name in names:
        if name not in wanted or name not in found:
            continue
        want, got = wanted[name], found[name]
        shape = model.shape(name) or ()
        same = {dim for dim, size in enumerate(want.shape[: len(shape)]) if size == shape[dim]}
        slices = rewritten.removal.slices(name)
        want = taken(want, [{dim: kept for dim, kept in each.items() if dim in same} for each in slices])
        gap = difference(want, got)
        if gap > TOLERANCE["float32"]:
            return (
                f"pruned != masked: {name}, made by {model.producer[name]}, differs first (relative {gap:.3g}; shapes "
                f"{list(got.shape)} and {list(want.shape)}); please report it, or --exclude '{model.producer[name].name}'"
            )
    return "pruned != masked at a graph output; please report it"


def _outputs(proto: onnx.ModelProto, names: list[str], feed: Feed) -> dict[str, Array]:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    have = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    opened = runtime.session(copy, what="the model with all its tensors as outputs")
    return dict(zip([value.name for value in opened.get_outputs()], runtime.run(opened, feed), strict=True))
