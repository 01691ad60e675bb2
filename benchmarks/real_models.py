"""Prune real pretrained models at several settings and hold each result against its original with an outside checker.

    python benchmarks/real_models.py [MODEL ...] [--setting '0.5' ...]

Prints the table of docs/results/real_models.md: the share of the parameters kept, by model and setting, and what the
best other ONNX pruner keeps at 0.5; then every result that the checker does not accept. Its lines go to stderr as they
come. Where a model's outputs are integers the checker compares nothing, so the quantisation at the very end is taken
off original and pruned model alike before they are compared; such lines say `float outputs`. Where a quantised model
differs by a rounding step it is compared with the operators fused, whose integer sums do not depend on their order;
such lines say `integer kernels`. Results that differ by more than the checker allows are computed again, with the
masked original, in float64.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
from shared import EXACT, MODELS, RECURRENT_AND_QUANTISED, VERIFY, checker_options, in_double, machine, other_tool

import spa_onnx

SETTINGS: dict[str, dict[str, object]] = {
    "0.1": {"ratio": 0.1, "scope": "local"},
    "0.3": {"ratio": 0.3, "scope": "local"},
    "0.5": {"ratio": 0.5, "scope": "local"},
    "0.7": {"ratio": 0.7, "scope": "local"},
    "0.9": {"ratio": 0.9, "scope": "local"},
    "0.5 global": {"ratio": 0.5, "scope": "global"},
    "0.5 multiple 8": {"ratio": 0.5, "scope": "local", "multiple": 8},
    "0.5 width": {"ratio": 0.5, "scope": "local", "width": True},
}
"""All with criterion l1 and no repair, so that weights are exact slices; the outside checker does the checking."""

GAP = re.compile(r"relative difference ([0-9.e+-]+)")


@dataclass(frozen=True)
class Outcome:
    """The result for a model at a setting.

    kept: share of the parameters, None if it was refused. line: what the checker printed.
    """

    kept: float | None
    line: str

    @property
    def fine(self) -> bool:
        """Whether the checker accepts it, or there was nothing that it could be asked."""
        return self.kept is None or self.line.startswith(("pruned == masked:", "runs, weights are exact slices;"))

    def cell(self) -> str:
        """The entry of the table."""
        if self.kept is None:
            return self.line
        gap = GAP.search(self.line)
        return f"{self.kept:.3f}" + ("" if self.fine else f" (differs by {gap.group(1)})" if gap else " (fails)")


def float_outputs(proto: onnx.ModelProto) -> bool:
    """Take QuantizeLinear off the graph's outputs, in place; True where there was one."""
    taken = False
    for value in proto.graph.output:
        for node in proto.graph.node:
            if node.op_type == "QuantizeLinear" and node.output[0] == value.name:
                value.CopyFrom(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
                proto.graph.node.remove(node)
                taken = True
                break
    return taken


def verify(original: Path, pruned: onnx.ModelProto, plan: object, folder: Path, *extra: str) -> str:
    """The outside checker's line."""
    first = onnx.load(original)
    copy = onnx.ModelProto()
    copy.CopyFrom(pruned)
    note = " (float outputs)" if float_outputs(first) and float_outputs(copy) else ""
    (folder / "plan.json").write_text(json.dumps(plan))
    line = checked(first, copy, folder, *extra)
    if "FAULT: pruned != masked" in line and any(node.op_type == "QuantizeLinear" for node in first.graph.node):
        return checked(fused(first), fused(copy), folder, *extra) + note + f" (integer kernels; run in float: {line})"
    return line + note


def checked(original: onnx.ModelProto, pruned: onnx.ModelProto, folder: Path, *extra: str) -> str:
    """The outside checker's line on two models and the plan in the folder."""
    onnx.save(original, folder / "original.onnx")
    onnx.save(pruned, folder / "pruned.onnx")
    command = [
        sys.executable,
        str(VERIFY),
        *(str(folder / name) for name in ("original.onnx", "pruned.onnx", "plan.json")),
        *extra,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def fused(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its quantised operators fused by onnxruntime.

    The fused operators add up integers, which is exact in any order.
    """
    import onnxruntime  # noqa: PLC0415 - after spa_onnx, which switches off what it reports

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "fused.onnx")
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def outcome(path: Path, setting: str, rtol: str) -> Outcome:
    """Prune one model at one setting and have it checked."""
    try:
        result = spa_onnx.prune(path, criterion="l1", repair="none", check=False, **SETTINGS[setting])  # type: ignore[arg-type]
    except spa_onnx.SpaError as error:
        return Outcome(None, "nothing" if "nothing to prune" in str(error) else "refused")
    if "width" in setting and not result.plan["inexact"]:
        return Outcome(None, "-")
    with tempfile.TemporaryDirectory() as folder:
        line = verify(path, result.model, result.plan, Path(folder), "--rtol", rtol, *checker_options(path.stem))
    found = Outcome(result.report.params[1] / result.report.params[0], line)
    return (
        found
        if found.fine
        else Outcome(found.kept, f"{line}; computed in float64 they differ by {in_double(path, result):.2g}")
    )


def main() -> int:
    """Print the table; the exit status counts the results that the checker does not accept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[*EXACT, *RECURRENT_AND_QUANTISED])
    parser.add_argument("--setting", action="append", choices=list(SETTINGS), help="several may be given; default: all")
    parser.add_argument("--rtol", default="1e-3", help="handed to the checker")
    given = parser.parse_args()
    others, settings = other_tool(), given.setting or list(SETTINGS)
    print(f"Machine: {machine()}\n")
    print(f"| model | {' | '.join(settings)} | other tool at 0.5 |")
    print("|---|" + "---|" * (len(settings) + 1))
    wrong, checked = [], 0
    for name in given.models:
        row = []
        for setting in settings:
            found = outcome(MODELS / f"{name}.onnx", setting, given.rtol)
            print(f"{name}, {setting}: {found.cell()}: {found.line}", file=sys.stderr, flush=True)
            checked += found.kept is not None
            wrong += [] if found.fine else [f"- {name} at {setting}: {found.line}"]
            row.append(found.cell())
        print(f"| {name} | {' | '.join(row)} | {others.get(name, '-')} |", flush=True)
    print(
        f"\n{checked - len(wrong)} of {checked} results are accepted by the checker."
        + "".join(f"\n{line}" for line in wrong)
    )
    return min(len(wrong), 125)


if __name__ == "__main__":
    sys.exit(main())
