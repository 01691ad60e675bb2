"""onnxruntime: sessions, inputs to try a model with, outputs, latency."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx

from spa_onnx.errors import RefusedError
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model, feeds
from spa_onnx.model.shapes import GUESSES, choose_dims
from spa_onnx.model.traits import Moves, traits
from spa_onnx.operators import knowledge

if TYPE_CHECKING:
    import onnxruntime as ort

Feed: TypeAlias = dict[str, Array]

FATAL = 4
"""The severity in onnxruntime below which nothing is logged: what goes wrong is raised."""

default_severity: ContextVar[int | None] = ContextVar("default_severity", default=None)
"""What onnxruntime's default logger is set to when a session is opened. For programs; None leaves the host of a library its logger."""

LARGEST_TOKEN = 50
"""Token ids and other integers are drawn below this, or below the size of the table that they index."""


def feed_size(feed: Feed) -> int:
    """Samples in a feed."""
    return next((len(array) for array in feed.values() if array.ndim), 1)


def session(
    proto: onnx.ModelProto, *, optimise: bool = False, timed: bool = False, what: str = "the model"
) -> ort.InferenceSession:
    """A session on the CPU. `optimise`: all of onnxruntime's fusions, or only the basic ones, which round alike.

    timed: whether its threads wait actively for the next run, as they do where nothing is prompt; else they leave the processors to what
    is computed between runs.

    Raises RefusedError where onnxruntime does not accept the model.
    """
    import onnxruntime as ort  # noqa: PLC0415 - not needed with --no-validate, and slow to import

    severity = default_severity.get()
    if severity is not None:
        ort.set_default_logger_severity(severity)
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    if not timed:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_ENABLE_BASIC
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RefusedError(f"onnxruntime cannot run {what}: {_first_line(error)}") from error


def run(
    opened: ort.InferenceSession, feed: Feed, names: Sequence[str] | None = None, *, release: bool = False
) -> list[Array]:
    """The outputs for one feed, or only those named. release: whether the memory that the run takes is given back after it.

    Raises RefusedError where the run fails.
    """
    import onnxruntime as ort  # noqa: PLC0415 - not needed with --no-validate, and slow to import

    options = ort.RunOptions()
    if release:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    try:
        return [np.asarray(output) for output in opened.run(names, feed, options)]
    except Exception as error:
        raise RefusedError(f"onnxruntime cannot run the model on the given inputs: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].split(" : ", 3)[-1][:300] if text else type(error).__name__


def random_feed(model: Model, dims: Mapping[str, int], seed: int) -> Feed:
    """Random inputs of the right types: normal floats, small integers, True. dims: sizes of symbolic dimensions by name."""
    rng = np.random.default_rng(seed)
    made: Feed = {}
    for value in feeds(model.proto.graph):
        kind = value.type.tensor_type.elem_type
        if not value.type.HasField("tensor_type") or kind == onnx.TensorProto.STRING:
            raise RefusedError(
                f"input {value.name} is not a tensor of numbers, so it cannot be tried with random ones; use --no-validate"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        sizes = value.type.tensor_type.shape.dim
        shape = [
            d.dim_value if d.dim_value > 0 else dims[d.dim_param or f"{value.name}:{i}"] for i, d in enumerate(sizes)
        ]
        made[value.name] = _draw(rng, dtype, shape, _largest(model, value.name))
    return made


def _draw(rng: np.random.Generator, dtype: np.dtype[np.generic], shape: Sequence[int], largest: int) -> Array:
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, largest, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _largest(model: Model, name: str) -> int:
    """The exclusive upper bound of an integer input: the rows of the table it looks up, directly or through a Cast."""
    if "mask" in name.lower():
        return 2
    bound = LARGEST_TOKEN
    for node in model.consumers.get(name, ()):
        bounds = knowledge(node.op).bounds
        bound = min([bound, *(bounds[slot](node, model) for slot in bounds if node.input(slot) == name)])
        if traits(node.op).moves is Moves.CAST:
            bound = min(bound, _largest(model, node.outputs[0]))
    return max(bound, 1)


def _candidates(model: Model, given: Mapping[str, int]) -> Iterator[dict[str, int]]:
    yield dict(model.inference.dims)
    for guess in GUESSES:
        yield choose_dims(feeds(model.proto.graph), given, guess)


def working_dims(model: Model, opened: ort.InferenceSession, given: Mapping[str, int]) -> dict[str, int]:
    """Sizes of symbolic dimensions with which the model runs. Raises RefusedError where none of the usual ones do."""
    problem: RefusedError | None = None
    tried: list[dict[str, int]] = []
    for dims in _candidates(model, given):
        if dims not in tried:
            tried.append(dims)
            try:
                run(opened, random_feed(model, dims, seed=0))
            except RefusedError as error:
                problem = problem or error
                continue
            return dims
    names = ", ".join(tried[0]) or "none symbolic"
    raise RefusedError(f"{problem}; give sizes with --dim NAME=SIZE (dimensions: {names}), or use --no-validate")


def latency(sessions: Sequence[ort.InferenceSession], feed: Feed, seconds: float = 1.0) -> list[float]:
    """Median milliseconds per run of each session, run in turns so that a busy machine slows all alike."""
    for opened in sessions:
        opened.run(None, feed)
    times: list[list[float]] = [[] for _ in sessions]
    start = time.perf_counter()
    while len(times[0]) < 5 or (time.perf_counter() - start < seconds and len(times[0]) < 200):
        for opened, spent in zip(sessions, times, strict=True):
            begin = time.perf_counter()
            opened.run(None, feed)
            spent.append(1000 * (time.perf_counter() - begin))
    return [float(np.median(spent)) for spent in times]
