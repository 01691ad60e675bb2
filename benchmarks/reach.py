"""Reach: export architectures with random weights, prune each, and compare it with its original.

The outside checker compares them.

    python benchmarks/reach.py [NAME ...] [--cache FOLDER] [--exporter torchscript|dynamo] [--quick] [--export-only]

NAME is the start of a row's name (`timm/swin`, `transformers/bert`); `--quick` is a choice that takes about a minute.
Every weight, bias and running statistic is jittered, so that nothing is zero or equal; statistics about those of what
each BatchNorm is given. TorchScript exports have a symbolic batch (and sequence), dynamo's are static. A row is pruned
at 0.5 (l1, local); where more than 60 % of its parameters stay, `--width` is tried as well. What cannot be imported or
exported is listed as skipped. Exports are kept in the cache folder. Needs the extra `benchmarks`, and torch, timm,
transformers.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import onnx
import others
from architectures import QUICK, ROWS, Row
from checked import checked
from exports import ENOUGH, NEAR, OPSET, exported, jitter, remembered
from shared import in_double, machine

import spa_onnx
from spa_onnx.model.model import parameters
from spa_onnx.pipeline import inspect

LIBRARIES = ("onnxsim", "torch", "torchvision", "timm", "transformers", "torch-pruning")

WHOLE = 0.99
"""Share of the parameters above which a model counts as left whole."""

IN_DOUBLE = "== in float64"
"""The message for models that differ by more than the checker allows, but not where float64 rounds."""

ALIKE = 1e-9
"""Largest difference over largest output of such models in float64."""

UNKNOWN = "not measured"
"""In place of what another tool keeps."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One pruned export. kept, macs: shares. check: the outside checker's line, or the error."""

    kept: float
    macs: float
    seconds: float
    check: str

    @property
    def verified(self) -> bool:
        """Whether the pruned model agrees with its original.

        The checker compared the two or, where the plan is inexact, at least ran the result; or they agree in float64.
        """
        return self.check.startswith(("pruned == masked", "runs", IN_DOUBLE))

    @property
    def refused(self) -> bool:
        """Whether nothing could go: a norm over every axis, say, so that only `--width` prunes it."""
        return self.check.startswith("RefusedError: nothing to prune")


def outcome(path: Path, *, width: bool, again: bool) -> Outcome:
    """What pruning an export gives."""
    return Outcome(
        **remembered(
            path.with_suffix(".width.json" if width else ".plain.json"),
            lambda: asdict(prune(path, width=width)),
            again=again,
        )
    )


def size(path: Path) -> tuple[int, int]:
    """Nodes and parameters of an export."""
    proto = onnx.load(path)
    return len(proto.graph.node), parameters(proto)


def prune(path: Path, *, width: bool) -> Outcome:
    """Prune an export at 0.5 and verify it."""
    first_tokens = time.perf_counter()
    try:
        result = spa_onnx.prune(path, 0.5, criterion="l1", scope="local", width=width)
    except Exception as error:  # noqa: BLE001 - a traceback is a finding
        return Outcome(1.0, 1.0, time.perf_counter() - first_tokens, f"{type(error).__name__}: {str(error)[:300]}")
    spent = sum(result.report.seconds.get(step, 0.0) for step in ("analyse", "score", "select", "rewrite"))
    params, macs = result.report.params, result.report.macs
    check = checked(path, result)
    if check.startswith("FAULT: pruned != masked"):
        gap = in_double(path, result)
        check = f"{IN_DOUBLE}: {gap:.2g} ({check})" if gap <= ALIKE else check
    return Outcome(params[1] / max(params[0], 1), macs[1] / max(macs[0], 1), spent, check)


