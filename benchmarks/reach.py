"""Reach: export architectures with random weights, prune each, and hold the result against its original with the outside checker.

    python benchmarks/reach.py [NAME ...] [--cache FOLDER] [--exporter torchscript|dynamo] [--quick] [--export-only]

NAME is the start of a row's name (`timm/swin`, `transformers/bert`); `--quick` is a choice that takes about a minute. Every weight,
bias and running statistic is jittered, so that nothing is zero or equal. TorchScript exports have a symbolic batch (and sequence),
dynamo's are static. A row is pruned at 0.5 (l1, local); where more than 60 % of its parameters stay, `--width` is tried as well. What
cannot be imported or exported is listed as skipped. Exports are kept in the cache folder. Needs the extra `benchmarks`, and torch,
timm, transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
from architectures import QUICK, ROWS, Row
from shared import VERIFY, machine

import spa_onnx
from spa_onnx.model import parameters
from spa_onnx.pipeline import inspect

ENOUGH = 0.6
"""Share of the parameters from which on `--width` is tried too."""

OTHER_SIZES = {"batch": 3, "sequence": 7, "target": 5, "images": 4, "past": 6, "past + sequence": 13}
"""Symbolic dimensions while verifying: other sizes than those that the tool worked with, so that none got written into the graph."""

OPSET = {"torchscript": 17, "dynamo": 20}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One pruned export. kept, macs: shares. check: the outside checker's line, or the error."""

    kept: float
    macs: float
    seconds: float
    check: str

    @property
    def verified(self) -> bool:
        """Whether the checker compared or, where the plan is inexact, at least ran it."""
        return self.check.startswith(("pruned == masked", "runs"))

    @property
    def refused(self) -> bool:
        """Whether nothing could go: a norm over every axis, say, so that only `--width` prunes it."""
        return self.check.startswith("RefusedError: nothing to prune")


def jitter(model: Any) -> None:
    """Make every parameter and running statistic different from zero, from one, and from its neighbours, in place."""
    import torch  # noqa: PLC0415 - an extra

    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            running = name.endswith(("running_mean", "running_var"))
            if not tensor.is_floating_point() or not tensor.numel() or (not running and not isinstance(tensor, torch.nn.Parameter)):
                continue
            spread, level = (tensor.std().item() if tensor.numel() > 1 else 0.0), tensor.abs().mean().item()
            if spread > 1e-3 * max(level, 1e-6):
                fair = max(spread, prod(tensor.shape[1:]) ** -0.5 if tensor.ndim > 1 else 0.1)
                tensor.mul_(fair / spread).add_(torch.randn_like(tensor) * fair * 0.1)
            elif level < 1e-7:
                tensor.copy_(torch.randn_like(tensor) * 0.1)
            else:
                tensor.copy_((0.5 + torch.rand_like(tensor)) * max(level, 0.1))


def export(row: Row, exporter: str, path: Path) -> None:
    """Write the row's model to a path; raises whatever torch raises."""
    import torch  # noqa: PLC0415 - an extra

    torch.manual_seed(0)
    model, inputs, dynamic = row.build()
    model = model.eval()
    jitter(model)
    with torch.no_grad():
        model(*inputs.values())
        common: dict[str, Any] = {"input_names": list(inputs), "opset_version": OPSET[exporter]}
        if exporter == "torchscript":
            torch.onnx.export(model, tuple(inputs.values()), str(path), dynamo=False, dynamic_axes=dynamic, **common)
        else:
            torch.onnx.export(model, tuple(inputs.values()), str(path), dynamo=True, external_data=False, verbose=False, **common)


def exported(row: Row, exporter: str, cache: Path) -> Path | str:
    """The export in the cache, made if it is not there; a string says why there is none."""
    path = cache / f"{row.name.replace('/', '_')}.{exporter}.onnx"
    note = path.with_suffix(".skipped")
    if note.exists():
        return note.read_text(encoding="utf-8")
    if not path.exists():
        begun = path.with_suffix(".part")
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                export(row, exporter, begun)
            begun.rename(path)
        except Exception as error:  # noqa: BLE001 - an exporter may raise anything
            text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
            if not isinstance(error, ImportError):
                note.write_text(text, encoding="utf-8")
            return text
    return path


