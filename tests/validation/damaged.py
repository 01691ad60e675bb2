"""A pruned model for the tests of validation, and ways to damage it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from nets.build import net
from onnx import numpy_helper

from spa_onnx.analysis import analyse
from spa_onnx.model.model import Model
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import Rewritten, rewrite

three = net(
    "float[N,3,4,4] x",
    "float[8,3,1,1] w1, float[8] b1, float[8,8,1,1] w2, float[8] b2, float[4,8,1,1] w3, float[4] b3",
    "a = Conv(x, w1, b1) p = Relu(a) b = Conv(p, w2, b2) q = Relu(b) y = Conv(q, w3, b3)",
)


def pruned() -> tuple[Model, Rewritten]:
    proto = three()
    for node in proto.graph.node:
        node.name = f"make_{node.output[0]}"
    analysis = analyse(Model.of(proto))
    return analysis.model, rewrite(
        analysis, Plan.removing({"w1[0]": np.asarray([1, 4]), "w2[0]": np.asarray([0, 2, 7])}, "")
    )


def change(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    """Damage that changes the values of one initializer."""

    def damage(proto: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
        tensor.CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(function(np.array(numpy_helper.to_array(tensor)))), name)
        )

    return damage


def bumped(array: np.ndarray) -> np.ndarray:
    """One weight differs by a tenth of the largest."""
    array.flat[3] += 0.1 * np.abs(array).max()
    return array
