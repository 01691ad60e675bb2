"""Cost of the default, data-free prune on inputs of unusual form: long strips, spectrograms, tall tables.

    python benchmarks/input_forms.py

Each model is pruned in a process of its own, with the default `--memory` of 2.5 GB. The limit is 20 times one forward
pass of the samples through the dense model, and 10 s.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from obspa_speed import forward
from onnx import helper, numpy_helper
from shared import machine

FORMS = (
    *((1, 28, 28), (1, 1, 784), (1, 1, 8000), (1, 64, 2000), (1, 80, 3000), (1, 12000, 100)),
    (8, 12000, 100),
)
"""Numbers of inputs, their heights and widths, with one channel each."""

PRUNE = """
import json, resource, sys, time, spa_onnx
start = time.perf_counter()
result = spa_onnx.prune(sys.argv[1], 0.3)
seconds = time.perf_counter() - start
samples = next(int(word) for word in result.report.repair.split() if word.isdigit())
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, samples]))
"""


def network(inputs: int, height: int, width: int) -> onnx.ModelProto:
    """Two convolutions that shrink the inputs, a global mean and a classifier, with random weights and a free batch.

    Several inputs are joined as channels.
    """
    names = ["x"] if inputs == 1 else [f"x{number}" for number in range(inputs)]
    joined = [] if inputs == 1 else [helper.make_node("Concat", names, ["x"], "joined", axis=1)]
    rng = np.random.default_rng(0)
    kernel = min(3, height)
    shapes = {"w1": (16, inputs, kernel, 3), "b1": (16,), "w2": (24, 16, 1, 3), "b2": (24,), "w3": (24, 5), "b3": (5,)}
    nodes = [
        *joined,
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "c1", strides=[1, 4], pads=[kernel // 2, 1, kernel // 2, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2", "b2"], ["c"], "c2", strides=[1, 4]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "fc"),
    ]
    weights = [
        numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 1, height, width]) for name in names]
    made = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 5])
    graph = helper.make_graph(nodes, "form", given, [made], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def row(inputs: int, height: int, width: int) -> str:
    """Measure one form and return its line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "form.onnx")
        onnx.save(network(inputs, height, width), path)
        done = subprocess.run([sys.executable, "-c", PRUNE, path], capture_output=True, text=True, check=True)
        seconds, peak, samples = (float(word) for word in done.stdout.strip(" []\n").split(","))
        once, _ = forward(path, int(samples))
    name = f"{height} x {width}" if inputs == 1 else f"{inputs} of {height} x {width}"
    return f"| {name} | {samples:.0f} | {once:.2f} | {seconds:.1f} | {20 * once + 10:.1f} | {peak:.2f} |"


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"Machine: {machine()}\n")
    print("| input | samples | one forward pass s | prune s | limit s | peak GB |\n|---|---|---|---|---|---|")
    for form in FORMS:
        print(row(*form), flush=True)


if __name__ == "__main__":
    main()
