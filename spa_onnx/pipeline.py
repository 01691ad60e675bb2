"""The pipeline: load, analyse, collect, score, weigh, select, rewrite, validate, repair, measure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from spa_onnx.analysis import ATTENTION, analyse
from spa_onnx.analysis.demands import excluded
from spa_onnx.analysis.groups import Analysis
from spa_onnx.config import Settings, parse_bytes
from spa_onnx.data.preprocess import parse
from spa_onnx.data.samples import Samples, read_samples
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.execution.feeds import working_dims
from spa_onnx.execution.session import Session, onnxruntime_with, open_session, running_on
from spa_onnx.job import Clock, Job, Progress, no_progress
from spa_onnx.model.model import Model, feeds
from spa_onnx.model.shapes import symbolic_dims
from spa_onnx.model.source import Source, open_source
from spa_onnx.plan.plan import Plan, check_plan
from spa_onnx.repair.layerwise import REPAIRS
from spa_onnx.report.result import Result
from spa_onnx.rounds import Rounds, in_rounds
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.aggregate import AGGREGATIONS, NORMALISATIONS
from spa_onnx.selection.budgets import UNITS
from spa_onnx.selection.propose import choose, why_nothing_is_prunable
from spa_onnx.selection.select import SCOPES
from spa_onnx.statistics.calibration import Calibration, calibrate
from spa_onnx.statistics.memory import MEMORY

STEPS = ("load", "analyse", "collect", "score", "weigh", "select", "rewrite", "validate", "repair", "measure")
"""The steps, by the names that progress is called with."""

CPU = ("CPUExecutionProvider",)

CHOICES: Mapping[str, Collection[str]] = {
    "criterion": CRITERIA,
    "scope": SCOPES,
    "aggregate": AGGREGATIONS,
    "normalise": NORMALISATIONS,
    "attention": ATTENTION,
    "repair": REPAIRS,
}
"""Setting -> the names that it can have."""


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
    providers: Sequence[str] = CPU,
    threads: int = 0,
    progress: Progress = no_progress,
) -> Result:
    """Remove the least important channels of a model.

    Args:
        model: A path, or a model in memory. It is never changed.
        ratio: The share of the removable channels that is removed, between 0 and 1.
        target: Instead of `ratio`, the share of a cost that is kept: `macs=0.5`, `params=0.5`, or several separated by commas. It is
            met from below, within 1 % where whole channels and `multiple` allow it.
        rounds: Prune and repair in this many steps, with statistics collected again; together they save what one step would save.
        criterion: How channels are scored: a name of `spa_onnx.CRITERIA`.
        scope: `local` takes the ratio from each group; `global` and `isomorphic` rank across groups and save as many
            multiply-accumulates. The default is `global` for criteria whose scores are losses, else `local`.
        aggregate: How the scores of all indices that a channel owns are combined.
        normalise: How the scores of groups are made comparable.
        exclude: Regular expressions; nodes and tensors whose name matches keep all their channels.
        overrides: Regular expression for group names -> settings of their own: `multiple`, or `exclude: True`.
        multiple: Channel counts stay multiples of it.
        seed: The seed of synthetic samples, of sampled positions and of random scores.
        width: Whether to prune axes that a norm runs over as well, which is not exact.
        attention: Whether attention loses whole `heads`, `width` inside each head, or `none`.
        repair: Refit the kept weights (`obs`), only biases (`mean`), or `none`. The default is what the criterion takes for granted.
        samples: How many samples are used. The default is 256; for small models up to 512 synthetic ones.
        check: Whether to validate the result.
        measure_latency: Whether to time both models.
        data: Calibration data and, with labels, data to report accuracy on: a path or name as for `--data` (docs/data.md), a mapping of
            arrays, an object with `get_next()`, or an iterable of feeds. Without it samples are synthetic.
        preprocess: How images become values, as for `--preprocess`.
        memory: The most bytes that statistics may take while they are collected: `2GB`, or a number.
        dims: The size of each symbolic dimension, by name.
        providers: The execution providers of onnxruntime, the preferred one first.
        threads: The number of threads of a run; 0 for one per core.
        progress: Called with the name of each step as it begins.

    Raises:
        UsageError: An argument makes no sense.
        RefusedError: The model cannot be pruned as asked; the message says why.
        ValidationError: The result failed a check.
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
    clock = Clock(progress)
    with running_on(onnxruntime_with(providers, threads)):
        clock("load")
        source = open_source(model)
        original = None
        if check or _needs_statistics(settings):
            original = _Original.of(source, dims or {}, data, preprocess, memory)
        clock("analyse")
        analysis, original = _sized(source, dims, settings, original)
        calibration: Calibration | None = None
        if settings.rounds > 1:
            rounded = in_rounds(analysis, settings, lambda here: _calibrate(here, settings, original, clock), clock)
        else:
            calibration = _calibrate(analysis, settings, original, clock)
            clock("score")
            rounded = Rounds(choose(analysis, settings, calibration, clock), {}, "")
        plan = Plan.removing(rounded.selection.removed, source.sha256, settings.to_json())
        job = Job(source, analysis, plan, clock, latency=measure_latency, rounds=rounded, calibration=calibration)
        return _carried_out(job, original, check=check)


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
    providers: Sequence[str] = CPU,
    threads: int = 0,
    progress: Progress = no_progress,
) -> Result:
    """Carry out a saved plan, its repair included.

    Args:
        model: The model that the plan was made for.
        plan: The plan, as `spa_onnx.read_plan` returns it.
        check: As in `prune`, like all that follow.
        measure_latency: See `prune`.
        data: See `prune`.
        preprocess: See `prune`.
        memory: See `prune`.
        dims: See `prune`.
        providers: See `prune`.
        threads: See `prune`.
        progress: See `prune`.

    Raises:
        RefusedError: The plan was made for another model.
    """
    clock = Clock(progress)
    with running_on(onnxruntime_with(providers, threads)):
        clock("load")
        source = open_source(model)
        if plan.sha256 != source.sha256:
            raise RefusedError(
                f"the plan was made for another model (SHA-256 {plan.sha256[:12]}..., this one has {source.sha256[:12]}...)"
            )
        settings = resolved(Settings.of(plan.settings))
        repairs = settings.repair != "none"
        original = _Original.of(source, dims or {}, data, preprocess, memory) if check or repairs else None
        clock("analyse")
        analysis, original = _sized(source, dims, settings, original)
        check_plan(plan, analysis)
        calibration = _calibrate(analysis, settings, original, clock) if repairs else None
        job = Job(source, analysis, plan, clock, latency=measure_latency, calibration=calibration)
        return _carried_out(job, original, check=check)


