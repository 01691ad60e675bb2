"""Pruned == masked: the pruned model must compute what the original computes with the removed channels at zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property
from itertools import permutations
from typing import TypeAlias

import numpy as np
import onnx

from spa_onnx.errors import RefusedError, ValidationError
from spa_onnx.execution.session import Feed, Session, open_session
from spa_onnx.model.facts import Axis, Coupling, Normalises
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node
from spa_onnx.model.subgraphs import Opened, operators
from spa_onnx.model.traits import Array
from spa_onnx.operators import facts
from spa_onnx.plan.mask import mask
from spa_onnx.plan.removal import Removal, taken
from spa_onnx.plan.rewrite import Rewritten
from spa_onnx.validation.compared import with_outputs
from spa_onnx.validation.noise import without_noise

TOLERANCE: Mapping[str, float] = {"float64": 1e-4, "float32": 1e-3, "float16": 2e-2}
"""The largest difference divided by the largest output, by type."""

FLIPS = 0.01
"""The share of elements of an integer output that rounding may change: equal scores are ordered by their last bits."""

NOISE_FACTOR = 10.0
"""Outputs may also differ by this many times the effect of the last bits of the input on the masked model."""

CHOICE = "validation__choice"
"""The graph input that replaces the conditions of all Ifs while their branches are compared."""

IN_FLOAT64 = 1e-7
"""The largest difference divided by the largest output in float64, for models that differ in float32."""

Run: TypeAlias = tuple[Feed, list[Array]]
"""Inputs, and the outputs of the pruned model for them."""


class Agreement(Enum):
    """How the masked and the pruned model agree: within the tolerance or the noise, in float64 only, or not."""

    YES = auto()
    IN_FLOAT64 = auto()
    NO = auto()


def difference(want: Array, got: Array) -> float:
    """Return the largest absolute difference divided by the largest absolute value of `want`.

    It is infinite if the arrays differ in shape, or in NaN or infinities.
    """
    if want.shape != got.shape:
        return float("inf")
    if want.size == 0 or want.dtype.kind not in "fiub":
        return 0.0
    a, b = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    scale = float(np.abs(a[finite]).max(initial=0.0))
    apart = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    return apart / scale if scale else float(np.abs(b[finite]).max(initial=0.0))


def worst_difference(want: Sequence[Array], got: Sequence[Array]) -> tuple[float, float]:
    """Return (largest difference of a float output, largest excess over its tolerance as a ratio).

    Quantised outputs may differ by two steps, other integers (classes, positions) in FLIPS of their elements.
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


@dataclass(frozen=True)
class Twins:
    """The masked and the pruned model, which must compute the same.

    Args:
        masked: The original with removed channels at zero.
        pruned: The pruned model.
        quantised: Whether fused operators may add up integers in them.
    """

    masked: onnx.ModelProto
    pruned: onnx.ModelProto
    quantised: bool

    @cached_property
    def reference(self) -> Session:
        """The masked model, ready to run."""
        return open_session(self.masked, what="the masked model")

    def gap(self, feed: Feed, got: list[Array]) -> tuple[float, Agreement]:
        """Return (largest difference, what it means) of the outputs of the pruned model for a feed."""
        want = self.reference.run(feed)
        gap, excess = worst_difference(want, got)
        if excess > 1 and self.quantised:
            gap, excess = min((gap, excess), self._in_integers(feed), key=lambda pair: pair[1])
        if not excess > 1 or excess <= NOISE_FACTOR * noise(self.reference, feed, want):
            return gap, Agreement.YES
        return gap, Agreement.IN_FLOAT64 if self._same_in_float64(feed) else Agreement.NO

    def _in_integers(self, feed: Feed) -> tuple[float, float]:
        """Compare with quantised operators fused, so that they add up integers, which is exact in any order.

        In float, the last bit of a sum can round an activation to the next step, which is a hundredth and more. The
        result is infinite if the executor cannot fuse them.
        """
        try:
            want, got = (
                open_session(proto, optimise=True, what="a quantised model").run(feed)
                for proto in (self.masked, self.pruned)
            )
        except RefusedError:
            return float("inf"), float("inf")
        return worst_difference(want, got)

    def _same_in_float64(self, feed: Feed) -> bool:
        """Return whether they agree in float64, if rounding in float32 decides between almost equal values."""
        from spa_onnx.execution.float64 import Float64  # noqa: PLC0415 - hardly ever needed, and slow to import

        try:
            want, got = (Float64().open(proto).run(feed) for proto in (self.masked, self.pruned))
        except RefusedError:
            return False
        return is_finite(want) and all(difference(a, b) <= IN_FLOAT64 for a, b in zip(want, got, strict=True))


