"""Reading and writing ONNX models: nodes, axes, shapes, constants, quantised constants and subgraphs."""
