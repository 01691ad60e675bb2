"""load -> analyse -> collect -> score -> weigh -> select -> rewrite -> validate -> repair -> measure: `prune`, `apply_plan`, `inspect`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from spa_onnx.analysis import ATTENTION, analyse
from spa_onnx.analysis.demands import excluded
from spa_onnx.analysis.groups import Analysis
from spa_onnx.config import Settings, Target, parse_bytes
from spa_onnx.data.preprocess import parse
from spa_onnx.data.samples import Samples, read_samples
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.execution import session as runtime
from spa_onnx.model.files import check_model, read_model, sha256
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model, feeds, parameters
from spa_onnx.model.shapes import symbolic_dims
from spa_onnx.operators.macs import macs, uncounted
from spa_onnx.plan.plan import Plan, check_plan
from spa_onnx.plan.rewrite import Rewritten, rewrite
from spa_onnx.repair.layerwise import REPAIRS
from spa_onnx.repair.repair import not_refitted_weights, refitted
from spa_onnx.report.result import Report, Result
from spa_onnx.rounds import in_rounds
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.aggregate import AGGREGATIONS, NORMALISATIONS
from spa_onnx.selection.budgets import UNITS
from spa_onnx.selection.propose import choose, nothing
from spa_onnx.selection.select import CLOSE, SCOPES
from spa_onnx.statistics.calibration import Calibration, calibrate
from spa_onnx.statistics.memory import MEMORY
from spa_onnx.validation.drift import drift
from spa_onnx.validation.validate import validate

Progress = Callable[[str], None]
"""Called with the name of each step as it begins."""

STEPS = ("load", "analyse", "collect", "score", "weigh", "select", "rewrite", "validate", "repair", "measure")


@dataclass(slots=True)
class _Clock:
    """Seconds per step."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    _step: str = ""
    _since: float = 0.0

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        if self._step:
            self.seconds[self._step] = round(self.seconds.get(self._step, 0.0) + now - self._since, 4)
        self._step, self._since = step, now
        if step:
            self.progress(step)


@dataclass(frozen=True, slots=True)
class Source:
    """A model to prune: parsed, identified and measured."""

    proto: onnx.ModelProto
    sha256: str
    bytes: int


def open_source(model: str | Path | onnx.ModelProto) -> Source:
    """Read a model from a path, or take one from memory."""
    if isinstance(model, onnx.ModelProto):
        check_model(model)
        data = model.SerializeToString()
        return Source(model, sha256(data), len(data))
    return Source(*read_model(Path(model)))


def _read(source: Source, dims: Mapping[str, int] | None, settings: Settings) -> Analysis:
    """The analysis of a model. Raises UsageError where `dims` or `exclude` name what the model does not have."""
    known = list(dict.fromkeys(name for name, *_ in symbolic_dims(feeds(source.proto.graph))))
    for name in dims or {}:
        if name not in known:
            raise UsageError(
                f"no symbolic dimension of an input is called {name!r}: there is {', '.join(map(repr, known)) or 'none'}"
            )
    model = Model.of(source.proto, dims)
    for pattern in settings.patterns():
        if not any(excluded(model, pattern)):
            raise UsageError(
                f"--exclude {pattern.pattern!r} matches the name of no node and of no tensor; spa-onnx groups MODEL shows names"
            )
    return analyse(model, settings.patterns(), inexact=settings.width, attention=settings.attention)


def _sized(
    source: Source, dims: Mapping[str, int] | None, settings: Settings, trial: _Trial | None
) -> tuple[Analysis, _Trial | None]:
    """The analysis for sizes of symbolic dimensions at which the model runs, and the trial at these. Raises RefusedError without any."""
    analysis = _read(source, dims, settings)
    if trial is None:
        return analysis, None
    try:
        found = runtime.working_dims(analysis.model, trial.session, trial.dims)
    except RefusedError:
        if analysis.prunable():
            raise
        raise RefusedError(nothing(analysis, settings)) from None  # the better reason
    if any(found.get(name, size) != size for name, size in analysis.model.inference.dims.items()):
        analysis = _read(source, found, settings)
    return analysis, replace(trial, dims=found)


