"""The pipeline: load, analyse, collect, score, weigh, select, rewrite, validate, repair, measure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from spa_onnx.analysis import ATTENTION
from spa_onnx.analysis.groups import Analysis
from spa_onnx.config import Settings
from spa_onnx.errors import RefusedError, UsageError
from spa_onnx.execution.session import onnxruntime_with, running_on
from spa_onnx.model.source import open_source
from spa_onnx.plan.plan import Plan, check_plan
from spa_onnx.repair.layerwise import REPAIRS
from spa_onnx.report.result import Result
from spa_onnx.rounds import Rounds, in_rounds
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.aggregate import AGGREGATIONS, NORMALISATIONS
from spa_onnx.selection.budgets import UNITS
from spa_onnx.selection.propose import choose
from spa_onnx.selection.select import SCOPES
from spa_onnx.statistics.calibration import Calibration
from spa_onnx.statistics.memory import DEFAULT_MEMORY
from spa_onnx.steps import (
    CPU,
    Clock,
    Job,
    Original,
    Progress,
    RunOptions,
    collect_statistics,
    needs_statistics,
    no_progress,
    read_analysis,
    runnable,
)

STEPS = ("load", "analyse", "collect", "score", "weigh", "select", "rewrite", "validate", "repair", "measure")
"""The steps, by the names that progress is called with."""

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
    memory: str | int = DEFAULT_MEMORY,
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
    options = RunOptions(
        check=check,
        measure_latency=measure_latency,
        data=data,
        preprocess=preprocess,
        memory=memory,
        dims=dims,
        providers=providers,
        threads=threads,
        progress=progress,
    )
    return _pruned(model, settings, options)


def _pruned(model: str | Path | onnx.ModelProto, settings: Settings, options: RunOptions) -> Result:
    clock = Clock(options.progress)
    with running_on(onnxruntime_with(options.providers, options.threads)):
        clock("load")
        source = open_source(model)
        original = Original.of(source, options) if options.check or needs_statistics(settings) else None
        clock("analyse")
        analysis, original = runnable(source, options.dims, settings, original)
        calibration: Calibration | None = None
        if settings.rounds > 1:
            rounded = in_rounds(
                analysis, settings, lambda here: collect_statistics(here, settings, original, clock), clock
            )
        else:
            calibration = collect_statistics(analysis, settings, original, clock)
            clock("score")
            rounded = Rounds(choose(analysis, settings, calibration, clock), {}, "")
        plan = Plan.removing(rounded.selection.removed, source.sha256, settings.to_json())
        latency = options.measure_latency
        job = Job(source, analysis, plan, clock, latency=latency, rounds=rounded, calibration=calibration)
        return _carried_out(job, original, check=options.check)


def apply_plan(model: str | Path | onnx.ModelProto, plan: Plan, **options: Any) -> Result:
    """Carry out a saved plan, its repair included.

    Args:
        model: The model that the plan was made for.
        plan: The plan, as `spa_onnx.read_plan` returns it.
        **options: How the model is run, as in `prune`: `check`, `measure_latency`, `data`, `preprocess`, `memory`, `dims`,
            `providers`, `threads`, `progress`.

    Raises:
        RefusedError: The plan was made for another model, or does not fit it.
        ValidationError: The result failed a check.
        TypeError: There is no such option.
    """
    run = RunOptions(**options)
    clock = Clock(run.progress)
    with running_on(onnxruntime_with(run.providers, run.threads)):
        clock("load")
        source = open_source(model)
        if plan.sha256 != source.sha256:
            raise RefusedError(
                f"the plan was made for another model (SHA-256 {plan.sha256[:12]}..., this one has {source.sha256[:12]}...)"
            )
        settings = resolved(Settings.of(plan.settings))
        repairs = settings.repair != "none"
        original = Original.of(source, run) if run.check or repairs else None
        clock("analyse")
        analysis, original = runnable(source, run.dims, settings, original)
        check_plan(plan, analysis)
        calibration = collect_statistics(analysis, settings, original, clock) if repairs else None
        job = Job(source, analysis, plan, clock, latency=run.measure_latency, calibration=calibration)
        return _carried_out(job, original, check=run.check)


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
    return read_analysis(open_source(model), dims, settings)


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


def _carried_out(job: Job, original: Original | None, *, check: bool) -> Result:
    if original is None or not check:
        return job.carry_out(None, {}, None)
    return job.carry_out(original.session, original.dims, original.samples)
