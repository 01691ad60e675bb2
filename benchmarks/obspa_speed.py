"""Time and memory of the default, data-free prune, and the share of each step.

    python benchmarks/obspa_speed.py [cifar_resnet56_bn] [resnet50] [--ratio 0.4]

Each model is pruned in a process of its own. Beside the seconds that passed stand the seconds that the processors
worked, which a busy machine does not change. `x forward` is how often onnxruntime could have run the calibration
samples through the dense model in that time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from shared import MODELS, machine

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
"""(blocks, channels inside a block) of ResNet-50."""

LIMITS = {"cifar_resnet56_bn": (30, None), "resnet50": (120, 3.0)}
"""(seconds, GB) that a prune is meant to stay under; and FORWARDS times the dense model."""

FORWARDS = 8


class ResNet50:
    """torchvision's ResNet-50 at 224 with random weights, from onnx.helper alone."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []

    def build(self) -> onnx.ModelProto:
        """The model, batch free."""
        x = self._op(
            "MaxPool",
            self._conv("x", 3, 64, 7, 2, "stem"),
            name="pool",
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[1] * 4,
        )
        width = 64
        for stage, (blocks, inner) in enumerate(STAGES):
            for block in range(blocks):
                x = self._block(x, width, inner, 2 if stage and not block else 1, f"stage{stage}.{block}")
                width = 4 * inner
        x = self._op("Flatten", self._op("GlobalAveragePool", x, name="average"), name="flat")
        weight = self._constant("fc.weight", self._rng.standard_normal((1000, width)) / width**0.5)
        self._nodes.append(
            helper.make_node("Gemm", [x, weight, self._constant("fc.bias", np.zeros(1000))], ["y"], "fc", transB=1)
        )
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 224, 224])
        made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1000])
        graph = helper.make_graph(self._nodes, "resnet50", [given], [made], self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _constant(self, name: str, values: np.ndarray) -> str:
        self._constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def _op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def _conv(self, x: str, into: int, out: int, size: int, stride: int, name: str, *, relu: bool = True) -> str:
        weight = self._constant(
            f"{name}.weight", self._rng.standard_normal((out, into, size, size)) * (2 / (into * size**2)) ** 0.5
        )
        y = self._op(
            "Conv", x, weight, name=name, kernel_shape=[size, size], strides=[stride] * 2, pads=[size // 2] * 4
        )
        moments = [
            self._constant(f"{name}.{part}", np.full(out, value))
            for part, value in (("g", 1), ("b", 0), ("m", 0), ("v", 1))
        ]
        y = self._op("BatchNormalization", y, *moments, name=f"{name}.norm")
        return self._op("Relu", y, name=f"{name}.relu") if relu else y

    def _block(self, x: str, width: int, inner: int, stride: int, name: str) -> str:
        y = self._conv(x, width, inner, 1, 1, f"{name}.reduce")
        y = self._conv(y, inner, inner, 3, stride, f"{name}.spatial")
        y = self._conv(y, inner, 4 * inner, 1, 1, f"{name}.expand", relu=False)
        if width != 4 * inner:
            x = self._conv(x, width, 4 * inner, 1, stride, f"{name}.shortcut", relu=False)
        return self._op("Relu", self._op("Add", x, y, name=f"{name}.add"), name=f"{name}.out")


def worked() -> float:
    """Seconds that processors have worked for this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(path: str, ratio: float) -> dict[str, Any]:
    """Prune once and return the costs.

    Seconds and processor seconds by step and together, the samples, the seconds of one forward pass over as many
    samples, and the peak in GB.
    """
    import spa_onnx  # noqa: PLC0415 - in the process that is measured

    marks: list[tuple[str, float, float]] = []
    result = spa_onnx.prune(path, ratio, progress=lambda step: marks.append((step, time.perf_counter(), worked())))
    marks.append(("", time.perf_counter(), worked()))
    steps: dict[str, list[float]] = {}
    for (step, wall, cpu), (_, later, more) in pairwise(marks):
        spent = steps.setdefault(step, [0.0, 0.0])
        spent[0] += later - wall
        spent[1] += more - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    samples = int(next(word for word in result.report.repair.split() if word.isdigit()))
    return {"steps": steps, "samples": samples, "forward": list(forward(path, samples)), "peak": peak}


def forward(path: str, samples: int, batch: int = 32) -> tuple[float, float]:
    """(seconds, processor seconds) in which onnxruntime runs that many samples through the dense model."""
    import onnxruntime as ort  # noqa: PLC0415 - in the process that is measured

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feed = {
        given.name: rng.standard_normal((batch, *given.shape[1:])).astype(np.float32) for given in session.get_inputs()
    }
    session.run(None, feed)
    wall, cpu = time.perf_counter(), worked()
    for _ in range(max(samples // batch, 1)):
        session.run(None, feed)
    scale = samples / (batch * max(samples // batch, 1))
    return (time.perf_counter() - wall) * scale, (worked() - cpu) * scale


def rows(name: str, found: dict[str, Any]) -> Iterator[str]:
    """The table of one model."""
    steps, (wall, cpu) = found["steps"], found["forward"]
    whole = [sum(spent[kind] for spent in steps.values()) for kind in (0, 1)]
    seconds, memory = LIMITS.get(name, (None, None))
    forward = f"one forward pass over them {wall:.1f} s ({cpu:.1f} s of processors)"
    yield f"\n{name}: {found['samples']} synthetic samples, {forward}"
    yield "\n| step | s | processor s | share of processor s | x forward |"
    yield "|---|---|---|---|---|"
    for step, spent in steps.items():
        yield f"| {step} | {spent[0]:.1f} | {spent[1]:.1f} | {spent[1] / whole[1]:.0%} | {spent[1] / cpu:.1f} |"
    yield f"| together | {whole[0]:.1f} | {whole[1]:.1f} | | {whole[1] / cpu:.1f} |"
    yield f"\nlimits: {seconds or '-'} s, {memory or '-'} GB, {FORWARDS} x forward; peak memory {found['peak']:.2f} GB"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(LIMITS))
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.models[0], given.ratio)))
        return
    print(f"Machine: {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.models:
            path = MODELS / f"{name}.onnx"
            if name == "resnet50":
                path = Path(folder) / "resnet50.onnx"
                onnx.save(ResNet50().build(), path)
            line = [sys.executable, __file__, str(path), "--child", "--ratio", str(given.ratio)]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
            print("\n".join(rows(name, json.loads(done.stdout.splitlines()[-1]))), flush=True)


if __name__ == "__main__":
    main()
