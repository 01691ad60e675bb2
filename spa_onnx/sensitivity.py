"""What the layer-wise losses of a group mean for the outputs of the model: measured, on a trial cut of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from spa_onnx import runtime
from spa_onnx.bodies import operators
from spa_onnx.calibration import Calibration
from spa_onnx.cut import Removal, zeroed
from spa_onnx.errors import RefusedError
from spa_onnx.fold import Array
from spa_onnx.groups import Analysis, Group
from spa_onnx.mask import mask
from spa_onnx.model import Model
from spa_onnx.repair import reconstruct
from spa_onnx.runtime import Feed

TRIAL = 0.25
"""Share of a group's channels that the trial cut takes."""

PASSES = 1
"""All trials together run at most this many times as many samples through the model as calibration did, but FEWEST_PER_TRIAL each."""

FEWEST_PER_TRIAL = 4

SPREAD = 30.0
"""No sensitivity is further than this factor from the middle one: a trial sees few samples."""

SMALLEST = 1e-30
"""A summed loss below this is rounding."""


def sensitivities(
    analysis: Analysis, groups: Sequence[Group], scores: Mapping[str, NDArray[np.float64]], known: Calibration
) -> NDArray[np.float64]:
    """Relative error of the outputs per unit of summed loss, over the middle one; float64 (groups,).

    Ones where outputs tell nothing, or onnxruntime cannot run the model with its weights as inputs.

    Each group by itself loses its TRIAL least important channels, its consumers are refitted, and some samples run through. On
    doubtful samples none counts as less sensitive than the middle one: outputs may only seem not to need what these do not stir.
    """
    samples = max(FEWEST_PER_TRIAL, PASSES * known.samples // max(len(groups), 1))
    try:
        bench = _Bench(analysis, groups, known, known.first(samples))
        found = np.asarray([bench.sensitivity(group, scores[group.name]) for group in groups])
    except RefusedError:  # some kernels want constants for weights: layer-wise losses still say which channels go
        return np.ones(len(groups))
    usable = np.isfinite(found) & (found > 0)
    if not usable.any():
        return np.ones(len(groups))
    middle = float(np.median(found[usable]))
    return np.clip(np.where(usable, found, middle) / middle, 1.0 if known.doubtful else 1 / SPREAD, SPREAD)


class _Bench:
    """The dense model in one session, with the weights that trials change as inputs that have a default."""

    def __init__(self, analysis: Analysis, groups: Sequence[Group], known: Calibration, feeds: Sequence[Feed]) -> None:
        self._analysis, self._known, self._feeds = analysis, known, feeds
        touched = {axis.tensor for group in groups for axis in group.owner} | {consumer.bias for consumer in known.consumers}
        self._session = runtime.session(
            known.run(_open(analysis.model, touched)), optimise=True, what="the model with its weights as inputs"
        )
        self._places = {entry.name for entry in self._session.get_overridable_initializers()}
        self._dense = self._outputs({})

    def sensitivity(self, group: Group, scores: NDArray[np.float64]) -> float:
        """Error of the outputs over the summed loss of the trial."""
        going = group.ranked(scores)[: max(1, round(group.steps * TRIAL))].ravel()
        removal = Removal(self._analysis, {group.name: np.sort(going)})
        error = _distance(self._outputs(self._constants(removal)), self._dense)
        loss = float(scores[going].sum())
        return error / loss if loss > SMALLEST else float("nan")

    def _constants(self, removal: Removal) -> Feed:
        """The masked weights, those that consumers are refitted with among them."""
        model, known = self._analysis.model, self._known
        masked = mask(model, removal)
        fresh = {tensor.name: tensor for tensor in masked.graph.initializer}
        refitted = reconstruct(model, known.consumers, known.statistics, removal)
        found: Feed = {}
        was, now = list(operators(model.proto.graph)), list(operators(masked.graph))
        for node in model.nodes:
            for slot, name in enumerate(now[node.index].input):
                use = node.inputs[slot]
                if use in refitted:
                    found[_place(node.index, slot)] = zeroed(model, use, refitted[use], removal.slices(use))
                elif name != was[node.index].input[slot]:
                    found[_place(node.index, slot)] = numpy_helper.to_array(fresh[name])
        return found

    def _outputs(self, constants: Feed) -> list[Array]:
        """The outputs, the batches joined."""
        read = {name: array for name, array in constants.items() if name in self._places}  # stored statistics may have no reader here
        runs = [runtime.run(self._session, feed | read) for feed in self._feeds]
        return [
            np.concatenate([array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1) for array in output])
            for output in zip(*runs, strict=True)
        ]


def _place(index: int, slot: int) -> str:
    return f"trial_{index}_{slot}"


def _open(model: Model, touched: set[str]) -> onnx.ModelProto:
    """A copy in which every use of a touched constant is an input of its own, with the constant as its default."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.ir_version = max(proto.ir_version, 4)
    nodes = list(operators(proto.graph))
    for node in model.nodes:
        for slot, use in enumerate(node.inputs):
            if use in touched and model.is_constant(use):
                name = _place(node.index, slot)
                tensor = numpy_helper.from_array(np.asarray(model.constant(use)), name)
                nodes[node.index].input[slot] = name
                proto.graph.initializer.append(tensor)
                proto.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return proto


def _distance(got: Sequence[Array], dense: Sequence[Array]) -> float:
    """Mean over the outputs of ||got - dense||^2 / ||dense - mean||^2; outputs that are no numbers or do not vary are left out."""
    found = []
    for a, b in zip(got, dense, strict=True):
        if a.shape != b.shape or b.dtype.kind not in "fiu" or not (np.isfinite(a).all() and np.isfinite(b).all()):
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        varies = float(np.square(y - y.mean(axis=0)).sum()) or float(np.square(y - y.mean()).sum())
        if varies > 0:
            found.append(float(np.square(x - y).sum()) / varies)
    return float(np.mean(found)) if found else float("nan")
