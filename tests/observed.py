"""Nets, samples and statistics for the tests of statistics and synthetic samples."""

from __future__ import annotations

from nets.build import net

BIG = net(
    "float[N,3,24,24] x",
    "float[8,3,3,3] w1, float[8,8,3,3] w2, float[6,8,3,3] w3, float[4,6,1,1] w4",
    "a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w2) d = Relu(c) "
    "e = Conv<pads=[1,1,1,1]>(d, w3) f = Relu(e) "
    "y = Conv(f, w4)",
    "float[N,4,24,24] y",
)
