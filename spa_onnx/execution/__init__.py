"""Running models: sessions in onnxruntime, a float64 reference, and partial execution."""
