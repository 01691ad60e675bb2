"""Coupling rules, one file per operator family; importing this package fills the tables."""

from spa_onnx.rules import (
    attention,
    bodies,
    conv,
    elementwise,
    index,
    join,
    layout,
    linear,
    norm,
    pool,
    quantised,
    recurrent,
    reduce,
    shuffle,
)
from spa_onnx.rules.follow import FOLLOWERS
from spa_onnx.rules.registry import RULES, facts

__all__ = [
    "FOLLOWERS",
    "RULES",
    "attention",
    "bodies",
    "conv",
    "elementwise",
    "facts",
    "index",
    "join",
    "layout",
    "linear",
    "norm",
    "pool",
    "quantised",
    "recurrent",
    "reduce",
    "shuffle",
]
