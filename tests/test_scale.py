"""The work of the analysis grows with the graph and no faster.

Calls are counted, because seconds vary from run to run.
"""

from __future__ import annotations

import cProfile
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest
from command import REPOSITORY

from spa_onnx.analysis import analyse
from spa_onnx.model.model import Model

if TYPE_CHECKING:
    from types import ModuleType

    import onnx


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark that makes large graphs."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return pytest.importorskip("scale")


def calls(proto: onnx.ModelProto) -> int:
    """How many functions are called to read a graph and to find its groups."""
    profile = cProfile.Profile()
    profile.runcall(lambda: analyse(Model.of(proto)))
    return sum(entry.callcount for entry in profile.getstats())


def star(scale: ModuleType, nodes: int) -> onnx.ModelProto:
    """Many reshapes of one tensor: each is a choice, and all touch the same axis."""
    graph = scale.Graph()
    x = graph.add("Conv", "image", graph.weight(12, 3, 1, 1))
    parts = [graph.add("Reshape", x, graph.constant(0, a, 12 // a, -1)) for a in nodes // 3 * [2, 3, 4]]
    flat = [graph.add("Relu", part) for part in parts]
    result = graph.add("Concat", *(graph.add("Reshape", part, graph.constant(0, -1)) for part in flat), axis=1)
    return graph.finish(scale.helper.make_tensor_value_info("image", 1, ["batch", 3, 4, 4]), result)


@pytest.mark.parametrize(("make", "size"), [("chain", 300), ("transformer", 300), ("wide", 60_000), ("star", 120)])
def test_four_times_the_graph_is_four_times_the_work(scale, make, size):
    maker = partial(star, scale) if make == "star" else getattr(scale, make)
    small, large = maker(size), maker(4 * size)
    nodes = len(large.graph.node) / len(small.graph.node)
    calls(small)  # imports and caches
    assert calls(large) <= 1.1 * nodes * calls(small)


def test_a_graph_of_a_billion_parameters_is_analysed_without_their_values(scale):
    found = Counter(group.size for group in analyse(Model.of(scale.billion())).prunable())
    assert found == {8: 16, 8192: 16}