def twins_of(model: Model, rewritten: Rewritten, runs: Sequence[Run]) -> Twins:
    """Return the masked and the pruned model.

    If zeros are outside the domain of the operators behind them (Log, Div), only the weights that read removed channels
    are
    masked: products then multiply finite numbers by weights of zero.

    Raises:
        ValidationError: Neither kind of masked model runs.
    """
    names = [value.name for value in rewritten.proto.graph.output]
    masked = without_noise(mask(model, rewritten.removal))
    twins = Twins(with_outputs(masked, names), rewritten.proto, bool(model.quantised))
    try:
        reference = twins.reference
        pruned_is_finite = all(is_finite(got) for _, got in runs)
        if pruned_is_finite and not all(is_finite(reference.run(feed)) for feed, _ in runs):
            masked = without_noise(mask(model, rewritten.removal, _axes_to_mask(model, rewritten.removal)))
            twins = replace(twins, masked=with_outputs(masked, names))
            _ = twins.reference
    except RefusedError as error:
        raise ValidationError(f"pruned could not be compared with masked: {error}; please report it") from error
    return twins


def _axes_to_mask(model: Model, removal: Removal) -> set[Axis]:
    """Return the axes that are masked where an operator has no value at zero: those that products read.

    A sum adds up masked channels itself, so that these have to be zero.
    """
    sums = (fact for node in model.nodes for fact in facts(node, model) if isinstance(fact, Normalises))
    return {*_reading_axes(model), *removal.together_with({fact.axis for fact in sums if fact.unless_zero})}


def _reading_axes(model: Model) -> Iterator[Axis]:
    """Yield the axes of constants that products sum over: coupled to another input of their node and to no output."""
    for node in model.nodes:
        pairs = [
            (a, b) for fact in facts(node, model) if isinstance(fact, Coupling) for a, b in permutations(fact.axes())
        ]
        written = {a for a, b in pairs if b.tensor in node.outputs}
        yield from (a for a, b in pairs if model.is_constant(a.tensor) and b.tensor in node.inputs and a not in written)


def is_finite(outputs: Sequence[Array]) -> bool:
    """Return whether all numbers of all float outputs are finite."""
    return all(np.isfinite(array).all() for array in outputs if array.dtype.kind == "f")


def compare_with_masked(
    model: Model, rewritten: Rewritten, twins: Twins, runs: Sequence[Run]
) -> tuple[float | None, tuple[str, ...]]:
    """Return (largest difference, notes); the difference is None where no output could be compared.

    Raises:
        ValidationError: The models differ; the message names the first tensor at which they do.
    """
    worst = 0.0
    compared: set[str] = set()
    notes: list[str] = []
    for feed, got in runs:
        gap, agreement = twins.gap(feed, got)
        if agreement is Agreement.NO:
            raise ValidationError(_first_difference(model, rewritten, feed))
        if agreement is Agreement.IN_FLOAT64:
            notes = ["rounding decides what the model returns: pruned and masked agree in float64"]
        worst = max(worst, gap)
        compared.update(name for name, array in zip(model.outputs, got, strict=False) if _is_comparable(array))
    blind = [name for name in model.outputs if name not in compared]
    notes += [f"{name} could not be compared: it holds no finite number on any random input" for name in blind]
    return worst if compared else None, tuple(notes)


