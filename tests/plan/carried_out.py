"""Plans that are carried out for the tests of the rewriter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from nets.build import net

from spa_onnx.analysis import analyse
from spa_onnx.model.model import Model
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import Rewritten, rewrite

WEIGHTS = "float[8,3,1,1] w1, float[8] b1, float[4,8,1,1] w9, float[4] b9"

plain = net("float[N,3,4,4] x", WEIGHTS, "a = Conv(x, w1, b1) z = Relu(a) y = Conv(z, w9, b9)")

shuffled = net(
    "float[N,3,4,4] x",
    f"{WEIGHTS}, int64[5] apart = {{0, 2, 4, 4, 4}}, int64[4] back = {{0, 8, 4, 4}}",
    """a = Conv(x, w1, b1) r = Reshape(a, apart) t = Transpose<perm=[0,2,1,3,4]>(r) s = Reshape(t, back)
       z = Relu(s) y = Conv(z, w9, b9)""",
)

scaled = net(
    "float[N,3,H,4] x",
    f"{WEIGHTS}, int64[1] zero = {{0}}, int64[1] two = {{2}}, int64[1] eight = {{8}}, int64[1] four = {{4}}",
    """a = Conv(x, w1, b1) n = Shape(a) batch = Gather(n, zero) high = Gather(n, two)
       target = Concat<axis=0>(batch, eight, high, four)
       e = Relu(a) z = Reshape(e, target) y = Conv(z, w9, b9)""",
)

blended = net(
    "float[N,3,H,4] x",
    f"{WEIGHTS}, int64[1] two = {{2}}, int64[1] eight = {{8}}, int64[2] zeros = {{0, 0}}, int64[2] both = {{1, 2}}",
    """a = Conv(x, w1, b1) e = Relu(a) n = Shape(e) high = Gather(n, two) ends = Concat<axis=0>(eight, high)
       z = Slice(e, zeros, ends, both) y = Conv(z, w9, b9)""",
)

PATHS = {
    "plain": (plain, [1, 2, 5]),
    "take": (shuffled, [0, 1, 6]),
    "blend": (blended, [1, 2, 5]),
    "scale": (scaled, [1, 2, 5]),
}
"""One net for each way through the rewriter, with channels of its one group to drop."""


def carry_out(
    proto: onnx.ModelProto, drop: list[int], dims: Mapping[str, int] | None = None
) -> tuple[Model, Rewritten]:
    analysis = analyse(Model.of(proto, dims or {"N": 2, "H": 4}))
    (group,) = [group for group in analysis.prunable() if group.name.startswith("w1")]
    return analysis.model, rewrite(analysis, Plan.removing({group.name: np.asarray(drop)}, ""))
