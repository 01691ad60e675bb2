"""Trials: how much the outputs of the dense model change when some of its channels are removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from spa_onnx.analysis.groups import Analysis, Group
from spa_onnx.errors import RefusedError
from spa_onnx.execution.partial import PartialExecution
from spa_onnx.execution.session import Feed, Session, open_session
from spa_onnx.model.constants import constant_tensor
from spa_onnx.model.facts import Indices
from spa_onnx.model.logits import logits
from spa_onnx.model.model import Model
from spa_onnx.model.subgraphs import operators
from spa_onnx.model.traits import Array
from spa_onnx.operators.macs import macs
from spa_onnx.plan.mask import losing
from spa_onnx.plan.removal import Removal, zeroed
from spa_onnx.repair.layerwise import refit_layers
from spa_onnx.statistics.calibration import Calibration
from spa_onnx.statistics.memory import peak_live_bytes

SAMPLES_PER_TRIAL = 64
"""The maximum number of samples that run in each trial."""

MACS_OF_TRIALS = 25 * 10**10
"""The multiply-accumulates that all trials together may cost. Large models run fewer samples per trial, at least one.
"""

TENSOR_COPIES = 2
"""Trials hold each live tensor, and onnxruntime a copy of it while it runs."""

ROUNDING_ERROR = 1e-10
"""Relative errors below this are rounding errors: parts of a model and the whole are fused differently."""


class Trials:
    """The dense model; each trial runs only the nodes behind the constants that it changes.

    Outputs that are probabilities or classes count as their logits. Trials cost least in the order of the graph.

    Args:
        analysis: The groups of the model.
        groups: The groups that lose channels in trials.
        calibration: The samples, and the statistics for refits.
        count: How many trials there will be; it decides how many samples each of them runs.

    Raises:
        RefusedError: The executor cannot run the model.
    """

    def __init__(self, analysis: Analysis, groups: Sequence[Group], calibration: Calibration, count: int) -> None:
        self._analysis, self._calibration = analysis, calibration
        affordable = MACS_OF_TRIALS // max(count * macs(analysis.model), 1)
        touched = {axis.tensor for group in groups for axis in group.owner}
        touched |= {layer.bias for layer in calibration.layers}
        held = calibration.memory // max(TENSOR_COPIES * _held_bytes(analysis.model, touched), 1)
        self._feeds = calibration.first(max(min(affordable, held, SAMPLES_PER_TRIAL), 1))
        proto, self._own_names = _with_own_constants(analysis.model, touched)
        self._proto = calibration.run(proto)
        session = open_session(self._proto, optimise=True, what="the model")
        outputs = _joined([session.run(feed) for feed in self._feeds])
        self._dense = dict(zip((value.name for value in self._proto.graph.output), outputs, strict=True))
        self._varies = [variation(array) for array in outputs]
        self._execution = PartialExecution(self._proto, self._feeds)
        self._rest: _Rest | None = None
        self._refused: set[frozenset[str]] = set()

    def first_node(self, group: Group) -> int:
        """Return the number of the first node that trials of this group run."""
        tensors = {axis.tensor for axis in group.owner}
        return self._execution.first_reader([name for tensor in tensors for name in self._own_names.get(tensor, ())])

    def error(self, removed: Mapping[str, Indices], *, refits: bool = True) -> float:
        """Return the relative error of the outputs without these channels, as `distance` defines it.

        Args:
            removed: Group name -> channels that are removed.
            refits: Whether layers that lose inputs are refitted first.

        Returns:
            NaN where the executor does not take weights as inputs.
        """
        changed = self._outputs(self._constants(Removal(self._analysis, removed), refits=refits))
        if changed is None:
            return float("nan")
        error = distance(list((self._dense | changed).values()), list(self._dense.values()), self._varies)
        return 0.0 if error < ROUNDING_ERROR else error

    def _outputs(self, constants: Feed) -> dict[str, Array] | None:
        """Return the outputs that depend on these constants.

        None if neither the nodes behind them nor the whole model run with the constants as inputs.
        """
        given = frozenset(constants)
        if given in self._refused:
            return None
        found = self._from(self._execution.first_reader(given), constants)
        if found is None:
            found = self._from(0, constants)
        if found is None:
            self._refused.add(given)
        return found

    def _from(self, first: int, constants: Feed) -> dict[str, Array] | None:
        """Run from this node on; None if the executor refuses, as it does if a sequence would be an input."""
        try:
            return self._opened(constants, first).outputs(constants)
        except RefusedError:
            self._rest, self._execution = None, PartialExecution(self._proto, self._feeds)
            return None

    def _opened(self, constants: Feed, first: int) -> _Rest:
        """Return the model from this node on, or that of the last trial if it had the same constants."""
        if self._rest is None or self._rest.given != set(constants):
            self._rest = None
            if first < self._execution.position:
                self._execution = PartialExecution(self._proto, self._feeds)
            self._execution.until(first)
            self._rest = _Rest.of(*self._execution.rest(constants), frozenset(constants))
        return self._rest

    def _constants(self, removal: Removal, *, refits: bool) -> Feed:
        """Return the masked weights, and those of refitted layers."""
        model, calibration = self._analysis.model, self._calibration
        refitted = (
            refit_layers(
                model, calibration.layers, calibration.statistics, removal, regularisation=calibration.regularisation
            )
            if refits
            else {}
        )
        uses = {(node.index, slot): node.inputs[slot] for node, slot, _ in losing(model, removal)}
        uses |= {(node.index, node.inputs.index(name)): name for name in refitted for node in model.consumers[name]}
        return {
            _own_name(*use): fed(
                zeroed(model, name, np.asarray(refitted.get(name, model.constant(name))), removal.slices(name))
            )
            for use, name in uses.items()
        }


@dataclass(frozen=True, slots=True)
class _Rest:
    """The nodes behind some constants, which are inputs of this part.

    session: None if no output depends on the constants. feeds: all other inputs, one feed per batch. given: the
    constants.
    names: the names of the outputs.
    """

    session: Session | None
    feeds: Sequence[Feed]
    given: frozenset[str]
    names: tuple[str, ...]

    @classmethod
    def of(cls, part: onnx.ModelProto, feeds: Sequence[Feed], given: frozenset[str]) -> _Rest:
        """Open the part.

        Raises:
            RefusedError: The executor does not accept it.
        """
        names = tuple(value.name for value in part.graph.output)
        what = "the model with its weights as inputs"
        return cls(open_session(part, optimise=True, what=what) if names else None, feeds, given, names)

    def outputs(self, constants: Feed) -> dict[str, Array]:
        """Run the part with these constants, and join the batches.

        Raises:
            RefusedError: It does not run.
        """
        if self.session is None:
            return {}
        read = set(self.session.inputs)
        weights = {name: array for name, array in constants.items() if name in read}
        runs = [self.session.run(feed | weights) for feed in self.feeds]
        return dict(zip(self.names, _joined(runs), strict=True))


def _held_bytes(model: Model, touched: set[str]) -> int:
    """Return the most bytes of one sample that are held in front of a node that reads one of these constants."""
    constants = {name for name in touched if model.is_constant(name)}
    readers = [node for node in model.nodes if constants.intersection(node.inputs)]
    return peak_live_bytes(model, {name for node in readers for name in node.inputs})


def _joined(runs: Sequence[Sequence[Array]]) -> list[Array]:
    """Return each output of all batches, (samples, values)."""
    return [
        np.concatenate([array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1) for array in output])
        for output in zip(*runs, strict=True)
    ]


def _own_name(index: int, slot: int) -> str:
    """Return the name of a constant for one use."""
    return f"trial_{index}_{slot}"


def _with_own_constants(model: Model, touched: set[str]) -> tuple[onnx.ModelProto, dict[str, list[str]]]:
    """Return (the model, constant -> the names of its copies).

    The model has logits as outputs, and a copy of each touched constant for every use.
    """
    source, own = model.proto.graph, dict[str, list[str]]()
    graph = onnx.GraphProto(name=source.name, node=source.node, output=logits(source))
    graph.input.extend(value for value in source.input if value.name in model.inputs)
    nodes, casts = list(operators(graph)), []
    for node in model.nodes:
        for slot, use in enumerate(node.inputs):
            if use in touched and model.is_constant(use):
                name, array = _own_name(node.index, slot), np.asarray(model.constant(use))
                own.setdefault(use, []).append(name)
                graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(fed(array)), name))
                nodes[node.index].input[slot] = name
                if fed(array).dtype != array.dtype:
                    nodes[node.index].input[slot] = f"{name}_narrow"
                    casts.append(
                        helper.make_node(
                            "Cast", [name], [f"{name}_narrow"], to=helper.np_dtype_to_tensor_dtype(array.dtype)
                        )
                    )
    read = {name for node in operators(graph) for name in node.input} | {value.name for value in graph.output}
    rest = [node for node in graph.node if constant_tensor(node) is None or node.output[0] in read]
    del graph.node[:]
    graph.node.extend([*casts, *rest])
    graph.initializer.extend(tensor for tensor in source.initializer if tensor.name in read)
    graph.sparse_initializer.extend(tensor for tensor in source.sparse_initializer if tensor.values.name in read)
    version, proto = max(model.proto.ir_version, 4), model.proto
    return onnx.ModelProto(
        ir_version=version, opset_import=proto.opset_import, functions=proto.functions, graph=graph
    ), own


def fed(array: Array) -> Array:
    """Return the array in a type that onnxruntime takes from numpy: float32 in place of bfloat16 and the like."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def distance(got: Sequence[Array], dense: Sequence[Array], varies: Sequence[float] | None = None) -> float:
    """Return the mean over the outputs of ||got - dense||^2 / ||dense - mean||^2.

    Outputs that are no numbers or do not vary are left out.

    Args:
        got: The outputs of a trial, one array per output.
        dense: The outputs of the dense model.
        varies: The `variation` of each dense output; computed where it is None.
    """
    found = []
    for a, b, much in zip(got, dense, varies or [variation(array) for array in dense], strict=True):
        if a.shape == b.shape and much > 0 and np.isfinite(a).all():
            found.append(_squares_about(a, b) / much)
    return float(np.mean(found)) if found else float("nan")


def variation(array: Array) -> float:
    """Return ||y - mean||^2 in float64, zero for what is no numbers.

    The mean is that over the first axis, or over all elements where nothing varies about that.
    """
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        return 0.0
    return _squares_about(array, array.mean(axis=0, dtype=np.float64)) or _squares_about(
        array, array.mean(dtype=np.float64)
    )


def _squares_about(array: Array, middle: Array) -> float:
    """Return the sum of the squares of the difference, in float64."""
    apart = np.subtract(array, middle, dtype=np.float64)
    return float(np.vdot(apart, apart))
