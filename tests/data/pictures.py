"""Models that take images, and files of images, for the tests of data."""

from __future__ import annotations

import numpy as np
from nets.build import net

NCHW = net("float[N,3,8,6] image", "float[5,3,1,1] w", "y = Conv(image, w)", "float[N,5,8,6] y")()

TWO = net("int64[N,L] ids, float[N,L] mask", "float[1] w", "f = Cast<to=1>(ids) y = Mul(f, mask)", "float[N,L] y")()

IMAGE = np.ones((2, 3, 8, 6), np.float32)
