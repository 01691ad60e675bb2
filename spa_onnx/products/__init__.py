"""Products Y = W X: the operators that read a group's channels through a weight, and so can be refitted when some of them go."""

from spa_onnx.products.consumer import ROUNDING, Consumer, Key
from spa_onnx.products.find import consumers
from spa_onnx.products.form import uses
from spa_onnx.products.unfold import columns, outputs

__all__ = ["ROUNDING", "Consumer", "Key", "columns", "consumers", "outputs", "uses"]
