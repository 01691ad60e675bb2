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
from spa_onnx.job import Job
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
"""Setting -> the names that it accepts."""


def prune(  # noqa: PLR0913 - one argument for each option of the command line
    model: str | Path | onnx.ModelProto,
    ratio: float | None = None,
    *,
    target: str = "",
    rounds: int = 1,
    criterion: str = "obspa",
    scope: str | None = None,
    aggregate: str = "sum",
    normalise: str = "mean",
    exclude: str | Sequence[str] = (),
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
    test_data: object = None,
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
        target: Instead of `ratio`, the share of a cost that is kept: `macs=0.5`, `params=0.5`, or several separated by
            commas. The result keeps at most this; within 1 % if whole channels and `multiple` allow it.
        rounds: The number of rounds of pruning and repair. Statistics are collected again in each round. All rounds
            together save what one would.
        criterion: How channels are scored: a name of `spa_onnx.CRITERIA`.
        scope: What is ranked together. `local` removes the ratio from each group; `global` and `isomorphic` rank across
            groups and save as many multiply-accumulates. The default is `global` for criteria whose scores are losses,
            else `local`.
        aggregate: How the scores of all indices that a channel owns are combined.
        normalise: How the scores of groups are made comparable.
        exclude: One or several regular expressions. Nodes and tensors whose name matches keep all their channels.
        overrides: Regular expression for group names -> settings of these groups: `multiple`, or `exclude: True`.
        multiple: Channel counts stay multiples of this number.
        seed: The seed of synthetic samples, of sampled positions and of random scores.
        width: Whether to prune axes that a norm or mean runs over as well. The result is not exact.
        attention: Whether attention loses whole `heads`, `width` inside each head, or `none`.
        repair: Refit the kept weights and biases (`obs`), biases only (`mean`), or nothing (`none`). The default is the
            repair that the scores of the criterion assume.
        samples: The number of samples for calibration. The default is 256; for small models up to 512 synthetic ones.
        check: Whether to validate the result.
        measure_latency: Whether to measure the latency of both models.
        data: Calibration data: a path or name as for `--data` (docs/data.md), a mapping of arrays, an object with
            `get_next()`, or an iterable of feeds. A share is held out: quality, with labels also accuracy, is measured
            on it. By default samples are synthetic.
        test_data: The samples that quality is measured on, in place of the share of `data` that is held out.
        preprocess: How images and uint8 arrays become input values, as for `--preprocess`.
        memory: The most memory that statistics may take while they are collected: `2GB`, or a number of bytes.
        dims: Symbolic dimension -> size.
        providers: The execution providers of onnxruntime, the preferred one first.
        threads: The number of threads of a run; 0 for one per core.
        progress: Called with the name of each step as it begins.

    Returns:
        The pruned model, the plan and the report.

    Raises:
        UsageError: An argument is invalid.
        RefusedError: The model cannot be pruned as requested; the message gives the reason.
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
            exclude=_patterns(exclude),
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
        test_data=test_data,
        preprocess=preprocess,
        memory=memory,
        dims=dims,
        providers=providers,
        threads=threads,
        progress=progress,
    )
    return _pruned(model, settings, options)


def _pruned(model: str | Path | onnx.ModelProto, settings: Settings, options: RunOptions) -> Result:
    """Run all steps of the pipeline."""
    clock = Clock(options.progress)
    with running_on(onnxruntime_with(options.providers, options.threads)):
        clock("load")
        source = open_source(model)
        original = Original.of(source, options, settings) if options.check or needs_statistics(settings) else None
        clock("analyse")
        analysis, original = runnable(source, options.dims, settings, original)
        calibration: Calibration | None = None
        if settings.rounds > 1:
            rounds = in_rounds(
                analysis, settings, lambda current: collect_statistics(current, settings, original, clock), clock
            )
        else:
            calibration = collect_statistics(analysis, settings, original, clock)
            clock("score")
            rounds = Rounds(choose(analysis, settings, calibration, clock), {}, "")
        plan = Plan.removing(rounds.selection.removed, source.sha256, settings.to_json())
        latency = options.measure_latency
        job = Job(source, analysis, plan, clock, latency=latency, rounds=rounds, calibration=calibration)
        return _carried_out(job, original, check=options.check)


