"""The pipeline's first steps: open, analyse and calibrate the original."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from spa_onnx.analysis import analyse
from spa_onnx.analysis.demands import excluded
from spa_onnx.analysis.groups import Analysis
from spa_onnx.config import Settings, parse_bytes
from spa_onnx.data.batches import Samples
from spa_onnx.data.preprocess import parse
from spa_onnx.data.samples import read_samples
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.execution.session import Session, open_session
from spa_onnx.model.model import Model
from spa_onnx.model.source import Source
from spa_onnx.operators import DATA_SIZE
from spa_onnx.scoring import CRITERIA
from spa_onnx.selection.propose import why_nothing_is_prunable
from spa_onnx.sizes import at_fitting_sizes, check_names, smallest
from spa_onnx.statistics.calibration import DEFAULT_SAMPLES, Calibration, Sampling, calibrate
from spa_onnx.statistics.memory import DEFAULT_MEMORY
from spa_onnx.synthetic.working import WorkingInputs, working_inputs
from spa_onnx.validation.quality import Evaluation
from spa_onnx.validation.validate import SEEDS

Progress: TypeAlias = Callable[[str], None]
"""Called with the name of each step as it begins."""


def no_progress(_: str) -> None:
    """Ignore the step."""


CPU = ("CPUExecutionProvider",)

TRIAL_BATCH = 2
"""The number of given samples in a trial run, if the batch is free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How models are run and what is measured. `spa_onnx.prune` documents each field."""

    check: bool = True
    measure_latency: bool = False
    data: object = None
    test_data: object = None
    preprocess: str | None = None
    memory: str | int = DEFAULT_MEMORY
    dims: Mapping[str, int] | None = None
    providers: Sequence[str] = CPU
    threads: int = 0
    progress: Progress = no_progress


@dataclass(slots=True)
class Clock:
    """Measures the seconds of each step.

    Args:
        progress: Called with the name of each step as it begins.
        seconds: Step -> seconds so far.
    """

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    _step: str = ""
    _since: float = 0.0

    def __call__(self, step: str) -> None:
        """Begin a step and end the previous one. An empty name only ends it."""
        now = time.perf_counter()
        if self._step:
            self.seconds[self._step] = round(self.seconds.get(self._step, 0.0) + now - self._since, 4)
        self._step, self._since = step, now
        if step:
            self.progress(step)


def needs_statistics(settings: Settings) -> bool:
    """Return whether scores or repair need statistics of the model on samples."""
    return CRITERIA[settings.criterion].needs_statistics or settings.repair != "none"


@dataclass(frozen=True, slots=True)
class Original:
    """The original model, ready to run, and what it is run with.

    Args:
        session: The session of the original.
        inputs: The sizes that the user gave or, after `runnable`, inputs at which it runs.
        samples: The calibration data; None for synthetic samples.
        evaluation: What the quality of the result is measured on.
        memory: The number of bytes that statistics may take.
    """

    session: Session
    inputs: WorkingInputs
    samples: Samples | None
    evaluation: Evaluation
    memory: int

    @classmethod
    def of(cls, source: Source, options: RunOptions, settings: Settings) -> Original:
        """Open the original and read the samples: those to fit on, and those to measure on.

        Raises:
            RefusedError: The original does not run, so nothing could be checked.
            UsageError: The data or `preprocess` cannot be used.
        """
        preprocess = parse(options.preprocess) if options.preprocess else None
        if preprocess and options.data is None and options.test_data is None:
            raise UsageError("preprocess is for given data; name some")
        session = open_session(source.proto, optimise=True, timed=True, what="the original model")
        data, test = (
            None if given is None else read_samples(given, source.proto, preprocess)
            for given in (options.data, options.test_data)
        )
        samples, evaluation = _divided(data, test, settings, measured=options.check)
        memory = parse_bytes(options.memory)
        evaluation = replace(evaluation, memory=memory)
        return cls(session, WorkingInputs(options.dims or {}), samples, evaluation, memory)


def _divided(
    data: Samples | None, test: Samples | None, settings: Settings, *, measured: bool
) -> tuple[Samples | None, Evaluation]:
    """Return the samples to fit on, and those to measure on: no sample is both.

    All samples are fitted to if nothing is measured.
    """
    if test is not None:
        return data, Evaluation(test, "held-out")
    if data is None:
        return None, Evaluation()
    if not measured or not needs_statistics(settings):
        return data, Evaluation(data, "given")
    fitted, held_out = data.split(settings.samples or DEFAULT_SAMPLES)
    if held_out is None:
        return fitted, Evaluation(unknown="unknown: one sample cannot be both fitted to and measured on")
    return fitted, Evaluation(held_out, "held-out")


def read_analysis(source: Source, dims: Mapping[str, int] | None, settings: Settings) -> Analysis:
    """Analyse a model.

    Raises:
        UsageError: `dims` has a name that the model does not have, or a pattern of `exclude` matches no name.
    """
    check_names(source.proto, dims or {})

    def analysis(model: Model) -> Analysis:
        for pattern in settings.patterns():
            if not any(excluded(model, pattern)):
                raise UsageError(
                    f"--exclude {pattern.pattern!r} matches the name of no node and of no tensor; "
                    "spa-onnx groups MODEL shows names"
                )
        return analyse(model, settings.patterns(), inexact=settings.width, attention=settings.attention)

    return at_fitting_sizes(source.proto, dims or {}, analysis)


def runnable(
    source: Source, dims: Mapping[str, int] | None, settings: Settings, original: Original | None
) -> tuple[Analysis, Original | None]:
    """Analyse a model at sizes of symbolic dimensions at which it runs.

    Returns:
        The analysis, and `original` with the sizes at which it runs. If `original` is None, nothing is run.

    Raises:
        RefusedError: The model runs at none of the usual sizes.
    """
    analysis = read_analysis(source, dims, settings)
    if original is None:
        return analysis, None
    try:
        given = original.samples or original.evaluation.samples
        trial = () if given is None else tuple(given.head(TRIAL_BATCH * SEEDS, TRIAL_BATCH).feeds())
        inputs = working_inputs(analysis.model, original.session, original.inputs.dims, trial)
    except RefusedError:
        reason = why_nothing_is_prunable(analysis, settings)
        if analysis.prunable() or (analysis.model.inference.dims and DATA_SIZE in reason):
            raise  # sizes can be unknown because the symbolic ones do not fit
        raise RefusedError(reason) from None  # this reason explains more
    if any(inputs.dims.get(name, size) != size for name, size in analysis.model.inference.dims.items()):
        analysis = read_analysis(source, inputs.dims, settings)
    if not inputs.given:
        analysis = smallest(
            analysis, original.session, dims or {}, lambda found: read_analysis(source, found, settings), inputs.style
        )
        inputs = replace(inputs, dims={**inputs.dims, **analysis.model.inference.dims})
    return analysis, replace(original, inputs=inputs)


def collect_statistics(
    analysis: Analysis, settings: Settings, original: Original | None, clock: Callable[[str], None]
) -> Calibration | None:
    """Collect statistics of the inputs of the linear layers that may lose inputs.

    Returns:
        The statistics; None if the settings need no statistics, if nothing is run, or if no group can be pruned.
    """
    if original is None or not needs_statistics(settings) or not analysis.prunable():
        return None
    clock("collect")
    axes = {axis for group in analysis.prunable() for axis in group.owner}
    sampling = Sampling(settings.samples, settings.seed, original.memory)
    return calibrate(analysis.model, original.inputs, original.samples, sampling, axes)
