"""Cuts on trial: the dense model in one session, and how far its outputs move when it loses some channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from spa_onnx import runtime
from spa_onnx.calibration.calibration import Calibration
from spa_onnx.cost import macs
from spa_onnx.graph.bodies import operators
from spa_onnx.graph.facts import Indices
from spa_onnx.graph.fold import Array
from spa_onnx.graph.model import Model
from spa_onnx.graph.shapes import constant_tensor
from spa_onnx.groups import Analysis, Group
from spa_onnx.repair.reconstruct import reconstruct
from spa_onnx.rewriting.cut import Removal, zeroed
from spa_onnx.rewriting.mask import losing
from spa_onnx.runtime import Feed

PASSES = 1
"""All trials together run at most this many times as many samples through the model as calibration did, but FEWEST_PER_TRIAL each."""

FEWEST_PER_TRIAL = 4

WORK = 10**12
"""Multiply-accumulates that all trials together may cost. With large models fewer samples run than FEWEST_PER_TRIAL, at least one."""


class Trials:
    """The dense model in one session, with the weights that trials change as inputs.

    groups: those that lose channels. count: how many trials there will be, which decides about the samples of each. Raises RefusedError
    where onnxruntime cannot run the model with its weights as inputs.
    """

    def __init__(self, analysis: Analysis, groups: Sequence[Group], known: Calibration, count: int) -> None:
        self._analysis, self._known = analysis, known
        wanted = max(FEWEST_PER_TRIAL, PASSES * known.samples // max(count, 1))
        affordable = max(WORK // max(count * macs(analysis.model), 1), 1)
        self._feeds = known.first(min(wanted, affordable))
        touched = {axis.tensor for group in groups for axis in group.owner} | {consumer.bias for consumer in known.consumers}
        proto, weights = _open(analysis.model, touched)
        self._session = runtime.session(known.run(proto), optimise=True, what="the model with its weights as inputs")
        places = {entry.name for entry in self._session.get_inputs()}  # stored statistics may have no reader here
        self._weights = {name: array for name, array in weights.items() if name in places}
        self._dense = self._outputs({})
        self._varies = [variation(array) for array in self._dense]

    def error(self, drop: Mapping[str, Indices], *, refits: bool = True) -> float:
        """Relative error of the outputs without these channels, as `distance`. refits: whether consumers are refitted before."""
        return distance(self._outputs(self._constants(Removal(self._analysis, drop), refits=refits)), self._dense, self._varies)

    def _constants(self, removal: Removal, *, refits: bool) -> Feed:
        """The masked weights, those that consumers are refitted with among them."""
        model, known = self._analysis.model, self._known
        refitted = reconstruct(model, known.consumers, known.statistics, removal, trust=known.trust) if refits else {}
        uses = {(node.index, slot): node.inputs[slot] for node, slot, _ in losing(model, removal)}
        uses |= {(node.index, node.inputs.index(name)): name for name in refitted for node in model.consumers[name]}
        return {
            _place(*place): fed(zeroed(model, name, np.asarray(refitted.get(name, model.constant(name))), removal.slices(name)))
            for place, name in uses.items()
        }

    def _outputs(self, constants: Feed) -> list[Array]:
        """The outputs, the batches joined."""
        weights = {name: constants.get(name, array) for name, array in self._weights.items()}
        runs = [runtime.run(self._session, feed | weights) for feed in self._feeds]
        return [
            np.concatenate([array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1) for array in output])
            for output in zip(*runs, strict=True)
        ]


def _place(index: int, slot: int) -> str:
    return f"trial_{index}_{slot}"


def _open(model: Model, touched: set[str]) -> tuple[onnx.ModelProto, Feed]:
    """The model with every use of a touched constant as an input of its own, and what to feed there for it to be what it was."""
    source, weights = model.proto.graph, Feed()
    graph = onnx.GraphProto(name=source.name, node=source.node, output=source.output)
    graph.input.extend(value for value in source.input if value.name in model.inputs)
    nodes, casts = list(operators(graph)), []
    for node in model.nodes:
        for slot, use in enumerate(node.inputs):
            if use in touched and model.is_constant(use):
                name, array = _place(node.index, slot), np.asarray(model.constant(use))
                weights[name] = fed(array)
                nodes[node.index].input[slot] = name
                kind = helper.np_dtype_to_tensor_dtype(weights[name].dtype)
                graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
                if weights[name].dtype != array.dtype:
                    nodes[node.index].input[slot] = f"{name}_narrow"
                    casts.append(helper.make_node("Cast", [name], [f"{name}_narrow"], to=helper.np_dtype_to_tensor_dtype(array.dtype)))
    read = {name for node in operators(graph) for name in node.input} | {value.name for value in graph.output}
    rest = [node for node in graph.node if constant_tensor(node) is None or node.output[0] in read]
    del graph.node[:]
    graph.node.extend([*casts, *rest])
    graph.initializer.extend(tensor for tensor in source.initializer if tensor.name in read)
    graph.sparse_initializer.extend(tensor for tensor in source.sparse_initializer if tensor.values.name in read)
    version, proto = max(model.proto.ir_version, 4), model.proto
    return onnx.ModelProto(ir_version=version, opset_import=proto.opset_import, functions=proto.functions, graph=graph), weights


def fed(array: Array) -> Array:
    """The array in a type that onnxruntime takes from numpy: float32 in place of bfloat16 and the like."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def distance(got: Sequence[Array], dense: Sequence[Array], varies: Sequence[float] | None = None) -> float:
    """Mean over the outputs of ||got - dense||^2 / ||dense - mean||^2; outputs that are no numbers or do not vary are left out.

    varies: the `variation` of each dense output, where it is known.
    """
    found = []
    for a, b, much in zip(got, dense, varies or [variation(array) for array in dense], strict=True):
        if a.shape == b.shape and much > 0 and np.isfinite(a).all():
            found.append(_squares_about(a, b) / much)
    return float(np.mean(found)) if found else float("nan")


def variation(array: Array) -> float:
    """||y - mean||^2 in float64, the mean over the first axis, or over all where nothing varies about that; zero for what is no numbers."""
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        return 0.0
    return _squares_about(array, array.mean(axis=0, dtype=np.float64)) or _squares_about(array, array.mean(dtype=np.float64))


def _squares_about(array: Array, middle: Array) -> float:
    """The sum of all squares of the difference, in float64."""
    apart = np.subtract(array, middle, dtype=np.float64)
    return float(np.vdot(apart, apart))