def inspect(
    model: str | Path | onnx.ModelProto,
    *,
    exclude: Sequence[str] = (),
    width: bool = False,
    attention: str = "heads",
    dims: Mapping[str, int] | None = None,
) -> Analysis:
    """Analyse a model: which channels are removed together, and which cannot be removed.

    Args:
        model: A path, or a model in memory.
        exclude: See `prune`.
        width: See `prune`.
        attention: See `prune`.
        dims: See `prune`.
    """
    settings = resolved(Settings(ratio=0.5, exclude=tuple(exclude), width=width, attention=attention))
    return _analysis(open_source(model), dims, settings)


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
    goal = settings.goal()
    for each in () if isinstance(goal, float | int) else goal:
        if each.unit not in UNITS:
            raise UsageError(f"target {settings.target!r} is not {' or '.join(UNITS)}=SHARE, as macs=0.5")
    return settings


def _needs_statistics(settings: Settings) -> bool:
    """Whether samples have to run through the model."""
    return CRITERIA[settings.criterion].needs_statistics or settings.repair != "none"


@dataclass(frozen=True, slots=True)
class _Original:
    """The original, ready to run.

    dims: sizes of symbolic dimensions: those that the user gave or, once tried, those at which it runs. samples: the calibration data.
    memory: bytes that statistics may take.
    """

    session: Session
    dims: Mapping[str, int]
    samples: Samples | None
    memory: int

    @classmethod
    def of(
        cls, source: Source, dims: Mapping[str, int], data: object, preprocess: str | None, memory: str | int
    ) -> _Original:
        """Open the original. Raises RefusedError where it does not run: what cannot be run cannot be checked."""
        how = parse(preprocess) if preprocess else None
        if how and data is None:
            raise UsageError("preprocess is for given data; name some")
        session = open_session(source.proto, optimise=True, timed=True, what="the original model")
        samples = None if data is None else read_samples(data, source.proto, how)
        return cls(session, dims, samples, parse_bytes(memory))


def _analysis(source: Source, dims: Mapping[str, int] | None, settings: Settings) -> Analysis:
    """Analyse a model. Raises UsageError where `dims` or `exclude` name what it does not have."""
    names = list(dict.fromkeys(name for name, *_ in symbolic_dims(feeds(source.proto.graph))))
    for name in dims or {}:
        if name not in names:
            raise UsageError(
                f"no symbolic dimension of an input is called {name!r}: there is {', '.join(map(repr, names)) or 'none'}"
            )
    model = Model.of(source.proto, dims)
    for pattern in settings.patterns():
        if not any(excluded(model, pattern)):
            raise UsageError(
                f"--exclude {pattern.pattern!r} matches the name of no node and of no tensor; spa-onnx groups MODEL shows names"
            )
    return analyse(model, settings.patterns(), inexact=settings.width, attention=settings.attention)


def _sized(
    source: Source, dims: Mapping[str, int] | None, settings: Settings, original: _Original | None
) -> tuple[Analysis, _Original | None]:
    """Analyse a model at sizes of symbolic dimensions at which it runs. Raises RefusedError where it runs at none."""
    analysis = _analysis(source, dims, settings)
    if original is None:
        return analysis, None
    try:
        sizes = working_dims(analysis.model, original.session, original.dims)
    except RefusedError:
        if analysis.prunable():
            raise
        raise RefusedError(why_nothing_is_prunable(analysis, settings)) from None  # the better reason
    if any(sizes.get(name, size) != size for name, size in analysis.model.inference.dims.items()):
        analysis = _analysis(source, sizes, settings)
    return analysis, replace(original, dims=sizes)


def _calibrate(
    analysis: Analysis, settings: Settings, original: _Original | None, clock: Callable[[str], None]
) -> Calibration | None:
    """Collect the statistics of the linear layers that lose inputs, where something needs them."""
    if original is None or not _needs_statistics(settings) or not analysis.prunable():
        return None
    clock("collect")
    cut = {axis for group in analysis.prunable() for axis in group.owner}
    return calibrate(
        analysis.model, original.dims, original.samples, settings.samples, settings.seed, memory=original.memory, of=cut
    )


def _carried_out(job: Job, original: _Original | None, *, check: bool) -> Result:
    if original is None or not check:
        return job.carry_out(None, {}, None)
    return job.carry_out(original.session, original.dims, original.samples)
