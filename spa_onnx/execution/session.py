"""Executors run models. The default is onnxruntime; `spa_onnx.execution.float64` is a slow reference."""

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
"""The inputs of one run: name -> array."""

MOST_DESCRIBED = 4
"""The number of inputs that messages describe."""

FATAL = 4
"""onnxruntime's severity for logging fatal errors only. Errors are raised as exceptions anyway."""

default_severity: ContextVar[int | None] = ContextVar("default_severity", default=None)
"""The severity of onnxruntime's default logger when sessions are opened; None does not change it.

The command line sets it. A library leaves the logger to the program that imports it.
"""


class Session(Protocol):
    """A model that is ready to run."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""

    def run(self, feed: Feed, names: Sequence[str] | None = None, *, release: bool = False) -> list[Array]:
        """Run one feed.

        Args:
            feed: The inputs.
            names: The outputs to return; None for all.
            release: Whether to free the memory of the run after it.

        Returns:
            One array per output, in the order of `names`.

        Raises:
            RefusedError: The run fails.
        """


class Executor(Protocol):
    """Opens models for running."""

    def open(
        self, proto: onnx.ModelProto, *, optimise: bool = False, timed: bool = False, what: str = "the model"
    ) -> Session:
        """Open a model.

        Args:
            proto: The model.
            optimise: Whether to use all fusions. Without it only basic ones are used, which round alike.
            timed: Whether latency will be measured. Then threads spin while they wait for the next run.
            what: The name of the model in error messages.

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
        """Open a model, or return its session if it is open already; see `Executor.open`."""
        content = proto.SerializeToString()
        key = (hashlib.blake2b(content, digest_size=16).digest(), optimise, self)
        shared = _OPEN.get(key)
        if shared is None or (timed and not shared.timed):
            shared = _OPEN[key] = _OrtSession(
                self._open(content, optimise=optimise, timed=timed, what=what), timed=timed
            )
        return shared

    def _open(self, content: bytes, *, optimise: bool, timed: bool, what: str) -> Any:
        """Return a new session of onnxruntime for a serialised model."""
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
    """A session of onnxruntime.

    Args:
        session: An `onnxruntime.InferenceSession`.
        timed: Whether its threads spin while they wait.
    """

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
            raise RefusedError(
                f"onnxruntime cannot run the model on {_described(feed)}: {_first_line(error)}"
            ) from error


_OPEN: WeakValueDictionary[tuple[bytes, bool, OnnxRuntime], _OrtSession] = WeakValueDictionary()
"""The sessions in use, by (hash of the model, optimise, executor)."""

_EXECUTOR: ContextVar[Executor | None] = ContextVar("executor", default=None)


def executor() -> Executor:
    """Return the executor in use: that of the enclosing `running_on`, else onnxruntime on the CPU."""
    return _EXECUTOR.get() or OnnxRuntime()


@contextmanager
def running_on(chosen: Executor) -> Iterator[None]:
    """Use an executor for all models that are opened in a with block."""
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
                f"--providers {','.join(providers)}: this onnxruntime has no "
                f"{missing[0] if missing else 'provider of that name'}; "
                f"it has {', '.join(ort.get_available_providers())}"
            )
    return OnnxRuntime(tuple(providers), threads)


def open_session(
    proto: onnx.ModelProto, *, optimise: bool = False, timed: bool = False, what: str = "the model"
) -> Session:
    """Open a model in the executor in use; see `Executor.open`."""
    return executor().open(proto, optimise=optimise, timed=timed, what=what)


def feed_size(feed: Feed, *, batched: bool = True) -> int:
    """Return the number of samples of a feed.

    Args:
        feed: The inputs of one run.
        batched: Whether the first axis of the first input that is not a scalar counts samples; else a feed is one.
    """
    return next((len(array) for array in feed.values() if array.ndim), 1) if batched else 1


def latency(sessions: Sequence[Session], feed: Feed, seconds: float = 1.0) -> list[float]:
    """Measure the latency of sessions. They run in turns, so other load on the machine affects all of them equally.

    Args:
        sessions: The sessions.
        feed: The inputs of each run.
        seconds: How long to measure. At least 5 and at most 200 runs of each session are measured.

    Returns:
        The median milliseconds per run of each session.
    """
    for session in sessions:
        session.run(feed)
    times: list[list[float]] = [[] for _ in sessions]
    start = time.perf_counter()
    while len(times[0]) < 5 or (time.perf_counter() - start < seconds and len(times[0]) < 200):
        for session, milliseconds in zip(sessions, times, strict=True):
            begin = time.perf_counter()
            session.run(feed)
            milliseconds.append(1000 * (time.perf_counter() - begin))
    return [float(np.median(milliseconds)) for milliseconds in times]


def _described(feed: Feed) -> str:
    """Return the types and shapes of inputs for messages, of the first MOST_DESCRIBED ones."""
    described = [f"{name} {array.dtype} {list(array.shape)}" for name, array in list(feed.items())[:MOST_DESCRIBED]]
    return ", ".join(described + ["..."] * (len(feed) > MOST_DESCRIBED)) or "no inputs"


def _first_line(error: Exception) -> str:
    """Return the first line of an error of onnxruntime, without its code, in at most 300 characters."""
    lines = str(error).strip().splitlines()
    return lines[0].split(" : ", 3)[-1][:300] if lines else type(error).__name__
