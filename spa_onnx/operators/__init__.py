"""All that is known about operators, one file per family; importing this package fills the tables."""

from spa_onnx.operators import (
    attention,
    conv,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    quantised,
    recurrent,
    reduction,
    reshaping,
    slicing,
    subgraphs,
)
from spa_onnx.operators.registry import RULES, facts
from spa_onnx.operators.updates import FOLLOWERS

__all__ = [
    "FOLLOWERS",
    "RULES",
    "attention",
    "conv",
    "elementwise",
    "facts",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "quantised",
    "recurrent",
    "reduction",
    "reshaping",
    "slicing",
    "subgraphs",
]
