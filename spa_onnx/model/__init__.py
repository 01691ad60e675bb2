"""The ONNX graph as the rest sees it: nodes, axes, shapes, constants, quantised and foreign operators."""
