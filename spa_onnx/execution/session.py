"""Executors: what runs a model. onnxruntime is the usual one; `float64` is a slow reference."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
import onnx

from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.model.traits import Array

Feed: TypeAlias = dict[str, Array]
"""Inputs of one run: name -> array."""

FATAL = 4
"""The severity in onnxruntime below which nothing is logged: what goes wrong is raised."""

default_severity: ContextVar[int | None] = ContextVar("default_severity", default=None)
"""The severity of onnxruntime's default logger for sessions that are opened. For programs; None leaves it to the host of a library."""


class Session(Protocol):
    """A model that is ready to run."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of its inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of its outputs."""

    def run(self, feed: Feed, names: Sequence[str] | None = None, *, release: bool = False) -> list[Array]:
        """Run one feed.

        Args:
            feed: The inputs.
            names: The outputs that are wanted; None for all.
            release: Whether the memory that the run takes is given back after it.

        Raises:
            RefusedError: The run fails.
        """


class Executor(Protocol):
    """Makes models ready to run."""

    def open(
        self, proto: onnx.ModelProto, *, optimise: bool = False, timed: bool = False, what: str = "the model"
    ) -> Session:
        """Open a model.

        Args:
            proto: The model.
            optimise: Whether to use all fusions, or only basic ones, which round alike.
            timed: Whether latency is going to be measured, so that threads wait actively for the next run.
            what: What messages call the model.

        Raises:
            RefusedError: The executor does not accept the model.
        """


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """Runs models in onnxruntime.

    Args:
        providers: The execution providers, the preferred one first.
        threads: The number of threads of a run; 0 for one per core.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 0

    def open(
        self, proto: onnx.ModelProto, *, optimise: bool = False, timed: bool = False, what: str = "the model"
    ) -> Session:
        """See `Executor`. A model that is open already is not opened again."""
        content = proto.SerializeToString()
        key = (hashlib.blake2b(content, digest_size=16).digest(), optimise, self)
        shared = _OPEN.get(key)
        if shared is None or (timed and not shared.timed):
            shared = _OPEN[key] = _OrtSession(
                self._open(content, optimise=optimise, timed=timed, what=what), timed=timed
            )
        return shared

    def _open(self, content: bytes, *, optimise: bool, timed: bool, what: str) -> Any:
        import onnxruntime as ort  # noqa: PLC0415 - not needed with --no-validate, and slow to import

        severity = default_severity.get()
        if severity is not None:
            ort.set_default_logger_severity(severity)
        options = ort.SessionOptions()
        options.log_severity_level = FATAL
        options.intra_op_num_threads = self.threads
        if not timed:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_ENABLE_BASIC
        try:
            return ort.InferenceSession(content, options, providers=list(self.providers))
        except Exception as error:
            raise RefusedError(f"onnxruntime cannot run {what}: {_first_line(error)}") from error


class _OrtSession:
    """A session of onnxruntime. timed: whether its threads wait actively."""

    def __init__(self, session: Any, *, timed: bool) -> None:
        self._session, self.timed = session, timed

    @property
    def inputs(self) -> tuple[str, ...]:
        """See `Session`."""
        return tuple(entry.name for entry in self._session.get_inputs())

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Session`."""
        return tuple(entry.name for entry in self._session.get_outputs())

    def run(self, feed: Feed, names: Sequence[str] | None = None, *, release: bool = False) -> list[Array]:
        """See `Session`."""
        import onnxruntime as ort  # noqa: PLC0415 - not needed with --no-validate, and slow to import

        options = ort.RunOptions()
        if release:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            return [np.asarray(output) for output in self._session.run(names, feed, options)]
        except Exception as error:
            raise RefusedError(f"onnxruntime cannot run the model on the given inputs: {_first_line(error)}") from error


_OPEN: WeakValueDictionary[tuple[bytes, bool, OnnxRuntime], _OrtSession] = WeakValueDictionary()
"""Sessions that somebody still uses, by the content of their model."""

_EXECUTOR: ContextVar[Executor | None] = ContextVar("executor", default=None)


def executor() -> Executor:
    """Return the executor of the work at hand: onnxruntime on the CPU, unless `running_on` says otherwise."""
    return _EXECUTOR.get() or OnnxRuntime()


@contextmanager
def running_on(chosen: Executor) -> Iterator[None]:
    """Use an executor for all models that the block opens."""
    token = _EXECUTOR.set(chosen)
    try:
        yield
    finally:
        _EXECUTOR.reset(token)


def onnxruntime_with(providers: Sequence[str], threads: int) -> OnnxRuntime:
    """Return onnxruntime with these providers and threads.

    Raises:
        UsageError: A provider is not installed, or the number of threads is negative.
    """
    if threads < 0:
        raise UsageError(f"threads {threads} is negative; use 0 for one per core")
    if tuple(providers) != OnnxRuntime().providers:
        import onnxruntime as ort  # noqa: PLC0415 - slow to import

        missing = [name for name in providers if name not in ort.get_available_providers()]
        if missing or not providers:
            raise UsageError(
                f"--providers {','.join(providers)}: this onnxruntime has no {missing[0] if missing else 'provider of that name'}; "
                f"it has {', '.join(ort.get_available_providers())}"
            )
    return OnnxRuntime(tuple(providers), threads)


def open_session(
    proto: onnx.ModelProto, *, optimise: bool = False, timed: bool = False, what: str = "the model"
) -> Session:
    """Open a model in the executor of the work at hand; see `Executor.open`."""
    return executor().open(proto, optimise=optimise, timed=timed, what=what)


def feed_size(feed: Feed) -> int:
    """Return how many samples a feed holds."""
    return next((len(array) for array in feed.values() if array.ndim), 1)


def latency(sessions: Sequence[Session], feed: Feed, seconds: float = 1.0) -> list[float]:
    """Measure the median milliseconds per run of each session, run in turns so that a busy machine slows all alike."""
    for session in sessions:
        session.run(feed)
    times: list[list[float]] = [[] for _ in sessions]
    start = time.perf_counter()
    while len(times[0]) < 5 or (time.perf_counter() - start < seconds and len(times[0]) < 200):
        for session, spent in zip(sessions, times, strict=True):
            begin = time.perf_counter()
            session.run(feed)
            spent.append(1000 * (time.perf_counter() - begin))
    return [float(np.median(spent)) for spent in times]


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].split(" : ", 3)[-1][:300] if text else type(error).__name__