def noise(masked: Session, feed: Feed, want: list[Array]) -> float:
    """Return by how much the masked model itself exceeds the tolerance when the last bits of its input change."""
    nudged = {n: (a * np.asarray(1 + 1e-6, a.dtype) if a.dtype.kind == "f" else a) for n, a in feed.items()}
    return worst_difference(want, masked.run(nudged))[1]


def _is_comparable(array: Array) -> bool:
    """Return whether an output can be compared: it is not empty, and not entirely NaN."""
    return bool(array.size) and (array.dtype.kind != "f" or bool(np.isfinite(array).any()))


def is_undecided(node: Node) -> bool:
    """Return whether a node is an If that may take either branch, and whose branches are analysed."""
    return node.op == "If" and bool(node.bodies) and all(body.tied for body in node.bodies)


def compare_branch(model: Model, plain: Twins, feed: Feed, name: str) -> float | None:
    """Return the largest difference if every If takes one branch, whatever its condition.

    Args:
        model: The original.
        plain: The masked and the pruned model.
        feed: Inputs on which the original runs.
        name: `then` or `else`.

    Returns:
        None if the original does not run that way.

    Raises:
        ValidationError: The models differ.
    """
    decided = feed | {CHOICE: np.asarray(name == "then")}
    try:
        open_session(_with_choice(model.proto, model.opened)).run(decided)
    except RefusedError:
        return None
    twins = replace(
        plain, masked=_with_choice(plain.masked, model.opened), pruned=_with_choice(plain.pruned, model.opened)
    )
    try:
        gap, agreement = twins.gap(decided, open_session(twins.pruned).run(decided))
    except RefusedError as error:
        raise ValidationError(
            f"the pruned model does not run where every If takes its {name} branch: {error}"
        ) from error
    if agreement is Agreement.NO:
        raise ValidationError(
            f"pruned != masked where every If takes its {name} branch (relative {gap:.3g}); please report it"
        )
    return gap


def _with_choice(proto: onnx.ModelProto, opened: Opened) -> onnx.ModelProto:
    """Return a copy in which the condition of every If that may take either branch is a graph input.

    It must not be a constant: onnxruntime 1.31 ends with a segmentation fault when it inlines nested branches.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.input.append(onnx.helper.make_tensor_value_info(CHOICE, onnx.TensorProto.BOOL, []))
    for node in operators(copy.graph):
        if node.op_type == "If" and len(opened.get(node.output[0], ())) > 1:
            node.input[0] = CHOICE
    return copy


def _first_difference(model: Model, rewritten: Rewritten, feed: Feed) -> str:
    """Return the name of the first tensor, in graph order, at which the pruned and the masked model differ."""
    names = [
        name for node in model.nodes if not model.is_folded(node) for name in node.outputs if name
    ]  # sizes differ anyway
    present = {name for node in rewritten.proto.graph.node for name in node.output}
    names = [name for name in names if name in present]
    wanted = _all_tensors(without_noise(mask(model, rewritten.removal)), names, feed)
    got = _all_tensors(rewritten.proto, names, feed)
    for name in names:
        if name not in wanted or name not in got:
            continue
        shape = model.shape(name) or ()
        same = {dim for dim, size in enumerate(wanted[name].shape[: len(shape)]) if size == shape[dim]}
        slices = rewritten.removal.slices(name)
        want = taken(wanted[name], [{dim: kept for dim, kept in each.items() if dim in same} for each in slices])
        gap = difference(want, got[name])
        if gap > TOLERANCE["float32"]:
            return (
                f"pruned != masked: {name}, made by {model.producer[name]}, differs first (relative {gap:.3g}; shapes "
                f"{list(got[name].shape)} and {list(want.shape)}); please report it, or --exclude "
                f"'{model.producer[name].name}'"
            )
    return "pruned != masked at a graph output; please report it"


def _all_tensors(proto: onnx.ModelProto, names: list[str], feed: Feed) -> dict[str, Array]:
    """Run a model with all its tensors as outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    have = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    session = open_session(copy, what="the model with all its tensors as outputs")
    return dict(zip(session.outputs, session.run(feed), strict=True))
