"""Time and memory: analysis + selection + rewriting (validation off) against onnxsim's structured pruning, in one run.

    python benchmarks/speed.py [MODEL ...] [--repeat 3]

Each figure is the smallest of several runs, taken in turns, of a call on a model that is already loaded; peak memory is
that of a fresh process. Then two whole processes as ratios to an import: `prune --no-validate`, and `--help`. Needs the
extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx
from shared import CONVOLUTIONAL, MODELS, machine

LARGE = 100
"""Nodes from which on a model is not small."""

IMPORTS = "import onnx, onnxruntime, onnx_graphsurgeon, networkx, scipy.sparse"
PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
OURS = "import onnx, spa_onnx; spa_onnx.prune(onnx.load({path!r}), 0.5, criterion='l1', check=False)"
THEIRS = "import onnx, onnxsim; onnxsim.apply_structured_pruning(onnx.load({path!r}), sparsity=0.5)"


def best(calls: list[Callable[[], object]], repeat: int) -> list[float]:
    """Smallest seconds of each call, run in turns so that a busy machine slows all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeat):
        for call, spent in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            spent.append(time.perf_counter() - begin)
    return [min(spent) for spent in times]


def peak(code: str) -> float:
    """Peak MB of a fresh process that runs the code."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{PEAK}"], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1]) / 1024


def compare(name: str, repeat: int) -> tuple[int, float, float, float, float]:
    """(nodes, our seconds, their seconds, our peak MB, their peak MB)."""
    import onnxsim  # noqa: PLC0415 - an extra

    import spa_onnx  # noqa: PLC0415 - after the arguments are known to be right

    path = str(MODELS / f"{name}.onnx")
    proto = onnx.load(path)
    ours, theirs = best(
        [
            lambda: spa_onnx.prune(proto, 0.5, criterion="l1", check=False),
            lambda: onnxsim.apply_structured_pruning(proto, sparsity=0.5),
        ],
        repeat,
    )
    return len(proto.graph.node), ours, theirs, peak(OURS.format(path=path)), peak(THEIRS.format(path=path))


def process(command: list[str]) -> Callable[[], object]:
    """A call that runs a whole process, which finds its modules compiled, as they are after their first use."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return lambda: subprocess.run(command, check=True, capture_output=True, env=environment)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=CONVOLUTIONAL)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    print(f"Machine: {machine('onnxsim')}\n")
    print("| model | nodes | spa-onnx s | onnxsim s | ratio | spa-onnx peak MB | onnxsim peak MB |")
    print("|---|---|---|---|---|---|---|")
    ratios, lighter = [], 0
    for name in given.models:
        nodes, ours, theirs, ours_peak, theirs_peak = compare(name, given.repeat)
        print(
            f"| {name} | {nodes} | {ours:.3f} | {theirs:.3f} | {ours / theirs:.2f} | {ours_peak:.0f} | "
            f"{theirs_peak:.0f} |",
            flush=True,
        )
        ratios.append((nodes, ours / theirs))
        lighter += ours_peak < theirs_peak
    for least in (0, LARGE):
        some = [ratio for nodes, ratio in ratios if nodes > least]
        if some:
            print(
                f"\n{len(some)} models of more than {least} nodes: onnxsim is "
                f"{min(some):.1f} to {max(some):.1f} times faster"
            )
    print(f"\nspa-onnx takes less memory on {lighter} of {len(ratios)}")
    with tempfile.TemporaryDirectory() as folder:
        command = str(Path(sys.executable).with_name("spa-onnx"))
        model, output = str(MODELS / "cifar_resnet56_ts17.onnx"), str(Path(folder) / "out.onnx")
        pruning = [
            command,
            "prune",
            model,
            "-o",
            output,
            "--force",
            "--ratio",
            "0.5",
            "--criterion",
            "l1",
            "--no-validate",
        ]
        imports, pruned, help_ = best(
            [process([sys.executable, "-c", IMPORTS]), process(pruning), process([command, "--help"])], 2 * given.repeat
        )
    print(f"\nimport of the libraries: {imports:.2f} s")
    print(
        f"spa-onnx prune cifar_resnet56_ts17 --criterion l1 --no-validate: {pruned:.2f} s, "
        f"{pruned / imports:.2f} x the import"
    )
    print(f"spa-onnx --help: {help_:.2f} s, {help_ / imports:.2f} x the import")


if __name__ == "__main__":
    main()