def apply_plan(model: str | Path | onnx.ModelProto, plan: Plan, **options: Any) -> Result:
    """Carry out a saved plan, including its repair.

    Args:
        model: The model that the plan was made for.
        plan: The plan, as `spa_onnx.read_plan` returns it.
        **options: How the model is run, as in `prune`: `check`, `measure_latency`, `data`, `test_data`, `preprocess`,
            `memory`, `dims`, `providers`, `threads`, `progress`.

    Returns:
        The pruned model, the plan and the report.

    Raises:
        RefusedError: The plan was made for another model, or does not fit it.
        ValidationError: The result failed a check.
        TypeError: An option has another name.
    """
    run_options = RunOptions(**options)
    clock = Clock(run_options.progress)
    with running_on(onnxruntime_with(run_options.providers, run_options.threads)):
        clock("load")
        source = open_source(model)
        if plan.sha256 != source.sha256:
            raise RefusedError(
                f"the plan was made for another model (SHA-256 {plan.sha256[:12]}..., "
                f"this one has {source.sha256[:12]}...)"
            )
        settings = resolved(Settings.of(plan.settings))
        repairs = settings.repair != "none"
        original = Original.of(source, run_options, settings) if run_options.check or repairs else None
        clock("analyse")
        analysis, original = runnable(source, run_options.dims, settings, original)
        check_plan(plan, analysis)
        calibration = collect_statistics(analysis, settings, original, clock) if repairs else None
        job = Job(source, analysis, plan, clock, latency=run_options.measure_latency, calibration=calibration)
        return _carried_out(job, original, check=run_options.check)


def inspect(
    model: str | Path | onnx.ModelProto,
    *,
    exclude: str | Sequence[str] = (),
    width: bool = False,
    attention: str = "heads",
    dims: Mapping[str, int] | None = None,
) -> Analysis:
    """Analyse a model: find the channels that are removed together, and those that cannot be removed.

    Args:
        model: A path, or a model in memory.
        exclude: See `prune`.
        width: See `prune`.
        attention: See `prune`.
        dims: See `prune`.

    Raises:
        UsageError: An argument is invalid.
    """
    settings = resolved(Settings(ratio=0.5, exclude=_patterns(exclude), width=width, attention=attention))
    return read_analysis(open_source(model), dims, settings)


def _patterns(exclude: str | Sequence[str]) -> tuple[str, ...]:
    """Return the patterns; a text is one pattern, and not a pattern for each of its letters."""
    return (exclude,) if isinstance(exclude, str) else tuple(exclude)


def resolved(settings: Settings) -> Settings:
    """Check the settings, and fill in the scope and the repair that the criterion implies.

    The scope of a criterion whose scores are losses is global, because losses compare across groups.

    Raises:
        UsageError: A value is out of range, or a name is unknown.
    """
    criterion = CRITERIA.get(settings.criterion)
    if criterion is not None:
        scope = settings.scope or ("global" if criterion.loss else "local")
        settings = replace(settings, scope=scope, repair=settings.repair or criterion.repair)
    for setting, names in CHOICES.items():
        if getattr(settings, setting) not in names:
            raise UsageError(f"unknown {setting} {getattr(settings, setting)!r}; choose from {', '.join(names)}")
    settings.check()
    goal = settings.goal()
    for target in () if isinstance(goal, float | int) else goal:
        if target.unit not in UNITS:
            raise UsageError(f"target {settings.target!r} is not {' or '.join(UNITS)}=SHARE, as macs=0.5")
    return settings


def _carried_out(job: Job, original: Original | None, *, check: bool) -> Result:
    """Carry out a job, with the original only if the result is checked."""
    return job.carry_out(original if check else None)