CHOICES: Mapping[str, Collection[str]] = {
    "criterion": CRITERIA,
    "scope": SCOPES,
    "aggregate": AGGREGATIONS,
    "normalise": NORMALISATIONS,
    "attention": ATTENTION,
    "repair": REPAIRS,
}
"""Setting -> the names that it can have."""


def resolved(settings: Settings) -> Settings:
    """Check the settings, and fill in what the criterion implies.

    Losses compare across groups, so their scope is global; some scores take a repair for granted.

    Raises:
        UsageError: A value is out of range, or no table has the name.
    """
    chosen = CRITERIA.get(settings.criterion)
    if chosen is not None:
        scope = settings.scope or ("global" if chosen.loss else "local")
        settings = replace(settings, scope=scope, repair=settings.repair or chosen.repair)
    for what, names in CHOICES.items():
        if getattr(settings, what) not in names:
            raise UsageError(f"unknown {what} {getattr(settings, what)!r}; choose from {', '.join(names)}")
    settings.check()
    if settings.unit() not in UNITS:
        raise UsageError(f"target {settings.target!r}: the unit is none of {', '.join(UNITS)}, as in macs=0.5")
    return settings


def _needs_statistics(settings: Settings) -> bool:
    """Whether samples have to run through the model."""
    return CRITERIA[settings.criterion].needs_statistics or settings.repair != "none"


def _quiet(_: str) -> None:
    """No progress."""


def prune(  # noqa: PLR0913 - every option of the command line has its argument
    model: str | Path | onnx.ModelProto,
    ratio: float | None = None,
    *,
    target: str = "",
    rounds: int = 1,
    criterion: str = "obspa",
    scope: str | None = None,
    aggregate: str = "sum",
    normalise: str = "mean",
    exclude: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    multiple: int = 1,
    seed: int = 0,
    width: bool = False,
    attention: str = "heads",
    repair: str | None = None,
    samples: int | None = None,
    check: bool = True,
    measure_latency: bool = False,
    data: object = None,
    preprocess: str | None = None,
    memory: str | int = MEMORY,
    dims: Mapping[str, int] | None = None,
    progress: Progress = _quiet,
) -> Result:
    """Remove the least important channels of a model.

    ratio: share of the removable channels, between 0 and 1. target: instead of it, what is kept: `macs=0.5`, `params=0.5`; met from below,
    within 1 % where whole channels and `multiple` allow it. rounds: prune and repair in as many steps, with statistics collected again;
    they save together what one would save. criterion: how channels are scored (`spa_onnx.CRITERIA`). scope: `local` takes the ratio from
    each group; `global` and `isomorphic` rank across groups and save as many multiply-accumulates; the default is `global` for criteria
    that measure losses, else `local`. aggregate, normalise: how the scores of all that a channel owns are combined and groups made
    comparable. exclude: regular expressions; nodes and tensors whose name matches stay whole. multiple: channel counts stay multiples of
    it. seed: of made-up samples, of positions that are looked at, and of random scores. width: also prune axes that a norm runs over, which
    is not exact. attention: it loses whole `heads`, `width` inside each head, or `none`. repair: refit what is left (`obs`), only biases
    (`mean`), or `none`; the default is `obs` for obspa, `mean` for activation-variance, else `none`. samples: how many are looked at; the
    default is 256, with small models up to 512 made-up ones. check: validate the result in onnxruntime. measure_latency: time both models
    in onnxruntime. data: inputs to calibrate on and, with labels, to report accuracy on: a path or name as for `--data` (docs/data.md), a
    mapping of arrays, an object with `get_next()`, or an iterable of feeds; without it samples are made up. preprocess: what becomes of
    pixels, as for `--preprocess`. memory: what statistics may take while they are collected, `2GB` or a number of bytes. dims: sizes of
    symbolic dimensions, by name. progress: called with the name of each step.

    Raises UsageError, RefusedError (with the reason) or ValidationError; the given model is never changed.
    """
    settings = resolved(
        Settings(
            ratio=ratio,
            target=target,
            rounds=rounds,
            criterion=criterion,
            scope=scope or "",
            aggregate=aggregate,
            normalise=normalise,
            exclude=exclude if isinstance(exclude, str) else tuple(exclude),  # type: ignore[arg-type]  # check() refuses it
            multiple=multiple,
            seed=seed,
            width=width,
            attention=attention,
            repair=repair or "",
            samples=samples,
            overrides=overrides or {},
        )
    )
    clock = _Clock(progress)
    clock("load")
    source = open_source(model)
    trial = _Trial.of(source, dims or {}, data, preprocess, memory) if check or _needs_statistics(settings) else None
    clock("analyse")
    analysis, trial = _sized(source, dims, settings, trial)
    known: Calibration | None = None
    values: dict[str, Array] = {}
    how = ""
    if settings.rounds > 1:
        drop, values, how = in_rounds(
            analysis, settings, lambda here: _calibration(here, settings, trial, clock), clock
        )
    else:
        known = _calibration(analysis, settings, trial, clock)
        clock("score")
        drop = choose(analysis, settings, known, clock)
    plan = Plan(drop, source.sha256, settings.to_json())
    return _Job(source, analysis, plan, trial, known, clock, check, measure_latency, values, how).carry_out()


