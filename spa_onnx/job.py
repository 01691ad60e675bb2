"""The pipeline's last steps: carry out a plan by rewriting, validating, repairing and measuring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from spa_onnx.analysis.groups import Analysis
from spa_onnx.config import Settings
from spa_onnx.execution.session import latency, open_session
from spa_onnx.model.model import parameters
from spa_onnx.model.source import Source
from spa_onnx.operators.macs import macs, uncounted_operators
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import Rewritten, rewrite
from spa_onnx.repair.repair import not_refitted_weights, refitted
from spa_onnx.report.result import Report, Result
from spa_onnx.rounds import Rounds
from spa_onnx.selection.budgets import CLOSE, UNITS
from spa_onnx.statistics.calibration import Calibration
from spa_onnx.steps import Clock, Original
from spa_onnx.validation.quality import quality
from spa_onnx.validation.validate import Verdict, validate

FEWEST_TO_FIT = 16
"""Weights that are fitted to fewer samples than this may become worse."""


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

    def carry_out(self, original: Original | None) -> Result:
        """Rewrite, validate, repair and measure.

        Args:
            original: The original, ready to run; None to run and check nothing.

        Raises:
            ValidationError: The result fails a check.
        """
        self.clock("rewrite")
        rewritten = rewrite(self.analysis, self.plan)
        report = self._report(rewritten)
        if original is not None:
            self.clock("validate")
            report = replace(report, validation=self._validated(rewritten, original))
        repairs = self._has_repaired_values or self._refits
        if repairs:
            self.clock("repair")
            rewritten, description, notes = self._repaired(rewritten)
            report = replace(report, repair=description, notes=(*report.notes, *notes))
            if original is not None:
                self._validated(rewritten, original, repaired=True)
        if original is not None:
            self.clock("measure")
            report = self._measured(report, rewritten, original)
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
        if self.calibration.samples < FEWEST_TO_FIT:
            notes = (*notes, f"{description} are too few to fit weights to; without data the result may be better")
        if correction:
            repaired = rewrite(self.analysis, self.plan, values | correction)
        return repaired, description, notes

    def _validated(self, rewritten: Rewritten, original: Original, *, repaired: bool = False) -> Verdict:
        """Return the result of the checks."""
        model, session = self.analysis.model, original.session
        return validate(model, rewritten, original.inputs, repaired=repaired, original=session)

    def _measured(self, report: Report, rewritten: Rewritten, original: Original) -> Report:
        """Return the report with the drift on samples that nothing was fitted to, and the latency."""
        model, evaluation, seed = self.analysis.model, original.evaluation, int(self.plan.settings["seed"])
        change = None if evaluation.unknown else quality(model, rewritten.proto, original.inputs, evaluation, seed)
        size = self.source.bytes, rewritten.proto.ByteSize()
        report = replace(report, drift=change, unknown=evaluation.unknown, bytes=size)
        if self.latency:
            pruned = open_session(rewritten.proto, optimise=True, timed=True, what="the pruned model")
            (feed,) = original.inputs.feeds(model, 1)
            before, after = latency([original.session, pruned], feed)
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
