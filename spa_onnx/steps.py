"""The pipeline's steps: open, analyse and calibrate the original; rewrite, validate, repair and measure the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from spa_onnx.analysis import analyse
from spa_onnx.analysis.demands import excluded
from spa_onnx.analysis.groups import Analysis
from spa_onnx.config import Settings, parse_bytes
from spa_onnx.data.preprocess import parse
from spa_onnx.data.samples import Samples, read_samples
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.execution.session import Session, latency, open_session
from spa_onnx.model.model import Model, parameters
from spa_onnx.model.source import Source
from spa_onnx.operators import DATA_SIZE
from spa_onnx.operators.macs import macs, uncounted_operators
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import Rewritten, rewrite
from spa_onnx.repair.repair import not_refitted_weights, refitted
from spa_onnx.report.result import Report, Result
from spa_onnx.rounds import Rounds
from spa_onnx.scoring import CRITERIA
from spa_onnx.selection.budgets import CLOSE, UNITS
from spa_onnx.selection.propose import why_nothing_is_prunable
from spa_onnx.sizes import at_fitting_sizes, check_names, smallest
from spa_onnx.statistics.calibration import Calibration, Sampling, calibrate
from spa_onnx.statistics.memory import DEFAULT_MEMORY
from spa_onnx.synthetic.feeds import random_feed, working_dims
from spa_onnx.validation.drift import drift
from spa_onnx.validation.validate import validate

Progress: TypeAlias = Callable[[str], None]
"""Called with the name of each step as it begins."""


def no_progress(_: str) -> None:
    """Ignore the step."""


CPU = ("CPUExecutionProvider",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How models are run and what is measured. `spa_onnx.prune` documents each field."""

    check: bool = True
    measure_latency: bool = False
    data: object = None
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
        dims: Symbolic dimension -> size: the sizes that the user gave or, after `runnable`, sizes at which it runs.
        samples: The calibration data; None for synthetic samples.
        memory: The number of bytes that statistics may take.
    """

    session: Session
    dims: Mapping[str, int]
    samples: Samples | None
    memory: int

    @classmethod
    def of(cls, source: Source, options: RunOptions) -> Original:
        """Open the original and read the calibration data.

        Raises:
            RefusedError: The original does not run, so nothing could be checked.
            UsageError: The data or `preprocess` cannot be used.
        """
        preprocess = parse(options.preprocess) if options.preprocess else None
        if preprocess and options.data is None:
            raise UsageError("preprocess is for given data; name some")
        session = open_session(source.proto, optimise=True, timed=True, what="the original model")
        samples = None if options.data is None else read_samples(options.data, source.proto, preprocess)
        return cls(session, options.dims or {}, samples, parse_bytes(options.memory))


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
        sizes = working_dims(analysis.model, original.session, original.dims)
    except RefusedError:
        reason = why_nothing_is_prunable(analysis, settings)
        if analysis.prunable() or (analysis.model.inference.dims and DATA_SIZE in reason):
            raise  # sizes can be unknown because the symbolic ones do not fit
        raise RefusedError(reason) from None  # this reason explains more
    if any(sizes.get(name, size) != size for name, size in analysis.model.inference.dims.items()):
        analysis = read_analysis(source, sizes, settings)
    analysis = smallest(analysis, original.session, dims or {}, lambda found: read_analysis(source, found, settings))
    return analysis, replace(original, dims={**sizes, **analysis.model.inference.dims})


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
    return calibrate(analysis.model, original.dims, original.samples, sampling, axes)


@dataclass(frozen=True, slots=True)
class Job:
    """A plan, with everything that is needed to carry it out.

    Args:
        source: The original file.
        analysis: The groups of the original.
        plan: The plan.
        clock: Called with the name of each step as it begins.
        latency: Whether to measure the latency of both models.
        rounds: How the channels were selected, and the values that the rounds have repaired; None for a saved plan.
        calibration: The statistics for repair; None if nothing is repaired, or if the rounds have done it.
    """

    source: Source
    analysis: Analysis
    plan: Plan
    clock: Clock
    latency: bool
    rounds: Rounds | None = None
    calibration: Calibration | None = None

    def carry_out(self, original: Session | None, dims: Mapping[str, int], samples: Samples | None) -> Result:
        """Rewrite, validate, repair and measure.

        Args:
            original: The session of the original; None to run and check nothing.
            dims: Symbolic dimension -> size at which the original runs.
            samples: The data to measure the drift on; None for random inputs.

        Raises:
            ValidationError: The result fails a check.
        """
        self.clock("rewrite")
        rewritten = rewrite(self.analysis, self.plan)
        report = self._report(rewritten)
        if original is not None:
            self.clock("validate")
            report = replace(report, validation=validate(self.analysis.model, rewritten, dims, original=original))
        repairs = self._has_repaired_values or self._refits
        if repairs:
            self.clock("repair")
            rewritten, description, notes = self._repaired(rewritten)
            report = replace(report, repair=description, notes=(*report.notes, *notes))
            if original is not None:
                validate(self.analysis.model, rewritten, dims, repaired=True, original=original)
        if original is not None:
            self.clock("measure")
            report = self._measured(report, rewritten, original, dims, samples)
        self.clock("")
        plan = self.plan.to_json(
            self.analysis, rewritten.tensors, rewritten.inexact, repaired=repairs, computed=self.source.computed
        )
        return Result(rewritten.proto, plan, replace(report, seconds=self.clock.seconds))

    @property
    def _has_repaired_values(self) -> bool:
        return self.rounds is not None and bool(self.rounds.values)

    @property
    def _refits(self) -> bool:
        return self.calibration is not None and self.plan.settings["repair"] != "none"

    def _repaired(self, rewritten: Rewritten) -> tuple[Rewritten, str, tuple[str, ...]]:
        """Return the pruned model with repaired weights, a description of the repair, and notes."""
        if self.calibration is None:
            values, description = (self.rounds.values, self.rounds.repair) if self.rounds else ({}, "")
            return rewrite(self.analysis, self.plan, values), description, ()
        settings = Settings.of(self.plan.settings)
        values = refitted(self.calibration, rewritten.removal, settings)
        repaired = rewrite(self.analysis, self.plan, values)
        correction = self.calibration.correction(repaired.proto, rewritten.removal.kept)
        description = f"{settings.repair}: fitted on {self.calibration.describe()}"
        notes: tuple[str, ...] = ()
        if settings.repair == "obs":
            notes = tuple(not_refitted_weights(self.calibration, rewritten.removal, values))
        if correction:
            repaired = rewrite(self.analysis, self.plan, values | correction)
        return repaired, description, notes

    def _measured(
        self,
        report: Report,
        rewritten: Rewritten,
        original: Session,
        dims: Mapping[str, int],
        samples: Samples | None,
    ) -> Report:
        """Return the report with the drift on the samples, or on random inputs, and the latency."""
        pruned = open_session(rewritten.proto, optimise=True, timed=True, what="the pruned model")
        feed = random_feed(self.analysis.model, dims, seed=0)
        batches, labels = (samples.feeds(), samples.labels) if samples else (iter([feed]), None)
        change = drift(original, pruned, batches, labels)
        report = replace(report, drift=change, bytes=(self.source.bytes, rewritten.proto.ByteSize()))
        if self.latency:
            before, after = latency([original, pruned], feed)
            report = replace(report, latency=(before, after))
        return report

    def _report(self, rewritten: Rewritten) -> Report:
        """Return the report without the entries that need a run."""
        model, removed = self.analysis.model, self.plan.removed
        return Report(
            params=(parameters(model.proto), parameters(rewritten.proto)),
            macs=(macs(model), macs(model, rewritten.removal.after)),
            bytes=(self.source.bytes, rewritten.proto.ByteSize()),
            latency=None,
            groups=tuple((g.name, g.size, len(removed[g.name])) for g in self.analysis.groups if g.name in removed),
            pinned=tuple((g.name, g.size, g.pinned, g.cause) for g in self.analysis.pinned()),
            inexact=rewritten.inexact,
            validation=None,
            drift=None,
            seconds={},
            notes=tuple(self._notes(rewritten)),
            selection=None if self.rounds is None else self.rounds.selection,
        )

    def _notes(self, rewritten: Rewritten) -> Iterator[str]:
        """Yield notes on operators whose MACs are not counted, and on targets that were missed by more than CLOSE."""
        model = self.analysis.model
        for operator in uncounted_operators(model):
            yield f"the multiply-accumulates of operator {operator} are not counted: nothing is registered about it"
        goal = Settings.of(self.plan.settings).goal()
        if isinstance(goal, float | int):
            return
        after = {"macs": macs(model, rewritten.removal.after), "params": parameters(rewritten.proto)}
        kept = [after[target.unit] / UNITS[target.unit].whole(model) for target in goal]
        is_close = any((1 - CLOSE) * target.share <= share for target, share in zip(goal, kept, strict=True))
        for target, share in zip(goal, kept, strict=True):
            if share > target.share or not is_close:
                yield (
                    f"target {target.unit}={target.share:g}: {share:.4f} is the nearest that whole channels "
                    "and multiples allow"
                )
