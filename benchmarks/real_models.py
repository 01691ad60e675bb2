"""Prune real pretrained models at several settings and hold each result against its original with an outside checker.

    python benchmarks/real_models.py [MODEL ...] [--setting 'ratio=0.5' ...] [--markdown]

Prints, for each model and setting, the share of parameters and MACs kept, what the best other ONNX pruner keeps at 0.5, and the line of
the outside checker. Where a model's outputs are integers the checker compares nothing, so the quantisation at the very end is taken off
original and pruned model alike before they are compared; such lines say `float outputs`. Where a quantised model differs by a rounding
step it is compared with the operators fused, whose integer sums do not depend on their order; such lines say `integer kernels`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from shared import CONVOLUTIONAL, MODELS, VERIFY, machine, other_tool

import spa_onnx
from spa_onnx import runtime
from spa_onnx.cut import Removal
from spa_onnx.pipeline import inspect
from spa_onnx.validate import difference, mask

SETTINGS: dict[str, dict[str, object]] = {
    "0.3": {"ratio": 0.3, "scope": "local"},
    "0.5": {"ratio": 0.5, "scope": "local"},
    "0.7": {"ratio": 0.7, "scope": "local"},
    "0.1": {"ratio": 0.1, "scope": "local"},
    "0.9": {"ratio": 0.9, "scope": "local"},
    "0.5 global": {"ratio": 0.5, "scope": "global"},
    "0.5 multiple 8": {"ratio": 0.5, "scope": "local", "multiple": 8},
}
"""All with criterion l1 and no repair, so that weights are exact slices; the outside checker does the checking."""


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
    command = [sys.executable, str(VERIFY), *(str(folder / name) for name in ("original.onnx", "pruned.onnx", "plan.json")), *extra]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def fused(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its quantised operators fused by onnxruntime: they then add up integers, which is exact in any order."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "fused.onnx")
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def conditioning(path: Path, plan: dict[str, Any]) -> str:
    """How far the masked original's own outputs move, relatively, when its float inputs change by 1e-7 of themselves."""
    analysis = inspect(path)
    drop = {group["name"]: np.asarray(group["removed"]) for group in plan["groups"]}
    masked = runtime.session(mask(analysis.model, Removal(analysis, drop)))
    worst = 0.0
    for seed in range(3):
        feed = runtime.random_feed(analysis.model, analysis.model.inference.dims, seed)
        noise = np.random.default_rng(seed)
        moved = {
            n: (a * (1 + 1e-7 * noise.standard_normal(a.shape))).astype(a.dtype) if a.dtype.kind == "f" else a for n, a in feed.items()
        }
        outputs = zip(runtime.run(masked, feed), runtime.run(masked, moved), strict=True)
        worst = max(worst, *(difference(want, got) for want, got in outputs if want.dtype.kind == "f"), 0.0)
    return f"; the masked original moves by {worst:.2g} when its inputs move by 1e-7"


def main() -> int:
    """Print the table; the exit status counts the models that are not pruned == masked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=CONVOLUTIONAL)
    parser.add_argument("--setting", action="append", choices=list(SETTINGS))
    parser.add_argument("--rtol", default="1e-3", help="handed to the checker")
    given = parser.parse_args()
    others, wrong = other_tool(), 0
    print(f"Machine: {machine()}\n")
    print("| model | setting | params kept | other tool at 0.5 | MACs kept | seconds | checker |")
    print("|---|---|---|---|---|---|---|")
    for name in given.models:
        for setting in given.setting or ["0.5"]:
            path = MODELS / f"{name}.onnx"
            try:
                result = spa_onnx.prune(path, criterion="l1", repair="none", check=False, **SETTINGS[setting])  # type: ignore[arg-type]
            except spa_onnx.SpaError as error:
                print(f"| {name} | {setting} | | {others.get(name, '-')} | | | refused: {error} |", flush=True)
                wrong += 1
                continue
            with tempfile.TemporaryDirectory() as folder:
                line = verify(path, result.model, result.plan, Path(folder), "--rtol", given.rtol)
            report = result.report
            params, macs = report.params[1] / report.params[0], report.macs[1] / report.macs[0]
            seconds = sum(report.seconds[step] for step in ("analyse", "score", "select", "rewrite") if step in report.seconds)
            if "pruned == masked:" not in line:
                wrong += 1
                line += conditioning(path, result.plan)
            print(f"| {name} | {setting} | {params:.3f} | {others.get(name, '-')} | {macs:.3f} | {seconds:.2f} | {line} |", flush=True)
    print(f"\n{wrong} not verified")
    return min(wrong, 125)


if __name__ == "__main__":
    sys.exit(main())
