"""Products Y = W X: the operators that read a group's channels through a weight, and so can be refitted when some of them go."""

from spa_onnx.layers.find import consumers
from spa_onnx.layers.im2col import columns, outputs
from spa_onnx.layers.layer import ROUNDING, Consumer, Key
from spa_onnx.layers.weight_view import uses

__all__ = ["ROUNDING", "Consumer", "Key", "columns", "consumers", "outputs", "uses"]
