"""Analysis time against the size of the graph: seconds per node must not grow.

    python benchmarks/scale.py [--largest 100000] [--repeat 2]

Chains of convolutions, transformers with grouped-query attention, and networks that split, concatenate, group and
flatten wide tensors, so that indices have to be followed one by one, each at several sizes; then one graph of the shape
of a LLaMA with a billion parameters. Weights have a place and no data: the analysis needs their shapes alone. Reading
the graph (shape inference, shape arithmetic) and finding its groups are timed apart, the smallest of several runs each,
in one process.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from shared import machine

from spa_onnx.analysis import analyse
from spa_onnx.analysis.groups import Analysis
from spa_onnx.model.model import Model, parameters

INF = float("inf")


class Graph:
    """A graph under construction. Weights are external tensors in a file that does not exist."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._stored: list[TensorProto] = []

    def weight(self, *shape: int) -> str:
        """A float tensor without data."""
        tensor = TensorProto(
            name=f"w{len(self._stored)}", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value="nowhere")
        self._stored.append(tensor)
        return tensor.name

    def constant(self, *values: float) -> str:
        """A short vector with data."""
        kind = np.int64 if isinstance(values[0], int) else np.float32
        self._stored.append(numpy_helper.from_array(np.asarray(values, kind), f"c{len(self._stored)}"))
        return self._stored[-1].name

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Append a node; the name of its (first) output."""
        name = f"t{len(self._nodes)}"
        names = [name, *(f"{name}_{place}" for place in range(1, outputs))]
        self._nodes.append(helper.make_node(operator, list(inputs), names, name=f"n{len(self._nodes)}", **attributes))
        return name

    def norm(self, x: str, width: int) -> str:
        """Append an RMS normalisation in parts; the name of its output."""
        mean = self.add("ReduceMean", self.add("Mul", x, x), self.constant(-1))
        scale = self.add("Sqrt", self.add("Add", mean, self.constant(1e-5)))
        return self.add("Mul", self.add("Div", x, scale), self.weight(width))

    def __len__(self) -> int:
        return len(self._nodes)

    def finish(self, source: onnx.ValueInfoProto, result: str) -> onnx.ModelProto:
        """The model."""
        output = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        graph = helper.make_graph(self._nodes, "scale", [source], [output], self._stored)
        return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])


def chain(nodes: int) -> onnx.ModelProto:
    """Residual blocks of two convolutions: nothing but axes that correspond index by index."""
    graph, width = Graph(), 16
    x = graph.add("Conv", "image", graph.weight(width, 3, 1, 1))
    while len(graph) < nodes:
        inner = graph.add("Relu", graph.add("Conv", x, graph.weight(width, width, 1, 1), graph.weight(width)))
        x = graph.add("Relu", graph.add("Add", x, graph.add("Conv", inner, graph.weight(width, width, 1, 1))))
    return graph.finish(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8]), x)


def transformer(nodes: int) -> onnx.ModelProto:
    """Layers of grouped-query attention and a gated feed-forward network, as exporters write them."""
    return decoder(width=64, heads=8, shared=4, hidden=172, vocabulary=512, nodes=nodes)


def billion() -> onnx.ModelProto:
    """Build the shape of a LLaMA with 1.5 billion parameters.

    16 layers, 2048 wide, 8 key-value for 32 query heads, 8192 hidden channels.
    """
    return decoder(width=2048, heads=32, shared=8, hidden=8192, vocabulary=128_256, layers=16)


def decoder(
    *, width: int, heads: int, shared: int, hidden: int, vocabulary: int, nodes: float = INF, layers: float = INF
) -> onnx.ModelProto:
    """Embedding, layers until there are that many of them or of nodes, norm, head."""
    graph, head, done = Graph(), width // heads, 0
    cosines, sines = graph.weight(1, 1, 16, head), graph.weight(1, 1, 16, head)
    x = graph.add("Gather", graph.weight(vocabulary, width), "tokens")
    size = graph.add("Shape", "tokens")
    batch, length = (graph.add("Gather", size, graph.constant(place)) for place in (0, 1))

    def split_heads(x: str, count: int) -> str:
        target = graph.add("Concat", batch, length, graph.constant(count, head), axis=0)
        return graph.add("Transpose", graph.add("Reshape", x, target), perm=[0, 2, 1, 3])

    def rotated(x: str) -> str:
        half = head // 2
        parts = [
            graph.add("Slice", x, graph.constant(a), graph.constant(b), graph.constant(3))
            for a, b in ((0, half), (half, head))
        ]
        turned = graph.add("Concat", graph.add("Neg", parts[1]), parts[0], axis=3)
        return graph.add("Add", graph.add("Mul", x, cosines), graph.add("Mul", turned, sines))

    def repeated(x: str) -> str:
        """Every key-value head for each query head that shares it."""
        times = heads // shared
        wide = graph.add("Concat", batch, graph.constant(shared, times), length, graph.constant(head), axis=0)
        flat = graph.add("Concat", batch, graph.constant(heads), length, graph.constant(head), axis=0)
        return graph.add("Reshape", graph.add("Expand", graph.add("Unsqueeze", x, graph.constant(2)), wide), flat)

    while len(graph) < nodes and done < layers:
        done += 1
        seen = graph.norm(x, width)
        query, key, value = (
            graph.add("MatMul", seen, graph.weight(width, count * head)) for count in (heads, shared, shared)
        )
        query, key, value = (
            rotated(split_heads(query, heads)),
            rotated(split_heads(key, shared)),
            split_heads(value, shared),
        )
        scores = graph.add("MatMul", query, graph.add("Transpose", repeated(key), perm=[0, 1, 3, 2]))
        mixed = graph.add("MatMul", graph.add("Softmax", scores), repeated(value))
        merged = graph.add("Concat", batch, length, graph.constant(width), axis=0)
        together = graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), merged)
        x = graph.add("Add", x, graph.add("MatMul", together, graph.weight(width, width)))
        seen = graph.norm(x, width)
        gate, up = (graph.add("MatMul", seen, graph.weight(width, hidden)) for _ in range(2))
        gated = graph.add("Mul", graph.add("Mul", gate, graph.add("Sigmoid", gate)), up)
        x = graph.add("Add", x, graph.add("MatMul", gated, graph.weight(hidden, width)))
    result = graph.add("MatMul", graph.norm(x, width), graph.weight(width, vocabulary))
    return graph.finish(helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", 16]), result)


def wide(indices: int) -> onnx.ModelProto:
    """Build blocks of a split, grouped convolutions and a concatenation, with a flatten at the end.

    It has about this many indices, and each is followed by itself.
    """
    graph, width = Graph(), 1024
    x = graph.add("Conv", "image", graph.weight(width, 3, 1, 1))
    for _ in range(max(indices // (10 * width) - 7, 1)):
        left = graph.add("Split", x, outputs=2, axis=1, num_outputs=2)
        grouped = graph.add("Conv", f"{left}_1", graph.weight(width // 2, width // 8, 1, 1), group=4)
        both = graph.add("Concat", graph.add("Relu", left), graph.add("Relu", grouped), axis=1)
        x = graph.add("Conv", both, graph.weight(width, width, 1, 1))
    flat = graph.add("Flatten", x)
    return graph.finish(
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8]),
        graph.add("MatMul", flat, graph.weight(64 * width, 10)),
    )


def measured(proto: onnx.ModelProto, repeat: int) -> tuple[float, float, Analysis]:
    """(processor seconds to read the graph, to find its groups, the groups)."""
    reading, finding = [], []
    for _ in range(repeat):
        gc.collect()
        begin = time.process_time()
        model = Model.of(proto)
        middle = time.process_time()
        analysis = analyse(model)
        finding.append(time.process_time() - middle)
        reading.append(middle - begin)
    return min(reading), min(finding), analysis


def row(name: str, proto: onnx.ModelProto, repeat: int) -> str:
    """One line of the table."""
    reading, finding, analysis = measured(proto, repeat)
    nodes = len(proto.graph.node)
    indices = sum(len(owner) for group in analysis.groups for owner in group.owner.values())
    total = reading + finding
    found = f"{len(analysis.prunable())} | {reading:.2f} | {finding:.2f} | {total:.2f} | {1e6 * total / nodes:.0f}"
    return f"| {name} | {nodes} | {parameters(proto) / 1e6:.1f} M | {indices / 1e6:.2f} M | {found} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=100_000, help="nodes of the largest graphs")
    parser.add_argument("--repeat", type=int, default=2)
    given = parser.parse_args()
    print(f"Machine: {machine()}\n")
    print(
        "| graph | nodes | parameters | indices | groups | reading s | finding s | together s | microseconds per node |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    makers: list[tuple[Callable[[int], onnx.ModelProto], int]] = [(chain, 1), (transformer, 1), (wide, 100)]
    for make, scale in makers:
        for nodes in (1000, 10_000, 100_000):
            if nodes <= given.largest:
                print(row(make.__name__, make(nodes * scale), given.repeat), flush=True)
    print(row("LLaMA", billion(), given.repeat))
    print(f"\npeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
