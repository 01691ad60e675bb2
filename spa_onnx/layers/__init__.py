"""Linear layers Y = W X: operators with a weight that can be refitted when some of its inputs are removed."""

from spa_onnx.layers.find import linear_layers
from spa_onnx.layers.im2col import columns, outputs
from spa_onnx.layers.layer import Columns, LayerKey, LinearLayer
from spa_onnx.layers.weight_view import count_uses

__all__ = ["Columns", "LayerKey", "LinearLayer", "columns", "count_uses", "linear_layers", "outputs"]