def reasons(path: Path, *, width: bool, count: int = 2) -> str:
    """What holds the most weights of an export: causes of pins, those that touch the most of them first."""
    analysis = inspect(path, width=width)
    held: Counter[str] = Counter()
    for group in analysis.pinned():
        shapes = {axis.tensor: analysis.model.shape(axis.tensor) or () for axis in group.weights(analysis.model)}
        held[group.cause] += sum(prod(shape) for shape in shapes.values() if len(shape) > 1)
    return "; ".join(cause for cause, _ in held.most_common(count))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table."""

    row: Row
    exporter: str
    nodes: int
    params: int
    plain: Outcome
    wide: Outcome | None
    simplifier: others.Finding
    torch_pruning: others.Finding
    held: str

    @property
    def name(self) -> str:
        """Row and exporter."""
        return f"{self.row.name} ({self.exporter})"

    @property
    def kept(self) -> float:
        """The smallest share of the parameters that a run kept and the checker let pass."""
        runs = [run for run in (self.plain, self.wide) if run is not None]
        return min((run.kept for run in runs if run.verified), default=1.0)

    @property
    def fine(self) -> bool:
        """Whether every run was verified, or refused because only `--width` prunes the model."""
        return (self.plain.verified or self.plain.refused) and (
            self.wide is None or self.wide.verified or self.wide.refused
        )

    def cells(self) -> list[str]:
        """As text, in the order of the columns."""
        last = self.wide or self.plain
        checks = [self.plain.check, *([self.wide.check] if self.wide else [])]
        return [
            self.row.name,
            self.exporter,
            f"{self.nodes}",
            f"{self.params / 1e6:.2f}",
            f"{self.plain.kept:.3f}",
            f"{self.wide.kept:.3f}" if self.wide else "",
            f"{last.macs:.3f}",
            f"{last.seconds:.1f}",
            " / ".join(short(check) for check in checks),
            share(self.simplifier),
            share(self.torch_pruning),
        ]


COLUMNS = (
    "architecture",
    "exporter",
    "nodes",
    "M params",
    "kept",
    "kept with width",
    "MACs kept",
    "seconds",
    "checker",
    "onnxsim keeps",
    "Torch-Pruning keeps",
)


def share(found: others.Finding) -> str:
    """A share as a number; a reason as a dash, since it is listed below the table."""
    return "-" if isinstance(found, str) else f"{found:.3f}"


def short(check: str) -> str:
    """The checker's line up to its figures."""
    return check if check.startswith("runs") and len(check) < 20 else re.split(r"[,:(]", check)[0].strip()


def measure(row: Row, exporter: str, path: Path, *, compare: bool, again: bool) -> Line:
    """Prune an export; compare: see what others make of it, too, where that is not known yet."""
    beside = path.with_name(f"{row.name.replace('/', '_')}.torch_pruning.json")
    simplified = theirs(
        path.with_suffix(".onnxsim.json"), lambda: others.alone(others.simplifier, path), compare=compare
    )
    live = theirs(beside, lambda: others.alone(others.torch_pruning, row, jitter), compare=compare)
    plain = outcome(path, width=False, again=again)
    enough = ENOUGH if isinstance(live, str) else min(ENOUGH, live + NEAR)
    wide = outcome(path, width=True, again=again) if plain.kept > enough else None
    kept = min(run.kept for run in (plain, wide) if run is not None)
    held = (
        remembered(path.with_suffix(".held.json"), lambda: reasons(path, width=wide is not None), again=again)
        if kept > enough
        else ""
    )
    nodes, params = remembered(path.with_suffix(".size.json"), lambda: size(path))
    return Line(row, exporter, nodes, params, plain, wide, simplified, live, held)


def theirs(note: Path, find: Callable[[], others.Finding], *, compare: bool) -> others.Finding:
    """What another tool made of a model."""
    return remembered(note, find) if compare or note.exists() else UNKNOWN