def apply_plan(  # noqa: PLR0913 - every option of the command line has its argument
    model: str | Path | onnx.ModelProto,
    plan: Plan,
    *,
    check: bool = True,
    measure_latency: bool = False,
    data: object = None,
    preprocess: str | None = None,
    memory: str | int = MEMORY,
    dims: Mapping[str, int] | None = None,
    progress: Progress = _quiet,
) -> Result:
    """Carry out a saved plan, its repair included; `data`, `preprocess`, `memory` as in `prune`.

    Raises RefusedError where it was made for another model.
    """
    clock = _Clock(progress)
    clock("load")
    source = open_source(model)
    if plan.sha256 != source.sha256:
        raise RefusedError(
            f"the plan was made for another model (SHA-256 {plan.sha256[:12]}..., this one has {source.sha256[:12]}...)"
        )
    settings = resolved(Settings.of(plan.settings))
    repairs = settings.repair != "none"
    trial = _Trial.of(source, dims or {}, data, preprocess, memory) if check or repairs else None
    clock("analyse")
    analysis, trial = _sized(source, dims, settings, trial)
    check_plan(plan, analysis)
    known = _calibration(analysis, settings, trial, clock) if repairs else None
    return _Job(source, analysis, plan, trial, known, clock, check, measure_latency).carry_out()


def inspect(
    model: str | Path | onnx.ModelProto,
    *,
    exclude: Sequence[str] = (),
    width: bool = False,
    attention: str = "heads",
    dims: Mapping[str, int] | None = None,
) -> Analysis:
    """Only the analysis: which channels go together and which may not go. Arguments as in `prune`."""
    settings = resolved(Settings(ratio=0.5, exclude=tuple(exclude), width=width, attention=attention))
    return _read(open_source(model), dims, settings)


