"""Layers as products of matrices, for the tests of layers."""

from __future__ import annotations

import numpy as np

ALL = 10**9


def normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