def summary(lines: Sequence[Line]) -> list[str]:
    """What the table shows, in counts."""
    known = [(line, line.torch_pruning) for line in lines if not isinstance(line.torch_pruning, str)]
    unknown = [line for line in lines if isinstance(line.torch_pruning, str) and line.torch_pruning != UNKNOWN]
    near = sum(line.kept <= live + NEAR for line, live in known)
    lost = sum(line.kept <= ENOUGH for line in lines)
    simplified = [line.simplifier for line in lines if line.simplifier != UNKNOWN]
    in_float64 = sum(line.plain.check.startswith(IN_DOUBLE) for line in lines)
    whole = sum(isinstance(kept, str) or kept > WHOLE for kept in simplified)
    return [
        f"{len(lines)} exports of {len({line.row.name for line in lines})} architectures",
        f"verified: {portion(sum(line.fine for line in lines), len(lines))}, of these in float64: {in_float64}",
        f"at least {1 - ENOUGH:.0%} of the parameters gone: {portion(lost, len(lines))}",
        f"Torch-Pruning prunes {portion(len(known), len(known) + len(unknown))}",
        f"kept at most its share + {NEAR} there: {portion(near, len(known))}",
        (
            f"of the {len(unknown)} it does not prune, at least {1 - ENOUGH:.0%} gone: "
            f"{sum(line.kept <= ENOUGH for line in unknown)}"
        ),
        f"onnxsim leaves {portion(whole, len(simplified))} whole (over {WHOLE:.0%} kept, or an error)",
    ]


def portion(part: int, whole: int) -> str:
    """A count of a count, as both and in per cent."""
    return f"{part} of {whole} ({part / max(whole, 1):.1%})"


def notes(lines: Sequence[Line], skipped: Sequence[str]) -> list[str]:
    """Paragraphs below the table: what holds much, what went wrong, what others failed at."""
    parts = {
        "Not verified": [
            f"{line.name}: {run.check}"
            for line in lines
            for run in (line.plain, line.wide)
            if run is not None and not run.verified and not run.refused
        ],
        f"More than {ENOUGH:.0%} kept, or more than Torch-Pruning keeps + {NEAR}: what holds the most weights": [
            f"{line.name}: {line.kept:.3f}: {line.held}" for line in lines if line.held
        ],
        "Not pruned by Torch-Pruning": sorted(
            {
                f"{line.row.name}: {line.torch_pruning}"
                for line in lines
                if isinstance(line.torch_pruning, str) and line.torch_pruning != UNKNOWN
            }
        ),
        "onnxsim ends with an error": [
            f"{line.name}: {line.simplifier}"
            for line in lines
            if isinstance(line.simplifier, str) and line.simplifier != UNKNOWN
        ],
        "Not exported": list(skipped),
    }
    return [
        text for title, found in parts.items() if found for text in (f"\n{title}:\n", *(f"- {line}" for line in found))
    ]


def main() -> int:
    """Print summary, table and notes; the exit status counts what is not verified."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "spa_onnx_reach")
    parser.add_argument("--exporter", choices=list(OPSET), action="append")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--again", action="store_true", help="prune and verify what was measured before, too")
    parser.add_argument("--others", action="store_true", help="also run onnxsim and Torch-Pruning")
    parser.add_argument("--export-only", action="store_true")
    parser.add_argument("--exported-only", action="store_true", help="measure what is in the cache, export nothing")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    wanted = tuple(given.names or (QUICK if given.quick else ("",)))
    skipped: list[str] = []
    lines: list[Line] = []
    for row in (row for row in ROWS if row.name.startswith(wanted)):
        for exporter in given.exporter or OPSET:
            path = exported(row, exporter, given.cache, anew=not given.exported_only)
            if isinstance(path, str):
                skipped += [f"{row.name} ({exporter}): {path}"] if path else []
            elif not given.export_only:
                lines.append(measure(row, exporter, path, compare=given.others, again=given.again))
                print(" | ".join(lines[-1].cells()), lines[-1].held, file=sys.stderr, flush=True)
    print(f"On {machine(*LIBRARIES)}.\n")
    print("\n".join(f"- {line}" for line in summary(lines)))
    print("\n| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    print("\n".join("| " + " | ".join(line.cells()) + " |" for line in lines))
    print("\n".join(notes(lines, skipped)))
    return min(sum(not line.fine for line in lines), 125)


if __name__ == "__main__":
    sys.exit(main())