def prune(path: Path, *, width: bool) -> Outcome:
    """Prune an export at 0.5 and verify it."""
    begun = time.perf_counter()
    try:
        result = spa_onnx.prune(path, 0.5, criterion="l1", scope="local", width=width)
    except Exception as error:  # noqa: BLE001 - a traceback is a finding
        return Outcome(1.0, 1.0, time.perf_counter() - begun, f"{type(error).__name__}: {str(error)[:300]}")
    spent = sum(result.report.seconds.get(step, 0.0) for step in ("analyse", "score", "select", "rewrite"))
    with tempfile.TemporaryDirectory() as folder:
        pruned, plan = Path(folder) / "pruned.onnx", Path(folder) / "plan.json"
        onnx.save(result.model, pruned)
        plan.write_text(json.dumps(result.plan), encoding="utf-8")
        command = [sys.executable, str(VERIFY), str(path), str(pruned), str(plan), "--seeds", "2"]
        command += [f"--dim={name}={size}" for name, size in OTHER_SIZES.items()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = done.stdout.strip() or (done.stderr.strip().splitlines() or ["no answer"])[-1]
    params, macs = result.report.params, result.report.macs
    return Outcome(params[1] / max(params[0], 1), macs[1] / max(macs[0], 1), spent, line)


def reasons(path: Path, *, width: bool, count: int = 2) -> str:
    """What holds the most weights of an export: causes of pins with the share of the parameters that they touch."""
    analysis = inspect(path, width=width)
    held: Counter[str] = Counter()
    for group in analysis.pinned():
        shapes = {axis.tensor: analysis.model.shape(axis.tensor) or () for axis in group.weights(analysis.model)}
        held[group.cause] += sum(prod(shape) for shape in shapes.values() if len(shape) > 1)
    return "; ".join(cause for cause, _ in held.most_common(count))


def measure(row: Row, exporter: str, path: Path) -> tuple[str, bool]:
    """A line of the table, and whether all is well."""
    proto = onnx.load(path)
    plain = prune(path, width=False)
    wide = prune(path, width=True) if plain.kept > ENOUGH else None
    last = wide or plain
    cells = [
        row.name,
        exporter,
        f"{len(proto.graph.node)}",
        f"{parameters(proto) / 1e6:.2f}",
        f"{plain.kept:.3f}",
        f"{plain.macs:.3f}",
        f"{wide.kept:.3f}" if wide else "",
        f"{last.seconds:.1f}",
        f"{plain.check} / {wide.check}" if wide else plain.check,
        reasons(path, width=wide is not None) if last.kept > ENOUGH else "",
    ]
    return "| " + " | ".join(cells) + " |", last.verified and (plain.verified or plain.refused)


def main() -> int:
    """Print the table and what was skipped; the exit status counts what is not verified."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "spa_onnx_reach")
    parser.add_argument("--exporter", choices=list(OPSET), action="append")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--export-only", action="store_true")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    wanted = tuple(given.names or (QUICK if given.quick else ("",)))
    print(f"Machine: {machine()}\n")
    print("| architecture | exporter | nodes | M params | kept | MACs kept | kept with width | seconds | checker | held by |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    skipped, wrong, done = [], 0, 0
    for row in (row for row in ROWS if row.name.startswith(wanted)):
        for exporter in given.exporter or OPSET:
            path = exported(row, exporter, given.cache)
            if isinstance(path, str):
                skipped.append(f"{row.name} ({exporter}): {path}")
            elif not given.export_only:
                line, fine = measure(row, exporter, path)
                print(line, flush=True)
                wrong, done = wrong + (not fine), done + 1
    print(f"\n{done - wrong} of {done} verified, {len(skipped)} skipped")
    print("\n".join(f"- {line}" for line in skipped))
    return min(wrong, 125)


if __name__ == "__main__":
    sys.exit(main())