def _calibration(analysis: Analysis, settings: Settings, trial: _Trial | None, clock: Progress) -> Calibration | None:
    """What the inputs of products look like, where anybody asks; nothing where nothing can be pruned."""
    if trial is None or not _needs_statistics(settings) or not analysis.prunable():
        return None
    clock("collect")
    cut = {axis for group in analysis.prunable() for axis in group.owner}
    return calibrate(
        analysis.model, trial.dims, trial.samples, settings.samples, settings.seed, memory=trial.memory, of=cut
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """The original in onnxruntime. dims: sizes of symbolic dimensions, those that the user gave or, once tried, those at which it runs."""

    session: Any
    dims: Mapping[str, int]
    samples: Samples | None
    memory: int

    @classmethod
    def of(
        cls, source: Source, given: Mapping[str, int], data: object, preprocess: str | None, memory: str | int
    ) -> _Trial:
        """Raises RefusedError where the original does not run: what cannot be run cannot be checked."""
        how = parse(preprocess) if preprocess else None
        if how and data is None:
            raise UsageError("preprocess is for given data; name some")
        opened = runtime.session(source.proto, optimise=True, timed=True, what="the original model")
        samples = None if data is None else read_samples(data, source.proto, how)
        return cls(opened, given, samples, parse_bytes(memory))


@dataclass(frozen=True, slots=True)
class _Job:
    """A plan about to be carried out. check: whether to validate and measure the result; latency: whether to time it too.

    values: constants that rounds have repaired, in the shapes of the original. repair: how.
    """

    source: Source
    analysis: Analysis
    plan: Plan
    trial: _Trial | None
    known: Calibration | None
    clock: _Clock
    check: bool
    latency: bool
    values: Mapping[str, Array] = field(default_factory=dict)
    repair: str = ""

    def carry_out(self) -> Result:
        """Rewrite, validate, repair, measure."""
        self.clock("rewrite")
        cut = rewrite(self.analysis, self.plan)
        repairs = bool(self.values) or (self.known is not None and self.plan.settings["repair"] != "none")
        report = self._report(cut)
        tried = self.trial if self.check else None
        if tried is not None:
            self.clock("validate")
            report = replace(report, validation=validate(self.analysis.model, cut, tried.dims, original=tried.session))
        if repairs:
            self.clock("repair")
            cut, how, notes = self._repaired(cut)
            report = replace(report, repair=how, notes=(*report.notes, *notes))
            if tried is not None:
                validate(self.analysis.model, cut, tried.dims, repaired=True, original=tried.session)
        if tried is not None:
            self.clock("measure")
            report = self._measured(tried, report, cut)
        self.clock("")
        plan = self.plan.to_json(self.analysis, cut.tensors, cut.inexact, repaired=repairs)
        return Result(cut.proto, plan, replace(report, seconds=self.clock.seconds))

    def _repaired(self, cut: Rewritten) -> tuple[Rewritten, str, tuple[str, ...]]:
        """The same cut with repaired weights, how, and what was left as it is."""
        if self.known is None:
            return rewrite(self.analysis, self.plan, self.values), self.repair, ()
        settings = Settings.of(self.plan.settings)
        values = refitted(self.known, cut.removal, settings)
        better = rewrite(self.analysis, self.plan, values)
        correction = self.known.correction(better.proto, cut.removal)
        how = f"{settings.repair}: fitted on {self.known.describe()}"
        notes = tuple(not_refitted_weights(self.known, cut.removal, values)) if settings.repair == "obs" else ()
        return (rewrite(self.analysis, self.plan, values | correction) if correction else better), how, notes

    def _measured(self, trial: _Trial, report: Report, cut: Rewritten) -> Report:
        """The drift on the given data, or on random inputs; the latency."""
        after = runtime.session(cut.proto, optimise=True, timed=True, what="the pruned model")
        feed = runtime.random_feed(self.analysis.model, trial.dims, seed=0)
        given, labels = (trial.samples.feeds(), trial.samples.labels) if trial.samples else (iter([feed]), None)
        report = replace(
            report, drift=drift(trial.session, after, given, labels), bytes=(self.source.bytes, cut.proto.ByteSize())
        )
        if self.latency:
            before_ms, after_ms = runtime.latency([trial.session, after], feed)
            report = replace(report, latency=(before_ms, after_ms))
        return report

    def _report(self, cut: Rewritten) -> Report:
        """What is known without running anything."""
        model, drop = self.analysis.model, self.plan.drop
        return Report(
            params=(parameters(model.proto), parameters(cut.proto)),
            macs=(macs(model), macs(model, cut.removal.after)),
            bytes=(self.source.bytes, cut.proto.ByteSize()),
            latency=None,
            groups=tuple((g.name, g.size, len(drop[g.name])) for g in self.analysis.groups if g.name in drop),
            pinned=tuple((g.name, g.size, g.pinned, g.cause) for g in self.analysis.pinned()),
            inexact=cut.inexact,
            validation=None,
            drift=None,
            seconds={},
            notes=tuple(self._missed(cut)),
        )

    def _missed(self, cut: Rewritten) -> Iterator[str]:
        """Where a target was not met to CLOSE, and operators whose multiplications are not counted."""
        for operator in uncounted(self.analysis.model):
            yield f"the multiply-accumulates of operator {operator} are not counted: nothing is registered about it"
        goal = Settings.of(self.plan.settings).goal()
        if isinstance(goal, Target):
            after = {"macs": macs(self.analysis.model, cut.removal.after), "params": parameters(cut.proto)}[goal.unit]
            kept = after / UNITS[goal.unit].whole(self.analysis.model)
            if not (1 - CLOSE) * goal.share <= kept <= goal.share:
                yield f"target {goal.unit}={goal.share:g}: {kept:.4f} is the nearest that whole channels and multiples allow"
