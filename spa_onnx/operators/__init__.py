"""All that is known about operators, one file per family. Importing this package registers them."""

from spa_onnx.operators import (
    attention,
    contrib_attention,
    conv,
    einsum,
    elementwise,
    experts,
    indexing,
    linear,
    normalization,
    padding,
    pooling,
    quantised,
    recurrent,
    reduction,
    reshaping,
    slicing,
    subgraphs,
)
from spa_onnx.operators.data_sizes import DATA_SIZE
from spa_onnx.operators.registry import OPERATORS, facts, knowledge, register

__all__ = [
    "DATA_SIZE",
    "OPERATORS",
    "attention",
    "contrib_attention",
    "conv",
    "einsum",
    "elementwise",
    "experts",
    "facts",
    "indexing",
    "knowledge",
    "linear",
    "normalization",
    "padding",
    "pooling",
    "quantised",
    "recurrent",
    "reduction",
    "register",
    "reshaping",
    "slicing",
    "subgraphs",
]
